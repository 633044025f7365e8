"""curves.png: what is drawn of a metrics.jsonl, and what may stand in one."""

import json

import numpy as np
import pytest
from PIL import Image

from steelgen.charts import COLORS
from steelgen.training.curves import save_curves


def draw(folder, rows):
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_curves(folder / "metrics.jsonl", folder / "curves.png")
    return np.asarray(Image.open(folder / "curves.png"))


def find_color(picture, color):
    """Rows and columns of the pixels in a color such as #0072b2."""
    return np.nonzero((picture == list(bytes.fromhex(color[1:]))).all(axis=2))


def test_a_rising_value_goes_up_to_the_right(tmp_path):
    picture = draw(tmp_path, [{"step": step, "loss": 0.5, "grad_norm": step / 100} for step in range(100)])
    rows, columns = find_color(picture[:, picture.shape[1] // 2 :], COLORS["train"])
    below_the_name = rows > 100
    slope = np.polyfit(columns[below_the_name], rows[below_the_name], 1)[0]
    # From the lower left to the upper right corner of axes of 532 x 316 px.
    assert slope == pytest.approx(-316 / 532, rel=0.02)


def test_values_of_other_steps_share_a_chart(tmp_path):
    rows = [{"step": step, "loss": 1.0} for step in range(10)] + [{"step": 10, "loss": 1.0, "val_loss": 2.0}]
    picture = draw(tmp_path, rows)
    assert picture.shape == (440, 660, 3)
    assert all(len(find_color(picture, COLORS[kind])[0]) for kind in ("train", "generated"))


def test_losses_of_several_phases_stand_beside_kid(tmp_path):
    rows = [
        {
            "step": step,
            "loss_generator": 1.0,
            "loss_discriminator": 2.0,
            "grad_norm_generator": 3.0,
            "kid": 0.1,
            "r_t": 0.4,
        }
        for step in range(1, 6)
    ]
    picture = draw(tmp_path, rows)
    assert picture.shape == (880, 1320, 3)  # losses and KID, r_t and gradient norm
    losses, kid = np.hsplit(picture[:440], 2)
    assert all(len(find_color(losses, COLORS[kind])[0]) for kind in ("train", "generated"))
    assert len(find_color(kid, COLORS["train"])[0])
    assert not len(find_color(kid, COLORS["generated"])[0])


def test_infinite_gradient_norms_of_fp16_are_left_out(tmp_path):
    plain = [{"step": step, "loss": 1.0, "grad_norm": 1.0 + step % 2} for step in range(2, 6)]
    skipped = [{"step": 1, "loss": 1.0, "grad_norm": float("inf")}]
    assert draw(tmp_path, skipped + plain).shape == (440, 1320, 3)
    assert draw(tmp_path, skipped).shape == (440, 660, 3)


def test_nothing_logged_yet_is_no_picture(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    save_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
