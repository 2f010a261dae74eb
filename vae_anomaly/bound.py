"""A session whose buffers stay where they are: a few fixed batch sizes, inputs on the device, pinned memory.

Allocation, shape inference and the choice of kernels then happen once per size and not in every run, and
copies to and from the device need no detour. Imports without torch.
"""

from __future__ import annotations

import ctypes
import logging
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from vae_anomaly.batches import PAD_TO, Feeds
from vae_anomaly.schema import Array

log = logging.getLogger(__name__)

FIXED_ROWS = (16, 64, 256, 1024)
PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: pinned for every context

Allocate = Callable[[tuple[int, ...], Any], Array]


def fixed_sizes(most: int) -> tuple[int, ...]:
    """Batch sizes up to ``most``, itself rounded up to a multiple of 16.

    Examples
    --------
    >>> fixed_sizes(500)
    (16, 64, 256, 512)
    """
    largest = most + -most % PAD_TO
    return (*(rows for rows in FIXED_ROWS if rows < largest), largest)


@dataclass(eq=False)
class _Slot:
    """The buffers of one batch size."""

    staging: Feeds
    on_device: dict[str, ort.OrtValue]
    outputs: Feeds
    binding: ort.IOBinding


class PlainSession:
    """Runs a graph on batches as they come.

    Parameters
    ----------
    session : InferenceSession
    """

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = [item.name for item in session.get_inputs()]
        self._outputs = [item.name for item in session.get_outputs()]

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs of the inputs that the graph has among those given."""
        values = self._session.run(self._outputs, {name: feeds[name] for name in self._inputs})
        return dict(zip(self._outputs, values, strict=True))


class BoundSession(PlainSession):
    """Runs a graph whose inputs and outputs all have the rows first; by one thread at a time.

    Parameters
    ----------
    session : InferenceSession
    most_rows : int
        Largest batch with buffers of its own; larger ones run without.
    device : {"cuda", "cpu"}
        Where the session runs.
    allocate : callable
        ``(shape, dtype) -> ndarray`` in host memory.
    """

    def __init__(
        self, session: ort.InferenceSession, most_rows: int, device: str, allocate: Allocate
    ) -> None:
        super().__init__(session)
        self.sizes = fixed_sizes(most_rows)
        self._device, self._allocate = device, allocate
        self._slots: dict[int, _Slot] = {}

    def run(self, feeds: Feeds) -> Feeds:
        """Outputs for a batch of any size."""
        given = {name: feeds[name] for name in self._inputs}
        rows = len(given[self._inputs[0]])
        size = next((size for size in self.sizes if size >= rows), None)
        if size is None:
            return super().run(given)
        if size not in self._slots:
            self._slots[size] = self._make(size, given)
        slot = self._slots[size]
        for name, values in given.items():
            slot.staging[name][:rows] = values
            slot.staging[name][rows:] = 0
            slot.on_device[name].update_inplace(slot.staging[name])
        self._session.run_with_iobinding(slot.binding)
        slot.binding.synchronize_outputs()
        # The next run writes into the same memory.
        return {name: values[:rows].copy() for name, values in slot.outputs.items()}

    def _make(self, size: int, feeds: Feeds) -> _Slot:
        shapes = {name: ((size, *values.shape[1:]), values.dtype) for name, values in feeds.items()}
        # A run without buffers tells the shapes of the outputs.
        told = super().run({name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})
        staging = {name: self._allocate(shape, dtype) for name, (shape, dtype) in shapes.items()}
        outputs = {name: self._allocate(values.shape, values.dtype) for name, values in told.items()}
        binding = self._session.io_binding()
        on_device = {}
        for name, (shape, dtype) in shapes.items():
            on_device[name] = ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, self._device, 0)
            binding.bind_ortvalue_input(name, on_device[name])
        for name, buffer in outputs.items():
            binding.bind_output(name, "cpu", 0, buffer.dtype, list(buffer.shape), buffer.ctypes.data)
        return _Slot(staging, on_device, outputs, binding)


def ordinary(shape: tuple[int, ...], dtype: Any) -> Array:
    """Host memory as numpy gives it."""
    return np.zeros(shape, dtype)


class Pinned:
    """Host memory that the GPU reads and writes by itself.

    Parameters
    ----------
    driver : ctypes library, optional
        NVIDIA's; found by its usual name.
    """

    def __init__(self, driver: Any = None) -> None:
        self._driver = driver or _driver()
        self._ready = self._driver is not None and self._attach()
        if not self._ready:
            log.info("no pinned memory: copies to the GPU take the slower way")

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Zeros, pinned where that can be had; freed with the array."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        place = ctypes.c_void_p()
        if not self._ready or not size:
            return ordinary(shape, dtype)
        if self._driver.cuMemHostAlloc(ctypes.byref(place), ctypes.c_size_t(size), ctypes.c_uint(PORTABLE)):
            return ordinary(shape, dtype)
        memory = (ctypes.c_uint8 * size).from_address(place.value or 0)
        weakref.finalize(memory, self._driver.cuMemFreeHost, place)
        values = np.frombuffer(memory, dtype).reshape(shape)
        values[...] = 0
        return values

    def _attach(self) -> bool:
        """Make the context that onnxruntime uses too, the device's primary one, this thread's own."""
        context, driver = ctypes.c_void_p(), self._driver
        failed = driver.cuInit(0) or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
        return not (failed or driver.cuCtxSetCurrent(context))


def _driver() -> Any:
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
