"""The app: every path, and the door in front of it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.service.bodies import Bodies
from serving.service.calls import Call
from serving.service.engine import Models
from serving.service.gate import Gate
from serving.service.inference import OpenInference
from serving.service.metrics import CONTENT_TYPE, Metrics
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


def make_app(models: Models, settings: Settings, metrics: Metrics) -> ASGIApp:
    """The service on its main port.

    Parameters
    ----------
    models : Models
        Holds the version that answers.
    settings : Settings
    metrics : Metrics
    """
    bodies = Bodies(settings)
    routes: list[BaseRoute] = list(Plain(models, bodies, metrics).routes())
    routes += OpenInference(models, bodies, metrics).routes()
    if settings.ops_port is None:
        routes += ops_routes(metrics)
    observe = partial(count, metrics)
    return Gate(App(routes), settings, bodies, is_public=is_public, observe=observe)


def make_ops_app(settings: Settings, metrics: Metrics) -> ASGIApp:
    """Probes and metrics on a port of their own: without token, under any name."""
    open_settings = settings.changed(token=None, token_next=None, host="localhost")
    return Gate(App(list(ops_routes(metrics))), open_settings, Bodies(settings), checks_host=False)


def ops_routes(metrics: Metrics) -> list[Route]:
    """Whether the process lives, whether it may be sent requests, and what it has done."""

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        return JSONResponse({"status": "ready"})

    async def numbers(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    return [Route("/livez", live), Route("/readyz", ready), Route("/metrics", numbers)]


def count(metrics: Metrics, call: Call) -> None:
    """Tell the metrics of a finished call."""
    metrics.answered(call.entry, call.status, call.rows, call.seconds)


def is_public(path: str) -> bool:
    """Paths that need no token: probes, and the page that asks for it."""
    return path in ("/livez", "/readyz", "/")
