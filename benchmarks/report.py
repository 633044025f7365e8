"""RESULTS.md from the stored results: every figure beside ISDM's where ISDM was measured in the same run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tables
from tables import Lines, Results


@dataclass(frozen=True)
class Section:
    """What RESULTS.md says about results/NAME.json: a heading, what is compared, tables of the figures."""

    name: str
    heading: str
    compared: str
    tabulate: Callable[[Results], Lines]
    instead: str = ""
    """What it says without stored results; "" leaves the section out."""


def write_report(results: Path, path: Path) -> list[str]:
    """Writes the report of all results that are there.

    Args:
        results: folder of the benchmarks' JSON files.
        path: the .md file.

    Returns:
        Names of results without a section, which are left out.
    """
    path.write_text(build_report(results), encoding="utf-8")
    known = {section.name for section in SECTIONS}
    return [file.stem for file in sorted(results.glob("*.json")) if file.stem not in known]


def build_report(results: Path) -> str:
    """The report as Markdown; benchmarks without results are named at its end."""
    parts, missing = [_HEAD], []
    for section in SECTIONS:
        file = results / f"{section.name}.json"
        if not file.is_file():
            missing.append(section.name)
            if section.instead:
                parts.append(f"## {section.heading}\n\n{section.instead}")
            continue
        stored = json.loads(file.read_text(encoding="utf-8"))
        lines = [f"## {section.heading}", "", section.compared, "", *section.tabulate(stored), ""]
        parts.append("\n".join([*lines, _describe_environment(stored["environment"])]))
    if missing:
        parts.append(f"Without stored results: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


_HEAD = """# What the benchmarks measured

Made by `benchmarks/run --gather` from benchmarks/results/*.json; `benchmarks/run` measures everything anew. "ISDM's" is
ISDM's procedure, done again here on the same weights, masks and machine. Spreads are from the lowest to the highest of
the repeats or seeds, or ± one standard deviation of KID over its subsets. KID and the Fréchet distance (FD) are of
EfficientNet-Lite0's features: the lower the better. mIoU: the higher the better."""


def _describe_environment(environment: Results) -> str:
    versions = {"steelgen": environment["steelgen"], "Python": environment["python"], **environment["packages"]}
    machine = [
        environment.get("cpu", environment["processor"]),
        f"{environment['threads']} thread" + "s" * (environment["threads"] > 1),
        ", ".join(environment["gpus"]) or "no GPU",
        environment["platform"],
    ]
    lines = [
        f"`{shlex.join(environment['command'])}`" + (f" ({environment['note']})" if "note" in environment else ""),
        ", ".join(machine),
        ", ".join(f"{name} {versions[name]}" for name in ("steelgen", "torch", "diffusers", "Python")),
    ]
    return " · ".join([*lines, environment["date"]] if "date" in environment else lines)


SECTIONS = (
    Section(
        "training",
        "A training step",
        "ISDM's network trained ISDM's way (fp32, a second forward pass for the loss, mask features anew in every "
        "norm) and as `steelgen train` does it, from the same weights.",
        tables.tabulate_training,
    ),
    Section(
        "sampling-speed",
        "Sampling: time",
        "ISDM's procedure (300 ancestral steps, two passes a step, fp32), then one measure more in each row down to "
        "steelgen's default; 32 px, the same weights and masks.",
        tables.tabulate_speed,
    ),
    Section(
        "sampling-beside",
        "Sampling: what goes on beside drawing",
        "`steelgen sample` by the bundled model (64 px): masks made, pairs judged and written in turn with drawing, as "
        "before, and in processes and threads beside it.",
        tables.tabulate_beside,
    ),
    Section(
        "sampling-quality",
        "Sampling: quality",
        "ISDM's procedure and steelgen's default on the same weights, by distance to held-out crops and by how well a "
        "segmenter trained on real crops finds the masks again.",
        tables.tabulate_quality,
    ),
    Section(
        "sampling-curve",
        "Sampling: KID over the number of network evaluations",
        "Solvers with the default's spacing and guidance, on the same weights as above; Heun takes two evaluations a "
        "step.",
        tables.tabulate_curve,
    ),
    Section(
        "sampling-guide",
        "Sampling: guidance",
        "Guidance scales and the noise levels at which there is guidance, with two spacings of the steps; by the "
        "bundled model of 64 px.",
        tables.tabulate_guide,
    ),
    Section(
        "recipe",
        "The training recipe at equal time",
        "steelgen's default recipe, ISDM's and single changes of the default: KID to held-out crops after the same "
        "time of training of the same network. ISDM's average of 0.9999 from the first step on still holds most of the "
        "untrained weights after so few steps, so its last weights without an average are a row of their own.",
        tables.tabulate_recipe,
    ),
    Section(
        "gan",
        "Adversarial generators",
        "DCGAN, the style-based generator with and without adaptive augmentation (ADA), the masked one, and semantic "
        "diffusion with and without masks, after equal training time on one core; images/s on one core.",
        tables.tabulate_gan,
    ),
    Section(
        "utility",
        "Does generated data help?",
        "mIoU on held-out real micrographs of segmentation networks trained with and without generated pairs, paired "
        "by seed; codes as in docs/utility.md.",
        tables.tabulate_utility,
    ),
    Section(
        "segmentation",
        "Segmentation of real micrographs",
        "The six folds of uhcs: a segmenter trained on 20 micrographs and tested on the other 4, whole and at full "
        "resolution. Then judges trained as by `steelgen evaluate`, tested on crops at half the resolution.",
        tables.tabulate_segmentation,
    ),
    Section(
        "evaluation-speed",
        "Time of an evaluation",
        "`steelgen evaluate` without a utility study, from an empty cache.",
        tables.tabulate_evaluation,
    ),
    Section(
        "data-import",
        "Importing a large set",
        "A simulated set as large as the MA-island set, 1024×768 px; memory is that of all processes together.",
        tables.tabulate_import,
    ),
    Section(
        "data-loader",
        "Loading crops",
        "64 px crops by one process from three sources, beside the crops that a 64-channel network trains on.",
        tables.tabulate_loader,
    ),
    Section(
        "isdm",
        "Distance from ISDM's own numbers",
        "What ISDM computes from a checkpoint of its own, and steelgen from the imported one; below, balanced masks.",
        tables.tabulate_isdm,
    ),
    Section(
        "rvae",
        "Rotation-invariant descriptors",
        "Two latents of `rvae` compared with those of a plain variational autoencoder of about the same size; for "
        "real islands also two principal components and five hand-crafted shape measures. Movement: standard "
        "deviation of a latent when its patch is rotated, relative to that over patches; the worse latent. Agreement: "
        "adjusted Rand index of k-means clusters and labels, and accuracy of the majority label of the 7 nearest "
        "islands, with equally many islands per label.",
        tables.tabulate_rvae,
    ),
    Section(
        "scaling",
        "Data-parallel training",
        "A step with and without the all-reduce on this CPU, and predictions for GPUs by the model in docs/scaling.md.",
        tables.tabulate_scaling,
    ),
    Section(
        "gpu",
        "On a GPU",
        "Training and sampling with the network of configs/train.json, by `benchmarks/gpu`; waits are the host's for "
        "the GPU.",
        tables.tabulate_gpu,
        instead="steelgen has not been measured on a GPU yet: all figures above are a CPU's. `benchmarks/gpu` measures "
        "whether resuming is exact, speed, memory and waits within nine minutes.",
    ),
)
