"""Nothing that a file or a folder is called becomes markup of the page; also where no browser is there to tell."""

import numpy as np

from steelgen.pages import render
from steelgen.studio.browsing import ClassFigures
from steelgen.studio.pictures import build_figure, show_status
from steelgen.studio.session import Nearest
from tests.test_pages import POISON, assert_harmless

FIGURE = build_figure(np.zeros((4, 4), np.uint8), POISON)


def test_lines():
    assert_harmless(show_status(f"{POISON}\n\nnext"))
    assert "\n" not in show_status(f"{POISON}\n\nnext", bad=True).strip()


def test_drawn_pairs():
    nearest = Nearest(np.zeros((4, 4), np.uint8), POISON, 1.0, 2.0, True)
    card = {"figures": [FIGURE], "nearest": nearest, "seed": 1, "stem": POISON, "image": "data:", "mask": "data:"}
    assert_harmless(render("studio_results.html", cards=[card], knows_training=True), poisoned=2)


def test_pairs_of_a_folder():
    cards = [
        {"figure": FIGURE, "problem": "", "rejected": True},
        {"figure": None, "problem": POISON, "rejected": False},
    ]
    assert_harmless(render("studio_pairs.html", cards=cards), poisoned=2)


def test_classes():
    figures = [ClassFigures(POISON, 0.5, 3, 2.0), ClassFigures("empty", 0.0, 0, np.nan)]
    page = render("studio_classes.html", figures=figures, palette=[(0, 0, 0)] * 2, measured=1, kept=1, rejected=0)
    assert_harmless(page)
    assert "nan" not in page


def test_pictures_of_a_run():
    assert_harmless(render("studio_previews.html", figures=[FIGURE]))
    assert_harmless(render("studio_curves.html", figure=FIGURE))
