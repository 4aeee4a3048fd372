"""A few hundred damaged inputs through the doors that users come in by; `make fuzz` runs 20,000."""

import subprocess
import sys

import pytest

from conftest import REPO

PROGRAM = REPO / "tests/fabricate/damage.py"


@pytest.mark.skipif(sys.platform == "win32", reason="alarms are not there")
def test_every_damaged_input_is_accepted_or_refused_with_a_sentence():
    command = [sys.executable, str(PROGRAM), "--inputs", "400", "--seed", "7", "--small"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    total = next(line for line in done.stdout.splitlines() if line.startswith("| all |"))
    inputs, accepted, refused, defects = (
        int(cell.replace(",", "")) for cell in total.split("|")[2:6]
    )
    assert (inputs, defects) == (accepted + refused, 0)
    assert min(accepted - 30, refused - 200) > 0, "both answers are given"


@pytest.mark.skipif(sys.platform == "win32", reason="alarms are not there")
@pytest.mark.parametrize(
    ("door", "problem"),
    [
        ("raise KeyError('x')", "KeyError: 'x'"),
        ("raise EquipoiseError('')", "a sentence of 0 characters"),
        ("open(outside, 'w')", "touched open"),
        ("time.sleep(9)", "longer than 3 s"),
        ("sum(range(5 * 10**7))", "s of processor time"),
    ],
)
def test_the_guard_notices(tmp_path, door, problem):
    code = f"""
import sys, time
sys.path[:0] = [{str(REPO / "tests")!r}, {str(REPO / "src")!r}]
from fabricate import damage
from pathlib import Path
from equipoise.core.errors import EquipoiseError
damage.SECONDS_MAX, damage.CLOCK_MAX, outside = 0.1, 3, {str(tmp_path / "outside")!r}
guard = damage.Guard(Path({str(tmp_path / "inside")!r}))
def door():
    {door}
guard.run("kind", "input", door)
print(guard.defects, guard.counts["kind", "defect"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert problem in done.stdout
    assert done.stdout.endswith("1\n")
