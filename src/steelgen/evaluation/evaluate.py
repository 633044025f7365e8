"""`evaluate`: evaluation of a folder of generated images, section by section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import Any

from steelgen import __version__
from steelgen.config.base import config_to_json
from steelgen.config.evaluate import EvaluateConfig
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.judge_descriptors import judge_descriptors
from steelgen.evaluation.judge_faithfulness import judge_faithfulness, see_masks
from steelgen.evaluation.judge_fidelity import judge_fidelity
from steelgen.evaluation.judge_memorization import judge_memorization
from steelgen.evaluation.judge_microstructure import judge_microstructure
from steelgen.evaluation.judge_utility import judge_utility
from steelgen.evaluation.report import build_report
from steelgen.evaluation.results import RESULT_FILE
from steelgen.evaluation.sets import Judgment, describe_sets, load_evidence
from steelgen.evaluation.utility.results import load_study_result
from steelgen.evaluation.verdict import compute_verdict, judge_study
from steelgen.files import check_output_free, new_folder, save_json
from steelgen.generators.describing import load_describer
from steelgen.runs import describe_environment


def evaluate(
    config: EvaluateConfig,
    report_stage: Callable[[str], None] = lambda line: None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Evaluates a folder of generated images against real micrographs; writes evaluation.json and report.html.

    The floor of a comparison with the held-out split uses training crops in place of the generated images; the floor
    of a comparison with the training split compares two halves of its micrographs. In both, the two real sets share no
    micrograph and have as many images as the sets compared.

    Args:
        report_stage: called with a line when a stage starts.
        report: called with (stages done, total stages).

    Returns:
        The content of evaluation.json: config, sets, verdict, figures (see `Figure`), details by section, notes and
        warnings.

    Raises:
        InputError: if images, masks, weights or the output folder cannot be used; nothing is written then.
    """
    check_output_free(config.output_dir)
    study = load_study_result(config.utility) if config.utility else None
    describer = load_describer(config.descriptors) if config.descriptors else None  # fails before anything takes time
    done, total = count(), len(config.features.kinds) + 3 + (describer is not None)

    def start_stage(line: str) -> None:
        report(next(done), total)
        report_stage(line)

    evidence, notes = load_evidence(config)
    fidelity = judge_fidelity(evidence, start_stage)
    predicted = see_masks(evidence, start_stage)
    start_stage("microstructure of given and predicted masks")
    sections: dict[str, Judgment] = {
        "fidelity": fidelity,
        "faithfulness": judge_faithfulness(evidence, predicted),
        "microstructure": judge_microstructure(evidence, predicted),
        "memorization": judge_memorization(evidence, start_stage),
    }
    farthest = None
    if describer:
        start_stage("descriptors of islands")
        sections["descriptors"], farthest = judge_descriptors(evidence, describer, predicted)
    if study:
        sections["utility"] = judge_utility(study)
    answers = judge_study(study) if study else []
    figures = [figure for section_figures, _, _ in sections.values() for figure in section_figures]
    result = {
        "steelgen": __version__,
        "config": config_to_json(config),
        "environment": describe_environment(),
        "geometry": to_json(asdict(evidence.geometry)),
        "sets": describe_sets(evidence),
        "notes": notes,
        "warnings": [line for _, _, lines in sections.values() for line in lines],
        "verdict": [answer.model_dump() for answer in compute_verdict(figures) + answers],
        "figures": to_json([asdict(figure) for figure in figures]),
        "details": {name: to_json(details) for name, (_, details, _) in sections.items()},
    }
    with new_folder(config.output_dir) as folder:
        save_json(folder / RESULT_FILE, result)
        (folder / "report.html").write_text(
            build_report(result, evidence, predicted, study, farthest), encoding="utf-8"
        )
    report(total, total)
    return result
