"""One request from its first byte to its last: who it is, what it asked, how it went."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from serving.service.engine import Engine

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
TRACE_PARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
)


@dataclass(slots=True)
class Call:
    """What is known of a request; the gate makes it, handlers fill it, the log and the metrics read it.

    Attributes
    ----------
    request_id : str
        The client's own where it is plain, else drawn.
    trace_id, parent_id, span_id, flags : str
        W3C trace context; the span is this request's.
    started, deadline : float
        On `time.monotonic`'s clock.
    route : str
        The path's pattern, never the path itself: labels and logs stay bounded.
    entry : str
        Which answer was asked for, "score" and the like; "other" for all else.
    held : int
        Bytes of the body counted against all bodies held at once.
    """

    request_id: str
    trace_id: str
    parent_id: str
    span_id: str
    flags: str
    started: float
    deadline: float
    method: str = ""
    entry: str = "other"
    route: str = "none"
    status: int = 0
    code: str = ""
    rows: int = 0
    held: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    answer: dict[str, str] = field(default_factory=dict)

    @classmethod
    def begin(cls, headers: Mapping[bytes, bytes], seconds: float) -> Call:
        """Read the request's identity from its headers."""
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        found = TRACE_PARENT.fullmatch(headers.get(b"traceparent", b"").decode("latin-1"))
        trace_id, parent_id, flags = found.group(1, 2, 3) if found else (secrets.token_hex(16), "", "00")
        now = time.monotonic()
        return cls(request_id, trace_id, parent_id, secrets.token_hex(8), flags, now, now + seconds)

    def answered_by(self, engine: Engine) -> None:
        """Remember which version answers: headers, log and metrics name it."""
        self.answer = {
            "x-model-name": engine.name,
            "x-model-version": engine.version,
            "x-model-digest": engine.digest,
            "x-provider": engine.provider,
        }

    @property
    def seconds(self) -> float:
        """Since the request began."""
        return time.monotonic() - self.started

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What every response carries."""
        fixed = {
            "x-request-id": self.request_id,
            "traceresponse": f"00-{self.trace_id}-{self.span_id}-{self.flags}",
            "x-content-type-options": "nosniff",
        }
        return [
            (name.encode(), value.encode("latin-1", "replace"))
            for name, value in (fixed | self.answer).items()
        ]

    def to_log(self) -> dict[str, Any]:
        """The line of the access log; nothing a client chose but a plain request id."""
        return {
            "request_id": self.request_id,
            "trace_id": self.trace_id,
            "span_id": self.span_id,
            "parent_id": self.parent_id or None,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "code": self.code or None,
            "ms": round(self.seconds * 1000, 2),
            "rows": self.rows,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "model_version": self.answer.get("x-model-version"),
            "provider": self.answer.get("x-provider"),
        }


def header(request: Request, name: bytes) -> list[str]:
    """The values of a header, by its name in small letters."""
    return [value.decode("latin-1") for key, value in request.scope["headers"] if key == name]


def call_of(request: Request) -> Call:
    """The call that the gate made for a request."""
    call: Call = request.scope["call"]
    return call


class Handler:
    """A handler of requests as an app: what it raises is the gate's, starlette need not look for it."""

    def __init__(self, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self.handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = await self.handle(Request(scope, receive))
        await response(scope, receive, send)


def route(path: str, handle: Callable[[Request], Awaitable[Response]], method: str = "GET") -> Route:
    """A path, its handler and the method that it takes (HEAD with GET)."""
    return Route(path, Handler(handle), methods=[method])
