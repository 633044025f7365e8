"""Who may see the page, and the command that serves it."""

import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest
from typer.testing import CliRunner

from steelgen.cli import studio as command
from steelgen.cli.app import app as steelgen
from steelgen.errors import InputError

gr = pytest.importorskip("gradio", reason="needs gradio: pip install 'steelgen[studio]'")
pytest.importorskip("httpx", reason="comes with gradio")

from starlette.testclient import TestClient  # noqa: E402, needs httpx

from steelgen.studio.server import build_app, serve  # noqa: E402, needs gradio


def ask(token, host="127.0.0.1"):
    with gr.Blocks(analytics_enabled=False) as page:
        gr.HTML("here")
    return TestClient(build_app(page, token), base_url=f"http://{host}", follow_redirects=False)


PATHS = ("/", "/config", "/theme.css", "/gradio_api/info", "/gradio_api/app_id")


def test_without_the_token_nothing_is_shown():
    client = ask("secret", "lab.example")
    for path in PATHS:
        for query in ("", "?token=", "?token=Secret", "?token=secret%00", "?token=%C3%A9"):
            answer = client.get(path + query)
            assert answer.status_code == 401
            assert answer.text.count("\n") == 1
    assert client.post("/gradio_api/queue/join", json={}).status_code == 401
    assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 401
    client.cookies.set("steelgen-studio", "guess")
    assert client.get("/").status_code == 401


def test_token_is_brought_once_and_leaves_the_address():
    client = ask("secret", "lab.example")
    answer = client.get("/?token=secret")
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["set-cookie"].split("; "))
    for path in PATHS:
        assert client.get(path).status_code == 200


def test_on_loopback_only_those_who_ask_for_this_machine_are_answered():
    assert ask(None).get("/").status_code == 200
    assert ask(None, "localhost").get("/").status_code == 200
    assert ask(None, "evil.example").get("/").status_code == 400


def test_port_in_use_is_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"127\.0\.0\.1:{port}: .*choose another --port"):
            serve(None, "127.0.0.1", port)


def test_missing_gradio_is_one_line(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    result = CliRunner().invoke(steelgen, ["studio"])
    assert result.exit_code == 2
    assert result.stderr == "steelgen: studio needs gradio, which is not installed: pip install 'steelgen[studio]'\n"


def test_bad_generator_is_one_line(tmp_path):
    result = CliRunner().invoke(steelgen, ["studio", str(tmp_path / "nothing")])
    assert result.exit_code == 2
    assert result.stderr.splitlines()[1:] == [f"steelgen: {tmp_path / 'nothing'}: no such run, checkpoint or export"]


def test_command_serves_until_it_is_interrupted(tmp_path):
    arguments = [sys.executable, "-m", "steelgen", "studio", "--port", "0", "--host", "0.0.0.0"]
    started = subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    try:
        line = started.stdout.readline()
        port, token = re.search(r":(\d+)/(\?token=\S{20,})", line).groups()
        opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        with opener.open(f"http://127.0.0.1:{port}/{token}", timeout=30) as answer:
            assert b"steelgen studio" in answer.read()
    finally:
        started.send_signal(signal.SIGINT)
        started.wait(20)
    assert list(tmp_path.iterdir()) == []


def test_on_this_machine_alone_there_is_no_token(monkeypatch):
    monkeypatch.setattr("steelgen.studio.server.serve", lambda app, host, port, announce: announce("http://here:1"))
    monkeypatch.delenv("STEELGEN_STUDIO_TOKEN", raising=False)
    result = CliRunner().invoke(steelgen, ["studio"])
    assert result.exit_code == 0, result.output
    assert result.stdout == "steelgen studio: http://here:1/  (Ctrl-C to stop)\n"
