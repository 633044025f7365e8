"""Atomic writing of files and folders, and reading of JSON with messages that name the file."""

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
"""Bytes; the annotations of ten thousand micrographs take about a fifth."""
_ODD_ESCAPES = re.compile(r"\\u(0000|[dD][89a-fA-F])")
"""Escapes in a JSON document that may make a string not `is_writable`."""
_WORKING_NAME = re.compile(r"\..+\.(?P<machine>\d+)-(?P<process>\d+)(\.\w+)?")
"""Names of the temporary files of `new_file`."""
_ABANDONED_S = 3600
"""Age, in seconds, at which a temporary file of another machine counts as abandoned."""


class Record(BaseModel):
    """A part of a JSON file written by steelgen; unknown keys, of other versions of steelgen, are kept."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())


RecordT = TypeVar("RecordT", bound=BaseModel)


def default_cache_dir() -> Path:
    """Returns the folder for decoded micrographs, features and weights: $STEELGEN_CACHE or the user's cache folder."""
    if chosen := os.environ.get("STEELGEN_CACHE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or find_home() / ".cache") / "steelgen"


def find_home() -> Path:
    """Returns the user's home folder; raises InputError if there is none, as for some users in containers."""
    try:
        return Path.home()
    except RuntimeError:
        raise InputError("HOME is not set and the user has no home folder; set HOME or STEELGEN_CACHE") from None


def check_output_free(folder: Path) -> None:
    """Raises InputError if `folder` exists and is not an empty directory."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise InputError(f"{folder}: the output folder is already in use; choose another or remove it")


@contextmanager
def new_folder(folder: Path, durable: bool = False, replace: bool = False) -> Iterator[Path]:
    """Yields a temporary folder that is renamed to `folder` when the block ends without an error.

    Args:
        folder: the final path.
        durable: flush every file to disk first, so that the folder survives a power failure.
        replace: replace an existing folder. A process killed between the two renames leaves the old folder at
            `aside_path` for `restore_folders`.

    Raises:
        InputError: if `folder` is already in use and `replace` is false.
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
            _flush(folder.parent)  # makes the renames durable before the old folder is removed
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise
    if replace:
        shutil.rmtree(aside_path(folder), ignore_errors=True)


def aside_path(folder: Path) -> Path:
    """Returns the path of the old folder while `new_folder` replaces it; complete while `folder` itself is missing."""
    return folder.parent / f".{folder.name}{_ASIDE}"


def restore_folders(parent: Path) -> None:
    """Restores folders in `parent` that killed processes had moved aside; removes those whose replacement exists."""
    for aside in parent.glob(f".*{_ASIDE}"):
        folder = parent / aside.name.removeprefix(".").removesuffix(_ASIDE)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(folder)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path; its file is flushed to disk and replaces `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two machines may write the same file at once. The suffix stays last because Pillow chooses the format by it.
    working = path.with_name(f".{path.stem}.{_machine_number()}-{os.getpid()}{path.suffix}")
    try:
        yield working
        _flush(working)
        working.replace(path)
    except BaseException:
        working.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> None:
    """Removes temporary files of `new_file` below `folder` whose process is gone.

    For processes of other machines only the age of the file is known.
    """
    for parent, _, names in os.walk(folder):
        for name in names:
            found = _WORKING_NAME.fullmatch(name)
            if not found:
                continue
            path = Path(parent, name)
            if found["machine"] == str(_machine_number()):
                gone = not is_alive(int(found["process"]))
            else:
                gone = time.time() - path.lstat().st_mtime > _ABANDONED_S
            if gone:
                path.unlink(missing_ok=True)


def is_alive(process: int) -> bool:
    """Returns whether a process with this id runs on this machine."""
    import psutil

    return psutil.pid_exists(process)


def save_json(path: Path, value: Any) -> None:
    """Writes `value` atomically as indented UTF-8 JSON."""
    with new_file(path) as working:
        working.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors of any device and memory layout as safetensors; not atomic: call it within `new_folder`."""
    from safetensors.torch import save_file

    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata)


def hash_files(*paths: Path, algorithm: str = "sha256") -> str:
    """Computes the hash, in hex, of the concatenated content of files of any size."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def load_text(path: Path) -> str:
    """Reads a text file.

    Raises:
        InputError: if it is missing, not a file, larger than 512 MiB or not UTF-8.
    """
    try:
        found = path.stat()
        # A device may be endless; a pipe, as from a shell's <(…), is read up to the limit.
        is_pipe = stat.S_ISFIFO(found.st_mode)
        readable = stat.S_ISREG(found.st_mode) or is_pipe
        data = b""
        if readable and found.st_size <= _LARGEST_TEXT:
            with open(path, "rb") as file:
                # With a limit, Python allocates as much before it reads.
                data = file.read(_LARGEST_TEXT + 1 if is_pipe else -1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except ValueError:  # a NUL or half a surrogate pair
        raise InputError(f"{str(path)!r}: not a valid file name") from None
    if not readable:
        raise InputError(f"{path}: is a {'folder' if stat.S_ISDIR(found.st_mode) else 'device'}, not a file")
    if max(len(data), found.st_size) > _LARGEST_TEXT:
        raise InputError(f"{path}: larger than {_LARGEST_TEXT >> 20} MiB, the limit for text files")
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
    """Parses a JSON document.

    Args:
        text: the document.
        origin: its file, for messages.
        line: its line in the file, for JSON Lines.
        finite: reject NaN and Infinity, which are not JSON (RFC 8259) but are written by Python.

    Raises:
        InputError: if it is not JSON, is nested too deeply, or contains an integer of thousands of digits or
            characters that are invalid in files: NUL or unpaired surrogates.
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
        plain = json.dumps(value, ensure_ascii=False).replace("\\\\", "")  # keeps only escapes of control characters
        if not is_writable(plain.replace("\\u0000", "\0")):
            raise InputError(f"{where}: contains invalid characters (\\u0000 or an unpaired surrogate)")
    return value


def is_writable(text: str) -> bool:
    """Returns whether text is valid in files and file names: no NUL, no unpaired surrogates."""
    return "\0" not in text and text == text.encode("utf-8", "replace").decode()


def load_record(path: Path, kind: type[RecordT], finite: bool = True) -> RecordT:
    """Reads a JSON file that steelgen wrote.

    Raises:
        InputError: see `load_json`; also if a field is missing or invalid: the message names the first.
    """
    return parse_record(load_json(path, finite), kind, str(path))


def parse_record(values: Any, kind: type[RecordT], origin: str) -> RecordT:
    """Validates JSON values as a record; see `load_record`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {describe_problem(error.errors()[0])}") from None


def is_disk_full(error: BaseException) -> bool:
    """Returns whether an error means that the disk or the quota is full."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    # safetensors writes with Rust and keeps only the message of an error; up to 0.6 in the second form.
    return any(form in str(error) for number in _FULL for form in (f"(os error {number})", f"Os {{ code: {number},"))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


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
