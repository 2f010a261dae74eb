"""Which device torch trains on, and whether it gains from bfloat16."""

from __future__ import annotations

import torch

from vae_anomaly.exceptions import DeviceError


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
