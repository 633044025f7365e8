"""JSON from disk: what it says of files that hold none, or none that can be used."""

import os
import threading
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
from pydantic import Field
from typer.testing import CliRunner

from steelgen import files
from steelgen.cli.app import app
from steelgen.errors import InputError
from steelgen.files import Record, load_json, load_record


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": \n 1,}', r"a\.json:2:4: not valid JSON"),
        (b"1" * 5000, "5000 digits"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b"[1, -Infinity]", "-Infinity is not a JSON number"),
        (b"[" * 100_000, "nested too deeply"),
        (b'["\\ud800"]', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'["a\\u0000b"]', "u0000"),
        (b"\xff\xfe", "not UTF-8 text: .* at byte 0"),
        (b"", "not valid JSON"),
    ],
    ids=range(10),
)
def test_damaged_json_is_one_line(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(InputError, match=message) as error:
        load_json(tmp_path / "a.json")
    assert str(error.value).startswith(str(tmp_path / "a.json"))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_escapes_that_are_text_are_read(tmp_path):
    (tmp_path / "a.json").write_text(r'["\ud83d\ude00", "\\u0000 \\ud800"]')
    assert load_json(tmp_path / "a.json") == ["😀", r"\u0000 \ud800"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "is a device, not a file"),
        ("/", "is a folder, not a file"),
        ("missing.json", "no such file"),
        ("a\0b", "not a valid file name"),
        ("\ud800", "not a valid file name"),
        ("x" * 5000, "File name too long"),
    ],
    ids=range(6),
)
def test_what_is_no_file_is_not_read(path, message):
    with pytest.raises(InputError, match=message):
        load_json(Path(path))


def test_large_files_are_not_read(tmp_path, monkeypatch):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(InputError, match="larger than 512 MiB"):
        load_json(tmp_path / "a.json")
    monkeypatch.setattr(files, "_LARGEST_TEXT", 100)
    (tmp_path / "b.json").write_text(" " * 99 + "1")
    assert load_json(tmp_path / "b.json") == 1
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        with suppress(BrokenPipeError), open(tmp_path / "pipe", "wb", buffering=0) as pipe:
            while True:
                pipe.write(b" " * 100_000)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(InputError, match="larger than"):
        load_json(tmp_path / "pipe")
    writer.join()


class _Inner(Record):
    size: int = Field(ge=1)


class _Outer(Record):
    parts: list[_Inner]
    share: float = 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("null", "must be a JSON object"),
        ("{}", "parts: is missing"),
        ('{"parts": [{"size": 1}, {"size": 0}]}', r"parts\.1\.size: .*greater than or equal to 1 \(got 0\)"),
        ('{"parts": [], "share": 1e999}', r"share: Input should be a finite number"),
        ('{"parts": "' + "x" * 1000 + '"}', "parts: Input should be a valid list"),
    ],
)
def test_records_name_file_and_field(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.json: " + message) as error:
        load_record(tmp_path / "a.json", _Outer)
    assert len(str(error.value)) < 300


def test_records_keep_what_other_versions_write(tmp_path):
    (tmp_path / "a.json").write_text('{"parts": [{"size": 2, "new": [1]}], "other": null}')
    found = load_record(tmp_path / "a.json", _Outer)
    assert found.model_dump() == {"parts": [{"size": 2, "new": [1]}], "share": 0.5, "other": None}


@pytest.mark.parametrize("path", ["/dev/zero", "\udcff"])
@pytest.mark.parametrize("command", [["config", "show", "train"], ["train"], ["evaluate"], ["utility"], ["sample"]])
def test_configs_that_are_no_files_end_in_one_line(command, path):
    done = CliRunner().invoke(app, [*command, "-c", path])
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1


def test_a_small_file_takes_little_memory(tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    tracemalloc.start()
    assert load_json(tmp_path / "a.json") == [1]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20
