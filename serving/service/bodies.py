"""A request's body: its type, its length and its bytes, within bounds, before anything is parsed."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request

from serving.service.calls import Call, call_of, header
from serving.service.problems import Problem
from serving.service.settings import Settings


class ClientGone(Exception):  # noqa: N818 - an event; nobody is left to answer
    """The client closed the connection before its request was whole."""


class Bodies:
    """Reads bodies, and counts how much of them is held at once.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.held = 0

    async def read(self, request: Request) -> bytes:
        """All bytes of a body.

        Raises
        ------
        Problem
            415 if compressed, 411 without length, 413 if too long, 400 if shorter than it said, 503 if
            too many bodies are held already.
        ClientGone
        """
        call = call_of(request)
        announced = self._announced(request)
        parts: list[bytes] = []
        received = 0
        self._hold(call, announced or 0)
        while True:
            message = await request.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            received += len(part)
            if received > self.settings.max_body_bytes:
                raise self._too_large()
            self._hold(call, received)
            parts.append(part)
            if not message.get("more_body", False):
                break
        call.bytes_in = received
        if announced is not None and received != announced:
            raise Problem(
                400,
                "incomplete_body",
                f"the body has {received} bytes, Content-Length says {announced}",
                hint="send as many bytes as Content-Length says",
            )
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def release(self, call: Call) -> None:
        """The request is answered: its bytes are free."""
        self.held -= call.held
        call.held = 0

    def _announced(self, request: Request) -> int | None:
        if any(
            value.strip().lower() not in ("", "identity") for value in header(request, b"content-encoding")
        ):
            raise Problem(
                415,
                "compressed_body",
                "the body is compressed",
                hint="send it without Content-Encoding",
                field="content-encoding",
            )
        lengths = header(request, b"content-length")
        if not lengths:
            if any("chunked" in value.lower() for value in header(request, b"transfer-encoding")):
                return None
            raise Problem(
                411,
                "length_required",
                "the request has no body, or none of known length",
                hint="send Content-Length, or chunks",
                field="content-length",
            )
        if (length := int(lengths[0])) > self.settings.max_body_bytes:
            raise self._too_large()
        return length

    def _hold(self, call: Call, size: int) -> None:
        more = max(size - call.held, 0)
        if self.held + more > self.settings.max_held_bytes:
            raise Problem(503, "overloaded", "too many large requests at once", hint="try again later")
        self.held += more
        call.held += more

    def _too_large(self) -> Problem:
        return Problem(
            413,
            "body_too_large",
            f"the body exceeds {self.settings.max_body_bytes} bytes",
            hint="send fewer rows at once, or use the batch job",
        )


def content_type(request: Request, known: Collection[str]) -> str:
    """The media type of the body, without parameters.

    Raises
    ------
    Problem
        415 for one that is not known.
    """
    given = header(request, b"content-type")
    media = given[0].partition(";")[0].strip().lower() if len(given) == 1 else ""
    if media not in known:
        raise Problem(
            415,
            "unsupported_media_type",
            "the Content-Type is missing or not one of those read here",
            hint=f"send one of {', '.join(sorted(known))}",
            field="content-type",
            headers={"accept-post": ", ".join(sorted(known))},
        )
    return media


def accepted(request: Request, offered: tuple[str, ...]) -> str:
    """The media type to answer in: of those offered, in order, the one liked best.

    Raises
    ------
    Problem
        406 if none is accepted.
    """
    given = ",".join(header(request, b"accept"))
    if not given.strip():
        return offered[0]
    wishes = [_wish(part) for part in given.split(",")[:32]]
    liked = {media: _liking(media, wishes) for media in offered}
    best = max(offered, key=lambda media: liked[media])
    if liked[best] <= 0:
        raise Problem(
            406,
            "not_acceptable",
            "nothing that Accept names can be answered here",
            hint=f"accept one of {', '.join(offered)}",
            field="accept",
        )
    return best


def _wish(part: str) -> tuple[str, float]:
    media, *parameters = part.split(";")
    quality = 1.0
    for parameter in parameters:
        name, _, value = parameter.strip().partition("=")
        if name.strip().lower() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
    return media.strip().lower(), quality


def _liking(media: str, wishes: list[tuple[str, float]]) -> float:
    """Quality of the most specific wish that fits; NaN, which compares as False, counts as none."""
    ranges = (media, f"{media.partition('/')[0]}/*", "*/*")
    for wanted in ranges:
        for name, quality in wishes:
            if name == wanted:
                return quality if quality > 0 else 0.0
    return 0.0
