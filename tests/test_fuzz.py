"""A share of the fuzzing of the REST interface (``make fuzz``)."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.timeout(900)  # a minute, on a machine that does nothing else
def test_a_share_of_the_fuzzing() -> None:
    command = [sys.executable, "-m", "bench.fuzz", "--requests", "150", "--seed", "11"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "POST /v1/plans/{plan_id}/checkpoint" in done.stdout
    assert "0 answers are wrong" in done.stdout
