"""`steelgen plan`: what it writes, what it refuses, and that its workflow is the whole work."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.actions import ACTIONS
from steelgen.config.base import load_config
from steelgen.data.check import check_dataset
from steelgen.data.folder import DatasetInfo, load_metadata, save_dataset_info, save_mask
from steelgen.planning import plan as planning
from steelgen.planning import stages
from steelgen.planning.machine import Machine, StepTime
from tests.conftest import write_tiny_dataset

UHCS = Path(__file__).parents[2] / "data" / "uhcs"
CPU = Machine("cpu", "", 2, 8.0)


@pytest.fixture
def quick(monkeypatch):
    """No training step is taken: 0.1 s per crop."""
    monkeypatch.setattr(planning, "examine_device", lambda: CPU)
    for module in (planning, stages):
        monkeypatch.setattr(
            module,
            "time_step",
            lambda config, machine: StepTime(
                config.train.train_batch_size, 1, 0.1 * config.train.train_batch_size, 1.0
            ),
        )


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["plan", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return done


def run_briefly(name, *overrides, code=0):
    """Runs the workflow of a plan with fewer steps, networks and images than planned, for time; returns its output."""
    fewer = (
        "finetune.train.max_steps=6",
        "finetune.preview.num_images=2",
        "utility.seeds=[0]",
        "sample.num_samples=8",
        *overrides,
    )
    settings = [word for value in fewer for word in ("--set", value)]
    done = CliRunner().invoke(app, ["workflow", "-c", f"plans/{name}/workflow.json", *settings])
    assert done.exit_code == code, done.output
    return done.output


def test_the_plan_is_the_whole_work(tmp_path, monkeypatch):
    """With real timed steps: train, sample, evaluate and utility study of a tiny set."""
    monkeypatch.chdir(tmp_path)
    write_tiny_dataset(tmp_path / "data" / "tiny")
    done = run("data/tiny", "--minutes", 0.2)
    assert "4 micrographs are few" in done.output
    assert "steelgen workflow -c plans/tiny/workflow.json" in done.output
    plans = tmp_path / "plans" / "tiny"
    configs = {f"{name}.json" for name in ("finetune", "sample", "evaluate", "utility", "workflow", "plan")}
    assert {path.name for path in plans.iterdir()} == configs | {"plan.html"}
    run_briefly("tiny")
    runs = tmp_path / "runs" / "tiny"
    assert json.loads((runs / "evaluation" / "evaluation.json").read_text())["figures"]
    assert json.loads((runs / "utility" / "utility.json").read_text())["differences"]


def test_unlabeled_micrographs_are_labeled_first(tmp_path, monkeypatch):
    """One labeled micrograph and three others, in a folder with all of them, are the whole work too."""
    monkeypatch.chdir(tmp_path)
    write_tiny_dataset(tmp_path / "all")
    shutil.copytree("all", "mine")
    kept, *others = sorted(path.name for path in (tmp_path / "mine/train/images").iterdir())
    for name in others:
        (tmp_path / "mine/train/images" / name).unlink()
        (tmp_path / "mine/train/masks" / name).unlink()
    done = run("mine", "--unlabeled", "all", "--minutes", 0.2)
    assert f"1 micrograph with masks labels {len(others)} others" in " ".join(done.output.split())
    assert f"{len(others)} micrographs without masks" in (tmp_path / "plans/mine/plan.html").read_text()
    run_briefly("mine", "segment.segmenter.steps=10")
    completed = tmp_path / "runs/mine/segmenter/dataset"
    assert not check_dataset(completed).problems
    rows = load_metadata(completed)
    assert {name for name, row in rows.items() if row.get("labels") == "predicted"} == {
        f"train/images/{name}" for name in others
    }
    for split, name in (("train", kept), ("test", next((tmp_path / "all/test/masks").iterdir()).name)):
        masks = [np.asarray(Image.open(root / split / "masks" / name)) for root in (completed, Path("all"))]
        assert np.array_equal(*masks)
    trained = load_config(tmp_path / "runs/mine/train/config.json", ACTIONS["finetune"])
    assert trained.data.dataset == Path("runs/mine/segmenter/dataset")
    study = json.loads((tmp_path / "runs/mine/utility/utility.json").read_text())
    assert study["config"]["training"]["real_share"] == 0.5
    cells = [json.loads(path.read_text()) for path in sorted((tmp_path / "runs/mine/utility/cells").glob("*.json"))]
    labeled = [Path(kept).stem]
    predicted = [Path(name).stem for name in others]
    assert {cell["code"]: cell["real"] for cell in cells} == {
        "RALLF000": labeled,
        "RALLF000L": labeled + predicted,
        "RALLFALL": labeled,
    }
    assert [(row["code"], row["baseline"]) for row in study["differences"]] == [
        ("RALLF000L", "RALLF000"),
        ("RALLFALL", "RALLF000"),
        ("RALLFALL", "RALLF000L"),
    ]
    question = f"Are {study['num_generated']} generated pairs better than predicted masks, with 1 real micrographs?"
    assert question in (tmp_path / "runs/mine/utility/utility.html").read_text()
    assert run_briefly("mine", "segment.segmenter.steps=10").count("complete in") == 5
    other = run_briefly("mine", "segment.segmenter.steps=11", code=2)
    assert "contains the output of another config (segmenter.steps was 10, is now 11)" in other
    shutil.copyfile(f"all/train/images/{others[0]}", "all/train/images/new.png")
    shutil.copyfile(f"all/train/masks/{others[0]}", "all/train/masks/new.png")
    more = run_briefly("mine", "segment.segmenter.steps=10", code=2)
    assert "was made of other unlabeled micrographs than those in all (by new)" in more


def test_a_set_that_the_bundled_model_accepts_is_fine_tuned(tmp_path, quick):
    run(UHCS, "--out", tmp_path / "uhcs", "--minutes", 10, "--quiet")
    files = {path.stem: path for path in (tmp_path / "uhcs").glob("*.json")}
    assert set(files) == {"finetune", "refine", "sample", "evaluate", "utility", "workflow", "plan"}
    actions = {**ACTIONS, "refine": ACTIONS["finetune"]}
    configs = {name: load_config(path, actions[name]) for name, path in files.items() if name != "plan"}
    assert configs["workflow"].finetune == configs["finetune"]
    assert configs["workflow"].train is None
    assert str(configs["finetune"].checkpoint) == "bundled:uhcs"
    assert str(configs["refine"].checkpoint) == "bundled:uhcs/refine"
    assert (configs["finetune"].data.image_size, configs["finetune"].data.crop_size) == (64, 128)
    assert (configs["refine"].data.image_size, configs["refine"].data.crop_size) == (64, 64)
    # 16 crops take 1.6 s, so that nine tenths of three quarters of 10 minutes hold 253 steps.
    assert configs["finetune"].train.max_steps == 253
    assert configs["finetune"].train.max_minutes == 7.5
    assert configs["evaluate"].held_out_split == "test"
    assert configs["sample"].mask_source.kind == "split"
    written = json.loads(files["plan"].read_text())
    choices = {each["name"]: each for each in written["choices"]}
    assert choices["start"]["value"] == "bundled:uhcs"
    assert choices["crop_size"]["value"] == configs["finetune"].data.crop_size
    assert all(each["because"] for each in written["choices"])
    page = (tmp_path / "uhcs" / "plan.html").read_text()
    assert page.count("data:image/jpeg") == 3
    assert choices["crop_size"]["because"] in page


def test_a_set_in_color_is_trained_from_scratch_and_the_plan_says_why(tmp_path, quick):
    root = write_tiny_dataset(tmp_path / "large", size=(96, 96))
    for path in root.glob("*/images/*.png"):
        gray = Image.open(path)
        Image.merge("RGB", [gray, gray.point(lambda level: level // 2), gray]).save(path)
    output = run(root, "--out", tmp_path / "plan", "--json").output
    found = json.loads(output)
    start = next(each for each in found["choices"] if each["name"] == "start")
    assert start["value"] is None
    assert "does not accept this set" in start["because"]
    assert found["folder"] == str(tmp_path / "plan")
    assert (tmp_path / "plan" / "train.json").is_file()


def test_images_alone(tmp_path, quick):
    folder = tmp_path / "plain" / "train" / "images"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 256, (80, 80), np.uint8)).save(folder / f"{number}.png")
    output = run(tmp_path / "plain", "--out", tmp_path / "plan").output
    names = {path.name for path in (tmp_path / "plan").iterdir()}
    assert names == {"finetune.json", "sample.json", "workflow.json", "plan.json", "plan.html"}
    workflow = load_config(tmp_path / "plan" / "workflow.json", ACTIONS["workflow"])
    assert workflow.sample.mask_source.kind == "none"
    assert workflow.evaluate is None
    assert workflow.finetune.diffusion.mask_dropout == 0
    assert "no test split, so no evaluation and no utility study" in " ".join(output.split())


@pytest.mark.parametrize(
    ("splits", "size", "options", "message"),
    [
        ((("val", 2),), (40, 48), (), "has no train split (present: val)"),
        ((("train", 1),), (40, 48), (), "1 micrograph in train; a plan needs at least 2"),
        ((("train", 2),), (24, 48), (), "48x24 px; a plan needs edges of at least 32 px"),
        ((("train", 2),), (40, 48), ("--unlabeled", "missing"), "missing: no such folder"),
        ((("train", 2),), (40, 48), ("--minutes", "0"), "--minutes 0: must be above 0"),
        ((("train", 2),), (40, 48), ("--minutes", "nan"), "--minutes nan: must be above 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, splits, size, options, message):
    root = write_tiny_dataset(tmp_path / "tiny", size, splits=splits)
    done = run(root, "--out", tmp_path / "plan", *options, code=2)
    lines = [line for line in done.output.splitlines() if not line.startswith("micrographs: ")]
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "plan").exists()


def test_a_plan_folder_in_use_is_kept(tmp_path, tiny_dataset):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan" / "notes.txt").write_text("mine")
    assert "the output folder is already in use" in run(tiny_dataset, "--out", tmp_path / "plan", code=2).output
    assert (tmp_path / "plan" / "notes.txt").read_text() == "mine"


def test_no_dataset_folder(tmp_path):
    assert "no such dataset folder" in run(tmp_path / "nowhere", "--out", tmp_path / "plan", code=2).output


def write_thin_dataset(root, splits, edge=300):
    """Films of 1 px beside islands of 40 px."""
    info = DatasetInfo(name="thin", class_names=["matrix", "island", "film"])
    rng = np.random.default_rng(0)
    for split, count in splits:
        for index in range(count):
            mask = np.zeros((edge, edge), np.uint8)
            mask[120:160, 60:100] = mask[200:240, 180:220] = 1
            mask[20 + 30 * index] = 2
            (root / split / "images").mkdir(parents=True, exist_ok=True)
            smooth = np.kron(rng.integers(60, 120, (edge // 50, edge // 50)), np.ones((50, 50))) + 60 * (mask == 1)
            Image.fromarray(smooth.astype(np.uint8)).save(root / split / "images" / f"{split}{index}.png")
            save_mask(root / split / "masks" / f"{split}{index}.png", mask, info.palette)
    save_dataset_info(root, info)
    return root


def test_a_refining_stage_draws_what_the_crops_lose(tmp_path, quick):
    root = write_thin_dataset(tmp_path / "thin", (("train", 4), ("test", 2)))
    run(root, "--out", tmp_path / "plan", "--minutes", 40, "--quiet")
    workflow = load_config(tmp_path / "plan" / "workflow.json", ACTIONS["workflow"])
    first, refining = workflow.finetune or workflow.train, workflow.refine
    # Both stages start from the bundled ones, whose second refines 2×.
    assert (str(first.checkpoint), str(refining.checkpoint)) == ("bundled:base", "bundled:base/refine")
    assert 2 * refining.data.crop_size == first.data.crop_size
    assert (first.train.learning_rate, refining.train.learning_rate) == (1e-3, 3e-4)
    assert (first.train.max_minutes, refining.train.max_minutes) == (30, 10)
    assert refining.train.max_steps == pytest.approx(first.train.max_steps / 3, abs=1)
    assert list(workflow.sample.generators.values()) == [first.run_dir, refining.run_dir]
    page = (tmp_path / "plan" / "plan.html").read_text()
    assert "film is" in page


@pytest.mark.parametrize(("minutes", "in_turns"), [(40, True), (15, False)])
def test_with_a_val_split_both_stages_share_the_time_by_their_gain(tmp_path, quick, minutes, in_turns):
    root = write_thin_dataset(tmp_path / "thin", (("train", 4), ("val", 2), ("test", 2)))
    run(root, "--out", tmp_path / "plan", "--minutes", minutes, "--quiet")
    workflow = load_config(tmp_path / "plan" / "workflow.json", ACTIONS["workflow"])
    first, refining = workflow.finetune or workflow.train, workflow.refine
    choices = {each["name"]: each for each in json.loads((tmp_path / "plan" / "plan.json").read_text())["choices"]}
    because = choices["refining_minutes"]["because"]
    if in_turns:
        assert workflow.training_minutes == 40
        assert (first.train.max_minutes, refining.train.max_minutes) == (None, None)
        # A turn is a tenth of the time, with three validations, and no stage runs out of steps in eight turns.
        for each in (first, refining):
            assert each.train.max_steps == 1350  # of 1.6 s, in nine tenths of the time
            assert each.validation.every == 45
        assert because.startswith("by measured gain: 10 turns of 4 minutes")
    else:
        assert workflow.training_minutes is None
        assert (first.train.max_minutes, refining.train.max_minutes) == (11.25, 3.75)
        assert because.startswith("refine gets 3.75 of 15 minutes, by rule: turns of 1.5 minutes are too short")
