"""--json prints one JSON document on stdout, --quiet nothing at all."""

import json
import sys

import pytest

from steelgen.cli.app import main
from tests.cli.test_terminals import folder, list_commands  # noqa: F401 - folder is a fixture
from tests.forking import fork, wait

PRINT_TABLES = (
    ["data", "check"],
    ["data", "split"],
    ["train"],
    ["tune-batch"],
    ["sample"],
    ["evaluate"],
    ["compare"],
    ["segment", "train"],
    ["utility"],
)
JSON_ALONE = (["slurm", "status"], ["pipeline"])


def run_all(commands):
    for arguments in commands:
        sys.argv = ["steelgen", *arguments]
        try:
            main()
        except SystemExit as end:
            print("EXIT", end.code, *arguments[:2], flush=True)


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_commands_that_print_tables(folder, tmp_path, option):  # noqa: F811
    chosen = (*PRINT_TABLES, *JSON_ALONE) if option == "--json" else PRINT_TABLES
    commands = []
    for command in list_commands(folder):
        if "--dry-run" in command and command[0] != "pipeline":
            continue
        if any(command[: len(words)] == words for words in chosen):
            commands.append([*command, option])
    files = tmp_path / "out", tmp_path / "err"
    assert wait(fork(lambda: run_all(commands), *files)) == 0
    out, err = (path.read_text() for path in files)
    printed, text = {}, ""
    for line in out.splitlines(keepends=True):
        if line.startswith("EXIT"):
            _, code, *words = line.split()
            assert code == "0", err
            printed[" ".join(words)] = text
            text = ""
        else:
            text += line
    tested = [" ".join(command[:2]) for command in commands if command[-1] == option]
    assert len(tested) == len(chosen)
    for words in tested:
        if option == "--quiet":
            assert printed[words] == "", words
        else:
            assert json.loads(printed[words]), words
    if option == "--quiet":
        assert "segmenter:" not in err
        assert "mIoU" not in err
