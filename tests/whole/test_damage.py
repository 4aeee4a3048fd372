"""A few hundred damaged inputs through the doors that users come in by; `make fuzz` runs 20,000."""

import json
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


#: What a door must not do -> what the guard says of it.
DOORS = {
    "raise KeyError('x')": "KeyError: 'x'",
    "raise EquipoiseError('')": "a sentence of 0 characters",
    "open(outside, 'w')": "touched open",
    "time.sleep(9)": "longer than 3 s",
    "sum(range(5 * 10**7))": "s of processor time",
}
#: Each of them under a guard of its own, in one process: what watches a process stays in it.
GUARDED = """
import json, sys, time
tests, source, folder, *doors = sys.argv[1:]
sys.path[:0] = [tests, source]
from fabricate import damage
from pathlib import Path
from equipoise.core.errors import EquipoiseError
damage.SECONDS_MAX, damage.CLOCK_MAX, outside = 0.1, 3, folder + "/outside"
said = []
for number, door in enumerate(doors):
    guard = damage.Guard(Path(folder, f"inside{number}"))
    guard.run("kind", "input", lambda: exec(door))
    said.append([str(guard.defects), guard.counts["kind", "defect"]])
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def noticed(tmp_path_factory):
    """Door -> what the guard said of it, and how many defects it counted."""
    folders = map(str, (REPO / "tests", REPO / "src", tmp_path_factory.mktemp("guarded")))
    command = [sys.executable, "-c", GUARDED, *folders, *DOORS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(DOORS, json.loads(done.stdout.splitlines()[-1])))


@pytest.mark.skipif(sys.platform == "win32", reason="alarms are not there")
@pytest.mark.parametrize("door", DOORS)
def test_the_guard_notices(noticed, door):
    said, defects = noticed[door]
    assert DOORS[door] in said
    assert defects == 1
