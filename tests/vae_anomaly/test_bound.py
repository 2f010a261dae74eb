"""Fixed buffers change no bit, and no neighbour; pinned memory is asked for, held and given back."""

from __future__ import annotations

import ctypes
import gc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from vae_anomaly import runtime
from vae_anomaly.bound import BoundSession, Pinned, PlainSession, fixed_sizes, ordinary
from vae_anomaly.bundle import open_bundle
from vae_anomaly.runtime import CPU, CUDA, Bundle, OnnxBackend, make_session

Array = npt.NDArray[Any]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, (16,)),
        (16, (16,)),
        (100, (16, 64, 112)),
        (1024, (16, 64, 256, 1024)),
        (4096, (16, 64, 256, 1024, 4096)),
    ],
    ids=str,
)
def test_sizes_are_few_and_whole_multiples_of_sixteen(most: int, sizes: tuple[int, ...]) -> None:
    assert fixed_sizes(most) == sizes


@pytest.fixture(scope="module")
def both(image_bundle: Bundle) -> tuple[PlainSession, BoundSession]:
    graph = open_bundle(image_bundle.path).graph("score")
    bound = BoundSession(make_session(graph, CPU), 64, "cpu", ordinary)
    return PlainSession(make_session(graph, CPU)), bound


def images(rows: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (rows, 1, 8, 9)).astype(np.uint8)
    return {"x": x, "observed": rng.random(x.shape) < 0.8}


@pytest.mark.parametrize("rows", [16, 32, 64, 160])
def test_fixed_buffers_give_the_same_bits(both: tuple[PlainSession, BoundSession], rows: int) -> None:
    plain, bound = (session.run(images(rows)) for session in both)
    assert set(plain) == set(bound)
    for name in plain:
        assert plain[name].dtype == bound[name].dtype
        assert plain[name].tobytes() == bound[name].tobytes(), name


def test_what_ran_before_leaves_no_trace(both: tuple[PlainSession, BoundSession]) -> None:
    bound = both[1]
    first = bound.run(images(48))
    kept = {name: values.copy() for name, values in first.items()}
    bound.run(images(64, seed=1))
    again = bound.run(images(48))
    for name in kept:
        assert first[name].tobytes() == kept[name].tobytes() == again[name].tobytes()


def test_each_size_is_made_once(image_bundle: Bundle) -> None:
    made: list[int] = []

    def allocate(shape: tuple[int, ...], dtype: Any) -> Array:
        made.append(shape[0])
        return ordinary(shape, dtype)

    session = make_session(open_bundle(image_bundle.path).graph("encode"), CPU)
    bound = BoundSession(session, 256, "cpu", allocate)
    for rows in (16, 48, 64, 80, 256, 16):
        bound.run(images(rows))
    assert made == [16] * 4 + [64] * 4 + [256] * 4


class Driver:
    """NVIDIA's driver as far as it is used; remembers what it gave and took back."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.held: dict[int, Any] = {}

    def cuInit(self, flags: int) -> int:  # noqa: N802 - the driver's own names
        return int(self.fails == "init")

    def cuDevicePrimaryCtxRetain(self, context: Any, device: int) -> int:  # noqa: N802
        return int(self.fails == "context")

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        return 0

    def cuMemHostAlloc(self, place: Any, size: Any, flags: Any) -> int:  # noqa: N802
        assert flags.value == 1
        if self.fails == "memory":
            return 2
        memory = (ctypes.c_uint8 * size.value)(*([7] * size.value))
        place._obj.value = ctypes.addressof(memory)
        self.held[ctypes.addressof(memory)] = memory
        return 0

    def cuMemFreeHost(self, place: Any) -> int:  # noqa: N802
        del self.held[place.value]
        return 0


def test_pinned_memory_lives_as_long_as_its_array() -> None:
    driver = Driver()
    values = Pinned(driver)((3, 4), np.float32)
    assert values.dtype == np.float32
    assert (values == np.zeros((3, 4))).all()
    assert list(driver.held) == [values.ctypes.data]
    part = values[1:]
    del values
    gc.collect()
    assert len(driver.held) == 1
    del part
    gc.collect()
    assert driver.held == {}


@pytest.mark.parametrize("fails", ["init", "context", "memory"])
def test_without_pinned_memory_ordinary_memory_does(fails: str) -> None:
    driver = Driver(fails)
    values = Pinned(driver)((2, 2), np.uint8)
    assert values.tolist() == [[0, 0], [0, 0]]
    assert driver.held == {}


class Recorded:
    """In place of an InferenceSession: what it was asked for."""

    def __init__(self, graph: bytes, options: Any, providers: list[Any]) -> None:
        self.options, self.providers, self.fallback = options, providers, True

    def disable_fallback(self) -> None:
        self.fallback = False


@pytest.mark.parametrize(("tf32", "told"), [(False, "0"), (True, "1")])
def test_what_cuda_is_asked_for(monkeypatch: pytest.MonkeyPatch, tf32: bool, told: str) -> None:
    monkeypatch.setattr("vae_anomaly.runtime.ort.InferenceSession", Recorded)
    session: Any = make_session(b"", CUDA, tf32=tf32)
    assert session.providers == [
        (
            CUDA,
            {
                "cudnn_conv_algo_search": "HEURISTIC",
                "arena_extend_strategy": "kSameAsRequested",
                "use_tf32": told,
            },
        ),
        CPU,
    ]
    assert not session.fallback
    assert session.options.use_deterministic_compute
    assert session.options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_on_cuda_one_thread_owns_every_session(image_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wiring of the CUDA path, its sessions put on the CPU."""
    import threading

    seen: dict[str, set[str]] = {"made": set(), "ran": set()}

    def make(graph: bytes, provider: str, *, tf32: bool = False) -> Any:
        assert (provider, tf32) == (CUDA, True)
        seen["made"].add(threading.current_thread().name)
        return make_session(graph, CPU)

    class Watched(BoundSession):
        def __init__(self, session: Any, most: int, device: str, allocate: Any) -> None:
            assert (most, device) == (64, "cuda")
            super().__init__(session, most, "cpu", allocate)

        def run(self, feeds: Any) -> Any:
            seen["ran"].add(threading.current_thread().name)
            return super().run(feeds)

    monkeypatch.setattr(runtime, "choose_provider", lambda graph, device: CUDA)
    monkeypatch.setattr(runtime, "make_session", make)
    monkeypatch.setattr(runtime, "BoundSession", Watched)
    monkeypatch.setattr(runtime, "Pinned", lambda: Pinned(Driver()))
    sealed = open_bundle(image_bundle.path)
    graphs = {name: sealed.graph(name) for name in ("score", "impute", "encode")}
    backend = OnnxBackend(graphs, "cuda", threads=4, most_rows=64, tf32=True)
    plain = image_bundle.backend.run("score", images(32))
    for name, values in backend.run("score", images(32)).items():
        assert values.tobytes() == plain[name].tobytes()
    assert backend.threads == 1
    assert seen == {"made": {"cuda_0"}, "ran": {"cuda_0"}}
