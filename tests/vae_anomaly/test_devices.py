"""A device is what was asked for, or an error; never a silent fallback."""

import re

import pytest
import torch

from vae_anomaly.devices import choose_device, gains_from_bfloat16
from vae_anomaly.exceptions import DeviceError

CPU = torch.device("cpu")


def test_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    message = "device 'cuda' was asked for and torch finds no CUDA device; use device='auto' or 'cpu'"
    with pytest.raises(DeviceError, match=f"^{re.escape(message)}$"):
        choose_device("cuda")
    with pytest.raises(DeviceError, match=r"^unknown device 'tpu'; choose auto, cpu or cuda$"):
        choose_device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == choose_device("cuda").type == "cuda"


@pytest.mark.parametrize(("major", "gains"), [(7, False), (8, True), (9, True)])
def test_bfloat16_gains_from_compute_capability_8(
    monkeypatch: pytest.MonkeyPatch, major: int, gains: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (major, 0))
    assert gains_from_bfloat16(torch.device("cuda")) is gains
