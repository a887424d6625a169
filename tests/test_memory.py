"""What a large scan takes, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "memory.py"
MIB = 2**20


@pytest.mark.slow
def test_a_scan_takes_less_memory_than_its_losses_in_float64(tmp_path):
    """31 x 31 points x 60,000 images: 440 MiB, of which statistics once made several copies."""
    case = ["scan", {"side": 31, "images": 60_000}, str(tmp_path)]
    command = [sys.executable, str(SCRIPT), "--case", json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["values"] == 31 * 31 * 60_000
    assert found["beyond imports"] < 400 * MIB
    assert found["size of scan.nc"] > 200 * MIB  # noise does not compress much
    assert {path.name for path in tmp_path.iterdir()} == {"scan.nc", "scan.png", "scan.html"}
