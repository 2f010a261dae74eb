"""A recipe: everything that makes one model, read from TOML."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipelines.config import from_mapping, overrides, read_toml, recipe_names, recipe_path
from pipelines.data import DataConfig
from vae_anomaly.assembly import ExportConfig
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.fitting import Settings
from vae_anomaly.imputer_fitting import imputer_settings
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import Samples, Schema
from vae_anomaly.training import TrainingConfig

# Sections that are recommended from the data where a recipe does not have them.
RECOMMENDED: dict[str, type[ModelConfig] | type[ObjectiveConfig] | type[TrainingConfig]] = {
    "model": ModelConfig,
    "objective": ObjectiveConfig,
    "training": TrainingConfig,
}

Changes = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Recipe:
    """What to train on what, and how.

    Attributes
    ----------
    name : str
        Of the run and of the registered model.
    description : str
    task : {"detection", "imputation"}
        What the model is trained for; it gives both answers either way. "imputation" trains as
        `VAEImputer` does.
    seed : int
        Of the split, the first weights, batches, noise and masks.
    data : DataConfig
    model : ModelConfig, optional
        Recommended from the data where there is no ``[model]`` section.
    objective : ObjectiveConfig, optional
        Likewise.
    training : TrainingConfig, optional
        Likewise.
    export : ExportConfig
    changes : mapping
        Settings in place of recommended ones, by section.
    """

    name: str
    description: str = ""
    task: Literal["detection", "imputation"] = "detection"
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig | None = None
    objective: ObjectiveConfig | None = None
    training: TrainingConfig | None = None
    export: ExportConfig = field(default_factory=ExportConfig)
    changes: Changes = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/\\:.%\"'@]+", self.name):
            raise ConfigError(
                f"a model cannot be called {self.name!r}; leave out slashes, quotes and : . % @ (--name)"
            )

    def settings(self, schema: Schema, samples: Samples) -> Settings:
        """The part that is about the model, complete, for training rows of a schema."""
        given = Settings(self.model, self.objective, self.training, self.export)
        if self.task == "imputation":
            given = given.otherwise(imputer_settings(schema, samples))
        objective = replace(given.objective or ObjectiveConfig(), **self.changes.get("objective", {}))
        complete = replace(given, objective=objective).completed(schema, len(samples.values))
        changed = {name: replace(getattr(complete, name), **values) for name, values in self.changes.items()}
        return replace(complete, **changed)


def load_recipe(
    name_or_path: str, assignments: Sequence[str] = (), sections: Changes | None = None
) -> Recipe:
    """Read a recipe by name or from a TOML file, with changes.

    Parameters
    ----------
    name_or_path : str
        A recipe that comes with the package, or the path of a ``.toml`` file.
    assignments : sequence of str
        ``section.key=value`` each. They change single settings, recommended ones too, where a
        section of the file stands for itself.
    sections : mapping, optional
        Further values by section, such as command line options; they win.

    Raises
    ------
    ConfigError
        If the recipe, a key or a value is unknown (the near miss is named), or no data is.
    """
    file = Path(name_or_path)
    if name_or_path not in recipe_names() and file.suffix != ".toml" and file.exists():
        raise ConfigError(f"{name_or_path} is no recipe; where it is the data, give --data {name_or_path}")
    path = file if file.suffix == ".toml" else recipe_path(name_or_path)
    own = read_toml(path)
    mapping = overrides(own, assignments)
    for section, values in (sections or {}).items():
        target = mapping if not section else mapping.setdefault(section, {})
        if isinstance(target, dict):  # else it is refused below
            target.update({key: value for key, value in values.items() if value is not None})
    data = mapping.get("data", {})
    if isinstance(data, dict) and "source" not in data:
        raise ConfigError(f"recipe {path.stem!r} names no data; give --data FILE, or a folder of images")
    changes = {
        section: _checked(cls, mapping.pop(section), section)
        for section, cls in RECOMMENDED.items()
        if section not in own and mapping.get(section) is not None
    }
    return replace(from_mapping(Recipe, {"name": path.stem, **mapping}), changes=changes)


def _checked(cls: type[Any], values: Any, section: str) -> dict[str, Any]:
    """Some settings of a section as their types, refused as the whole section would be."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{section} is {values!r}; expected a table, such as {section}.key=value")
    read = from_mapping(cls, values, section)
    return {key: getattr(read, key) for key in values}
