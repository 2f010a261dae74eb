"""The app: every path, and the door in front of it."""

from __future__ import annotations

from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.service.bodies import Bodies
from serving.service.engine import Models
from serving.service.gate import Gate
from serving.service.plain import Plain
from serving.service.settings import Settings

STATIC = Path(__file__).parent / "static"


class App:
    """Routes without starlette's own error pages: the gate answers for what they raise."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        self.router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the path's handler."""
        scope["app"] = self  # so that starlette raises what it refuses
        await self.router(scope, receive, send)


def make_app(models: Models, settings: Settings) -> ASGIApp:
    """The service on its main port.

    Parameters
    ----------
    models : Models
        Holds the version that answers.
    settings : Settings
    """
    bodies = Bodies(settings)
    routes: list[BaseRoute] = [*Plain(models, bodies).routes(), *probes()]
    return Gate(App(routes), settings, bodies, is_public=is_public)


def probes() -> list[Route]:
    """Whether the process lives, and whether it may be sent requests."""

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    return [Route("/livez", live), Route("/readyz", ready)]


def is_public(path: str) -> bool:
    """Paths that need no token: probes, and the page that asks for it."""
    return path in ("/livez", "/readyz", "/")
