"""Runs the scenarios on the pretended device, each file in a process of its own: torch keeps the device to its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
KNOWN = ("2.13.",)
"""Versions of torch whose insides device.py knows."""
SCENARIOS = sorted(path.name for path in FOLDER.glob("*_scenarios.py"))


@pytest.mark.skipif(not torch.__version__.startswith(KNOWN), reason=f"knows torch {', '.join(KNOWN)} alone")
@pytest.mark.parametrize("name", SCENARIOS)
def test_on_the_pretended_device(name, tmp_path):
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", str(FOLDER / name)]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'scenarios'}"],
        cwd=FOLDER.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
