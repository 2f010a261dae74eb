"""Is this machine fit for the job? One real inference per device, tracking, disk, versions."""

from __future__ import annotations

import base64
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from packaging.requirements import Requirement

from pipelines.models import open_model
from vae_anomaly.exceptions import VaeAnomalyError
from vae_anomaly.runtime import CPU, CUDA, cuda_problem, make_session

# y = relu(x @ [[1, -1], [2, 1]]), made with onnx.helper: opset 20, x of shape (rows, 2).
GRAPH = base64.b64decode(
    "CAk6cwoRCgF4CgF3EgFhIgZNYXRNdWwKDAoBYRIBeSIEUmVsdRIBZyobCAIIAhABQgF3ShAAAIA/AACAvwAAAEAAAI"
    "A/WhcKAXgSEgoQCAESDAoGEgRyb3dzCgIIAmIXCgF5EhIKEAgBEgwKBhIEcm93cwoCCAJCBAoAEBQ="
)
MINIMUM_FREE_GB = 2.0
EXTRAS = ("train", "cuda", "serve")
PACKAGES = (
    "numpy",
    "pandas",
    "pyarrow",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "torchvision",
    "mlflow",
    "onnx",
)


@dataclass(frozen=True)
class Finding:
    """One line of the examination.

    Attributes
    ----------
    what : str
    status : {"ok", "note", "fail"}
        "note" is for what is absent and not needed.
    said : str
    """

    what: str
    status: str
    said: str

    def to_dict(self) -> dict[str, str]:
        """Ready for JSON."""
        return asdict(self)


def examine(model: str | None, root: Path) -> list[Finding]:
    """Check everything; a failing check never stops the next.

    Parameters
    ----------
    model : str, optional
        A bundle to run in place of the built-in graph.
    root : Path
        Folder of the local tracking store.
    """
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", _versions),
        ("cpu", lambda: _device(CPU, model, root)),
        ("cuda", lambda: _cuda(model, root)),
        ("torch", _torch),
        ("tracking", lambda: _tracking(root)),
        ("disk", lambda: _disk(root)),
    ]
    found: list[Finding] = []
    for what, check in checks:
        try:
            found.extend(check())
        except (VaeAnomalyError, OSError, ImportError, RuntimeError) as error:
            found.append(Finding(what, "fail", str(error).splitlines()[0]))
    return found


def _versions() -> Iterator[Finding]:
    installed = {name: version for name in PACKAGES if (version := _version(name))}
    both = {"onnxruntime", "onnxruntime-gpu"} <= set(installed)
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    yield Finding("packages", "ok", ", ".join(f"{name} {version}" for name, version in installed.items()))
    if unmet := list(_unmet()):
        said = f"{', '.join(unmet)}; pip install --upgrade what this names"
        yield Finding("packages", "fail", said)
    if both:
        yield Finding(
            "packages",
            "fail",
            "onnxruntime and onnxruntime-gpu overwrite each other; pip uninstall both, install one",
        )


def _unmet() -> Iterator[str]:
    """Installed packages outside of the ranges that ours names; what is absent is not needed here."""
    for line in importlib.metadata.requires("vae-anomaly") or ():
        needed = Requirement(line)
        version = _version(needed.name)
        applies = needed.marker is None or any(
            needed.marker.evaluate({"extra": extra}) for extra in ("", *EXTRAS)
        )
        if version and applies and not needed.specifier.contains(version, prereleases=True):
            yield f"{needed.name} {version} is not {needed.specifier}"


def _device(provider: str, model: str | None, root: Path) -> Iterator[Finding]:
    started = time.perf_counter()
    if model is None:
        x = np.array([[1.0, 2.0], [-3.0, 1.0]], np.float32)
        (y,) = make_session(GRAPH, provider).run(None, {"x": x})
        right = np.allclose(y, np.maximum(x @ np.array([[1, -1], [2, 1]], np.float32), 0))
        said = "a built-in graph gave"
    else:
        bundle = open_model(model, root, "cuda" if provider == CUDA else "cpu")
        right, said = True, f"the self-test of {bundle!r} gave"
    took = f"{1000 * (time.perf_counter() - started):.0f} ms"
    name, status = "cuda" if provider == CUDA else "cpu", "ok" if right else "fail"
    yield Finding(name, status, f"{said} the {'right' if right else 'wrong'} answer in {took}")


def _cuda(model: str | None, root: Path) -> Iterator[Finding]:
    problem = cuda_problem(GRAPH)
    if problem is None:
        yield from _device(CUDA, model, root)
    else:
        yield Finding("cuda", "note", f"{problem}; everything runs on the CPU")


def _torch() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        yield Finding(
            "torch", "note", "not installed: bundles run, training needs pip install 'vae-anomaly[train]'"
        )
        return
    import torch

    from vae_anomaly.devices import choose_device, gains_from_bfloat16

    device = choose_device("auto")
    total = float(torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum())
    precision = "bfloat16" if gains_from_bfloat16(device) else "float32"
    yield Finding("torch", "ok" if total == 512 else "fail", f"trains on {device} in {precision}")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:  # builds that do not belong together lack operators
        said = f"{str(error).splitlines()[0]}; install torch and torchvision together, from one place"
        yield Finding("torchvision", "fail", said)


def _tracking(root: Path) -> Iterator[Finding]:
    if importlib.util.find_spec("mlflow") is None:
        yield Finding(
            "tracking", "note", "mlflow is not installed: models:/ and runs:/ sources are not available"
        )
        return
    from pipelines.tracking import reach

    yield Finding("tracking", "ok", reach(root))


def _disk(root: Path) -> Iterator[Finding]:
    place = next(path for path in (root, *root.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    if not os.access(place, os.W_OK):
        yield Finding("disk", "fail", f"{place} cannot be written; choose another folder with --root")
    elif free < MINIMUM_FREE_GB:
        yield Finding("disk", "fail", f"{free:.1f} GB free at {place}; free at least {MINIMUM_FREE_GB:g} GB")
    else:
        yield Finding("disk", "ok", f"{free:.1f} GB free at {place}")


def _version(package: str) -> Any:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
