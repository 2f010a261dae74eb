"""A recipe: everything that makes one model, read from TOML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.config import from_mapping, overrides, read_toml, recipe_path
from pipelines.data import DataConfig
from vae_anomaly.assembly import ExportConfig
from vae_anomaly.fitting import Settings
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.training import TrainingConfig


@dataclass(frozen=True)
class Recipe:
    """What to train on what, and how.

    Attributes
    ----------
    name : str
        Of the run and of the registered model.
    description : str
    seed : int
        Of the split, the first weights, batches, noise and masks.
    data : DataConfig
    model : ModelConfig, optional
        Recommended from the data where there is no ``[model]`` section.
    objective : ObjectiveConfig
    training : TrainingConfig, optional
        Likewise.
    export : ExportConfig
    """

    name: str
    description: str = ""
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig | None = None
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig | None = None
    export: ExportConfig = field(default_factory=ExportConfig)

    @property
    def settings(self) -> Settings:
        """The part that is about the model, not about the data."""
        return Settings(self.model, self.objective, self.training, self.export)


def load_recipe(
    name_or_path: str,
    assignments: Sequence[str] = (),
    sections: Mapping[str, Mapping[str, Any]] | None = None,
) -> Recipe:
    """Read a recipe by name or from a TOML file, with changes.

    Parameters
    ----------
    name_or_path : str
        A recipe that comes with the package, or the path of a ``.toml`` file.
    assignments : sequence of str
        ``section.key=value`` each.
    sections : mapping, optional
        Further values by section, such as command line options; they win.

    Raises
    ------
    ConfigError
        If the recipe, a key or a value is unknown; the near miss is named.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else recipe_path(name_or_path)
    mapping = overrides(read_toml(path), assignments)
    for section, values in (sections or {}).items():
        target = mapping if not section else mapping.setdefault(section, {})
        target.update({key: value for key, value in values.items() if value is not None})
    return from_mapping(Recipe, {"name": path.stem, **mapping})
