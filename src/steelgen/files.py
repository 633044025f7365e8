"""Reading files, and writing them so that nothing half-written ever stands under its final name."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from steelgen.errors import InputError, describe_problem

if TYPE_CHECKING:
    from torch import Tensor

_FULL = (errno.ENOSPC, errno.EDQUOT)
_ASIDE = ".replaced"
_LARGEST_TEXT = 512 << 20
"""Bytes; the annotations of some ten thousand micrographs take a fifth of it."""
_ODD_ESCAPES = re.compile(r"\\u(0000|[dD][89a-fA-F])")
"""Escapes in a JSON document that may stand for what is not `is_writable`."""
_WORKING_NAME = re.compile(r"\..+\.(?P<machine>\d+)-(?P<process>\d+)(\.\w+)?")
"""Names under which `new_file` writes."""
_ABANDONED_S = 3600
"""Age, in seconds, of a half-written file that no living process of another machine leaves lying for so long."""


class Record(BaseModel):
    """A part of a JSON file that steelgen wrote and reads again; keys of other versions of steelgen are kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())


RecordT = TypeVar("RecordT", bound=BaseModel)


def default_cache_dir() -> Path:
    """Where decoded micrographs, features and weights are kept: $STEELGEN_CACHE, or the user's cache folder.

    Raises:
        InputError: if nothing says where that is.
    """
    if chosen := os.environ.get("STEELGEN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or find_home() / ".cache") / "steelgen"


def find_home() -> Path:
    """The user's home folder.

    Raises:
        InputError: if there is none, as for a user of a container that has no entry in its list of users.
    """
    try:
        return Path.home()
    except RuntimeError:
        raise InputError(
            "HOME: is not set, and this machine's list of users does not know the user; set HOME, or STEELGEN_CACHE to "
            "a folder for what steelgen keeps"
        ) from None


def check_output_free(folder: Path) -> None:
    """Raises InputError if `folder` exists and is not an empty directory."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder}: the output folder is already in use; name another or remove it")


@contextmanager
def new_folder(folder: Path, durable: bool = False, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside `folder` that takes its name when the block ends without an error.

    Args:
        durable: flush every file to disk first, so that the folder is whole even after a power cut.
        replace: a folder that stands there gives way. Between two renames it is found under `aside_path` alone, until
            `restore_folders` puts it back.

    Raises:
        InputError: if `folder` is already in use and not to be replaced.
    """
    if not replace:
        check_output_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    working = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        working.chmod(0o777 & ~_umask())
        yield working
        if durable:
            for path in [*working.rglob("*"), working]:
                _flush(path)
        if folder.is_dir() and replace:
            shutil.rmtree(aside_path(folder), ignore_errors=True)
            folder.rename(aside_path(folder))
        elif folder.is_dir():
            folder.rmdir()
        working.rename(folder)
        if durable:
            _flush(folder.parent)  # the names, before the old folder goes
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    if replace:
        shutil.rmtree(aside_path(folder), ignore_errors=True)


def aside_path(folder: Path) -> Path:
    """Where a folder lies while another takes its place; whole as long as `folder` itself is missing."""
    return folder.parent / f".{folder.name}{_ASIDE}"


def restore_folders(parent: Path) -> None:
    """Puts back what killed processes had just moved aside within `parent`; removes it where its successor is there."""
    for aside in parent.glob(f".*{_ASIDE}"):
        folder = parent / aside.name.removeprefix(".").removesuffix(_ASIDE)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(folder)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` that replaces it, flushed to disk, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two machines may write the same file at once. The suffix stays last: Pillow and others choose the format by it.
    working = path.with_name(f".{path.stem}.{_machine_number()}-{os.getpid()}{path.suffix}")
    try:
        yield working
        _flush(working)
        working.replace(path)
    except BaseException:
        working.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes below `folder` what `new_file` was writing in processes that are gone.

    Of a process of another machine only the age of what it wrote tells whether it is.
    """
    for path in _iterate_files(folder):
        found = _WORKING_NAME.fullmatch(path.name)
        if not found:
            continue
        if found["machine"] == str(_machine_number()):
            gone = not is_alive(int(found["process"]))
        else:
            gone = time.time() - path.lstat().st_mtime > _ABANDONED_S
        if gone:
            path.unlink(missing_ok=True)


def _iterate_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, one at a time: there may be a million."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _iterate_files(Path(entry.path))
            else:
                yield Path(entry.path)


def is_alive(process: int) -> bool:
    """Whether this machine runs a process of that number."""
    import psutil

    return psutil.pid_exists(process)


def save_json(path: Path, value: Any) -> None:
    """Writes `value` as indented UTF-8 JSON, atomically."""
    with new_file(path) as working:
        working.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors, of any device and memory layout, as safetensors; not atomically: within a new folder or file."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def hash_files(*paths: Path, algorithm: str = "sha256") -> str:
    """The hash, in hex, of the content of files one after the other; a MiB at a time, since they may be large."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_text(path: Path) -> str:
    """Reads a text file.

    Raises:
        InputError: if it is missing, no file, larger than 512 MiB or not UTF-8.
    """
    try:
        found = path.stat()
        # Devices may never end; a pipe, as from a shell's <(…), is read as far as the limit.
        readable = stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)
        data = b""
        if readable and found.st_size <= _LARGEST_TEXT:
            with open(path, "rb") as file:
                data = file.read(_LARGEST_TEXT + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL or half a surrogate pair
        raise InputError(f"{str(path)!r}: no name that a file can have") from None
    if not readable:
        raise InputError(f"{path}: is a {'folder' if stat.S_ISDIR(found.st_mode) else 'device'}, not a file")
    if max(len(data), found.st_size) > _LARGEST_TEXT:
        raise InputError(f"{path}: is larger than {_LARGEST_TEXT >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None


def load_json(path: Path, finite: bool = True) -> Any:
    """Reads a JSON file; see `load_text` and `parse_json`.

    Raises:
        InputError: if the file is missing, too large, not UTF-8 or not JSON; the message gives file, line and column.
    """
    return parse_json(load_text(path), str(path), finite=finite)


def parse_json(text: str, origin: str, line: int | None = None, finite: bool = True) -> Any:
    """A JSON document as Python values.

    Args:
        text: the document.
        origin: where it stands, for messages.
        line: the line of a file that it stands in, where it is but one of many.
        finite: refuse NaN and Infinity, which are no JSON by the letter (RFC 8259) but are written by Python.

    Raises:
        InputError: if it is not JSON, is nested too deeply, holds an integer of thousands of digits, or text that no
            file can hold: NUL, or half a surrogate pair.
    """
    where = origin if line is None else f"{origin}:{line}"
    try:
        value = json.loads(text, parse_constant=_refuse_constant if finite else None)
    except json.JSONDecodeError as error:
        place = f"{origin}:{line or error.lineno}:{error.colno}"
        raise InputError(f"{place}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise InputError(f"{where}: not valid JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON: {str(error).split(';')[0]}") from None
    if _ODD_ESCAPES.search(text):
        plain = json.dumps(value, ensure_ascii=False).replace("\\\\", "")  # of all escapes only those of controls stay
        if not is_writable(plain.replace("\\u0000", "\0")):
            raise InputError(f"{where}: holds \\u0000 or half a surrogate pair, which are no text")
    return value


def is_writable(text: str) -> bool:
    """Whether text can stand in files and in their names: without NUL and halves of surrogate pairs."""
    return "\0" not in text and text == text.encode("utf-8", "replace").decode()


def load_record(path: Path, kind: type[RecordT], finite: bool = True) -> RecordT:
    """Reads a JSON file that steelgen wrote itself.

    Raises:
        InputError: see `load_json`; or if a field is missing or not what it should be: the first one is named.
    """
    return parse_record(load_json(path, finite), kind, str(path))


def parse_record(values: Any, kind: type[RecordT], origin: str) -> RecordT:
    """Validates JSON values as a record; see `load_record`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {describe_problem(error.errors()[0])}") from None


def is_disk_full(error: BaseException) -> bool:
    """Whether a file could not be written for want of space or quota."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # safetensors writes with Rust, and keeps of its errors only the words.
    return any(f"(os error {number})" in str(error) for number in _FULL)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _machine_number() -> int:
    return zlib.crc32(socket.gethostname().encode())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
