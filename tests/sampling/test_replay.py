"""An image drawn again from its line: the same bits, or a clear word why not."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.errors import InputError
from steelgen.sampling.replay import replay
from tests.sampling.test_sample import draw


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("solver", ["dpmsolver++", "sde-dpmsolver++", "ddpm", "heun"])
def test_every_line_is_drawn_again_bit_by_bit(trained, tmp_path, solver):
    out = draw(
        trained, tmp_path / "out", num_samples=4, batch_size=3, solver={"name": solver, "num_inference_steps": 3}
    )
    for index in range(4):
        path, same = replay(out / "metadata.jsonl", index + 1)
        assert path == out / f"replay-{index:06d}.png"
        assert same is True
        assert np.array_equal(pixels(path), pixels(out / f"samples/{index:06d}.png"))


def test_only_line_mask_and_generator_are_needed(trained, tmp_path):
    out = draw(trained, tmp_path / "out", num_samples=3, output_format="dataset")
    alone, moved = tmp_path / "alone", tmp_path / "moved"
    shutil.copytree(out / "train/masks", alone / "train/masks")
    shutil.copytree(trained[1] / "export", moved)
    row = json.loads((out / "metadata.jsonl").read_text().splitlines()[2])
    (alone / "metadata.jsonl").write_text(json.dumps({**row, "generator": "nowhere"}) + "\n")
    with pytest.raises(InputError, match="nowhere: no such run"):
        replay(alone / "metadata.jsonl", 1)
    path, same = replay(alone / "metadata.jsonl", 1, tmp_path / "again.png", moved)
    assert path == tmp_path / "again.png"
    assert same is None
    assert np.array_equal(pixels(path), pixels(out / "train/images/000002.png"))


def test_rows_without_a_source_of_brightness_are_drawn_again(trained, tmp_path):
    """Images of older versions had the mean gray level that the network gave them."""
    out = draw(trained, tmp_path / "out", num_samples=1, solver={"num_inference_steps": 3, "brightness": "network"})
    row = json.loads((out / "metadata.jsonl").read_text())
    del row["draw"]["solver"]["brightness"]
    (out / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert replay(out / "metadata.jsonl", 1)[1] is True
    row["draw"]["solver"]["brightness"] = "measured"
    (out / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert replay(out / "metadata.jsonl", 1, tmp_path / "again.png")[1] is False


def test_what_the_filter_kept_is_drawn_again(trained, tmp_path):
    values = {"dataset": str(trained[0]), "min_iou": 0, "max_correlation": 0.97}
    out = draw(trained, tmp_path / "out", num_samples=3, filter=values)
    assert all(replay(out / "metadata.jsonl", line)[1] for line in (1, 2, 3))


def test_other_weights_are_refused(trained, tmp_path):
    out = draw(trained, tmp_path / "out", num_samples=1)
    other = tmp_path / "other"
    shutil.copytree(trained[1] / "export", other)
    weights = next(other.rglob("*.safetensors"))
    values = load_file(weights)
    first = sorted(values)[0]
    save_file({**values, first: values[first] + 1}, weights)
    with pytest.raises(InputError, match=r"the weights differ from those of .*metadata\.jsonl:1 \(SHA-256"):
        replay(out / "metadata.jsonl", 1, generator=other)
    assert not (out / "replay-000000.png").exists()


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (0, "", "line 0: line numbers start at 1"),
        (9, "", "has no line 9"),
        (1, "{", "not valid JSON"),
        (1, "[1]", "must be a JSON object, not list"),
        (1, '{"file_name": "a.png"}', r"metadata\.jsonl:1: draw: is missing"),
        (1, '{"file_name": "a.png", "draw": {"solver": {"name": "magic"}}}', r"draw\.solver\.solver\.name: "),
    ],
)
def test_damaged_lines_are_named(tmp_path, line, text, message):
    (tmp_path / "metadata.jsonl").write_text(text + "\n")
    with pytest.raises(InputError, match=message):
        replay(tmp_path / "metadata.jsonl", line)


def test_replay_on_the_command_line(trained, tmp_path):
    out = draw(trained, tmp_path / "out", num_samples=2)
    metadata = str(out / "metadata.jsonl")
    result = CliRunner().invoke(app, ["sample", "--replay", metadata, "2"])
    assert result.exit_code == 0, result.stderr
    assert "replay-000001.png: identical to the original" in result.stdout
    for arguments, message in [
        (["--replay", metadata, "2"], "already exists"),
        (["--replay", metadata, "7"], "has no line 7"),
        (["--replay", str(tmp_path / "none.jsonl"), "1"], "no such file"),
        (["--replay", metadata, "1", "--set", "seed=1"], "can only be combined with"),
        (["-c", metadata, "--out", "x.png"], "require --replay"),
    ]:
        result = CliRunner().invoke(app, ["sample", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr
