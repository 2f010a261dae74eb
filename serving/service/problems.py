"""What goes wrong, as problem details for HTTP: one class, and one table from exceptions to statuses.

References
----------
.. [1] RFC 9457, "Problem Details for HTTP APIs". https://www.rfc-editor.org/rfc/rfc9457
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException

from serving.service.refusals import Expired, Overloaded
from vae_anomaly.exceptions import (
    CalibrationError,
    ConfigError,
    DataError,
    DeviceError,
    SchemaError,
    UnsupportedError,
    VaeAnomalyError,
)

MEDIA_TYPE = "application/problem+json"
# Bytes of each text; with every one of them escaped the whole still stays below 2 KB.
MAX_DETAIL, MAX_HINT, MAX_FIELD = 400, 160, 80
RETRY_AFTER = 1

# The first class that fits decides.
STATUSES: tuple[tuple[type[Exception], int, str], ...] = (
    (Overloaded, 503, "overloaded"),
    (Expired, 503, "deadline_exceeded"),
    (TimeoutError, 503, "deadline_exceeded"),
    (DeviceError, 503, "device_unavailable"),
    (CalibrationError, 422, "rate_too_small"),
    (SchemaError, 422, "bad_sample"),
    (DataError, 422, "bad_sample"),
    (ConfigError, 422, "bad_option"),
    (UnsupportedError, 422, "unsupported"),
)
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


class Problem(VaeAnomalyError, ValueError):  # noqa: N818 - RFC 9457's own word
    """An answer that is no answer.

    Attributes
    ----------
    status : int
    code : str
        Stable: clients may rely on it.
    detail, hint : str
        What was wrong, and what to do. Never holds values that a client sent.
    field : str, optional
        The column, header or member at fault, shortened.
    row : int, optional
        Counted from 0.
    headers : dict
        Sent along, such as ``Allow`` or ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        hint: str = "",
        field: str | None = None,
        row: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{detail}; {hint}" if hint else detail)
        self.status, self.code, self.detail, self.hint = status, code, detail, hint
        self.field, self.row = field, row
        self.headers = dict(headers or {})
        if status == 503:
            self.headers.setdefault("retry-after", str(RETRY_AFTER))

    def to_dict(self, request_id: str = "") -> dict[str, Any]:
        """The members of the problem object; what is empty is left out."""
        found = {
            "type": f"urn:vae-anomaly:problem:{self.code}",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "code": self.code,
            "detail": shortened(self.detail, MAX_DETAIL),
            "hint": shortened(self.hint, MAX_HINT),
            "field": None if self.field is None else shortened(self.field, MAX_FIELD),
            "row": self.row,
            "request_id": request_id,
        }
        return {key: value for key, value in found.items() if value not in (None, "")}

    def body(self, request_id: str = "") -> bytes:
        """The problem as JSON, under 2 KB."""
        return json.dumps(self.to_dict(request_id), ensure_ascii=False).encode()


def problem_of(error: Exception) -> Problem:
    """The problem that stands for an exception; what nobody foresaw is a 500 that says nothing."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, HTTPException):
        return _http(error)
    for kind, status, code in STATUSES:
        if isinstance(error, kind):
            detail, _, hint = str(error).partition("; ")
            found = Problem(status, code, detail or "the deadline has passed", hint=hint)
            if isinstance(error, Overloaded):
                found.headers["retry-after"] = str(error.retry_after)
            return found
    return Problem(500, "internal_error", "something went wrong here", hint="report the request id")


def _http(error: HTTPException) -> Problem:
    hints = {404: "GET /openapi.json lists every path", 405: "the header Allow names the methods"}
    status = error.status_code
    return Problem(
        status,
        HTTP_CODES.get(status, "refused"),
        HTTPStatus(status).description or HTTPStatus(status).phrase,
        hint=hints.get(status, ""),
        headers=error.headers,
    )


def shortened(text: str, at_most: int) -> str:
    """Text cut to a number of bytes in UTF-8, and without what is unprintable."""
    clean = "".join(letter if letter.isprintable() else "?" for letter in text[: at_most + 1])
    raw = clean.encode("utf-8", "replace")
    return clean if len(raw) <= at_most else raw[: at_most - 3].decode("utf-8", "ignore") + "..."
