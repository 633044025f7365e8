"""`evaluate`: the whole judgement of a folder of generated images, section by section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from steelgen import __version__
from steelgen.config.base import config_to_json
from steelgen.config.evaluate import EvaluateConfig
from steelgen.evaluation.evidence import describe_sets, load_evidence
from steelgen.evaluation.figures import Figure, figure_to_json, to_json
from steelgen.evaluation.judge_faithfulness import judge_faithfulness
from steelgen.evaluation.judge_fidelity import judge_fidelity
from steelgen.files import check_output_free, new_folder, save_json


def evaluate(config: EvaluateConfig, report_progress: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Judges a folder of generated images against real micrographs and writes evaluation.json.

    The floor of a comparison with the held-out split puts the training crops in the place of the generated
    images; the floor of a comparison with the training split compares two halves of its micrographs. In both,
    the two real sets share no micrograph and have as many images as the sets compared.

    Args:
        config: see `EvaluateConfig`.
        report_progress: called with a line whenever something that takes time begins.

    Returns:
        The content of evaluation.json: config, sets, figures (see `Figure`), details by section, notes and
        warnings.

    Raises:
        InputError: if images, masks, weights or the output folder cannot be used; nothing is written then.
    """
    check_output_free(config.output_dir)
    evidence, notes = load_evidence(config)
    figures: list[Figure] = []
    details: dict[str, Any] = {}
    warnings: list[str] = []
    for name, judge in (("fidelity", judge_fidelity), ("faithfulness", judge_faithfulness)):
        section_figures, section_details, section_warnings = judge(evidence, report_progress)
        figures += section_figures
        details[name] = section_details
        warnings += section_warnings
    result = {
        "steelgen": __version__,
        "config": config_to_json(config),
        "geometry": to_json(asdict(evidence.geometry)),
        "sets": describe_sets(evidence),
        "notes": notes,
        "warnings": warnings,
        "figures": [figure_to_json(figure) for figure in figures],
        "details": to_json(details),
    }
    with new_folder(config.output_dir) as folder:
        save_json(folder / "evaluation.json", result)
    return result
