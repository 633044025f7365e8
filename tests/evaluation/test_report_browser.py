"""The report in a real browser: it is displayed and printed without network requests."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steelgen.evaluation.evaluate import evaluate
from tests.evaluation.test_evaluate import build_config

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


def browse(page: Path, folder: Path, *arguments: str) -> list[str]:
    """Opens a page in headless mode and lists its network requests."""
    folder.mkdir()
    log = folder / "net.json"
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
    subprocess.run(
        [str(CHROMIUM), *quiet, f"--user-data-dir={folder}", f"--log-net-log={log}", *arguments, page.as_uri()],
        check=True,
        capture_output=True,
        timeout=120,
    )
    asked = [event["params"] for event in json.loads(log.read_text())["events"] if "url" in event.get("params", {})]
    # Requests of a page on disk have the origin "null", those of the browser itself "not an origin".
    return [each["url"] for each in asked if each.get("initiator") == "null" and each["url"].startswith("http")]


def test_the_log_shows_requests(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.invalid/picture.png">')
    assert browse(page, tmp_path / "browser", "--dump-dom") == ["http://example.invalid/picture.png"]


def test_report_needs_no_network(generated: Path, dataset: Path, tmp_path: Path, cache: Path) -> None:
    evaluate(build_config(generated, dataset, tmp_path / "out", microstructure={"max_images": 4}))
    page, shot, paper = tmp_path / "out" / "report.html", tmp_path / "shot.png", tmp_path / "paper.pdf"
    assert browse(page, tmp_path / "screen", f"--screenshot={shot}", "--window-size=1100,1600") == []
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    dark = (pixels.max(axis=2) < 100).mean(axis=1)
    # Text or an image in every sixth of the window, on a white page.
    assert all(part.max() > 0.01 for part in np.array_split(dark, 6))
    assert (pixels.min(axis=2) > 240).mean() > 0.3
    # Bars in the colors of good, fair and poor.
    bars = [(np.abs(pixels - color).max(axis=2) < 8).sum() for color in ((0, 158, 115), (230, 159, 0), (213, 94, 0))]
    assert sum(bars) > 500
    assert browse(page, tmp_path / "print", f"--print-to-pdf={paper}", "--no-pdf-header-footer") == []
    assert 3 <= paper.read_bytes().count(b"/Type /Page\n") <= 20
