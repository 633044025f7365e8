"""`plan`: ready configs for a dataset folder, each choice with its reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from steelgen import __version__
from steelgen.bundled import PREFIX, find_refining, list_bundled, resolve_bundled
from steelgen.config.base import parse_config
from steelgen.config.workflow import WorkflowConfig
from steelgen.data.folder import DatasetInfo
from steelgen.data.unlabeled import list_unlabeled
from steelgen.errors import InputError
from steelgen.files import Record, check_output_free, load_record, new_folder, save_json
from steelgen.generators.saved import DESCRIPTION_FILE
from steelgen.planning import rules, scale
from steelgen.planning.fingerprint import Fingerprint, compute_fingerprint
from steelgen.planning.machine import Machine, examine_device, time_step
from steelgen.planning.page import build_page
from steelgen.planning.result import Plan
from steelgen.planning.rules import Choice
from steelgen.planning.stages import build_labeling, build_refining, find_start, set_intervals
from steelgen.turns import TURNS

_PROBE_STEPS = 1000
"""max_steps of the config that is timed; a step takes the same time at any number."""


def plan(
    dataset: Path,
    out: Path | None = None,
    minutes: float = 30.0,
    report: Callable[[int, int], None] = lambda done, total: None,
    unlabeled: Path | None = None,
) -> Plan:
    """Measures a dataset folder and this machine, and writes configs, plan.json and plan.html.

    Args:
        dataset: dataset folder with a training split; without masks, the plan is for images alone.
        out: new folder for the plan; None means plans/NAME, NAME being that of the dataset folder. The outputs of the
            configs lie in runs/ and the name of the plan's folder.
        minutes: time for training; sampling takes about a quarter more, evaluation and utility study come on top.
        report: progress callback of the measurements, called with (micrographs done, total).
        unlabeled: folder of further micrographs, which a segmenter labels first; see `list_unlabeled`.

    Raises:
        InputError: if `minutes` is not positive, `out` is in use, or the dataset cannot be planned for; see
            `compute_fingerprint` and `list_unlabeled`.
    """
    if not 0 < minutes <= 1_000_000:
        raise InputError(f"--minutes {minutes:g}: must be above 0 and at most 1,000,000")
    out = out or Path("plans") / dataset.resolve().name
    check_output_free(out)
    others = list_unlabeled(dataset, unlabeled) if unlabeled else []
    fingerprint = compute_fingerprint(dataset, report, others)
    if others and not fingerprint.classes:
        raise InputError(f"{dataset}: has no masks, from which a segmenter could learn to label {unlabeled}")
    runs = Path("runs") / out.resolve().name
    found = build_plan(dataset, runs, minutes, fingerprint, examine_device(), unlabeled)
    save_plan(found, out)
    return found


def build_plan(
    dataset: Path,
    runs: Path,
    minutes: float,
    fingerprint: Fingerprint,
    machine: Machine,
    unlabeled: Path | None = None,
) -> Plan:
    """Chooses by the rules, and times a training step; see `plan`.

    Args:
        dataset: dataset folder.
        runs: folder for the outputs of the configs.
        minutes: time for training.
        fingerprint: of the dataset folder.
        machine: that trains.
        unlabeled: folder of the fingerprint's unlabeled micrographs.
    """
    labeled, count, has_masks = fingerprint.micrographs["train"], fingerprint.count, bool(fingerprint.classes)
    features = fingerprint.features
    size = scale.choose_image_size(fingerprint.smallest_edge, machine.device, machine.memory_gib, minutes)
    cascade = scale.choose_cascade(size.value, fingerprint.smallest_edge, has_masks)
    crop = scale.choose_crop_size(size.value, fingerprint.smallest_edge, features, fingerprint.detail, cascade.value)
    channels = rules.choose_channels(fingerprint.colored)
    augment = rules.choose_augment(
        fingerprint.orientation, fingerprint.direction, fingerprint.agreement, fingerprint.parents
    )
    area = sum(_parse_area(name) * number for name, number in fingerprint.sizes.items()) / count
    batch = rules.choose_batch(machine.device, count * max(1, round(area / crop.value**2)))
    network = rules.choose_network(size.value, machine.device)
    names = [each.name for each in fingerprint.classes]
    kindred = next((name for name in list_bundled() if names and _load_classes(name) == names), None)
    start = rules.choose_start(count, minutes, list_bundled(), kindred)
    held_out = "val" if "val" in fingerprint.micrographs else None
    split = rules.choose_split(minutes, held_out) if cascade.value else None
    in_turns = split is not None and split.value is None
    own_minutes = minutes - ((split.value or 0.0) if split else 0.0)
    data = {
        "dataset": str(dataset),
        "image_size": size.value,
        "crop_size": crop.value,
        "in_channels": channels.value,
        "augment": augment.value,
    }
    training: dict[str, Any] = {
        "run_dir": str(runs / "train"),
        "data": data,
        "train": {"max_steps": _PROBE_STEPS, "train_batch_size": batch.value, "mixed_precision": "auto"},
        "diffusion": {"mask_dropout": rules.choose_mask_dropout(has_masks).value},
        "preview": {"num_images": 8},
        "validation": {"split": held_out, "crops": 64},
        "measurement": {"every": None},
    }
    start, training, config = find_start(start, training, {"unet": network.value})
    step = time_step(config, machine)
    memory = f"{step.memory_gib:.2g} GiB of {machine.memory_gib:.1f} GiB"
    batch = replace(batch, value=step.batch_size, because=f"{batch.because}; takes {memory}")
    rate = rules.choose_learning_rate(start.value, network.value["base_channels"])
    steps = rules.choose_steps(own_minutes, step.seconds)
    average = rules.choose_ema_decay(steps.value)
    dropout = rules.choose_mask_dropout(has_masks)

    def choose_intervals(steps: int) -> Choice:
        # Three validations in each turn.
        return rules.choose_intervals(steps, minutes, held_out, 3 * TURNS if in_turns else 10)

    intervals = choose_intervals(steps.value)
    training["train"] |= {
        "max_steps": steps.value,
        **({} if in_turns else {"max_minutes": own_minutes}),
        "train_batch_size": step.batch_size,
        "gradient_accumulation_steps": step.accumulation,
        "learning_rate": rate.value,
        "warmup_steps": min(100, steps.value // 10),
        "ema_decay": average.value,
    }
    set_intervals(training, intervals)
    stages: dict[str, Any] = {}
    trained_on, labeling, mixture = dataset, [], {}
    if unlabeled:
        own, share = rules.choose_labeling(labeled, fingerprint.unlabeled, minutes), rules.choose_real_share()
        labeling, mixture = [own, share], {share.name: share.value}
        test = "test" if "test" in fingerprint.micrographs else None
        edge = fingerprint.smallest_edge
        stages["segment"], trained_on = build_labeling(dataset, unlabeled, runs / "segmenter", own.value, edge, test)
    source = rules.choose_mask_source(count if has_masks else 0, fingerprint.unlabeled)
    samples = rules.choose_num_samples(minutes, step.seconds_per_image, cascade.value is not None)
    filtered = rules.choose_filter(has_masks, minutes)
    judge = rules.choose_judge_steps(minutes)
    judged = next((split for split in ("test", "val") if split in fingerprint.micrographs), None)
    codes = rules.choose_codes(labeled, has_masks, "test" in fingerprint.micrographs, fingerprint.unlabeled)
    sample: dict[str, Any] = {
        "generator": str(runs / "train"),
        "output_dir": str(runs / "samples"),
        "mask_source": {"kind": source.value} | ({"dataset": str(trained_on)} if has_masks else {}),
        "num_samples": samples.value,
        "mixed_precision": "auto",
    }
    if filtered.value:
        sample["filter"] = {"dataset": str(trained_on), "segmenter": {"steps": judge.value}}
    if source.value == "split" and augment.value is not True:
        sample["mask_source"]["augment"] = False
    if source.value == "augmented" and augment.value is not True:
        sample["mask_source"] |= {"flip": augment.value == "mirror", "max_rotation": 0}
    stages["finetune" if start.value else "train"] = training
    stages["sample"] = sample
    refining: list[Choice] = []
    if split:
        refining_start = rules.choose_refining_start(start.value, find_refining(start.value) if start.value else None)
        refining_start, stages["refine"] = build_refining(
            refining_start, training, cascade.value, runs / "refine", machine, split.value, choose_intervals, minutes
        )
        refining = [split, refining_start]
        stages |= {"training_minutes": minutes} if in_turns else {}
        sample["stages"] = [sample.pop("generator"), str(runs / "refine")]
    if judged:
        stages["evaluate"] = {
            "generated": str(runs / "samples"),
            "dataset": str(trained_on),
            "output_dir": str(runs / "evaluation"),
            "held_out_split": judged,
            "segmenter": {"steps": judge.value},
            "memorization": {"max_images": min(samples.value, 16 if machine.device == "cpu" else 128)},
        }
    if codes.value:
        stages["utility"] = {
            "dataset": str(dataset),
            "generated": str(runs / "samples"),
            **({"predicted": str(trained_on)} if unlabeled else {}),
            "output_dir": str(runs / "utility"),
            "codes": codes.value,
            "architectures": ["unet:efficientnet-lite0"],
            "val_split": held_out,
            "training": {
                "steps": judge.value,
                "batch_size": 8,
                "augment": augment.value is True,
                **mixture,
            },
        }
    for stage in (training, stages.get("refine")):
        if stage:
            stage["data"]["dataset"] = str(trained_on)  # which was not there to be timed
    evaluation = Choice("held_out_split", judged, f"{judged} was not trained on" if judged else "nothing is held out")
    choices = [size, crop, cascade, *refining, channels, augment, start, network, batch, rate, steps]
    choices += [average, dropout, intervals]
    choices += [*labeling, source, samples, filtered, evaluation, judge, codes]
    return Plan(
        dataset,
        minutes,
        fingerprint,
        machine,
        step,
        tuple(choice for choice in choices if not (start.value and choice is network)),
        tuple(_list_warnings(dataset, fingerprint, crop.value / size.value / (cascade.value or 1), judged)),
        parse_config(stages, WorkflowConfig, origin="plan"),
    )


def save_plan(plan: Plan, out: Path) -> None:
    """Writes the configs, plan.json and plan.html to a new folder; it appears when it is complete.

    Raises:
        InputError: if `out` is in use.
    """
    with new_folder(out) as working:
        for name, config in plan.list_configs().items():
            save_json(working / f"{name}.json", config.model_dump(mode="json", exclude_unset=True))
        save_json(working / "plan.json", describe_plan(plan))
        (working / "plan.html").write_text(build_page(plan), encoding="utf-8")


def describe_plan(plan: Plan) -> dict[str, Any]:
    """Builds the content of plan.json: fingerprint, machine, timed step, choices with reasons, warnings."""
    return {
        "steelgen": __version__,
        "dataset": str(plan.dataset),
        "minutes": plan.minutes,
        "fingerprint": asdict(plan.fingerprint),
        "machine": asdict(plan.machine),
        "step": asdict(plan.step),
        "choices": [asdict(choice) for choice in plan.choices],
        "warnings": list(plan.warnings),
    }


def _load_classes(name: str) -> list[str]:
    """The class names of a bundled model."""
    return load_record(resolve_bundled(Path(f"{PREFIX}{name}")) / DESCRIPTION_FILE, _Described).dataset.class_names


class _Described(Record):
    """The part of a model's generator.json that is read here."""

    dataset: DatasetInfo


def _list_warnings(dataset: Path, fingerprint: Fingerprint, factor: float, judged: str | None) -> list[str]:
    found = scale.find_lost_classes(fingerprint.features, factor)
    empty = [each.name for each in fingerprint.classes if each.share == 0]
    if empty:
        found.append(f"{', '.join(empty)}: no pixel of the measured training masks has this class")
    if fingerprint.leaks:
        found.append(f"{fingerprint.leaks} pairs of micrographs in two splits look alike; see `steelgen data check`")
    if fingerprint.look_alikes:
        found.append(
            f"{fingerprint.look_alikes} pairs of training micrographs look alike; the set is smaller than it seems"
        )
    if judged != "test":
        missing = "no evaluation and no utility study" if judged is None else "no utility study"
        found.append(f"no test split, so {missing}; `steelgen data split {dataset} FOLDER` creates all splits")
    return found


def _parse_area(size: str) -> int:
    width, height = size.split(" x ")
    return int(width) * int(height)
