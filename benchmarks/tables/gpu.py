"""Tables of what was measured on a GPU."""

from __future__ import annotations

from collections.abc import Sequence

from tables.markdown import Lines, Results, build_table, show_number, show_spread


def tabulate_gpu(stored: Results) -> Lines:
    """Resume, steps, sampling, memory and several processes, as far as measured."""
    gpu, parts = stored["gpu"], stored["parts"]
    lines = [_describe_gpu(gpu) if gpu["name"] else "On a CPU."]
    if stored["dry"]:
        lines += ["", "A dry run with tiny networks that only checks that every part works."]
    for names, tabulate in _GPU_TABLES.items():
        measured = [parts[name]["measured"] for name in names if name in parts and parts[name]["measured"]]
        rows = [row for found in measured for row in (found if isinstance(found, list) else [found])]
        if rows:
            lines += ["", *tabulate(rows)]
    for name, part in parts.items():
        if "cut_after_seconds" in part:
            lines += ["", f"The part “{name}” was stopped after {part['cut_after_seconds']} s."]
        if "failed" in part:
            lines += ["", f"The part “{name}” failed: {' '.join(part['failed'])}"]
    return lines


def _describe_gpu(gpu: Results) -> str:
    labels = (("driver", "driver"), ("CUDA", "cuda"), ("cuDNN", "cudnn"))
    versions = [f"{label} {gpu[key]}" for label, key in labels if gpu[key]]
    return f"{gpu['count']} × {gpu['name']}, {show_number(gpu['memory_gib'])} GiB, {', '.join(versions)}."


def _name_precision(row: Results) -> str:
    return "fp32 (TF32)" if row["mixed_precision"] == "no" else row["mixed_precision"]


def _tabulate_resumption(rows: Sequence[Results]) -> Lines:
    columns = ["precision", "deterministic", "steps", "resumed: differing", "largest", "repeated: differing", "largest"]
    cells = [
        [
            _name_precision(row),
            "yes" if row["deterministic"] else "no",
            str(row["steps"]),
            *(_show_differences(row.get("resumed")) + _show_differences(row.get("repeated"))),
        ]
        for row in rows
    ]
    heading = (
        "Tensors of a checkpoint that differ from those of an uninterrupted run, after resuming from halfway and in a "
        "repeated run:"
    )
    failed = [f"{_name_precision(row)}, deterministic: {row['failed']}" for row in rows if "failed" in row]
    return [heading, "", *build_table(columns, cells, texts=2), *(["", "Failed:", "", *failed] if failed else [])]


def _show_differences(found: Results | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    return [f"{found['differing']} of {found['tensors']}", f"{found['largest_difference']:.1e}"]


def _tabulate_gpu_steps(rows: Sequence[Results]) -> Lines:
    columns = ["px", "crops", "precision", "layout", "compiled", "steps/s", "images/s", "memory (GiB)", "waits/step"]
    columns.append("start (s)")
    cells = []
    for row in rows:
        layout = "channels last" if row["channels_last"] else "NCHW"
        compiled = {False: "no", True: "yes"}.get(row["compile"], row["compile"])
        shown = [str(row["image_size"]), str(row["batch_size"]), _name_precision(row), layout, compiled]
        if "failed" in row:
            cells.append([*shown, row["failed"], "", "", "", ""])
            continue
        rates = [show_spread(row["steps_per_second"]), show_spread(row["images_per_second"])]
        start = show_number(row["seconds_to_start"]) if "seconds_to_start" in row else "–"
        cells.append([*shown, *rates, _show_memory(row), show_number(row["waits_a_step"]), start])
    place = "through `steelgen train`" if "seconds_in_all" in rows[0] else "on batches on the GPU"
    return [
        f"Training steps {place}; medians over blocks of steps:",
        "",
        *build_table(columns, cells, texts=5),
    ]


def _show_memory(row: Results) -> str:
    return show_number(row["allocated_gib"]) if "allocated_gib" in row else "–"


def _tabulate_gpu_sampling(rows: Sequence[Results]) -> Lines:
    columns = ["network (px)", "images", "precision", "images/s", "memory (GiB)", "waits/batch"]
    cells = [
        [
            str(row["network_size"]),
            f"{row['images']} of {row['height']}×{row['width']} px",
            _name_precision(row),
            show_spread(row["images_per_second"]),
            _show_memory(row),
            str(row["waits_a_batch"]),
        ]
        for row in rows
    ]
    heading = f"Sampling with the default solver in {rows[0]['solver_steps']} steps, larger images in windows:"
    return [heading, "", *build_table(columns, cells, texts=3)]


def _tabulate_gpu_memory(rows: Sequence[Results]) -> Lines:
    row, planned = rows[0], show_number(rows[0]["planned_gib"])
    cells = [
        ["limit", show_number(row["limit_gib"])],
        [f"planned by `steelgen tune-batch` for a batch of {row['batch_size']} at {row['image_size']} px", planned],
    ]
    if "weights_gib" in row:
        reserved = show_number(row["reserved_gib"]) if "reserved_gib" in row else "–"
        cells += [["reserved by training with it", reserved], ["peak of tensors in training", _show_memory(row)]]
        cells += [["weights, gradients, moments and EMA alone", show_number(row["weights_gib"])]]
    return [f"Largest batch under a memory limit: {row['largest']}.", "", *build_table(["GiB", ""], cells)]


def _tabulate_gpu_families(rows: Sequence[Results]) -> Lines:
    cells = [
        [f"configs/{row['config']}.json", row.get("failed", "trained"), show_number(row["seconds"]), _show_memory(row)]
        for row in rows
    ]
    heading = f"Trainings of {rows[0]['steps']} steps from start to export, with a preview:"
    return [heading, "", *build_table(["config", "result", "seconds", "memory (GiB)"], cells, texts=2)]


def _tabulate_gpu_processes(rows: Sequence[Results]) -> Lines:
    row = rows[0]
    if "skipped" in row:
        return [f"Two processes were not measured: {row['skipped']}."]
    batch = f"a batch of {row['batch_size']} at {row['image_size']} px each"
    return [f"Two processes with {batch}: {show_number(row['images_per_second'])} images/s."]


_GPU_TABLES = {
    ("resume",): _tabulate_resumption,
    ("steps", "compiled"): _tabulate_gpu_steps,
    ("training",): _tabulate_gpu_steps,
    ("sampling",): _tabulate_gpu_sampling,
    ("memory",): _tabulate_gpu_memory,
    ("families",): _tabulate_gpu_families,
    ("processes",): _tabulate_gpu_processes,
}
