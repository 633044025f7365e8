"""Downloads from a local server with faults."""

from __future__ import annotations

import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from steelgen.data.fetch import RemoteFile, fetch_files, unpack
from steelgen.errors import InputError

_CONTENT = bytes(range(256)) * 1000
_FILE = RemoteFile("a.bin", "1", len(_CONTENT), hashlib.md5(_CONTENT).hexdigest())


class _Server(ThreadingHTTPServer):
    """Responds with `_CONTENT` and the fault `mood`."""

    mood = "honest"
    requests: list[str | None]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.requests.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        mood, first = self.server.mood, len(self.server.requests) == 1
        if mood == "missing" or (mood == "busy" and first):
            self.send_error(404 if mood == "missing" else 503)
            return
        content = _CONTENT
        if mood == "wrong" or (mood == "wrong once" and first):
            content = b"x" + _CONTENT[1:]
        if mood == "too long":
            content = _CONTENT * 3
        ignores_range = mood == "no ranges"
        body = content if ignores_range else content[start:]
        self.send_response(206 if asked and not ignores_range else 200)
        if asked and not ignores_range:
            # The header may state a wrong range.
            claimed = start + 7 if mood == "other place" else start
            self.send_header("Content-Range", f"bytes {claimed}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if mood in ("breaks off", "no ranges", "other place") and first:
            body = body[: len(body) // 2]
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Handler) as running:
        running.requests = []
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def _fetch(server: _Server, out: Path, file: RemoteFile = _FILE) -> None:
    fetch_files((file,), out, server.url, pause_s=0.01)


@pytest.mark.parametrize("mood", ["honest", "breaks off", "no ranges", "busy", "wrong once"])
def test_download_is_complete(server: _Server, tmp_path: Path, mood: str) -> None:
    server.mood = mood
    _fetch(server, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == _CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
    assert len(server.requests) == (1 if mood == "honest" else 2)


def test_second_call_resumes_and_third_does_nothing(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(_CONTENT[:1000])
    _fetch(server, tmp_path)
    _fetch(server, tmp_path)
    assert server.requests == ["bytes=1000-"]
    assert (tmp_path / "a.bin").read_bytes() == _CONTENT


@pytest.mark.parametrize(
    ("mood", "message"),
    [("wrong", "expected 256,000 bytes"), ("too long", "expected 256,000 bytes"), ("missing", "404")],
)
def test_wrong_content_is_an_error(server: _Server, tmp_path: Path, mood: str, message: str) -> None:
    server.mood = mood
    with pytest.raises(InputError, match=message):
        _fetch(server, tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_damaged_part_is_downloaded_again(server: _Server, tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(b"x" * 5000)
    _fetch(server, tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == _CONTENT


def test_response_for_another_range_is_not_appended(server: _Server, tmp_path: Path) -> None:
    server.mood = "other place"
    with pytest.raises(InputError, match=r"a\.bin"):
        _fetch(server, tmp_path)
    assert not (tmp_path / "a.bin").exists()


def test_no_server(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="connection lost"):
        fetch_files((_FILE,), tmp_path, "http://127.0.0.1:1", pause_s=0.001)


def _zip(path: Path, name: str) -> Path:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "content")
    path.write_bytes(buffer.getvalue())
    return path


def test_unpack(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "images.zip", "PNG/a.png")
    unpack(archive, tmp_path / "images")
    unpack(archive, tmp_path / "images")
    assert (tmp_path / "images" / "PNG" / "a.png").read_text() == "content"


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil"])
def test_zip_with_paths_outside_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="is outside the folder"):
        unpack(_zip(tmp_path / "images.zip", name), tmp_path / "images")
    assert not (tmp_path / "images").exists()


def test_damaged_zip(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match="not a readable zip"):
        unpack(tmp_path / "images.zip", tmp_path / "images")
