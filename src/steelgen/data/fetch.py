"""Download of published datasets, with resume and checksums."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from steelgen.data.importers.sources import leaves_archive
from steelgen.errors import InputError
from steelgen.files import check_output_free, hash_files, new_folder

FIGSHARE = "https://ndownloader.figshare.com/files"
_CHUNK = 1 << 20
_ATTEMPTS = 5
_TIMEOUT_S = 60
_MAX_UNPACKED = 20_000_000_000


class RemoteFile(NamedTuple):
    """A published file."""

    name: str
    path: str
    """Path relative to the base URL."""
    size: int
    """Size in bytes."""
    md5: str


MA_ISLANDS = (
    RemoteFile("images.zip", "26094926", 1_223_165_391, "09306cad9a754ae5a963d3f5c67f8f30"),
    RemoteFile(
        "nature_scidata_heerlen_aachen_steel_annotations_polygon.csv",
        "25214918",
        3_744_453,
        "e56d19f16c82ae23faeeb77577579e1e",
    ),
    RemoteFile("nature_scidata_steel_metadata.csv", "25214927", 136_915, "f16113f032e6d984faac4836eb0cb0e1"),
)
"""Iren et al., Scientific Data 8, 140 (2021): images, polygons, metadata."""


def fetch_files(
    files: tuple[RemoteFile, ...],
    out: Path,
    base_url: str = FIGSHARE,
    report: Callable[[int, int], None] | None = None,
    pause_s: float = 2.0,
) -> None:
    """Downloads files and unpacks zips; skips files that already exist with the right checksum.

    An incomplete file is named NAME.part, and the next call resumes it.

    Args:
        report: progress callback, called with (bytes done, total bytes).
        pause_s: pause before the second attempt in seconds; doubled for each further attempt.

    Raises:
        InputError: if a download fails, or size or checksum differ from the published ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    total, before = sum(file.size for file in files), 0

    def advance(before: int, done: int) -> None:
        if report:
            report(before + done, total)

    for file in files:
        target = out / file.name
        if not (target.is_file() and hash_files(target, algorithm="md5") == file.md5):
            _fetch(file, target, f"{base_url}/{file.path}", partial(advance, before), pause_s)
        before += file.size
        advance(before, 0)
        if target.suffix == ".zip":
            unpack(target, out / target.stem)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip into a new folder; does nothing if the folder already has files.

    Raises:
        InputError: if the archive is damaged, has paths outside the folder, or more than 20 GB.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return
    check_output_free(folder)
    try:
        with zipfile.ZipFile(archive) as content:
            if sum(member.file_size for member in content.infolist()) > _MAX_UNPACKED:
                raise InputError(f"{archive}: larger than {_MAX_UNPACKED // 10**9} GB when unpacked")
            for name in content.namelist():
                if leaves_archive(name):
                    raise InputError(f"{archive}: {name!r:.120} is outside the folder")
            with new_folder(folder) as working:
                content.extractall(working)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive}: not a readable zip: {error}") from None


def _fetch(file: RemoteFile, target: Path, url: str, advance: Callable[[int], None], pause_s: float) -> None:
    part = target.with_name(target.name + ".part")
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            _download(file, part, url, advance)
        except urllib.error.HTTPError as error:
            reason = f"server error {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 416, 429):
                break
            if error.code == 416:
                part.unlink(missing_ok=True)
            continue
        except (OSError, http.client.HTTPException) as error:
            reason = f"connection lost: {error or type(error).__name__}"
            continue
        size = part.stat().st_size
        if size < file.size:
            reason = f"connection closed after {size:,} of {file.size:,} bytes"
            continue
        found = hash_files(part, algorithm="md5")
        if size == file.size and found == file.md5:
            part.replace(target)
            return
        # Resuming cannot fix wrong content.
        part.unlink()
        reason = f"got {size:,} bytes with md5 {found}, expected {file.size:,} bytes with md5 {file.md5}"
    raise InputError(f"{url}: cannot download {file.name}: {reason}")


def _download(file: RemoteFile, part: Path, url: str, advance: Callable[[int], None]) -> None:
    """Downloads a file, from the end of `part` if the server supports ranges."""
    have = part.stat().st_size if part.is_file() else 0
    if have >= file.size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        with open(part, "ab" if resumed else "wb") as writing:
            # One extra byte shows that the file is wrong; the limit keeps an endless response from filling the disk.
            while have <= file.size and (chunk := response.read(min(_CHUNK, file.size + 1 - have))):
                writing.write(chunk)
                have += len(chunk)
                advance(min(have, file.size))
