"""Settings of the service, read from the environment; every one is named and explained here."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any, get_type_hints

from vae_anomaly.exceptions import ConfigError

PREFIX = "VAE_ANOMALY_"
LOOPBACK = ("127.0.0.1", "::1", "localhost")
# What a bearer token may hold (RFC 6750), and long enough that nobody guesses it.
TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,512}=*")


MOST_PORTS = 65_535


def setting(
    default: Any, help: str, least: float | None = None, most: float = math.inf, secret: bool = False
) -> Any:
    """One setting: its default, what it does, its bounds, and whether to keep it out of logs."""
    return field(default=default, repr=not secret, metadata={"help": help, "least": least, "most": most})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How the service listens, whom it answers and how much it takes at once."""

    host: str = setting("127.0.0.1", "address to listen on; others than loopback need a token")
    port: int = setting(8000, "port of the service", 0, MOST_PORTS)
    ops_host: str = setting("127.0.0.1", "address of the port for probes and metrics")
    ops_port: int | None = setting(
        None, "own port for /livez, /readyz and /metrics, without token", 0, MOST_PORTS
    )
    token: str | None = setting(None, "bearer token that callers must send", secret=True)
    token_next: str | None = setting(
        None, "second token accepted, to change tokens without a gap", secret=True
    )
    allowed_hosts: tuple[str, ...] = setting(
        (), "names in the Host header beside loopback and the address itself, by commas; * for any"
    )
    model_name: str | None = setting(None, "name of the model in /v2; the bundle's own by default")

    max_body_bytes: int = setting(16 * 2**20, "bytes of a request body", 1)
    max_rows: int = setting(10_000, "rows of a request", 1)
    max_cells: int = setting(2_000_000, "cells of a request, rows times columns or pixels", 1)
    max_json_depth: int = setting(8, "nesting of a JSON body", 1)
    max_headers: int = setting(64, "headers of a request", 1)
    max_header_bytes: int = setting(16 * 2**10, "bytes of a request's line and headers together", 256)
    max_connections: int = setting(512, "connections at once; more are answered 503", 1)
    max_held_bytes: int = setting(256 * 2**20, "bytes of all request bodies held at once", 1)
    receive_deadline: float = setting(10.0, "seconds a client has to send a whole request", 0.01)
    request_deadline: float = setting(30.0, "seconds until a request is answered", 0.01)
    keep_alive: float = setting(30.0, "seconds that an idle connection stays open", 0.01)

    device: str = setting("auto", "auto, cpu or cuda; cuda without CUDA is an error")
    tf32: bool = setting(False, "let CUDA compute with TF32: faster, a little less exact")
    workers: int | None = setting(None, "batches run at once on the CPU; all processors by default", 1)
    batch_rows: int = setting(256, "rows of the largest batch", 1)
    batch_wait: float = setting(0.0, "seconds that a batch waits for company while it is not full", 0)
    queue_rows: int = setting(20_000, "rows that may wait at one entry point", 1)
    queue_bytes: int = setting(128 * 2**20, "bytes that may wait at one entry point", 1)
    reload_every: float = setting(30.0, "seconds between looks whether the alias has moved; 0 never looks", 0)
    drain_deadline: float = setting(25.0, "seconds that admitted requests have after SIGTERM", 0)

    log_level: str = setting("info", "least level that is logged: debug, info, warning or error")

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_range(item, getattr(self, item.name))
        for name in ("token", "token_next"):
            if (value := getattr(self, name)) is not None and not TOKEN.fullmatch(value):
                raise ConfigError(
                    f"{variable(name)} has {len(value)} characters; expected 16 to 512 of A-Z a-z 0-9 ._~+/-"
                )
        if self.token_next is not None and self.token is None:
            raise ConfigError(f"{variable('token_next')} is set without {variable('token')}; set that first")
        if self.host not in LOOPBACK and self.token is None:
            raise ConfigError(
                f"host {self.host!r} is reached from outside; set {variable('token')}, or listen on 127.0.0.1"
            )
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ConfigError(
                f"{variable('log_level')} is {self.log_level!r}; choose debug, info, warning or error"
            )

    @property
    def token_digests(self) -> tuple[bytes, ...]:
        """sha256 of the accepted tokens; empty where none is asked for."""
        held = (self.token, self.token_next)
        return tuple(hashlib.sha256(token.encode()).digest() for token in held if token is not None)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], **given: Any) -> Settings:
        """Read ``VAE_ANOMALY_<NAME>``; what is given and not None wins.

        Raises
        ------
        ConfigError
            If a value is of the wrong type or out of range.
        """
        hints = get_type_hints(cls)
        found = {
            item.name: _parsed(item.name, text, hints[item.name])
            for item in fields(cls)
            if (text := environment.get(variable(item.name), "").strip())
        }
        return cls(**found | {name: value for name, value in given.items() if value is not None})

    def changed(self, **given: Any) -> Settings:
        """A copy with some values replaced."""
        return replace(self, **given)


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


def described() -> list[tuple[str, str, str]]:
    """Variable, default and meaning of every setting."""
    return [(variable(item.name), _shown(item.default), item.metadata["help"]) for item in fields(Settings)]


def unknown_variables(environment: Mapping[str, str], others: tuple[str, ...] = ()) -> list[str]:
    """Warnings about variables with our prefix that no setting reads, most likely misspelt."""
    known = [variable(item.name) for item in fields(Settings)]
    strange = [name for name in environment if name.startswith(PREFIX) and name not in (*known, *others)]
    close = {name: get_close_matches(name, known, n=1) for name in strange}
    return [
        f"{name} is no setting" + (f"; did you mean {close[name][0]}?" if close[name] else "")
        for name in strange
    ]


def _parsed(name: str, text: str, hint: Any) -> Any:
    kinds = str(hint)
    if "tuple" in kinds:
        return tuple(part.strip().lower() for part in text.split(",") if part.strip())
    if "bool" in kinds:
        if text.lower() in ("1", "true", "yes", "on", "0", "false", "no", "off"):
            return text.lower() in ("1", "true", "yes", "on")
        raise ConfigError(f"{variable(name)} is {text!r}; expected true or false")
    if "int" not in kinds and "float" not in kinds:
        return text
    try:
        return int(text) if "int" in kinds else float(text)
    except ValueError as error:
        expected = "a whole number" if "int" in kinds else "a number"
        raise ConfigError(f"{variable(name)} is {text!r}; expected {expected}") from error


def _check_range(item: Field[Any], value: Any) -> None:
    least, most = item.metadata["least"], item.metadata["most"]
    # Written so that NaN is refused too.
    if least is not None and value is not None and not least <= value <= most:
        expected = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"
        raise ConfigError(f"{variable(item.name)} is {value}; expected {expected}")


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
