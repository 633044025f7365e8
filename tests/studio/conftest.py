"""A studio whose page a real Chromium visits; skipped, with the reason, where there is none or gradio is missing."""

import shutil
import socket
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "<img src=x onerror=window.hacked=1>"
"""As the name of a generator, of a class and of a micrograph."""


@dataclass
class Site:
    """The studio that is served, and what has been asked of it."""

    address: str
    studio: object
    out: Path
    dataset: Path
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The bundled model under a hostile name, with a dataset of two micrographs."""
    pytest.importorskip("gradio", reason="needs gradio: pip install 'steelgen[studio]'")
    import uvicorn

    from steelgen.data.folder import save_dataset_info
    from steelgen.generators.families import load_generator
    from steelgen.studio.server import build_app, build_page
    from steelgen.studio.session import Studio
    from tests.data.samples import BUNDLED

    root = tmp_path_factory.mktemp("site")
    generator = load_generator(Path("bundled:uhcs"))
    names = ["matrix", HOSTILE, "spheroidite", "laths"]
    generator.info = generator.info.model_copy(update={"class_names": names})
    generator.save(root / HOSTILE)
    dataset = root / "dataset"
    for kind in ("images", "masks"):
        (dataset / "train" / kind).mkdir(parents=True)
        for source, name in (("uhcs0007", HOSTILE), ("uhcs0124", "plain")):
            shutil.copy(BUNDLED / "uhcs" / "train" / kind / f"{source}.png", dataset / "train" / kind / f"{name}.png")
    save_dataset_info(dataset, generator.info)
    studio = Studio(root / HOSTILE, dataset, root / "kept")
    app = build_app(build_page(studio, [dataset], None), None)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.05)
    yield Site(f"http://127.0.0.1:{listener.getsockname()[1]}", studio, root / "kept", dataset)
    server.should_exit = True
    thread.join(10)


@pytest.fixture(scope="module")
def browser():
    """A Chromium with a profile of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"needs a browser: none of {', '.join(BROWSERS)} is installed")
    with playwright.sync_playwright() as started, tempfile.TemporaryDirectory() as home:
        chromium = started.chromium.launch(executable_path=path, args=FLAGS, env={"HOME": home})
        yield chromium
        chromium.close()


@pytest.fixture
def visit(site, browser):
    """Opens the page as a new visitor; all that it asks for is noted, and errors of its scripts fail the test."""
    contexts, errors = [], []

    def open_page(width=1280, height=1000):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        context.set_default_timeout(20_000)
        contexts.append(context)
        context.on("request", lambda request: site.requests.append(request.url))
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(site.address)
        page.wait_for_selector("#canvas .brushes label")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
