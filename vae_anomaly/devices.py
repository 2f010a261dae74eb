"""Which device torch trains on, in how many threads, and whether it gains from bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from vae_anomaly.exceptions import DeviceError

# Multiply-adds of a batch, once forward with one draw, that a second thread hardly shortens.
LIGHT = 3e7


def choose_device(name: str) -> torch.device:
    """The device of a name; "auto" is CUDA where there is one, else the CPU.

    Raises
    ------
    DeviceError
        If the device asked for is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name not in ("cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}; choose auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            "device 'cuda' was asked for and torch finds no CUDA device; use device='auto' or 'cpu'"
        )
    return torch.device(name)


def gains_from_bfloat16(device: torch.device) -> bool:
    """True on CUDA devices of compute capability 8 and on CPUs with AVX512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return bool(torch.cpu._is_avx512_bf16_supported())


@contextmanager
def few_threads(model: nn.Module, batch_size: int) -> Iterator[None]:
    """One thread of torch inside, where batches of fully connected layers are less than `LIGHT` work.

    Threads that wait for each other hold their cores: two fits of small networks at once on two cores, two
    threads each, take several times as long as with one.
    """
    threads = torch.get_num_threads()
    weights = sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    convolves = any(isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) for layer in model.modules())
    if not convolves and batch_size * weights < LIGHT:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
