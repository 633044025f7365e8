"""Downloading published datasets, with resume and checksum."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    """Below the base URL."""
    size: int
    """In bytes."""
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
    """Downloads files and unpacks the zips among them; what is there already and right is left alone.

    A file that is not complete is NAME.part, and a second call goes on where the first broke off.

    Args:
        report: told (bytes done, bytes in all) as the work goes on.
        pause_s: seconds before the second attempt, doubled each time.

    Raises:
        InputError: if a file cannot be had, or its size or checksum is not the published one.
    """
    out.mkdir(parents=True, exist_ok=True)
    total, before = sum(file.size for file in files), 0
    for file in files:
        target = out / file.name
        if not (target.is_file() and hash_files(target, algorithm="md5") == file.md5):
            _fetch(file, target, f"{base_url}/{file.path}", report, before, total, pause_s)
        before += file.size
        if report:
            report(before, total)
        if target.suffix == ".zip":
            unpack(target, out / target.stem)


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a zip into a new folder; where the folder exists, it is left as it is.

    Raises:
        InputError: if the archive is damaged, names files outside of the folder, or holds more than 20 GB.
    """
    if folder.is_dir() and any(folder.iterdir()):
        return
    check_output_free(folder)
    try:
        with zipfile.ZipFile(archive) as content:
            if sum(member.file_size for member in content.infolist()) > _MAX_UNPACKED:
                raise InputError(f"{archive}: holds more than {_MAX_UNPACKED // 10**9} GB")
            for name in content.namelist():
                if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
                    raise InputError(f"{archive}: {name!r:.120} would leave the folder")
            with new_folder(folder) as working:
                content.extractall(working)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive}: not a readable zip: {error}") from None


def _fetch(
    file: RemoteFile,
    target: Path,
    url: str,
    report: Callable[[int, int], None] | None,
    before: int,
    total: int,
    pause_s: float,
) -> None:
    part = target.with_name(target.name + ".part")
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            _continue(file, part, url, report, before, total)
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 416, 429):
                break
            if error.code == 416:
                part.unlink(missing_ok=True)
            continue
        except (OSError, http.client.HTTPException) as error:
            reason = f"the connection broke off: {error or type(error).__name__}"
            continue
        size = part.stat().st_size
        if size < file.size:
            reason = f"the connection ended after {size:,} of {file.size:,} bytes"
            continue
        found = hash_files(part, algorithm="md5")
        if size == file.size and found == file.md5:
            part.replace(target)
            return
        # What is wrong somewhere cannot be mended by going on at the end.
        part.unlink()
        reason = f"{size:,} bytes with md5 {found}, but {file.size:,} with {file.md5} were published"
    raise InputError(f"{url}: could not fetch {file.name}: {reason}")


def _continue(
    file: RemoteFile, part: Path, url: str, report: Callable[[int, int], None] | None, before: int, total: int
) -> None:
    have = part.stat().st_size if part.is_file() else 0
    if have >= file.size:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        with open(part, "ab" if resumed else "wb") as writing:
            # One byte too many is enough to know that the file is wrong; an endless answer must not fill the disk.
            while have <= file.size and (chunk := response.read(min(_CHUNK, file.size + 1 - have))):
                writing.write(chunk)
                have += len(chunk)
                if report:
                    report(before + min(have, file.size), total)
