"""What an evaluation found: numbers for `report.json`, arrays for the pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipelines.report.metrics import Array, Bools, Floats
from vae_anomaly.schema import Samples, Schema


@dataclass(frozen=True)
class ShownRows:
    """Some test rows as the model sees them; ``described`` holds what is said under each."""

    samples: Samples
    reconstruction: Array
    contributions: Array
    described: list[dict[str, Any]]


@dataclass(frozen=True)
class GalleryItem:
    """Some images with one pattern of hidden pixels, filled by the model."""

    pattern: str
    samples: Samples
    hidden: Bools
    mean: Array
    std: Array


@dataclass(frozen=True)
class HiddenCells:
    """Known cells of a table beside one draw of those that were hidden from the model.

    Attributes
    ----------
    seen, drawn : float64 ndarray, shape (B, D)
        NaN where observed cells are not known, or no cell was hidden.
    """

    seen: Floats
    drawn: Floats


@dataclass(frozen=True)
class LatentMap:
    """Latent means in two dimensions.

    Attributes
    ----------
    points : ndarray, shape (B, 2)
    axes : tuple of str
        What the two axes are.
    groups : list of str, or None
        The class of each point.
    anomalies : bool ndarray, shape (B,), or None
    """

    points: Floats
    axes: tuple[str, str]
    groups: list[str] | None
    anomalies: Bools | None


@dataclass(frozen=True)
class Traversal:
    """Decoded images of an 11 x 11 grid (1 x 11 for one latent dimension), row by row."""

    images: Array
    columns: int
    caption: str


@dataclass(frozen=True)
class Evaluation:
    """Everything that a report shows of one bundle.

    Attributes
    ----------
    summary : dict
        The JSON-ready part, `report.json`.
    scores, p_values : ndarray, shape (B,)
        Of the default score; NaN for rows with nothing observed.
    calibration : ndarray, shape (n,)
        Ascending calibration scores of the default score.
    labels : bool ndarray, shape (B,), or None
    """

    summary: dict[str, Any]
    schema: Schema
    scores: Floats
    p_values: Floats
    calibration: Floats
    labels: Bools | None
    latent: LatentMap
    most: ShownRows
    least: ShownRows
    random: ShownRows | None
    gallery: tuple[GalleryItem, ...] = ()
    hidden_cells: HiddenCells | None = None
    prior: Array | None = None
    reference: Array | None = None
    traversal: Traversal | None = None

    def metrics(self) -> dict[str, float]:
        """The headline figures that exist, flat: for a tracking server or a last line on the terminal."""
        found: dict[str, float | None] = dict(self.summary["scores"]["score"])
        found["detection_rate"] = self.summary["detection_rate"]
        if alarms := self.summary["false_alarms"]:
            found["false_alarm_rate"] = alarms["rate"]
        patterns = self.summary["imputation"].get("patterns", {})
        for method, values in patterns.get("random", {"methods": {}})["methods"].items():
            found[f"imputation_nrmse_{method}"] = values["nrmse"]
        return {name: value for name, value in found.items() if value is not None}
