"""A bundle on onnxruntime: devices, sessions, the self-test, and `load_bundle`.

Imports without torch.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from vae_anomaly.answers import Answers, Feeds
from vae_anomaly.bundle import Manifest, SealedBundle, open_bundle
from vae_anomaly.exceptions import BundleError, DeviceError
from vae_anomaly.locate import locate
from vae_anomaly.schema import Array, ImageSchema

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": "0",
}
DEVICES = ("auto", "cpu", "cuda")
SELF_TEST = "golden"
RAW_OUTPUTS = ("reconstruction", "mean_raw", "std_raw")


class OnnxBackend:
    """Runs the graphs of a bundle through onnxruntime.

    On the CPU one intra-op thread per run and several runs at once: a row's bits then do not
    depend on how the work was cut. On CUDA one thread owns the session.

    Parameters
    ----------
    graphs : mapping of str to bytes
        Serialised models by name.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Batches run at once on the CPU; all processors by default.

    Raises
    ------
    DeviceError
        If ``cuda`` is asked for and cannot be had: never a silent fallback.
    """

    def __init__(self, graphs: Mapping[str, bytes], device: str = "auto", threads: int | None = None) -> None:
        self._graphs = dict(graphs)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._lock = threading.Lock()
        self.provider = choose_provider(self._graphs["encode"], device)
        self.threads = 1 if self.provider == CUDA else threads or os.cpu_count() or 1

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run one graph on one padded batch."""
        session = self._session(graph)
        names = [output.name for output in session.get_outputs()]
        wanted = {item.name for item in session.get_inputs()}
        values = session.run(names, {name: value for name, value in feeds.items() if name in wanted})
        return dict(zip(names, values, strict=True))

    def _session(self, graph: str) -> ort.InferenceSession:
        with self._lock:
            if graph not in self._sessions:
                self._sessions[graph] = make_session(self._graphs[graph], self.provider)
            return self._sessions[graph]


class Bundle(Answers):
    """A sealed bundle, verified and ready to answer.

    Attributes
    ----------
    path : Path
    digest : str
        sha256 of its manifest: the identity of the bundle.
    """

    def __init__(self, sealed: SealedBundle, backend: OnnxBackend, batch_size: int = 1024) -> None:
        super().__init__(sealed.manifest, sealed.arrays("calibration"), backend, batch_size)
        self.path = sealed.path
        self.digest = sealed.digest

    def __repr__(self) -> str:
        return f"Bundle({self.manifest.name!r}, {self.kind}, {self.digest[:12]}, {self.provider})"


def load_bundle(
    source: str | Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = 1024,
    expected_digest: str | None = None,
    self_test: bool = True,
) -> Bundle:
    """Open a bundle: verify its seals, start onnxruntime, run its self-test.

    Parameters
    ----------
    source : str or Path
        A bundle folder, ``runs:/<run id>`` or ``models:/<name>@<alias>``.
    device : {"auto", "cpu", "cuda"}
        "auto" takes CUDA where a session really starts on it.
    threads : int, optional
        Batches run at once on the CPU.
    batch_size : int
        Rows per run.
    expected_digest : str, optional
        Refuse a bundle whose manifest has another sha256. A registered version brings its own.
    self_test : bool
        Compare the stored synthetic inputs with their stored outputs.

    Raises
    ------
    BundleError
        If it is absent, incomplete, tampered with, hostile, or fails its self-test.
    DeviceError
        If ``cuda`` is asked for and cannot be had.
    """
    found = locate(source)
    sealed = open_bundle(found.path, expected_digest or found.digest)
    names = [name.removesuffix(".onnx") for name in sealed.manifest.files if name.endswith(".onnx")]
    backend = OnnxBackend({name: sealed.graph(name) for name in names}, device, threads)
    if self_test:
        check_golden(sealed, backend)
    return Bundle(sealed, backend, batch_size)


def make_session(graph: bytes, provider: str) -> ort.InferenceSession:
    """One session; on the CPU with one intra-op thread and no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers: list[Any] = [(CUDA, CUDA_OPTIONS), CPU] if provider == CUDA else [CPU]
    session = ort.InferenceSession(graph, options, providers=providers)
    session.disable_fallback()
    return session


def choose_provider(graph: bytes, device: str) -> str:
    """The execution provider for a device, found by really starting a session.

    The list of available providers names CUDA even where it cannot load, and onnxruntime falls
    back to the CPU without an error: only a session's own list tells.
    """
    if device not in DEVICES:
        raise DeviceError(f"unknown device {device!r}; choose {', '.join(DEVICES)}")
    if device == "cpu":
        return CPU
    problem = cuda_problem(graph)
    if problem is None:
        return CUDA
    if device == "cuda":
        raise DeviceError(f"device 'cuda' cannot be used: {problem}; install vae-anomaly[cuda] or use device='cpu'")
    log.info("running on the CPU: %s", problem)
    return CPU


def cuda_problem(graph: bytes) -> str | None:
    """Why CUDA cannot run here, None where it can."""
    if CUDA not in ort.get_available_providers():
        return "this onnxruntime was built without CUDA"
    if not _driver_present():
        return "no NVIDIA driver was found (libcuda.so.1)"
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    try:
        session = make_session(graph, CUDA)
    except Exception as error:  # onnxruntime raises several unrelated classes here
        return _first_line(error)
    return None if CUDA in session.get_providers() else _missing_library()


def _driver_present() -> bool:
    import ctypes

    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


def _missing_library() -> str:
    """The loader's own word on why the CUDA provider did not load."""
    import ctypes

    capi = Path(ort.__file__).parent / "capi"
    for library in sorted(capi.glob("*onnxruntime_providers_cuda.*")):
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            return _first_line(error)
    return "onnxruntime did not start its CUDA provider"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def check_golden(sealed: SealedBundle, backend: OnnxBackend) -> None:
    """Run the stored synthetic inputs and compare with the stored outputs.

    Raises
    ------
    BundleError
        If a graph gives other values than it did at export.
    """
    golden = sealed.arrays(SELF_TEST)
    tolerances = sealed.manifest.tolerances
    loose = tolerances["cuda"] / tolerances["scores"] if backend.provider == CUDA else 1.0
    for graph in sorted({key.split("/")[0] for key in golden}):
        parts = {key.split("/")[2]: value for key, value in golden.items() if key.startswith(f"{graph}/in/")}
        out = backend.run(graph, parts)
        for name, actual in out.items():
            worst = disagreement(name, golden[f"{graph}/out/{name}"], actual, sealed.manifest)
            if worst > loose:
                raise BundleError(
                    f"bundle {sealed.path} fails its self-test: {graph}/{name} is {worst:.3g} times its "
                    "tolerance away; upgrade onnxruntime or export again"
                )


def disagreement(name: str, expected: Array, actual: Array, manifest: Manifest) -> float:
    """Largest difference between two runs of an output, in units of its tolerance."""
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    if not np.array_equal(np.isfinite(expected), np.isfinite(actual)):
        return np.inf
    return float(np.max(np.abs(actual - expected) / tolerance_of(name, expected, manifest), initial=0.0))


def tolerance_of(name: str, expected: Array, manifest: Manifest) -> Array:
    """Allowed absolute difference per entry of an output.

    Scores: 1e-5 of the larger of the value and the batch's median; raw units: 1e-5 of the
    column's range, or of the distance to it; contributions: 1e-5 of the column's largest, at least
    of one nat; latents: 1e-5 of the column's largest; effective sample sizes: 1e-4; p-values:
    2/(n+1).
    """
    tolerances, size = manifest.tolerances, np.abs(expected)
    if name == "p_value":
        return np.full_like(expected, 2.0 / (manifest.provenance["rows_calibration"] + 1) + 1e-12)
    if name == "clipped":
        return np.full_like(expected, 0.5)
    if name == "ess":
        return tolerances["ess"] * np.maximum(size, 1.0)
    if name == "score" or name in manifest.scores:
        return tolerances["scores"] * np.maximum(size, np.median(size)) + 1e-30
    if name in RAW_OUTPUTS:
        low, span = raw_range(manifest)
        return tolerances["columns"] * np.maximum(span, np.abs(expected - low))
    floor = 1.0 if name == "contributions" else 1e-3
    return np.broadcast_to(tolerances["columns"] * size.max(axis=0, initial=floor), size.shape)


def raw_range(manifest: Manifest) -> tuple[Array, Array]:
    """Lowest raw value and range of each column, or of all pixels."""
    schema = manifest.schema
    if isinstance(schema, ImageSchema):
        return np.array(schema.low), np.array(schema.high - schema.low)
    low = np.array([column.low or 0.0 for column in schema.columns])
    span = np.array([(column.high or 0.0) - (column.low or 0.0) for column in schema.columns])
    return low, np.where(span > 0, span, 1.0)
