"""A model of a few hundred weights on bundled digits, and what a command leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pipelines.recipe import Recipe, load_recipe
from pipelines.train import TrainingRun

# Small enough to train in a second; the export takes most of the time.
TINY = (
    "model.network=mlp",
    "model.hidden=[8]",
    "model.dense=0",
    "model.latent_size=2",
    "training.epochs=3",
    "training.precision=float32",
    "export.imputation_draws=50",
    "data.limit=400",
)
NOVEL = 8


class Done(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str


Shell = Callable[..., Done]


class Tracked(NamedTuple):
    """A run and the folder of its tracking store."""

    run: TrainingRun
    recipe: Recipe
    root: Path


def tiny_digits(*changes: str, name: str = "digits") -> Recipe:
    """Digits without the 8."""
    return load_recipe("digits", (*TINY, *changes), {"": {"name": name}, "data": {"novel": [NOVEL]}})
