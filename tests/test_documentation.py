"""Every command of the README and of the pages in docs/ parses, and those that can run here run."""

import json
import re
import shlex
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.training.loop import prepare_training
from tests.conftest import tiny_train_config

REPOSITORY = Path(__file__).parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
ELSEWHERE = {
    "a cluster; tests/cluster has one": r"slurm (submit|status)|--slurm",
    "a network; tests/data serves it": r"data fetch",
    "micrographs with conditions": r"conditions=",
    "the user's own files": r"data/mine|runs/mine|plans/mine|annotations/|isdm|lemons|/path/",
    "it serves until it is interrupted; tests/studio visits it": r"steelgen studio",
    "a downloaded base; tests/generators runs the page": r"stable-diffusion|adapter|dreambooth|controlnet",
    "two minutes; tests/test_bundled.py runs it with fewer steps": r"^steelgen sample$",
    "minutes, even small": r"steelgen (tune-batch|segment|compare|doctor)|--resume|--tune",
}
"""What a command needs that is not here, and how such commands are known; they are parsed alone."""
WITH_DRY_RUN = r"steelgen (train|finetune|evaluate|utility|workflow) "
"""Commands that take minutes: run as far as --dry-run goes, which loads config, data and generator."""


def find_commands():
    """(page, command) of every line of a fenced block that begins with steelgen, with its variables filled in."""
    found = []
    for page in PAGES:
        variables = {}
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
        for block in (text for language, text in blocks if language in ("", "sh")):
            for line in block.replace("\\\n", " ").splitlines():
                if assigned := re.match(r'(\w+)="(.*)"$', line):
                    variables[f"${assigned[1]}"] = assigned[2]
                elif line.startswith("steelgen "):
                    for name, value in variables.items():
                        line = line.replace(name, value)
                    found.append((page.name, shlex.join(shlex.split(line, comments=True))))
    return found


COMMANDS = find_commands()
RUNNABLE = [
    (page, command) for page, command in COMMANDS if not any(re.search(each, command) for each in ELSEWHERE.values())
]


def name_case(case):
    return f"{case[0]}: {case[1]}"


@pytest.mark.parametrize("case", COMMANDS, ids=name_case)
def test_command_parses(case):
    name, *arguments = shlex.split(case[1])
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(name, arguments, parent=context)
        if not hasattr(command, "resolve_command"):
            return
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A folder like a fresh clone in which quickstart has run, with an untrained generator of its geometry."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("configs", "data", "docs"):
        (folder / name).symlink_to(REPOSITORY / name)
    values = tiny_train_config(REPOSITORY / "data" / "uhcs", folder / "unused")
    values["data"] |= {"image_size": 64, "crop_size": 128}
    values["generator"]["unet"] |= {"attention_resolutions": [], "channel_mult": [1, 1]}
    generator, _ = prepare_training(parse_config(values, TrainConfig))
    generator.save(folder / "runs" / "quickstart" / "train" / "export")
    for name, run in (("rvae", "rvae"), ("autoencoder", "uhcs-autoencoder")):
        values = json.loads((REPOSITORY / "configs" / f"{name}.json").read_text())
        values["data"]["dataset"] = str(REPOSITORY / "data" / "uhcs")
        prepare_training(parse_config(values, TrainConfig))[0].save(folder / "runs" / run / "export")
    for run in ("uhcs", "workflow/train"):
        (folder / "runs" / run).parent.mkdir(exist_ok=True)
        (folder / "runs" / run).symlink_to(folder / "runs" / "quickstart" / "train")
    sample = "sample -c configs/sample.json --set num_samples=4 --set generator=runs/quickstart/train"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for out in ("runs/quickstart/samples", "runs/uhcs-samples"):
            result = CliRunner().invoke(app, [*sample.split(), "--set", f"output_dir={out}"])
            assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("case", RUNNABLE, ids=name_case)
def test_command_runs(case, clone, monkeypatch):
    """In the order of the pages, in one folder, since some use what others wrote."""
    monkeypatch.chdir(clone)
    _, *arguments = shlex.split(case[1])
    if re.match(WITH_DRY_RUN, case[1]) and "--dry-run" not in arguments:
        arguments.append("--dry-run")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, f"{case[1]}\n{result.output}"


def test_most_kinds_of_commands_run_here():
    assert len(COMMANDS) > 30
    assert {command.split()[1] for _, command in RUNNABLE} >= {"data", "sample", "interpolate", "slurm", "utility"}
