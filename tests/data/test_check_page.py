from __future__ import annotations

import re
from pathlib import Path

from steelgen.data.check import Problem, check_dataset
from steelgen.data.check_page import build_page, save_page
from tests.data.samples import BUNDLED


def test_page_holds_everything_and_loads_nothing(tmp_path: Path) -> None:
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
