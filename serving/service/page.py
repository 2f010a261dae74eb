"""The page: static files of the package, held in memory, sent with a strict policy."""

from __future__ import annotations

import mimetypes
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.service.calls import route

STATIC = Path(__file__).parent / "static"
PREFIX = "/static/"
# Nothing from elsewhere, nothing inline, no frame around it.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_routes(folder: Path = STATIC) -> list[Route]:
    """``/`` is index.html, every file lies under ``/static/``."""
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }

    async def send(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        if name not in files:
            raise HTTPException(404)
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return Response(files[name], media_type=kind, headers=HEADERS)

    return [route("/", send), route(PREFIX + "{name:path}", send)]


def is_page(path: str) -> bool:
    """Whether a path belongs to the page, which is sent without token: it is where one is typed in."""
    return path == "/" or path.startswith(PREFIX)
