"""Generators side by side: equal time, one table, resuming, and which figure decides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from steelgen import family_comparison as module
from steelgen.cli.app import app
from steelgen.cli.workflow import run_stage
from steelgen.config.base import Section, parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.families import FamiliesConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.train import RunConfig
from steelgen.errors import InputError
from steelgen.evaluation.family_table import compare_figures
from steelgen.evaluation.results import load_evaluation
from steelgen.family_comparison import build_training, compare_families, list_stages
from steelgen.generators.families import load_generator
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.generators.test_gan import gan_config


def write_configs(root: Path, **more: Any) -> FamiliesConfig:
    """A diffusion model, which needs masks, and an adversarial generator, which makes none."""
    write_tiny_dataset(root / "tiny")
    diffusion = tiny_train_config("elsewhere", "elsewhere", max_steps=2)
    gan = gan_config("elsewhere", "elsewhere", max_steps=2)
    gan["measurement"] = {"every": 100}
    for name, values in (("diffusion", diffusion), ("gan", gan)):
        (root / f"{name}.json").write_text(json.dumps(values))
    values = {
        "dataset": str(root / "tiny"),
        "output_dir": str(root / "out"),
        "families": {
            "diffusion": {"config": str(root / "diffusion.json"), "solver": {"num_inference_steps": 2}},
            "gan": {"config": str(root / "gan.json")},
        },
        "minutes": 1,
        "image_size": 16,
        "crop_size": 24,
        "num_samples": 4,
        "timed_images": 2,
        "segmenter": {"architecture": "unet", "steps": 2, "num_levels": 1, "base_channels": 8},
        "memorization": {"max_images": 2, "search_size": 8},
        "utility": {
            "codes": ["R2F000", "R2FALL"],
            "architectures": ["unet"],
            "seeds": [0],
            "training": {"steps": 1, "batch_size": 2, "base_channels": 8},
        },
    }
    return parse_config({**values, **more}, FamiliesConfig)


def test_generators_side_by_side(tmp_path: Path) -> None:
    config, done, lines = write_configs(tmp_path), [], []

    def run(stage: Section) -> None:
        done.append(stage)
        run_stage(stage)

    def refuse(stage: Section) -> None:
        assert isinstance(stage, RunConfig)
        raise RuntimeError(stage.run_dir.parent.name)

    result = compare_families(config, run, lines.append)
    trained = [stage for stage in done if isinstance(stage, RunConfig)]
    assert [stage.train.max_minutes for stage in trained] == [1, 1]
    assert {str(stage.data.dataset) for stage in trained} == {str(config.dataset)}
    assert [family["steps"] for family in result["families"]] == [2, 2]
    rows = {row["purpose"]: row for row in result["figures"]}
    # The adversarial generator has no masks, so only the images and the speed of both are compared.
    assert rows["masks that are obeyed"]["figures"]["gan"] is None
    assert rows["masks that are obeyed"]["best"] == []
    assert rows["training of segmenters"]["figures"]["gan"] is None
    evaluated = {name: load_evaluation(config.output_dir / name / "evaluation")["figures"] for name in config.families}
    kid = {name: next(f["value"] for f in figures if "KID" in f["metric"]) for name, figures in evaluated.items()}
    assert {name: figure["value"] for name, figure in rows["images like real ones"]["figures"].items()} == kid
    assert rows["images like real ones"]["best"] == [min(kid, key=lambda name: kid[name])]
    assert all(figure["value"] > 0 for figure in rows["many images"]["figures"].values())
    page = (config.output_dir / "families.html").read_text()
    assert "Which generator for which purpose" in page
    assert (config.output_dir / "comparison.html").is_file()

    done.clear()
    again = compare_families(config, run, lines.append)
    assert done == []
    assert again["figures"] == result["figures"]
    added = {**config.families, "more": config.families["gan"]}
    with pytest.raises(RuntimeError, match="more"):
        compare_families(config.model_copy(update={"families": added}), refuse, lines.append)
    with pytest.raises(InputError, match=r"another config \(minutes was 1.0, is now 2.0\)"):
        compare_families(config.model_copy(update={"minutes": 2.0}), run, lines.append)
    refused = CliRunner().invoke(app, ["compare", "x", "--families", "y"])
    assert refused.exit_code == 2
    assert "takes no evaluations" in refused.output


def test_time_of_a_stopped_training_counts(tmp_path: Path, monkeypatch: Any) -> None:
    config, now, limits = write_configs(tmp_path, utility=None), [1000.0], []
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])

    def stop(stage: Section) -> None:
        assert isinstance(stage, RunConfig)
        limits.append(stage.train.max_minutes)
        now[0] += 45
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compare_families(config, stop, lambda line: None)
    assert limits == [1, 0.25]


def test_masks_come_from_the_held_out_split_and_those_of_the_study_from_training(tmp_path: Path) -> None:
    config = write_configs(tmp_path)
    run_stage(build_training(config, "diffusion"))
    generator = load_generator(tmp_path / "out" / "diffusion" / "run")
    stages = list_stages(config, "diffusion", generator)
    sources = [stage.mask_source for stage in stages if isinstance(stage, SampleConfig)]
    assert [source.split for source in sources if source.kind == "split"] == ["test", "train"]
    (evaluation,) = (stage for stage in stages if isinstance(stage, EvaluateConfig))
    assert evaluation.generated == tmp_path / "out" / "diffusion" / "samples"

    class NeedsImages:
        kind, needs, makes, takes = "translation", frozenset({"images"}), frozenset({"images"}), frozenset()

    with pytest.raises(InputError, match=r"families.gan: a generator of kind translation cannot be compared: images"):
        list_stages(config, "gan", NeedsImages())  # type: ignore[arg-type]


def test_the_best_of_each_purpose_by_hand() -> None:
    def build(name: str, speed: float, **values: float | None) -> dict[str, Any]:
        shared = {"compared": "x", "floor": 0.1, "interval": None}
        metrics = {
            "kid": ("fidelity", "KID-x", "lower"),
            "train_kid": ("fidelity", "KID-x", "lower"),
            "iou": ("faithfulness", "mIoU", "higher"),
            "copies": ("memorization", "copies (share)", "lower"),
            "score": ("utility", "mIoU R4FALL (pooled)", "higher"),
            "gain": ("utility", "mIoU R4FALL − R4F000 (pooled)", "higher"),
        }
        figures = [
            {"section": metrics[key][0], "metric": metrics[key][1], "better": metrics[key][2], "value": value, **shared}
            for key, value in values.items()
        ]
        return {"name": name, "images_per_second": speed, "figures": figures}

    rows = compare_figures(
        [
            build("a", 2.0, kid=0.3, train_kid=0.0, iou=0.5, copies=0.0, score=0.4, gain=0.01),
            build("b", 9.0, kid=0.2, iou=0.7, copies=0.0, score=0.3, gain=0.02),
            build("c", 1.0, kid=0.4, iou=None),
        ]
    )
    assert {row["purpose"]: row["best"] for row in rows} == {
        "images like real ones": ["b"],
        "masks that are obeyed": ["b"],
        "no copies": ["a", "b"],
        "training of segmenters": ["b"],
        "many images": ["b"],
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": {"a": {"config": "x"}}}, r"families: .*at least 2"),
        ({"families": {"a/b": {"config": "x"}, "c": {"config": "x"}}}, "families"),
        ({"train_split": "test"}, "nothing is held out"),
        ({"utility": {"codes": ["R4"]}}, "'R4' is not a code"),
        ({"families": {"a": {"config": "missing.json"}, "b": {"config": "x"}}}, r"missing.json"),
    ],
)
def test_unusable_configs_give_one_line(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        compare_families(write_configs(tmp_path, **changes), run_stage, lambda line: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
