"""RESULTS.md from the stored results, with ISDM's figures where they were measured in the same run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tables import diffusion, evaluation, families, gpu, transfer
from tables.markdown import Lines, Results


@dataclass(frozen=True)
class Section:
    """The section of RESULTS.md on results/NAME.json."""

    name: str
    heading: str
    compared: str
    """What the tables compare."""
    tabulate: Callable[[Results], Lines]
    instead: str = ""
    """Text without stored results; "" omits the section."""


def write_report(results: Path, path: Path) -> list[str]:
    """Writes the report of all stored results.

    Args:
        results: folder of JSON files.
        path: the .md file.

    Returns:
        Names of results without a section, which are omitted.
    """
    path.write_text(build_report(results), encoding="utf-8")
    known = {section.name for section in SECTIONS}
    return [file.stem for file in sorted(results.glob("*.json")) if file.stem not in known]


def build_report(results: Path) -> str:
    """Builds the report as Markdown; benchmarks without results are named at the end."""
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


_HEAD = """# Benchmark results

Written by `benchmarks/run --gather` from benchmarks/results/*.json; `benchmarks/run` repeats all measurements. "ISDM's"
means ISDM's procedure, reproduced with the same weights and masks on the same machine. Ranges are from the minimum to
the maximum of the repeats or seeds, or ± one standard deviation of KID over its subsets. KID and the Fréchet distance
(FD) use EfficientNet-Lite0 features; lower is better. Higher mIoU is better. Results of before 2026-11-28 were sampled
with guidance 1.5 between noise levels 0.2 and 2 and with mean gray levels from the network, the defaults of then."""


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
        "Training step",
        "ISDM's network trained ISDM's way (fp32, a second forward pass for the loss, mask features recomputed in "
        "every norm) and as in `steelgen train`, from the same weights.",
        diffusion.tabulate_training,
    ),
    Section(
        "sampling-speed",
        "Sampling: time",
        "ISDM's procedure (300 ancestral steps, two passes per step, fp32); every further row adds one change, the "
        "last one is steelgen's default. 32 px, with the same weights and masks.",
        diffusion.tabulate_speed,
    ),
    Section(
        "sampling-beside",
        "Sampling: parallel work",
        "`steelgen sample` with the bundled model (64 px): masks are made and pairs filtered and written in sequence "
        "with the network, as before, or in parallel processes and threads.",
        diffusion.tabulate_beside,
    ),
    Section(
        "sampling-quality",
        "Sampling: quality",
        "ISDM's procedure and steelgen's default with the same weights: distance to held-out crops, and mIoU between "
        "the masks and those that a segmenter trained on real crops predicts.",
        diffusion.tabulate_quality,
    ),
    Section(
        "sampling-curve",
        "Sampling: KID over the number of network evaluations",
        "Solvers with power spacing, guidance 1.5 between noise levels 0.2 and 2, and the same weights as above; Heun "
        "uses two evaluations per step.",
        diffusion.tabulate_curve,
    ),
    Section(
        "sampling-guide",
        "Sampling: guidance",
        "Spacings of the steps, guidance scales and intervals of noise levels, and mean gray levels from the network "
        "or measured ones; bundled model, 64 px. Spread: standard deviation over images relative to that over "
        "held-out crops, here of other micrographs than those trained on.",
        diffusion.tabulate_guide,
    ),
    Section(
        "variety",
        "Sampling: variety",
        "Spread of mean gray level, contrast and gradient over images for masks of held-out micrographs, relative to "
        "that over real training crops, whose own scores against the held-out crops are the last row. uhcs by the "
        "bundled model, the others by bundled:base fine-tuned on 60 % of the micrographs. Before: guidance 1.5 between "
        "noise levels 0.2 and 2, mean gray levels from the network; now 2 between 0.1 and 1, and measured ones.",
        diffusion.tabulate_variety,
    ),
    Section(
        "recipe",
        "Training recipe at equal time",
        "steelgen's default recipe, ISDM's recipe and single changes of the default: KID to held-out crops after "
        "equal training time of the same network. ISDM's EMA with a decay of 0.9999 from the first step still "
        "contains most of the untrained weights after so few steps, so its last weights without EMA have rows of "
        "their own. The options of mask-noise, min-snr and augmentation-conditioning have been removed.",
        diffusion.tabulate_recipe,
    ),
    Section(
        "families",
        "Generators side by side",
        "`steelgen compare --families`: small networks of each family on the sixteen training micrographs, after equal "
        "time of one core; images for masks of held-out micrographs against these, 95 % intervals. The utility study "
        "has a quarter of the micrographs, with and without the generator's pairs.",
        families.tabulate_families,
    ),
    Section(
        "gan",
        "Adversarial generators",
        "DCGAN, the style-based generator with and without adaptive augmentation (ADA), the masked one, and semantic "
        "diffusion with and without masks, after equal training time on one core; images/s on one core.",
        families.tabulate_gan,
    ),
    Section(
        "translation",
        "Unpaired translation",
        "Source images, simple filters and trained systems against held-out target images. In the made world the truth "
        "is known: power at the scan lines relative to real images (1 is right), mean absolute log ratio of spectra, "
        "IoU of thresholded images and masks relative to that of real ones, and shift of the class area. Rows with "
        "nce 0.5 were measured before, with other settings where they say so. In defects the source has no discs: what "
        "was changed against the discs that a segmenter finds.",
        families.tabulate_translation,
    ),
    Section(
        "unlabeled",
        "Without a label on the target",
        "Renderings of procedural layouts and the training micrographs of uhcs without their masks, 64 px at 32 px, as "
        "in the translation; bundled:base is fine-tuned. Started: renderings, noised to a share of the schedule, are "
        "sampled from on. Labeled: on the labels of a segmenter trained on the renderings. Real-labeled and "
        "real-masks: on the real labels, for the same layouts and for masks of held-out micrographs.",
        families.tabulate_unlabeled,
    ),
    Section(
        "utility",
        "Does generated data help?",
        "mIoU on held-out real micrographs of segmentation networks trained with and without generated pairs, paired "
        "by seed; codes as in docs/utility.md.",
        evaluation.tabulate_utility,
    ),
    Section(
        "folds",
        "How many micrographs do generated pairs replace?",
        "Six folds of uhcs at the micrographs' own resolution. In each, a cascade is fine-tuned from bundled:base on 1 "
        "to 16 micrographs alone, and a segmenter with a pretrained encoder is trained on these (F000), with pasted "
        "islands (P), with the cascade's pairs (FALL), and with both; tested on the fold's four micrographs, whole. "
        "Intervals are Student's t over folds; that of the share of the gap to all micrographs is a bootstrap.",
        evaluation.tabulate_folds,
    ),
    Section(
        "levers",
        "One labeled micrograph of sixteen",
        "As above with one micrograph. F000 predicted: a segmenter of it labels the fold's other fifteen (counted as "
        "pairs), and the next is trained on all. FALL half predicted: the cascade is fine-tuned on all and draws 128 "
        "pairs for their masks, and half of every batch are crops of the labeled micrograph.",
        evaluation.tabulate_folds,
    ),
    Section(
        "steering",
        "The segmenter in the loop",
        "SegFormer, a quarter of the micrographs, 256 pairs, equal training steps: pairs whose masks a segmenter chose "
        "by its errors (emphasis), pairs that its gradients kept (gain), and the same shown by their agreement "
        "(weights).",
        evaluation.tabulate_steering,
    ),
    Section(
        "cascade",
        "At the micrographs' own resolution",
        "Crops of 128 px at the full resolution of uhcs, by a generator of half the resolution behind different second "
        "steps, and by that generator fine-tuned on native windows. Minutes of one core are those of the second step, "
        "whose network sees 2 × 2 pixels as one with -patch, and has coarse_error 0 with -exact and -consistent; "
        "upper octave is the power between half of Nyquist's frequency and Nyquist's, relative to that of real crops.",
        diffusion.tabulate_cascade,
    ),
    Section(
        "transfer",
        "From another model",
        "Training from scratch and fine-tuning the bundled models on two datasets that neither has seen, for the same "
        "235 steps, 4 minutes of one core. Loss, KID and copies are those of held-out micrographs. Steps to the last "
        "loss and KID of training from scratch are interpolated; KID is measured every 58 steps, so that 58 is the "
        "least that can be seen. base_fast has a learning rate of 10⁻³ instead of 3·10⁻⁴, base_frozen trains only what "
        "sees the mask and the output at it.",
        transfer.tabulate_transfer,
    ),
    Section(
        "planning",
        "What a plan chooses",
        "`steelgen plan`, a cascade, against one stage with crops as large as islands and texture allow (also trained "
        "from scratch), at the micrographs' own resolution, and twice as large, at equal training time of a core. "
        "Images of 256 px of the micrographs for masks of held-out ones, enlarged where the crops are of a coarser "
        "scale, against other held-out places: shrunk to 64 px (layout), and in quarters of 128 px (detail). Floor: "
        "training crops.",
        transfer.tabulate_planning,
    ),
    Section(
        "conditions",
        "Conditions",
        "Images that semantic diffusion without masks generates for a value of one condition, the others left open: "
        "KID·10³ to real held-out crops of that value (within), and the mean of those to each other value (between); "
        "the same for real training crops, and within for images with all conditions left open. A held-out image "
        "counts for the nearest value. Read: what a ridge regression on features of real training crops reads from the "
        "images, geometric means of numbers. Uhcs: 60 micrographs, specimens held out as a whole; values with one or "
        "two micrographs are the looks of these. Strips: photographs of strip surfaces.",
        transfer.tabulate_conditions,
    ),
    Section(
        "adapter",
        "A base of our own, and few labeled micrographs",
        "A small Stable Diffusion trained without labels on micrographs of many materials, then taught the masks of "
        "some micrographs of uhcs by `latent_adapter`; beside it semantic diffusion from scratch on the same for the "
        "same minutes of one core, those of the base left out. Images of 64 px, crops of 128 px; IoU of masks and what "
        "a segmenter trained on real crops sees in the images. Floor: training crops, for IoU and copies validation "
        "crops; autoencoder: validation crops reconstructed by the base's, the limit of all adapters.",
        families.tabulate_adapter,
    ),
    Section(
        "segmentation",
        "Segmentation of real micrographs",
        "The six folds of uhcs: a segmenter trained on 20 micrographs and tested on the other 4, whole and at full "
        "resolution. Then judges trained as by `steelgen evaluate`, tested on crops at half the resolution.",
        evaluation.tabulate_segmentation,
    ),
    Section(
        "evaluation-speed",
        "Evaluation time",
        "`steelgen evaluate` without a utility study, with an empty cache.",
        evaluation.tabulate_evaluation,
    ),
    Section(
        "evaluation-large",
        "Evaluation time with a large set",
        "The same against a simulated dataset of 1,705 micrographs of 1024×768 px, the size of the MA-island set. They "
        "are memory-mapped: their pages, some 2.6 GiB, count as memory, but the system may drop them.",
        evaluation.tabulate_evaluation,
    ),
    Section(
        "copies",
        "Search for copies in a large set",
        "Simulated micrographs of 1024×768 px, as many as in the MA-island set, and images of 256 px: the search that "
        "picks candidate micrographs and the one that compares all of them.",
        evaluation.tabulate_copies,
    ),
    Section(
        "data-import",
        "Importing a large dataset",
        "A simulated dataset as large as the MA-island set, 1024×768 px; memory is the sum over all processes.",
        diffusion.tabulate_import,
    ),
    Section(
        "data-loader",
        "Loading crops",
        "64 px crops loaded by one process from three sources, compared with the crops that a 64-channel network "
        "trains on.",
        diffusion.tabulate_loader,
    ),
    Section(
        "isdm",
        "Differences from ISDM's numbers",
        "Outputs of steelgen with an imported ISDM checkpoint, compared with those of ISDM; below, balanced masks.",
        diffusion.tabulate_isdm,
    ),
    Section(
        "rvae",
        "Rotation-invariant descriptors",
        "Two latents of `rvae` compared with those of a plain variational autoencoder of about the same size; for "
        "real islands also two principal components and five hand-crafted shape measures. Movement: standard "
        "deviation of a latent when its patch is rotated, relative to that over patches; the worse latent. Agreement: "
        "adjusted Rand index of k-means clusters and labels, and accuracy of the majority label of the 7 nearest "
        "islands, with equally many islands per label.",
        families.tabulate_rvae,
    ),
    Section(
        "joint",
        "Pairs of image and mask",
        "`joint_diffusion` trained on 512 tiles of 32² px of overlapping discs, a world whose statistics are known. "
        "Deviations from 4,096 tiles of the world; Wasserstein-1 distances of islands are relative to the mean. A "
        "Gaussian field cut at a level has the right two-point correlation, and 16 training tiles in 8 symmetries have "
        "all statistics: a generator must do better than both. Their images are rendered as in the training set.",
        families.tabulate_joint,
    ),
    Section(
        "pairs",
        "Pairs of image and mask: masks first, or both together",
        "Generators of pairs on the sixteen training micrographs of uhcs (64 px at 32 px) after equal training time: "
        "masks, then images for them, or both in one model, whose images are guided by their masks (scale 3 between "
        "noise levels 0.1 and 2); joint-velocity predicts the velocity of the mask's bits in place of its classes. "
        "Distances are to crops of the 4 test micrographs, the floor is that of training crops. mIoU is between the "
        "masks and those that a segmenter trained on real crops predicts, relative to real test crops. Deviations of "
        "masks are means over cementite network and spheroidite; those of islands are Wasserstein-1 distances "
        "relative to the mean. The U-Nets of the last table but one are trained on 4 (R4) or all 16 micrographs and "
        "tested on the test micrographs; rows of systems have the change by their pairs. All generators have seen "
        "all 16 masks. Differences have 95 % intervals over seeds (Student's t), bold if they exclude 0; they do not "
        "say how much another dataset would change.",
        families.tabulate_pairs,
    ),
    Section(
        "labels",
        "Labels from few labeled crops",
        "Segmenters trained on 5, 10 or 20 labeled crops of uhcs (128 px at 64 px) and tested on 64 crops of the 4 "
        "test micrographs. Intervals are over test crops and seeds, not over micrographs. The "
        "network of `bundled:base` has seen no micrograph and no mask of this dataset, but 36 others of the same "
        "steel without masks.",
        families.tabulate_labels,
    ),
    Section(
        "scaling",
        "Data-parallel training",
        "A step with and without all-reduce on this CPU, and predictions for GPUs by the model in docs/scaling.md.",
        diffusion.tabulate_scaling,
    ),
    Section(
        "gpu",
        "On a GPU",
        "Training and sampling with the network of configs/train.json, by `benchmarks/gpu`; waits are those of the "
        "host for the GPU.",
        gpu.tabulate_gpu,
        instead="steelgen has not been measured on a GPU yet: all figures above are from a CPU. `benchmarks/gpu` "
        "measures exact resume, speed, memory and waits within nine minutes.",
    ),
)
