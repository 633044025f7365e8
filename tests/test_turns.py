"""Training of two stages in turns, by the gain of each."""

import json
import math
import shutil

import pytest

from steelgen.config.base import parse_config
from steelgen.config.slurm import SlurmProfile
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.config.workflow import WorkflowConfig
from steelgen.errors import InputError
from steelgen.files import load_json, save_json
from steelgen.turns import TURNS, TURNS_FILE, SharedTime, Turn, choose_stage, measure_gain
from steelgen.workflow import plan_workflow, run_workflow, submit_workflow
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder


def take_turns(curves, count, ends=()):
    """Turns of a minute and 100 steps; curves are losses by minutes of the stage."""
    turns, spent = [], dict.fromkeys(curves, 0)
    for _ in range(count):
        stage = choose_stage(turns, list(curves))
        if stage is None:
            break
        spent[stage] += 1
        loss, step = curves[stage](spent[stage]), 100 * spent[stage]
        turns.append(Turn(stage=stage, minutes=1, step=step, validated=step, loss=loss, ended=stage in ends))
    return turns, spent


def fall_by(power):
    return lambda minutes: 3 * minutes**-power


@pytest.mark.parametrize("ratio", [1, 2, 3])
def test_the_time_maximizes_the_gain_of_both(ratio):
    """For losses t^-a and t^-b, the product of both is least where the times are as a to b."""
    _, spent = take_turns({"train": fall_by(0.1), "refine": fall_by(0.1 * ratio)}, 60)
    best = min(range(1, 60), key=lambda own: fall_by(0.1)(60 - own) * fall_by(0.1 * ratio)(own))
    assert spent["refine"] == pytest.approx(best, abs=2)


@pytest.mark.parametrize("saturated", [lambda minutes: 0.4, lambda minutes: 0.4 + 0.01 * minutes])
def test_a_stage_that_gains_nothing_leaves_the_rest_to_the_other(saturated):
    turns, spent = take_turns({"train": saturated, "refine": fall_by(0.05)}, 10)
    assert spent == {"train": 2, "refine": 8}
    assert [turn.stage for turn in turns[:4]] == ["train", "refine", "train", "refine"]


def test_stages_that_have_ended_get_no_more():
    _, spent = take_turns({"train": fall_by(0.3), "refine": fall_by(0.1)}, 10, ends=("train",))
    assert spent == {"train": 1, "refine": 9}
    _, spent = take_turns({"train": fall_by(0.3), "refine": fall_by(0.1)}, 10, ends=("train", "refine"))
    assert spent == {"train": 1, "refine": 1}


def test_the_gain_is_that_between_validations():
    """The second lies 150 of 200 steps, so 3 of 4 minutes, after the first."""
    turns = [
        Turn(stage="train", minutes=4, step=200, validated=200, loss=0.5, ended=False),
        Turn(stage="refine", minutes=4, step=10, validated=10, loss=9.0, ended=False),
    ]
    assert measure_gain(turns, "train") is None
    turns.append(Turn(stage="train", minutes=4, step=400, validated=350, loss=0.4, ended=False))
    assert measure_gain(turns, "train") == pytest.approx(0.2 / 3)


@pytest.fixture
def stages(tiny_dataset, tmp_path):
    return {
        name: parse_config(tiny_train_config(tiny_dataset, tmp_path / name), TrainConfig)
        for name in ("train", "refine")
    }


class FakeTraining:
    """Writes what training does: 100 steps per turn."""

    def __init__(self, stop_in_turn=None, validates=True):
        self.taken, self._stop_in_turn, self._validates = [], stop_in_turn, validates

    def __call__(self, stage, config):
        self.taken.append((stage, config.train.max_minutes))
        (config.run_dir / "checkpoints/step-1").mkdir(parents=True, exist_ok=True)
        path = config.run_dir / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        step = 100 * (len(lines) + 1)
        loss = math.exp(-0.001 * step) if stage == "refine" else 0.5
        lines.append(json.dumps({"step": step, **({"val_loss": loss} if self._validates else {})}))
        stopped = len(self.taken) == self._stop_in_turn
        if not stopped:
            path.write_text("\n".join(lines) + "\n")
        reason = "SIGINT" if stopped else "max_minutes"
        save_json(config.run_dir / "result.json", {"global_step": step, "stopped_by": reason, "finished": not stopped})


def test_an_interrupted_turn_is_repeated_and_the_split_is_that_of_the_curves(stages, tmp_path):
    lines, training = [], FakeTraining(stop_in_turn=6)
    with pytest.raises(InputError, match="refine was stopped early; run the same command again to resume"):
        SharedTime(stages, 30).train(training, lines.append)
    assert not SharedTime(stages, 30).complete
    again = FakeTraining()
    SharedTime(stages, 30).train(again, lines.append)
    names = [stage for stage, _ in training.taken[:-1] + again.taken]
    assert names == ["train", "refine", "train", "refine"] + 6 * ["refine"]
    assert {minutes for _, minutes in training.taken + again.taken} == {30 / TURNS}
    assert "turn 5: refine, by the fall of validation losses per minute: train 0 %, refine 3.2 %" in lines
    assert lines[-2:] == ["train: got 6 of 30 minutes", "refine: got 24 of 30 minutes"]
    assert SharedTime(stages, 30).complete
    # A longer time goes on; what is gone does not.
    assert not SharedTime(stages, 60).complete
    shutil.rmtree(tmp_path / "refine")
    assert not SharedTime(stages, 30).complete
    with pytest.raises(InputError, match=r"turns\.json: has turns of refine, but .*refine has no checkpoint"):
        SharedTime(stages, 60).train(again, lines.append)


def test_what_cannot_be_shared_is_one_line(stages, tmp_path):
    training = FakeTraining(validates=False)
    with pytest.raises(InputError, match=r"train/metrics\.jsonl: no val_loss in the steps 1 to 100"):
        SharedTime(stages, 30).train(training, print)
    assert len(training.taken) == 1
    other = stages["refine"].model_copy(
        update={"validation": stages["refine"].validation.model_copy(update={"split": "held"})}
    )
    with pytest.raises(InputError, match=r"has no split 'held', which training_minutes needs"):
        SharedTime({**stages, "refine": other}, 30).train(training, print)
    assert len(training.taken) == 1
    (tmp_path / "train" / TURNS_FILE).write_text('{"turns": [{"stage": "train"}]}')
    with pytest.raises(InputError, match=r"turns\.json: turns\.0\.minutes"):
        SharedTime(stages, 30)


def workflow_values(dataset, **options):
    first = tiny_train_config(dataset, "train", max_steps=5000)
    first["preview"]["num_images"] = 0
    first["validation"] = {"every": 1, "crops": 8}
    refining = json.loads(json.dumps(first))
    refining["run_dir"] = "refine"
    refining["data"]["crop_size"] = 16
    refining["generator"] |= {"low_resolution": {"factor": 2}}
    sample = {
        "stages": ["train", "refine"],
        "output_dir": "samples",
        "mask_source": {"kind": "split", "dataset": str(dataset)},
    }
    return {"train": first, "refine": refining, "sample": sample, **options}


def test_a_workflow_trains_both_stages_in_turns(tiny_dataset, tmp_path, monkeypatch):
    from steelgen.training.loop import train

    monkeypatch.chdir(tmp_path)
    config = parse_config(workflow_values(tiny_dataset, training_minutes=0.02), WorkflowConfig)
    ran = []

    def run_stage(stage):
        ran.append(stage.action)
        if isinstance(stage.config, TrainConfig):
            train(stage.config, Recorder(), resume=True)
        else:
            raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        run_workflow(config, run_stage, print)
    assert len(ran) == TURNS + 1
    assert (ran[:4], ran[-1]) == (["train", "refine", "train", "refine"], "sample")
    turns = load_json(tmp_path / "train/turns.json")["turns"]
    assert [turn["stage"] for turn in turns] == ran[:-1]
    for stage in ("train", "refine"):
        steps = [turn["step"] for turn in turns if turn["stage"] == stage]
        assert steps == sorted(set(steps))
    assert [stage.complete for stage in plan_workflow(config)] == [True, True, False]
    longer = config.model_copy(update={"training_minutes": 0.04})
    assert [stage.complete for stage in plan_workflow(longer)] == [False, False, False]


def test_a_refining_stage_is_fine_tuned_from_one_that_refines(tiny_dataset, tmp_path, monkeypatch):
    from steelgen.training.loop import train

    monkeypatch.chdir(tmp_path)
    values = workflow_values(tiny_dataset)
    for name in ("train", "refine"):
        values[name]["train"]["max_steps"] = 1
    train(parse_config({**values["refine"], "run_dir": "other"}, TrainConfig), Recorder())
    refining = {name: section for name, section in values["refine"].items() if name != "generator"}
    config = parse_config({**values, "refine": {**refining, "checkpoint": "other"}}, WorkflowConfig)
    assert isinstance(config.refine, FinetuneConfig)
    jobs = []
    monkeypatch.setattr("steelgen.workflow.submit_job", lambda job, profile, after=None: jobs.append(job) or "1")
    submit_workflow(config, SlurmProfile(), print)
    assert [job.action for job in jobs[:2]] == ["train", "finetune"]
    assert load_json(jobs[1].config)["checkpoint"] == "other"
    wrong = parse_config({**values, "refine": {**refining, "checkpoint": "bundled:uhcs"}}, WorkflowConfig)
    with pytest.raises(InputError, match=r"refine\.checkpoint bundled:uhcs: does not refine images"):
        plan_workflow(wrong)


def test_jobs_get_their_minutes_by_rule(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse_config(workflow_values(tiny_dataset, training_minutes=40), WorkflowConfig)
    lines, jobs = [], []

    def submit_job(job, profile, after=None):
        jobs.append((job.action, load_json(job.config), after))
        return str(len(jobs))

    monkeypatch.setattr("steelgen.workflow.submit_job", submit_job)
    submit_workflow(config, SlurmProfile(), lines.append)
    assert [(action, after) for action, _, after in jobs[:3]] == [("train", None), ("train", "1"), ("sample", "2")]
    assert [values["train"]["max_minutes"] for _, values, _ in jobs[:2]] == [30, 10]
    assert [values["run_dir"] for _, values, _ in jobs[:2]] == ["train", "refine"]
    assert lines[0] == (
        "training_minutes: jobs take no turns; by rule, train gets 30 minutes and refine gets 10 minutes"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"refine": None}, "training_minutes: needs refine"),
        ({"train": {"train": {"max_minutes": 3}}}, r"train\.train\.max_minutes: not applicable with training_minutes"),
        ({"refine": {"generator": {"low_resolution": None}}}, r"refine\.generator\.low_resolution: is missing"),
        ({"refine": {"validation": {"split": None}}}, r"refine\.validation\.split: training_minutes needs"),
        ({"training_minutes": 0}, "training_minutes"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(tiny_dataset, changes, message):
    values = workflow_values(tiny_dataset, training_minutes=10)
    for name, change in changes.items():
        if isinstance(change, dict):
            for section, options in change.items():
                values[name][section] |= options
        else:
            values[name] = change
    with pytest.raises(InputError, match=message):
        parse_config(values, WorkflowConfig)
