"""What the benchmarks share: where and how a figure was measured, files of results, interleaved timing."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "vae-anomaly",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "pandas",
    "scikit-learn",
    "torch",
    "torchvision",
)
# Their values are places on this machine, and say nothing about the figure.
PLACES = {"--bundle": "BUNDLE", "--data-root": "DATA", "--results": "RESULTS", "--work": "WORK"}

Times = dict[str, list[float]]


class Stopwatch:
    """Seconds since it was made, without what ran inside `paused`."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._left_out = 0.0

    @property
    def seconds(self) -> float:
        """So far."""
        return time.perf_counter() - self._started - self._left_out

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what runs in the block."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._left_out += time.perf_counter() - begun


def parser(description: str | None, *, data: bool = True) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(
        description=(description or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    if data:
        made.add_argument("--data-root", type=Path, required=True, help="folder of the real data sets")
    made.add_argument(
        "--quick", action="store_true", help="tiny limits: whether it runs, not what it measures"
    )
    made.add_argument("--results", type=Path, help="folder to write to in place of benchmarks/results")
    return made


def parsed(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line; what a quick run keeps goes below ``quick`` of the folder that ``--work`` names.

    A cell is known by its name alone: one that tiny limits made would pass for a measurement.
    """
    options = made.parse_args()
    if options.quick:
        options.work /= "quick"
    return options


def write(name: str, payload: Mapping[str, Mapping[str, Any]], options: argparse.Namespace) -> Path | None:
    """Put sections into ``results/<name>.json``; other sections of the file stay.

    Each section gets the machine, versions, date and command that it was measured with. Quick runs
    are written only where ``--results`` says, and are marked.
    """
    if options.quick and options.results is None:
        print("a quick run is not recorded (--results DIR writes it elsewhere)")
        return None
    context = {
        "command": command(),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "quick": bool(options.quick),
        "versions": versions(),
    }
    path = (options.results or RESULTS) / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept |= {section: {**values, "measured": context} for section, values in payload.items()}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(rounded(kept), indent=1, sort_keys=True, allow_nan=False) + "\n")
    temporary.replace(path)
    print(f"written: {path}")
    return path


def rounded(value: Any) -> Any:
    """Floats to six digits, numpy scalars and paths as plain values."""
    if isinstance(value, Mapping):
        return {str(key): rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(part) for part in value]
    if hasattr(value, "item"):
        value = value.item()
    return float(f"{value:.6g}") if isinstance(value, float) else value


def command() -> str:
    """The command line of this run, places left out."""
    module = Path(sys.argv[0]).stem
    words, hide = [], ""
    for word in sys.argv[1:]:
        name, given, _ = word.partition("=")
        if hide:
            words.append(hide)
        elif given and name in PLACES:
            words.append(f"{name}={PLACES[name]}")
        else:
            words.append(word)
        hide = PLACES.get(word, "") if not hide else ""
    return f"python -m benchmarks.{module} {shlex.join(words)}".rstrip()


def machine() -> dict[str, Any]:
    """Processor, cores, memory and accelerators."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _processor(),
        "gpus": _gpus(),
        "memory_gib": round(memory / 2**30),
        "system": platform.system(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }


def _processor() -> str:
    """The model's name; with family and instruction set, where the name says little."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    lines = (line.partition(":") for line in info.read_text().splitlines())
    first: dict[str, str] = {}
    for key, _, value in lines:
        first.setdefault(key.strip(), value.strip())
    flags = first.get("flags", "").split()
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    name = first.get("model name", platform.machine())
    return f"{name} (family {first.get('cpu family', '?')}, {' '.join(known)})"


def _gpus() -> list[str]:
    try:
        found = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return found.stdout.split("\n")[:-1] if found.returncode == 0 else []


def versions() -> dict[str, str]:
    """Python and the packages whose speed is at stake."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def interleave(contenders: Mapping[str, Callable[[], object]], rounds: int) -> Times:
    """Seconds of every contender, round by round, each round in the opposite order of the last.

    A busy neighbour then slows all of them alike, and a round's times can be compared as a pair.
    """
    times: Times = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(rounds):
        for name in names if i % 2 == 0 else names[::-1]:
            started = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - started)
    return times


def comparison(slow: Sequence[float], fast: Sequence[float]) -> dict[str, Any]:
    """How many times faster, pair by pair: median, least and most."""
    pairs = [a / b for a, b in zip(slow, fast, strict=True)]
    return {"median": statistics.median(pairs), "least": min(pairs), "most": max(pairs), "pairs": pairs}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation and the values themselves."""
    return {
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else 0.0,
        "values": list(values),
    }


def worker(module: str, *arguments: object) -> Any:
    """Run a benchmark module's worker in a fresh process and read the JSON on its last line.

    Contenders that share a process share its allocator's habits and its thread pools.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{module} {' '.join(map(str, arguments))} failed with exit code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def show(title: str, rows: Sequence[Mapping[str, object]]) -> None:
    """A small table on the terminal."""
    table = Table(title=title, title_justify="left")
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    Console().print(table)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value)
