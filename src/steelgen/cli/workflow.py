"""`steelgen workflow`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from steelgen.cli.options import ConfigOption, DryRunOption, SetOption
from steelgen.cli.output import errors_as_lines, log, print_json, print_table, progress_bar
from steelgen.cli.progress import run_training
from steelgen.cli.slurm import ProfileOption
from steelgen.errors import InputError

if TYPE_CHECKING:
    from steelgen.config.base import Section


@errors_as_lines()
def workflow_command(
    config: ConfigOption,
    overrides: SetOption = None,
    slurm: Annotated[bool, Option("--slurm", help="Submit the stages as a chain of Slurm jobs.")] = False,
    profile: ProfileOption = None,
    dry_run: DryRunOption = False,
    as_json: Annotated[bool, Option("--json", help="With --dry-run: print the plan as JSON.")] = False,
) -> None:
    """Train, sample and evaluate in sequence; skips stages that are complete with an unchanged config."""
    from steelgen.cluster.submission import load_profile
    from steelgen.config.base import load_config
    from steelgen.config.workflow import WorkflowConfig
    from steelgen.workflow import plan_workflow, run_workflow, submit_workflow

    settings = load_config(config, WorkflowConfig, overrides or ())
    if as_json and not dry_run:
        raise InputError("--json: requires --dry-run")
    if profile and not slurm:
        raise InputError(f"--profile {profile}: requires --slurm")
    if dry_run:
        stages = plan_workflow(settings)
        if as_json:
            print_json([{"stage": s.name, "complete": s.complete, "output": str(s.output)} for s in stages])
            return
        rows = [[s.name, "skip, complete" if s.complete else "run", s.output] for s in stages]
        print_table("dry run", ["stage", "what", "output"], rows)
    elif slurm:
        submit_workflow(settings, load_profile(profile), typer.echo)
    else:
        run_workflow(settings, lambda stage: run_stage(stage.config), typer.echo)


def run_stage(config: Section) -> None:
    """Runs the function behind the command of a config, and shows its progress."""
    from steelgen.config.evaluate import EvaluateConfig
    from steelgen.config.sample import SampleConfig
    from steelgen.config.segment import SegmentConfig
    from steelgen.config.train import RunConfig
    from steelgen.config.utility import UtilityConfig

    if isinstance(config, RunConfig):
        run_training(config, resume=True)
    elif isinstance(config, SegmentConfig):
        from steelgen.evaluation.segment import train_labeler

        with progress_bar("segmenter") as report_segmenter:
            train_labeler(config, report_segmenter)
    elif isinstance(config, SampleConfig):
        from steelgen.sampling.sample import sample

        with progress_bar("segmenter") as report_filter, progress_bar("sampling") as report:
            sample(config, report, report_filter=report_filter)
    elif isinstance(config, EvaluateConfig):
        from steelgen.evaluation.evaluate import evaluate

        with progress_bar("evaluate") as report:
            evaluate(config, log, report)
    elif isinstance(config, UtilityConfig):
        from steelgen.evaluation.study import utility

        with progress_bar("cells") as report:
            utility(config, log, report_cells=report)
