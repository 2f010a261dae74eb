"""The one door: Host, token, deadline, request id, and whatever goes wrong as a problem document."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.service.bodies import Bodies, ClientGone
from serving.service.calls import Call
from serving.service.problems import MEDIA_TYPE, Problem, problem_of, shortened
from serving.service.settings import LOOPBACK, Settings

log = logging.getLogger(__name__)
access = logging.getLogger("serving.access")

CLIENT_CLOSED = 499  # nginx's number for a client that left; never sent


class Gate:
    """Wraps the app.

    Parameters
    ----------
    app : ASGI app
    settings : Settings
    bodies : Bodies
        Whose bytes are set free when a request ends.
    is_public : callable
        Paths that are answered without a token.
    checks_host : bool
        Off for the port of probes.
    observe : callable, optional
        Told of every finished call.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        bodies: Bodies,
        *,
        is_public: Callable[[str], bool] = lambda path: False,
        checks_host: bool = True,
        observe: Callable[[Call], None] = lambda call: None,
    ) -> None:
        self.app, self.settings, self.bodies = app, settings, bodies
        self.is_public, self.checks_host, self.observe = is_public, checks_host, observe
        self.digests = settings.token_digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; lifespan messages pass through."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        call = scope["call"] = Call.begin(headers, self.settings.request_deadline)
        call.method = scope["method"]
        if (connection := scope.get("connection")) is not None:
            connection.task = asyncio.current_task()
        try:
            await self._answer(scope, receive, _sender(call, send), call)
        finally:
            self.bodies.release(call)
            call.route = getattr(scope.get("route"), "path", call.route)
            self.observe(call)
            access.info("request", extra={"facts": call.to_log()})

    async def _answer(self, scope: Scope, receive: Receive, send: Send, call: Call) -> None:
        try:
            async with asyncio.timeout(call.deadline - call.started):
                self._admit(scope)
                await self.app(scope, receive, send)
        except ClientGone:
            call.status = CLIENT_CLOSED
        except asyncio.CancelledError:
            # The connection was lost, or the server stops for good; uvicorn would log a crash.
            call.status = CLIENT_CLOSED
        except Exception as error:
            problem = problem_of(error)
            call.code = problem.code
            if problem.status == 500:
                log.exception("request %s failed", call.request_id)
            if not call.status:
                await _send_problem(problem, scope, send, call)

    def _admit(self, scope: Scope) -> None:
        if self.checks_host:
            self._check_host(scope)
        if self.digests and not self.is_public(scope["path"]):
            self._check_token(scope)

    def _check_host(self, scope: Scope) -> None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) != 1 or not self._is_known(hosts[0], scope):
            raise Problem(
                400,
                "bad_host",
                "the header Host is missing, repeated or not a name of this service",
                hint="use an address from the server's list, VAE_ANOMALY_ALLOWED_HOSTS",
                field="host",
            )

    def _is_known(self, header: bytes, scope: Scope) -> bool:
        host = _without_port(header.decode("latin-1").lower())
        allowed = self.settings.allowed_hosts
        if "*" in allowed or host in (*LOOPBACK, self.settings.host, *allowed):
            return True
        # The very address that the connection came to: no name that an attacker could point here.
        return _is_address(host) and scope.get("server") is not None and host == scope["server"][0]

    def _check_token(self, scope: Scope) -> None:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(token.strip()).digest()
        # Every digest is compared, so that time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self.digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise Problem(
                401,
                "unauthorized",
                "the bearer token is missing or wrong",
                hint="send Authorization: Bearer <token>, once",
                headers={"www-authenticate": "Bearer"},
            )


def _sender(call: Call, send: Send) -> Send:
    """Adds the headers that every response carries, and remembers what was sent."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            call.status = message["status"]
            message["headers"] = [*message.get("headers", []), *call.headers()]
        elif message["type"] == "http.response.body":
            call.bytes_out += len(message.get("body", b""))
        await send(message)

    return sent


async def _send_problem(problem: Problem, scope: Scope, send: Send, call: Call) -> None:
    content = problem.to_dict(call.request_id)
    if scope["path"].startswith("/v2"):  # where clients of the Open Inference Protocol look
        content["error"] = shortened(str(problem), 200)
    body = json.dumps(content, ensure_ascii=False).encode()
    headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in problem.headers.items()]
    headers += [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
