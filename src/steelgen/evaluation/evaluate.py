"""`evaluate`: the whole judgment of a folder of generated images, section by section."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import count
from typing import Any

from steelgen import __version__
from steelgen.config.base import config_to_json
from steelgen.config.evaluate import EvaluateConfig
from steelgen.evaluation.evidence import Judgment, describe_sets, load_evidence
from steelgen.evaluation.figures import figure_to_json, to_json
from steelgen.evaluation.judge_descriptors import judge_descriptors
from steelgen.evaluation.judge_faithfulness import judge_faithfulness, see_masks
from steelgen.evaluation.judge_fidelity import judge_fidelity
from steelgen.evaluation.judge_memorization import judge_memorization
from steelgen.evaluation.judge_microstructure import judge_microstructure
from steelgen.evaluation.judge_utility import judge_utility
from steelgen.evaluation.report import build_report
from steelgen.evaluation.results import RESULT_FILE
from steelgen.evaluation.utility.results import load_study_result
from steelgen.evaluation.verdict import Answer, compute_verdict, judge_differences
from steelgen.files import check_output_free, new_folder, save_json
from steelgen.generators.describing import load_describer
from steelgen.runs import describe_environment


def evaluate(
    config: EvaluateConfig,
    report_stage: Callable[[str], None] = lambda line: None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Judges a folder of generated images against real micrographs and writes evaluation.json and report.html.

    The floor of a comparison with the held-out split puts the training crops in the place of the generated
    images; the floor of a comparison with the training split compares two halves of its micrographs. In both,
    the two real sets share no micrograph and have as many images as the sets compared.

    Args:
        config: see `EvaluateConfig`.
        report_stage: called with a line whenever something that takes time begins.
        report: called with (stages done, stages in all).

    Returns:
        The content of evaluation.json: config, sets, figures (see `Figure`), details by section, notes and
        warnings.

    Raises:
        InputError: if images, masks, weights or the output folder cannot be used; nothing is written then.
    """
    check_output_free(config.output_dir)
    study = load_study_result(config.utility) if config.utility else None
    # What is wrong with it is said before anything takes time.
    describer = load_describer(config.descriptors) if config.descriptors else None
    stages = count(), len(config.features.kinds) + 3 + (config.descriptors is not None)

    def begin(line: str) -> None:
        report(next(stages[0]), stages[1])
        report_stage(line)

    evidence, notes = load_evidence(config)
    fidelity = judge_fidelity(evidence, begin)
    seen = see_masks(evidence, begin)
    begin("microstructure of masks and of what the segmenter sees in images")
    sections: dict[str, Judgment] = {
        "fidelity": fidelity,
        "faithfulness": judge_faithfulness(evidence, seen),
        "microstructure": judge_microstructure(evidence, seen),
        "memorization": judge_memorization(evidence, begin),
    }
    answers: list[Answer] = []
    farthest = None
    if describer:
        begin("descriptors of islands")
        sections["descriptors"], farthest = judge_descriptors(evidence, describer, seen)
    if study:
        sections["utility"] = judge_utility(study)
        answers = judge_differences(study["differences"])
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
        "figures": [figure_to_json(figure) for figure in figures],
        "details": {name: to_json(details) for name, (_, details, _) in sections.items()},
    }
    with new_folder(config.output_dir) as folder:
        save_json(folder / RESULT_FILE, result)
        (folder / "report.html").write_text(build_report(result, evidence, seen, study, farthest), encoding="utf-8")
    report(stages[1], stages[1])
    return result
