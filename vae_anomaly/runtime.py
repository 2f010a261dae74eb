"""A bundle on onnxruntime: devices, sessions, and `load_bundle`.

Imports without torch.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import onnxruntime as ort

from vae_anomaly.answers import Answers
from vae_anomaly.batches import PAD_TO, Feeds
from vae_anomaly.bound import BoundSession, Pinned, PlainSession
from vae_anomaly.bundle import SealedBundle, open_bundle
from vae_anomaly.exceptions import BundleError, ConfigError, DeviceError
from vae_anomaly.locate import locate
from vae_anomaly.recalibration import write_recalibrated
from vae_anomaly.selftest import AGAIN, check_complete, check_golden, first_line, graphs_of

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
CUDA_OPTIONS = {
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
    "use_tf32": "0",
}
DEVICES = ("auto", "cpu", "cuda")
# Elements of one run on the CPU, 1 MiB of float32: what passes from one operator to the next then stays
# in a core's own cache, and several threads do not wait for memory.
CACHED_ELEMENTS = 2**18
# Graphs whose inputs and outputs all have the rows first.
ROWS_FIRST = ("score", "explain", "encode", "decode")

T = TypeVar("T")


class OnnxBackend:
    """Runs the graphs of a bundle through onnxruntime.

    On the CPU one intra-op thread per run and several runs at once: a row's bits then do not
    depend on how the work was cut. On CUDA one thread owns the sessions, and batches are padded to a few
    fixed sizes with buffers of their own.

    Parameters
    ----------
    graphs : mapping of str to bytes
        Serialised models by name.
    device : {"auto", "cpu", "cuda"}
    threads : int, optional
        Batches run at once on the CPU; all processors by default.
    most_rows : int
        Largest batch with fixed buffers on CUDA.
    tf32 : bool
        Let CUDA round factors of products to ten bits: faster, and no longer the CPU's values.

    Raises
    ------
    DeviceError
        If ``cuda`` is asked for and cannot be had: never a silent fallback.
    """

    def __init__(
        self,
        graphs: Mapping[str, bytes],
        device: str = "auto",
        threads: int | None = None,
        *,
        most_rows: int = 1024,
        tf32: bool = False,
    ) -> None:
        self._graphs = dict(graphs)
        self._runners: dict[str, PlainSession] = {}
        self._lock = threading.Lock()
        self._most_rows, self._tf32 = most_rows, tf32
        self.provider = choose_provider(self._graphs["encode"], device)
        on_cuda = self.provider == CUDA
        self.threads = 1 if on_cuda else threads or os.cpu_count() or 1
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="cuda") if on_cuda else None
        self._allocate: Pinned | None = None  # made by the thread that owns the sessions

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """Run one graph on one padded batch."""
        return self._owned(lambda: self._runner(graph).run(feeds))

    def _owned(self, work: Callable[[], T]) -> T:
        """Do it in the thread that owns the sessions; on the CPU any may."""
        return work() if self._owner is None else self._owner.submit(work).result()

    def _runner(self, graph: str) -> PlainSession:
        with self._lock:
            if graph not in self._runners:
                self._runners[graph] = self._started(graph)
            return self._runners[graph]

    def _started(self, graph: str) -> PlainSession:
        try:
            session = make_session(self._graphs[graph], self.provider, tf32=self._tf32)
        except Exception as error:  # onnxruntime raises several unrelated classes here
            raise BundleError(
                f"the graph {graph!r} does not start in onnxruntime {ort.__version__}: {first_line(error)}; "
                f"upgrade onnxruntime, or {AGAIN}"
            ) from error
        if self.provider != CUDA or graph not in ROWS_FIRST:
            return PlainSession(session)
        self._allocate = self._allocate or Pinned()
        return BoundSession(session, self._most_rows, "cuda", self._allocate)


class Bundle(Answers):
    """A sealed bundle, verified and ready to answer.

    Attributes
    ----------
    path : Path
    digest : str
        sha256 of its manifest: the identity of the bundle.
    """

    def __init__(self, sealed: SealedBundle, backend: OnnxBackend, batch_size: int = 1024) -> None:
        if backend.provider == CPU:
            batch_size = min(batch_size, max(PAD_TO, CACHED_ELEMENTS // sealed.manifest.schema.elements))
        super().__init__(sealed.manifest, sealed.arrays("calibration"), backend, batch_size)
        self.path = sealed.path
        self.digest = sealed.digest
        self._sealed = sealed

    def recalibrate(self, x: Any, out: str | Path, observed: Any = None) -> str:
        """Write a bundle with the same model that judges by other normal rows; returns its digest.

        Nothing is trained. The manifest says of which bundle it was made and by how many rows.

        Parameters
        ----------
        x : array-like or DataFrame, shape (n, *sample shape)
            Normal rows that the model was not trained on.
        out : str or Path
            Folder to write; it must not exist, or be empty.
        observed : bool array-like, optional

        Raises
        ------
        CalibrationError
            If there are too few rows for the bundle's false alarm rate.
        BundleError
            If the folder is taken.
        """
        return write_recalibrated(self._sealed, self, self.schema.read(x, observed), Path(out))

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
    tf32: bool = False,
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
        Rows per run, at most; on the CPU as many as its caches hold.
    expected_digest : str, optional
        Refuse a bundle whose manifest has another sha256. A registered version brings its own.
    self_test : bool
        Compare the stored synthetic inputs with their stored outputs.
    tf32 : bool
        Let CUDA round factors of products to ten bits: faster, and no longer the CPU's values.

    Raises
    ------
    BundleError
        If it is absent, incomplete, tampered with, hostile, or fails its self-test.
    DeviceError
        If ``cuda`` is asked for and cannot be had.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from vae_anomaly import VAEDetector
    >>> x = np.random.default_rng(0).normal(size=(200, 3))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     digest = VAEDetector(random_state=0).fit(x).export(f"{folder}/bundle")
    ...     bundle = load_bundle(f"{folder}/bundle", device="cpu", expected_digest=digest)
    >>> bundle.verdicts(x[:5]).shape[0]
    5
    """
    for name, value in (("threads", threads), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    found = locate(source)
    sealed = open_bundle(found.path, expected_digest or found.digest)
    check_complete(sealed)
    graphs = {name: sealed.graph(name) for name in graphs_of(sealed.manifest)}
    backend = OnnxBackend(graphs, device, threads, most_rows=batch_size, tf32=tf32)
    if self_test:
        check_golden(sealed, backend, loose=backend.provider == CUDA)
    return Bundle(sealed, backend, batch_size)


def make_session(graph: bytes, provider: str, *, tf32: bool = False) -> ort.InferenceSession:
    """One session; on the CPU with one intra-op thread and no spinning."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    on_cuda = (CUDA, CUDA_OPTIONS | {"use_tf32": str(int(tf32))})
    providers: list[Any] = [on_cuda, CPU] if provider == CUDA else [CPU]
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
        raise DeviceError(
            f"device 'cuda' cannot be used: {problem}; install vae-anomaly[cuda] or use device='cpu'"
        )
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
        return first_line(error)
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
            return first_line(error)
    return "onnxruntime did not start its CUDA provider"
