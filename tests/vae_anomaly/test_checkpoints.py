"""What was written is what is read, and nothing else is accepted."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import nn

from vae_anomaly import checkpoints
from vae_anomaly.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from vae_anomaly.exceptions import DataError

FOREIGN = "the checkpoint is of another model; resume with the recipe it was trained with"


class Run:
    """A small model in the middle of its training."""

    def __init__(self, seed: int = 0, width: int = 3) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.model = nn.Sequential(nn.Linear(width, 2), nn.BatchNorm1d(2))
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.normal_(generator=self.generator)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1, fused=True)
        self.state = Checkpoint.fresh(self.model)
        self.width = width

    def epoch(self, val_loss: float) -> None:
        x = torch.randn(8, self.width, generator=self.generator)
        self.optimizer.zero_grad()
        (self.model(x) ** 3).sum().backward()
        self.optimizer.step()
        self.state.advance({"val_loss": val_loss}, self.model)

    def write(self, folder: Path) -> None:
        write_checkpoint(folder, self.state, self.model, self.optimizer, self.generator)

    def read(self, folder: Path) -> None:
        found = read_checkpoint(folder)
        assert found is not None
        self.state = found.restore(self.model, self.optimizer, self.generator)

    def numbers(self) -> dict[str, torch.Tensor]:
        tensors = {f"model.{k}": v.clone() for k, v in self.model.state_dict().items()}
        tensors |= {f"best.{k}": v.clone() for k, v in self.state.best.items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            tensors |= {f"{index}.{k}": v.clone() for k, v in values.items()}
        return tensors | {"generator": self.generator.get_state()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two epochs of training, the first the better."""
    run = Run()
    for loss in (1.0, 2.0):
        run.epoch(loss)
        run.write(tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_a_checkpoint_restores_every_bit(folder: Path) -> None:
    written = Run()
    for loss in (1.0, 2.0):
        written.epoch(loss)
    read = Run(seed=9)
    read.read(folder)
    assert same(read.numbers(), written.numbers())
    assert read.state.history == [{"val_loss": 1.0}, {"val_loss": 2.0}]
    assert (read.state.epoch, read.state.best_epoch, read.state.epochs_since_best) == (2, 1, 1)
    for run in (written, read):
        run.epoch(0.5)
    assert same(read.numbers(), written.numbers())
    assert read.state.best_epoch == 3


def test_the_best_weights_are_copies_of_their_epoch() -> None:
    run = Run()
    fresh = run.numbers()
    run.epoch(3.0)
    first = {k: v.clone() for k, v in run.model.state_dict().items()}
    assert not torch.equal(first["0.weight"], fresh["model.0.weight"])
    run.epoch(float("inf"))
    run.epoch(3.0)
    assert run.state.best_epoch == 1
    assert same(run.state.best, first)


def test_only_the_newest_two_are_kept(tmp_path: Path) -> None:
    run = Run()
    for epoch in range(1, 6):
        run.epoch(1.0)
        run.write(tmp_path)
        names = sorted(path.name for path in tmp_path.iterdir())
        weights = [f"epoch-{i:04d}.safetensors" for i in (epoch - 1, epoch) if i]
        assert names == ["checkpoint.json", *weights]


def test_a_new_run_in_an_old_folder_keeps_its_own(tmp_path: Path) -> None:
    old = Run()
    for _ in range(7):
        old.epoch(1.0)
        old.write(tmp_path)
    new = Run(seed=1)
    for _ in range(2):
        new.epoch(1.0)
        new.write(tmp_path)
        read = Run(seed=5)
        read.read(tmp_path)
        assert same(read.numbers(), new.numbers())
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["epoch-0001.safetensors", "epoch-0002.safetensors"]


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) is None
    assert read_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("moment", ["weights torn", "pointer torn"])
def test_a_crash_while_writing_leaves_the_epoch_before(folder: Path, moment: str) -> None:
    before = Run(seed=9)
    before.read(folder)
    if moment == "weights torn":
        (folder / "epoch-0003.safetensors").write_bytes(b"\x08")
    else:
        (folder / "checkpoint.json.tmp").write_text("{")
    again = Run(seed=8)
    again.read(folder)
    assert same(again.numbers(), before.numbers())


def test_a_full_disk_is_told_of_and_leaves_the_epoch_before(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("no space left on device")

    run = Run(seed=9)
    run.read(folder)
    run.epoch(0.5)
    monkeypatch.setattr(checkpoints, "save_file", full)
    path = folder / "epoch-0003.safetensors"
    message = f"cannot write {path}: no space left on device; free the place or choose another"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        run.write(folder)
    assert not path.exists()
    run.read(folder)
    assert run.state.epoch == 2


def truncate(share: float) -> Callable[[Path], None]:
    def tear(folder: Path) -> None:
        path = folder / "epoch-0002.safetensors"
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])

    return tear


def pointer(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "checkpoint.json").write_text(text)

    return write


@pytest.mark.parametrize(
    "spoil",
    [
        truncate(0.0),
        truncate(0.001),
        truncate(0.5),
        truncate(0.999),
        lambda folder: (folder / "epoch-0002.safetensors").write_bytes(b"\xff" * 100),
        lambda folder: (folder / "epoch-0002.safetensors").unlink(),
        pointer(""),
        pointer('{"weights": "epoch-0002'),
        pointer("[]"),
        pointer('{"weights": 3}'),
        pointer('{"weights": "epoch-0002.safetensors"}'),
        lambda folder: (folder / "checkpoint.json").write_bytes(b"\xff\xfe"),
    ],
)
def test_a_torn_checkpoint_is_named_and_refused(folder: Path, spoil: Callable[[Path], object]) -> None:
    spoil(folder)
    pattern = rf"^checkpoint {re.escape(str(folder))} cannot be read \((?s:.+)\); delete it and start afresh$"
    with pytest.raises(DataError, match=pattern):
        read_checkpoint(folder)


def test_a_checkpoint_of_another_shape_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(FOREIGN)}$"):
        Run(width=4).read(folder)


@pytest.mark.parametrize(
    "layer", [nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))], ids=["fewer", "other"]
)
def test_a_checkpoint_of_other_layers_is_refused(folder: Path, layer: nn.Module) -> None:
    run = Run()
    run.model, run.optimizer = layer, torch.optim.AdamW(layer.parameters())  # type: ignore[assignment]
    with pytest.raises(DataError, match=f"^{re.escape(FOREIGN)}$"):
        run.read(folder)


def test_tensors_of_somebody_else_are_refused(folder: Path) -> None:
    found = read_checkpoint(folder)
    assert found is not None
    del found.tensors["generator"]
    run = Run()
    with pytest.raises(DataError, match=f"^{re.escape(FOREIGN)}$"):
        found.restore(run.model, run.optimizer, run.generator)


def test_the_figures_are_json(folder: Path) -> None:
    summary = json.loads((folder / "checkpoint.json").read_text())
    assert summary == {
        "weights": "epoch-0002.safetensors",
        "best_epoch": 1,
        "history": [{"val_loss": 1.0}, {"val_loss": 2.0}],
    }
