"""How SIGTERM ends a command."""

from __future__ import annotations

import signal
from types import FrameType


def end_on_sigterm() -> None:
    """Turn SIGTERM into an ordinary exit, so that everything on the way out is tidied up."""
    signal.signal(signal.SIGTERM, _exit)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
