"""Runs the scenarios on the pretended device, in a process of their own: torch keeps the device to its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent
KNOWN = ("2.13.",)
"""Versions of torch whose insides device.py knows."""


@pytest.mark.skipif(not torch.__version__.startswith(KNOWN), reason=f"knows torch {', '.join(KNOWN)} alone")
def test_on_the_pretended_device(tmp_path):
    scenarios = sorted(map(str, FOLDER.glob("*_scenarios.py")))
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *scenarios]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [*command, f"--basetemp={tmp_path / 'scenarios'}"],
        cwd=FOLDER.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
