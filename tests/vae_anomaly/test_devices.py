"""A device is what was asked for, or an error; never a silent fallback."""

import re

import pytest
import torch
from torch import nn

from vae_anomaly.devices import LIGHT, choose_device, few_threads, gains_from_bfloat16
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


@pytest.mark.parametrize(
    ("model", "batch_size", "inside"),
    [
        (nn.Linear(100, 1_000), 64, 1),
        (nn.Linear(100, 1_000), int(LIGHT / 1e5), 3),
        (nn.Sequential(nn.Linear(2, 2), nn.Conv2d(1, 1, 3)), 1, 3),
    ],
    ids=["light", "heavy", "convolutional"],
)
def test_little_work_gets_one_thread(model: nn.Module, batch_size: int, inside: int) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with few_threads(model, batch_size):
            assert torch.get_num_threads() == inside
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
