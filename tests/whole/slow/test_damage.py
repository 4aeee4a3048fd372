"""Thousands of damaged inputs: each is accepted, or refused with a sentence.

The gate runs 400 of them (tests/whole/test_damage.py). The figures of the last long run stand in
benchmarks/README.md, with date and commit.
"""

import subprocess
import sys

import pytest

from conftest import REPO


@pytest.mark.skipif(sys.platform == "win32", reason="alarms are not there")
def test_every_damaged_input_is_accepted_or_refused_with_a_sentence(seed, request):
    inputs = request.config.getoption("--inputs")
    program = str(REPO / "tests/fabricate/damage.py")
    command = [sys.executable, program, "--inputs", str(inputs), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    print("\n" + done.stdout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert "| all |" in done.stdout
