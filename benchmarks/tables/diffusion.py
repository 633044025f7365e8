"""Tables of training and sampling of semantic diffusion."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tables.markdown import Lines, Results, build_table, show_mean_and_range, show_number, show_spread

_JUDGED = ["KID·10³", "FD", "mIoU with the masks"]
_MEANS = (("kid", 1e3, 1), ("fd", 1.0, 1), ("miou", 1.0, 3))
_SCORES = (("above", 1e3), ("kid", 1e3), ("fd", 1.0))


def _kid(score: dict[str, float]) -> str:
    return f"{1e3 * score['kid']:.1f} ± {1e3 * score['kid_std']:.1f}"


def tabulate_training(stored: Results) -> Lines:
    """Throughput and memory of a training step."""
    settings, ours = stored["settings"], stored["precision_of_ours"]
    rows = [
        [
            f"{name}, {'fp32' if name.startswith('ISDM') else ours}",
            show_spread(row["images_per_second"]),
            show_spread(row["times_faster_than_isdm"]),
            show_number(row["peak_memory_gib"]),
            f"{100 * row['share_of_isdms_memory']:.0f}",
        ]
        for name, row in stored["variants"].items()
    ]
    return [
        f"{settings['image_size']} px, {settings['channels']} channels, {settings['batch_size']} crops per step, on "
        f"{settings['device']}; medians of {settings['repeats']} repeats.",
        "",
        *build_table(["step", "images/s", "speedup", "peak memory (GiB)", "memory (% of ISDM's)"], rows),
    ]


def tabulate_speed(stored: Results) -> Lines:
    """Time per image; every row adds one change."""
    rows = [
        [name, show_spread(row["seconds_per_image"]), show_spread(row["times_faster_than_isdm"])]
        for name, row in stored["variants"].items()
    ]
    return [
        f"Medians of {stored['repeats']} repeats of {stored['images']} images.",
        "",
        *build_table(["procedure", "time per image (s)", "speedup"], rows),
    ]


def tabulate_beside(stored: Results) -> Lines:
    """Throughput with sequential and with parallel work."""
    seconds, images = stored["seconds"], stored["images"]
    rows = []
    for what in dict.fromkeys(name.rpartition(", ")[0] for name in seconds):
        in_turn, beside = (seconds[f"{what}, {how}"] for how in ("in turn", "beside"))
        rates = [f"{images / row['median']:.2f}" for row in (in_turn, beside)]
        rows.append([what, *rates, f"{in_turn['median'] / beside['median']:.2f}"])
    return [
        f"Medians of repeats of {images} images.",
        "",
        *build_table(["masks and filter", "images/s, sequential", "images/s, parallel", "speedup"], rows),
    ]


def _judge(score: dict[str, float]) -> list[str]:
    return [_kid(score), f"{score['fd']:.1f}", f"{score['miou']:.3f}"]


def tabulate_quality(stored: Results) -> Lines:
    """Scores of both procedures; ours with mean and range over seeds."""
    scores = stored["scores"]
    ours = [score for name, score in scores.items() if name.startswith("default")]
    mean = [show_mean_and_range([factor * score[key] for score in ours], digits) for key, factor, digits in _MEANS]
    others = {name: score for name, score in scores.items() if not name.startswith("default")}
    rows = [[name, *_judge(score)] for name, score in others.items()]
    rows += [[f"default, mean of {len(ours)} seeds", *mean]]
    rows += [[name, *_judge(score)] for name, score in scores.items() if name not in others]
    rows += [["floor (real vs real)", *_judge(stored["floor"])]]
    return [f"{stored['images']} images each.", "", *build_table(["procedure", *_JUDGED], rows)]


def tabulate_curve(stored: Results) -> Lines:
    """KID; a row per solver, a column per number of evaluations."""
    solvers = stored["solvers"]
    counts = list(next(iter(solvers.values())))
    rows = [[name, *(_kid(scores[count]) for count in counts)] for name, scores in solvers.items()]
    columns = ["KID·10³ by solver", *(f"{count} evaluations" for count in counts)]
    return [f"{stored['images']} images each; floor {_kid(stored['floor'])}.", "", *build_table(columns, rows)]


def tabulate_guide(stored: Results) -> Lines:
    """Scores; a row per spacing, guidance scale and interval."""

    def judge(row: Results) -> list[str]:
        return [*_judge(row), f"{row['recall']:.2f}", *(f"{ratio:.2f}" for ratio in row["spread"].values())]

    rows = []
    for row in stored["guides"]:
        low, high = row["guidance_interval"] or (0, "∞")
        guide = "none" if row["guidance_scale"] == 1 else f"{row['guidance_scale']:g}, {low:g} to {high}"
        rows.append([row["timestep_spacing"], guide, row["brightness"], *judge(row)])
    rows.append(["floor", "", "", *judge(stored["floor"])])
    spreads = [f"spread of {name}" for name in stored["floor"]["spread"]]
    columns = ["spacing", "guidance, noise levels", "brightness", *_JUDGED, "recall", *spreads]
    return [f"{stored['images']} images each, 12 steps.", "", *build_table(columns, rows, texts=3)]


def tabulate_variety(stored: Results) -> Lines:
    """Scores; a row per dataset and solver, means and ranges over seeds, and one for real crops."""
    rows = []
    for each in stored["datasets"]:
        floor = each["floor"]
        for name, scores in [*each["scores"].items(), ("real training crops", [floor])]:
            spreads = [[score["spread"][kind] / floor["spread"][kind] for score in scores] for kind in floor["spread"]]
            figures = [([1e3 * score["kid"] for score in scores], 1), ([score["recall"] for score in scores], 2)]
            figures += [(values, 2) for values in spreads] + [([score["miou"] for score in scores], 3)]
            shown = [show_mean_and_range(values, digits) for values, digits in figures]
            rows.append([each["dataset"], name, *shown])
    spreads = [f"spread of {name}" for name in stored["datasets"][0]["floor"]["spread"]]
    columns = ["dataset", "solver", "KID·10³", "recall", *spreads, "mIoU with the masks"]
    images = stored["datasets"][0]["images"]
    return [f"{images} images each, {stored['seeds']} seeds.", "", *build_table(columns, rows, texts=2)]


def tabulate_scores(runs: Sequence[Results]) -> Lines:
    """Scores of the recipe; a row per variant, budget and weights, with mean and range over seeds."""
    grouped: dict[tuple[str, float, str], list[Results]] = {}
    for run in runs:
        for label, score in run["scores"].items():
            above = score["kid"] - run["floor"]["kid"]
            grouped.setdefault((run["variant"], run["budget_seconds"], label), []).append({**score, "above": above})
    rows = []
    for (variant, budget, label), scores in sorted(grouped.items()):
        cells = [show_mean_and_range([factor * score[key] for score in scores]) for key, factor in _SCORES]
        rows.append([variant, f"{budget:g}", label, str(scores[0]["step"]), str(len(scores)), *cells])
    columns = ["variant", "budget (s)", "weights", "steps", "seeds", "KID·10³ above the floor", "KID·10³", "FD"]
    lines = build_table(columns, rows, texts=3)
    floors = [run["floor"] for run in runs]
    return lines + (["", f"Floor: KID·10³ {1e3 * floors[0]['kid']:.1f}, FD {floors[0]['fd']:.1f}."] if floors else [])


def tabulate_recipe(stored: Results) -> Lines:
    """Scores, and the step times behind the budgets."""
    times = [[name, show_spread(summary)] for name, summary in stored["seconds_a_step"].items()]
    return [*tabulate_scores(stored["runs"]), "", *build_table(["variant", "CPU time per step (s)"], times)]


def tabulate_import(stored: Results) -> Lines:
    """Time and memory of import and check."""
    rows = [
        [f"`steelgen data {name}`", show_number(stored[name]["seconds"]), show_number(stored[name]["peak_mb"])]
        for name in ("import", "check")
    ]
    return [
        f"{stored['images']} images, {stored['polygons']} polygons, one run.",
        "",
        *build_table(["command", "time (s)", "peak memory (MB)"], rows),
    ]


def tabulate_loader(stored: Results) -> Lines:
    """Crops per second of each source."""
    rows = [[name, show_number(rate)] for name, rate in stored["crops_per_second"].items()]
    return [
        *build_table(["source", "crops/s (median)"], rows),
        "",
        f"The cache is {show_number(stored['cache_to_training'])} times as fast as training and "
        f"{show_number(stored['cache_to_decoding'])} times as fast as decoding; building it takes "
        f"{show_number(stored['cache_build_seconds'])} s, opening it {show_number(stored['cache_open_seconds'])} s.",
    ]


def tabulate_isdm(stored: Results) -> Lines:
    """Differences from ISDM's outputs, and class shares before and after balancing."""
    differences = [
        [f"`{name}`", f"{row['absolute']:.1e}", f"{row['relative']:.1e}"] for name, row in stored["differences"].items()
    ]
    shares = [
        [name, *(f"{100 * share:.1f}" for share in row.values())]
        for name, row in stored["class_shares"].items()
        if "often" in row
    ]
    return [
        *build_table(["output", "largest difference", "relative to the largest value"], differences),
        "",
        *build_table(["masks", "class “often” (% of pixels)", "class “rare” (% of pixels)"], shares),
    ]


def tabulate_scaling(stored: Results) -> Lines:
    """Measurements, and the efficiencies predicted from them."""
    measured, predicted = stored["measured"], stored["predicted_efficiency"]
    seconds = measured["seconds_a_step"]
    rows = [
        ["parameters (10⁶)", show_number(measured["parameters"] / 1e6)],
        ["all-reduced per step (MB)", show_number(measured["all_reduced_bytes_a_step"] / 1e6)],
        ["operations per crop, forward and backward (GFLOP)", show_number(measured["flop_a_crop"] / 1e9)],
        ["step with all-reduce (s, median)", show_number(seconds["with_all_reduce"])],
        ["step without all-reduce (s, median)", show_number(seconds["without"])],
    ]
    efficiencies = [
        [name, *("–".join(dict.fromkeys(str(int(100 * share + 0.5)) for share in ends)) for ends in row.values())]
        for name, row in predicted.items()
    ]
    counts = list(next(iter(predicted.values())))
    return [
        f"{measured['processes']} processes, {measured['batch_size']} crops of {measured['image_size']} px each.",
        "",
        *build_table(["measured", ""], rows),
        "",
        *build_table(["predicted efficiency (%) on GPUs", *counts], efficiencies),
    ]


def tabulate_cascade(stored: Results) -> Lines:
    """Systems at full resolution, means over seeds, and seams of whole micrographs."""
    groups: dict[tuple[float, str], list[Results]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["minutes"], run["system"]), []).append(run)
    rows = []
    for (minutes, system), runs in sorted(groups.items()):
        above = [1e3 * (run["score"]["kid"] - run["floor"]["kid"]) for run in runs]
        means = {key: fmean(run["score"][key] for run in runs) for key in ("precision", "recall", "upper_octave")}
        rows.append(
            [
                system,
                f"{minutes:g}",
                show_mean_and_range(above),
                f"{means['precision']:.2f}, {means['recall']:.2f}",
                f"{means['upper_octave']:.2f}",
                show_number(fmean(run["score"]["megapixels_per_minute"] for run in runs)),
                str(len(runs)),
            ]
        )
    floor = stored["runs"][0]["floor"]
    fidelity = f"{floor['precision']:.2f}, {floor['recall']:.2f}"
    rows.append(["floor", "–", "0", fidelity, f"{floor['upper_octave']:.2f}", "–", "–"])
    columns = ["system", "minutes", "KID·10³ above the floor", "precision, recall", "upper octave", "MP/min", "seeds"]
    lines = [f"{stored['runs'][0]['images']} crops each.", "", *build_table(columns, rows)]
    for system in sorted({each["system"] for each in stored["whole"]}):
        whole = [each for each in stored["whole"] if each["system"] == system]
        seams = [f"{name} {fmean(each['seams'][name] for each in whole):.3f}" for name in whole[0]["seams"]]
        rates = [fmean(each["megapixels_per_minute"][name] for each in whole) for name in ("bicubic", system)]
        lines += ["", f"Gradient at window borders relative to elsewhere, {len(whole)} whole: {', '.join(seams)}."]
        lines.append(f"{system} draws them in {rates[0] / rates[1]:.2f} times the time of its first stage.")
    return lines
