from __future__ import annotations

import re
from pathlib import Path

from steelgen.data.check import Problem, check_dataset
from steelgen.data.check_page import build_page, save_page
from steelgen.data.folder import DatasetInfo, save_dataset_info
from tests.data.samples import BUNDLED, save_noise


def test_page_is_self_contained(tmp_path: Path) -> None:
    report = check_dataset(BUNDLED / "uhcs")
    report.problems.append(Problem("<script>.png", "not a readable image"))
    save_page(tmp_path / "check.html", report)
    page = (tmp_path / "check.html").read_text(encoding="utf-8")
    assert page == build_page(report)
    assert page.count("data:image/jpeg;base64,") == 24
    assert page.count("<svg") == 3 + 3
    assert "&lt;script&gt;.png" in page
    assert "<script" not in page
    assert not re.search(r"(src|href)=(?!\"data:)", page)


def test_page_without_valid_pairs(tmp_path: Path) -> None:
    root = tmp_path / "set"
    save_dataset_info(root, DatasetInfo(name="broken", class_names=["matrix", "island"]))
    save_noise(root / "train" / "images" / "a.png", 30, 40)
    save_noise(root / "train" / "masks" / "a.png", 40, 30)
    report = check_dataset(root)
    assert report.splits == {}
    assert len(report.problems) == 1
    assert '<h2 class="bad">1 problem</h2>' in build_page(report)
