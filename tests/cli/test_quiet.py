"""--json prints one JSON document on stdout, --quiet nothing at all."""

import json
import sys

import pytest

from tests.cli.test_terminals import RUN_ALL, folder, list_commands, start  # noqa: F401 - folder is a fixture

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


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_commands_that_print_tables(folder, option):  # noqa: F811
    # Commands that train segmenters are silent by the same line as the others.
    chosen = (*PRINT_TABLES, *JSON_ALONE) if option == "--json" else PRINT_TABLES[:-2]
    commands = []
    for command in list_commands(folder):
        if "--dry-run" in command and command[0] != "pipeline":
            continue
        if any(command[: len(words)] == words for words in chosen):
            commands.append([*command, option])
    process = start([sys.executable, "-c", RUN_ALL, json.dumps(commands)], {})
    out, err = (stream.decode() for stream in process.communicate())
    assert process.returncode == 0, err
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
