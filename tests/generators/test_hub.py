"""A base fetched from a hub on this machine, then found and loaded without it."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.errors import InputError
from steelgen.generators.latent_adapter.base import load_base
from steelgen.generators.latent_adapter.hub import find_base, hash_base
from tests.generators.tiny_base import save_tiny_base

COMMIT = "a" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The address of a hub with one model, OWNER/tiny, from `tmp_path`/base, and the paths that were asked for."""
    root = save_tiny_base(tmp_path / "base")
    (root / "safety_checker").mkdir()
    (root / "safety_checker/model.safetensors").write_bytes(b"not needed")
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    asked = []

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, body, kind, headers=()):
            self.send_response(200)
            for name, value in (("Content-Type", kind), ("Content-Length", str(len(body))), *headers):
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            asked.append(path)
            name = path.removeprefix(f"/owner/tiny/resolve/{COMMIT}/")
            if path.startswith("/api/models/owner/tiny/tree/"):
                listed = [
                    {"type": "file", "path": name, "size": files[name].stat().st_size, "oid": "0"} for name in files
                ]
                self.answer(json.dumps(listed).encode(), "application/json")
            elif path.startswith("/api/models/owner/tiny"):
                described = {"id": "owner/tiny", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
                self.answer(json.dumps(described).encode(), "application/json")
            elif name in files:
                body = files[name].read_bytes()
                tag = hashlib.sha256(body).hexdigest()
                headers = (("ETag", f'"{tag}"'), ("X-Repo-Commit", COMMIT), ("Accept-Ranges", "bytes"))
                self.answer(body, "application/octet-stream", headers)
            else:
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()


def test_a_fetched_base_is_found_without_a_network(hub, tmp_path):
    address, asked = hub
    with pytest.raises(InputError, match="run `steelgen data fetch model owner/tiny`"):
        find_base("owner/tiny")
    done = CliRunner().invoke(app, ["data", "fetch", "model", "owner/tiny", "--base-url", address])
    assert done.exit_code == 0, done.output
    assert "complete; read its license" in done.output.replace("\n", " ")
    assert not any("safety_checker" in path for path in asked)
    asked.clear()
    found = find_base("owner/tiny")
    assert hash_base(found) == hash_base(tmp_path / "base")
    assert load_base(found, torch.float32).factor == 2
    assert not asked
    unknown = CliRunner().invoke(app, ["data", "fetch", "model", "owner/none", "--base-url", address])
    assert unknown.exit_code == 2
    assert "fetch model owner/none: " in unknown.output
    for arguments, message in ((["model"], "requires its name"), (["model", "tiny"], "must be OWNER/NAME")):
        wrong = CliRunner().invoke(app, ["data", "fetch", *arguments])
        assert wrong.exit_code == 2
        assert message in wrong.output
