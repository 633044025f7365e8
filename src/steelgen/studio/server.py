"""The page as a web application, and access control."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
import uvicorn
from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, RedirectResponse, Response

from steelgen.errors import InputError
from steelgen.studio.browse_tab import build_browse_tab
from steelgen.studio.paint_tab import Requests, build_paint_tab
from steelgen.studio.run_tab import build_run_tab
from steelgen.studio.session import Studio

LOOPBACK = ("127.0.0.1", "localhost")
"""Addresses that only this machine can reach."""
_COOKIE = "steelgen-studio"


def build_page(studio: Studio, folders: list[Path], run: Path | None) -> gr.Blocks:
    """Builds the page with its three tabs.

    Args:
        folders: folders offered for browsing, besides the studio's own.
        run: run folder to watch first.
    """
    requests = Requests()
    # Deletes uploads and ZIPs after a day.
    with gr.Blocks(title="steelgen studio", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        size = studio.geometry.image_size
        about = f"generator: {studio.path} ({size}x{size} px) · pairs are saved to {studio.out}"
        gr.HTML(f"<h1>steelgen studio</h1><p>{escape(about)}</p>", elem_classes="studio-head")
        with gr.Tabs():
            with gr.Tab("Paint"):
                build_paint_tab(studio, requests)
            with gr.Tab("Browse") as browse:
                build_browse_tab([studio.out, *folders], browse)
            with gr.Tab("Run") as watch:
                build_run_tab(run, watch)
        page.unload(requests.cancel)
    return page


def build_app(page: gr.Blocks, token: str | None) -> FastAPI:
    """Builds the web application, which loads nothing from other hosts.

    Args:
        token: access token that a visitor must send once, as ?token=…; None admits every request to a loopback name.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if token is None:
        # Prevents DNS rebinding: another site whose name resolves to 127.0.0.1 could read the page.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))
    else:
        app.add_middleware(_TokenGate, token=token)
    fonts: dict[str, Any] = {
        "font": ["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        "font_mono": ["ui-monospace", "monospace"],
    }
    theme = gr.themes.Default(primary_hue="blue", neutral_hue="gray", radius_size="sm", **fonts)
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme,
        css_paths=Path(__file__).parent / "page.css",
        footer_links=[],
        run_history=False,
        max_file_size="64mb",
        ssr_mode=False,
        enable_monitoring=False,
        show_error=True,
    )


def serve(app: FastAPI, host: str, port: int, opened: Callable[[str], None] = lambda address: None) -> None:
    """Serves the application until it is interrupted.

    Args:
        host: address to listen on.
        port: port to listen on; 0 takes any free port.
        opened: called with the URL once the server is listening.

    Raises:
        InputError: if the port is not available.
    """
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"{host}:{port}: {error.strerror or error}; choose another --port") from None
    shown = f"[{host}]" if ":" in host else host
    opened(f"http://{shown}:{listener.getsockname()[1]}")
    # Browsers keep their streams open, so a graceful shutdown needs a timeout.
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)).run([listener])


class _TokenGate:
    """Admits requests with the token in the URL, and stores it in a cookie that scripts cannot read."""

    def __init__(self, app: Any, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        is_request = scope["type"] in ("http", "websocket")
        if not is_request or self._matches(HTTPConnection(scope).cookies.get(_COOKIE, "")):
            await self._app(scope, receive, send)
            return
        response: Response
        if self._matches(parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]):
            response = RedirectResponse(scope["path"], 303)
            response.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
        else:
            response = PlainTextResponse("steelgen studio: open the printed address, including its token\n", 401)
        MutableHeaders(raw=response.raw_headers)["Referrer-Policy"] = "no-referrer"
        await response(scope, receive, send)

    def _matches(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self._token.encode())
