"""Checkpoints: weights, optimiser and generator as safetensors, figures as JSON; nothing pickled.

``checkpoint.json`` names the newest ``epoch-NNNN.safetensors``; it is replaced in one step, so that
a crash at any moment leaves a checkpoint that can be resumed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vae_anomaly.exceptions import DataError

POINTER = "checkpoint.json"
Tensors = dict[str, Tensor]


@dataclass
class Checkpoint:
    """Where training stands.

    Attributes
    ----------
    best : dict of Tensor
        Weights of the best validation bound so far.
    history : list of dict
        Figures per finished epoch.
    best_epoch : int
        Counted from 1; 0 before the first epoch.
    """

    best: Tensors
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    tensors: Tensors = field(default_factory=dict)

    @classmethod
    def fresh(cls, model: nn.Module) -> Checkpoint:
        """Before the first epoch."""
        return cls(_copy(model.state_dict()))

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)

    @property
    def epochs_since_best(self) -> int:
        """Finished epochs after the best one."""
        return self.epoch - self.best_epoch

    def advance(self, figures: dict[str, float], model: nn.Module) -> None:
        """Add an epoch; keep its weights if its validation bound is the best."""
        best = self.history[self.best_epoch - 1]["val_loss"] if self.best_epoch else math.inf
        self.history.append(figures)
        if figures["val_loss"] < best:
            self.best_epoch = self.epoch
            self.best = _copy(model.state_dict())

    def restore(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator
    ) -> Checkpoint:
        """Put weights, optimiser and generator back to where they were."""
        try:
            model.load_state_dict(_part(self.tensors, "model."))
            state = optimizer.state_dict()
            for name, tensor in _part(self.tensors, "optimizer.").items():
                index, key = name.split(".")
                state["state"].setdefault(int(index), {})[key] = tensor
            optimizer.load_state_dict(state)
            generator.set_state(self.tensors["generator"].cpu())
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                "the checkpoint is of another model; resume with the recipe it was trained with"
            ) from error
        return self


def write_checkpoint(
    folder: Path,
    state: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    """Write the newest checkpoint, then point at it, then drop all but the newest two."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"best.{k}": v for k, v in state.best.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in values.items()}
    tensors["generator"] = generator.get_state()
    path = folder / _weights_name(state.epoch)
    try:
        save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, path)
    except SafetensorError as error:
        path.unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error}; free the place or choose another") from error
    summary = {"weights": path.name, "best_epoch": state.best_epoch, "history": state.history}
    temporary = folder / (POINTER + ".tmp")
    temporary.write_text(json.dumps(summary, indent=1))
    temporary.replace(folder / POINTER)
    # By name, not by order: the folder may hold later epochs of a run that this one replaces.
    kept = {_weights_name(state.epoch), _weights_name(state.epoch - 1)}
    for old in folder.glob("epoch-*.safetensors"):
        if old.name not in kept:
            old.unlink()


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a folder, None if it holds none."""
    pointer = folder / POINTER
    if not pointer.exists():
        return None
    try:
        summary = json.loads(pointer.read_text())
        tensors = load_file(folder / summary["weights"])
        return Checkpoint(_part(tensors, "best."), summary["history"], summary["best_epoch"], tensors)
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise DataError(
            f"checkpoint {folder} cannot be read ({error}); delete it and start afresh"
        ) from error


def counted_on(history: Sequence[dict[str, float]], before: Sequence[object]) -> list[dict[str, float]]:
    """The figures of a training whose epochs follow those ``before``."""
    return [{**figures, "epoch": figures["epoch"] + len(before)} for figures in history]


def _weights_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}.safetensors"


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _copy(tensors: Tensors) -> Tensors:
    return {k: v.detach().clone() for k, v in tensors.items()}
