"""What the command line prints, and the exit code it ends with."""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from pipelines.signals import end_on_sigterm
from vae_anomaly.exceptions import ConfigError, MissingPackageError, VaeAnomalyError

DONE, FAILED, USAGE, REJECTED, NEGATIVE = 0, 1, 2, 3, 4
OWN_PACKAGES = ("vae_anomaly", "serving", "pipelines")

out, err = Console(), Console(stderr=True)


class ConsoleHandler(logging.Handler):
    """Log records as single lines on stderr, above a progress bar where there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record."""
        text = f"{record.levelname.lower()}: {self.format(record)}"
        plain(err, text, style="yellow" if record.levelno >= logging.WARNING else "dim")


def start_logging(verbose: bool) -> None:
    """Show our own log, from INFO on if ``verbose``, and the warnings of others."""
    logging.basicConfig(level=logging.WARNING, handlers=[ConsoleHandler()], format="%(message)s")
    for package in OWN_PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO if verbose else logging.WARNING)


def plain(console: Console, text: object, style: str = "") -> None:
    """One line as it stands: no markup in file names, no wrapping."""
    console.print(Text(_writable(str(text))), style=style or None, highlight=False, soft_wrap=True)


def facts(*found: tuple[str, object]) -> None:
    """Names and what they are, one a line; None is left out."""
    width = max((len(key) for key, value in found if value is not None), default=0)
    for key, value in found:
        if value is not None:
            plain(out, f"  {key:<{width}}  {value}")


def suggest(*commands: str) -> None:
    """What to try next."""
    plain(out, "next:", style="bold")
    for command in commands:
        plain(out, f"  {command}")


def counted(number: int, what: str) -> str:
    """``1 row``, ``2,000 rows``."""
    return f"{number:,} {what}" + "s" * (number != 1)


def as_line(summary: Any) -> str:
    """A mapping, or a list of them, as JSON; paths become text."""
    return json.dumps(summary, default=lambda value: str(value) if isinstance(value, Path) else repr(value))


def run(app: Callable[[], Any]) -> int:
    """Call the command line; the exit code. Errors of ours are one line on stderr."""
    end_on_sigterm()
    try:
        code = app()
    except ConfigError as error:
        return _say(str(error), USAGE)
    except VaeAnomalyError as error:
        return _say(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in OWN_PACKAGES:
            raise
        return _say(str(MissingPackageError(f"{error.name} is not installed; {INSTALL}")))
    except OSError as error:
        return _say(f"{error.strerror or error}: {error.filename or 'unknown path'}")
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except Exception as error:
        if not hasattr(error, "exit_code"):
            raise
        if hasattr(error, "show"):
            error.show()
        return int(error.exit_code)
    return code if isinstance(code, int) else DONE


INSTALL = "pip install 'vae-anomaly[train]'"


def _say(text: str, code: int = FAILED) -> int:
    print(f"vae-anomaly: {' '.join(text.splitlines())}", file=sys.stderr)  # noqa: T201
    return code


def _writable(text: str) -> str:
    """Bytes of a file name that are no UTF-8, written as backslash and number."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
