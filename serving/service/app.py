"""The app: every path, and the door in front of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.service.bodies import Bodies
from serving.service.calls import Call, route
from serving.service.engine import Models
from serving.service.gate import Gate
from serving.service.inference import OpenInference
from serving.service.metrics import CONTENT_TYPE, Metrics
from serving.service.openapi import document
from serving.service.page import is_page, page_routes
from serving.service.plain import Plain
from serving.service.problems import Problem
from serving.service.settings import Settings

PROBES = ("/livez", "/readyz")
KNOWN_PATHS = 64


@dataclass
class Readiness:
    """Whether requests are welcome; turned off when the process is told to stop."""

    ready: bool = True

    def check(self) -> None:
        """Refuse to be called ready while stopping.

        Raises
        ------
        Problem
            503.
        """
        if not self.ready:
            raise Problem(503, "draining", "the server is stopping", hint="ask another one")


class App:
    """Routes without starlette's own error pages: the gate answers for what they raise."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        self.router = Router(routes, redirect_slashes=False)
        self._found: dict[tuple[str, str], dict[str, Any]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find the path's handler; of paths that were answered before it is known."""
        scope["app"] = self  # so that starlette raises what it refuses
        asked = (scope["method"], scope["path"])
        if (found := self._found.get(asked)) is not None:
            scope.update(found)
            await found["route"].handle(scope, receive, send)
            return
        await self.router(scope, receive, send)
        if len(self._found) < KNOWN_PATHS:
            self._found[asked] = {name: scope[name] for name in ("route", "endpoint", "path_params")}


def make_app(models: Models, settings: Settings, metrics: Metrics, readiness: Readiness) -> ASGIApp:
    """The service on its main port.

    Parameters
    ----------
    models : Models
        Holds the version that answers.
    settings : Settings
    metrics : Metrics
    readiness : Readiness
    """
    bodies = Bodies(settings)
    routes: list[BaseRoute] = [
        *Plain(models, bodies, metrics).routes(),
        *OpenInference(models, bodies, metrics, readiness.check).routes(),
        route("/openapi.json", partial(describe, models, settings)),
        *page_routes(),
    ]
    if settings.ops_port is None:
        routes += ops_routes(metrics, readiness)
    observe = partial(count, metrics)
    return Gate(App(routes), settings, bodies, is_public=is_public, observe=observe)


async def describe(models: Models, settings: Settings, request: Request) -> Response:
    """The OpenAPI document of the model that answers now."""
    with models.current() as engine:
        return JSONResponse(document(engine, settings))


def make_ops_app(settings: Settings, metrics: Metrics, readiness: Readiness) -> ASGIApp:
    """Probes and metrics on a port of their own: without token, under any name."""
    without = settings.changed(token=None, token_next=None, host="localhost")
    return Gate(App(list(ops_routes(metrics, readiness))), without, Bodies(settings), checks_host=False)


def ops_routes(metrics: Metrics, readiness: Readiness) -> list[Route]:
    """Whether the process lives, whether it may be sent requests, and what it has done."""

    async def live(request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(request: Request) -> Response:
        readiness.check()
        return JSONResponse({"status": "ready"})

    async def numbers(request: Request) -> Response:
        return Response(metrics.text(), headers={"content-type": CONTENT_TYPE})

    return [route("/livez", live), route("/readyz", ready), route("/metrics", numbers)]


def count(metrics: Metrics, call: Call) -> None:
    """Tell the metrics of a finished call."""
    metrics.answered(call.entry, call.status, call.rows, call.seconds)


def is_public(path: str) -> bool:
    """Paths that need no token: probes, and the page that asks for it."""
    return path in PROBES or is_page(path)
