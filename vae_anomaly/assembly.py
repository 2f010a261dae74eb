"""A trained model, its fitted scores and its calibration, put together: what is ready to answer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae_anomaly import calibration
from vae_anomaly.answers import Answers
from vae_anomaly.batches import PAD_TO, Feeds, with_something
from vae_anomaly.bundle import Manifest
from vae_anomaly.choices import check_fields, is_number
from vae_anomaly.encoding import Encoding
from vae_anomaly.exceptions import CalibrationError, ConfigError
from vae_anomaly.gaps import calibration_tables
from vae_anomaly.graphs import (
    DecodeGraph,
    EncodeGraph,
    EntryPoint,
    ExplainGraph,
    ImputeGraph,
    PValue,
    ScoreGraph,
    StepGraph,
)
from vae_anomaly.networks import ModelConfig
from vae_anomaly.schema import Array, Mask, Samples, Schema, TableSchema
from vae_anomaly.scores import (
    Evidence,
    Score,
    TrainingEvidence,
    check_scores,
    default_score,
    default_scores,
    fit_scores,
    noise_bank,
)
from vae_anomaly.training import Data
from vae_anomaly.vae import VAE, Autoencoder

log = logging.getLogger(__name__)

# Constant columns named in a warning.
NAMED = 10
BINARY_BYTES = "bytes are read as 0..255 and none is above 1 in training: pass booleans, or multiply by 255"
# Latent numbers that a score is fitted on at most.
FIT_NUMBERS = 20_000_000
CHUNK = 50
# Metropolis: chains per row, steps that accept everything, steps that do not.
STEPS = {"chains": 16, "warm_up": 20, "steps": 200}
TOLERANCES = {"scores": 1e-5, "columns": 1e-5, "ess": 1e-4, "cuda": 1e-3}


@dataclass(frozen=True)
class ExportConfig:
    """The ``[export]`` section of a recipe: which answers a bundle gives.

    Attributes
    ----------
    scores : tuple of str
        Empty for the recommended ones.
    default_score : str
        Which of them decides; empty for the recommended one, or the first where that is not named.
    draws : int
        K of the scores that average over z.
    imputation_draws : int
        K of the masked decode, unless a request says otherwise.
    false_alarm_rate : float
        Share of normal rows that may be called outliers.
    """

    scores: tuple[str, ...] = ()
    default_score: str = ""
    draws: int = 8
    imputation_draws: int = 200
    false_alarm_rate: float = 0.05

    def __post_init__(self) -> None:
        if not (is_number(self.false_alarm_rate) and 0 < self.false_alarm_rate < 1):
            raise ConfigError(f"false_alarm_rate must be between 0 and 1, got {self.false_alarm_rate!r}")
        check_fields(self)
        if min(self.draws, self.imputation_draws) < 1:
            raise ConfigError(
                f"draws and imputation_draws must be at least 1, got {self.draws} and {self.imputation_draws}"
            )


class Parts(NamedTuple):
    """Disjoint sets of samples: weights are fitted on the first, chosen on the second, p-values
    come from the third.

    Attributes
    ----------
    hidden : bool ndarray, shape of the validation rows, optional
        Cells of validation rows to predict from their other observed ones, in place of scoring all.
    """

    train: Samples
    validation: Samples
    calibration: Samples
    hidden: Mask | None = None


class TorchBackend:
    """Runs the entry points as torch modules."""

    provider = "torch"
    threads = 1

    def __init__(self, graphs: dict[str, EntryPoint]) -> None:
        self.graphs = graphs

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        """One forward pass without gradients, on the device the module lives on."""
        entry = self.graphs[graph]
        device = next(entry.model.parameters()).device
        with torch.inference_mode():
            out = entry(*(torch.tensor(feeds[name], device=device) for name in entry.inputs))
        return {name: value.cpu().numpy() for name, value in zip(entry.outputs, out, strict=True)}


@dataclass
class Fitted:
    """A model with its entry points, manifest and calibration tables.

    Attributes
    ----------
    graphs : dict of EntryPoint
        By name: score, explain, encode, decode; for a VAE impute, and step if it never saw masks.
    manifest : Manifest
    calibration : dict of ndarray
    calibration_samples : Samples
        Kept so that export calibrates again on the graphs' own scores.
    """

    graphs: dict[str, EntryPoint]
    manifest: Manifest
    calibration: dict[str, Array]
    calibration_samples: Samples = field(repr=False)

    @property
    def score_graph(self) -> ScoreGraph:
        """The entry point that scores; it holds the calibration table."""
        graph = self.graphs["score"]
        if not isinstance(graph, ScoreGraph):
            raise TypeError(f"the score graph is a {type(graph).__name__}")
        return graph

    @property
    def model(self) -> Autoencoder:
        """The trained model."""
        return self.graphs["score"].model

    def answers(self) -> Answers:
        """The answers of the torch modules.

        On the CPU in batches of one size: matrix products of another number of rows round otherwise,
        and a row would score by its neighbours. On CUDA that costs too much.
        """
        rows = PAD_TO if self.score_graph.noise.device.type == "cpu" else Answers.batch_size
        return Answers(self.manifest, self.calibration, TorchBackend(self.graphs), rows)


def assemble(
    model: Autoencoder,
    encoding: Encoding,
    schema: Schema,
    model_config: ModelConfig,
    config: ExportConfig,
    parts: Parts,
    *,
    name: str = "model",
    provenance: dict[str, Any] | None = None,
    seed: int = 0,
    saw_masks: bool = True,
) -> Fitted:
    """Fit the scores on training and validation rows, and calibrate them on rows held out from everything.

    A model that never saw random masks (``saw_masks``) also gets the graph of Metropolis steps.

    Raises
    ------
    CalibrationError
        If no row was held out.
    UnsupportedError
        If a model is asked for a score it cannot have: one that needs a distribution over z of an
        autoencoder, one that needs the mask of an encoder that does not see it.
    """
    held_out = with_something(parts.calibration)
    if not len(held_out.values):
        raise CalibrationError("no row with a value was held out for calibration; leave a share for it")
    model.eval()
    names, default = chosen_scores(config, model_config)
    scores, noise = _fitted_scores(model, encoding, names, config.draws, parts, seed)
    table = torch.zeros(len(held_out.values), device=noise.device)
    score_graph = ScoreGraph(model, encoding, scores, default, noise, table)
    graphs = {"score": score_graph, **_other_graphs(model, encoding, noise, saw_masks)}
    for graph in graphs.values():
        graph.eval()
    rows = {"rows_train": len(parts.train.values), "rows_calibration": len(held_out.values), "seed": seed}
    about = {
        "name": name,
        "schema": schema,
        "provenance": {**(provenance or {}), **rows},
        "warnings": _odd_values(schema, parts.train, score_graph.encoding.wild),
    }
    manifest = _manifest(model_config, config, graphs, scores, default, about)
    fitted = Fitted(graphs, manifest, {}, held_out)
    if model.variational:
        draws = -(-config.imputation_draws // CHUNK) * CHUNK
        fitted.calibration["noise"] = noise_bank(draws, model.latent_size, seed + 1).numpy()
    calibrate(fitted, fitted.answers())
    return fitted


def chosen_scores(config: ExportConfig, model: ModelConfig) -> tuple[tuple[str, ...], str]:
    """The scores to export, and the one that decides.

    Raises
    ------
    ConfigError
        If there is no score of such a name.
    UnsupportedError
        If such a model cannot have one of them.
    """
    variational = model.kind == "vae"
    names, recommended = config.scores or default_scores(variational), default_score(variational)
    default = config.default_score or (recommended if recommended in names else names[0])
    names = names if default in names else (default, *names)
    check_scores(names, variational, model.mask_input)
    return names, default


def _fitted_scores(
    model: Autoencoder, encoding: Encoding, names: tuple[str, ...], draws: int, parts: Parts, seed: int
) -> tuple[dict[str, Score], Tensor]:
    """Scores fitted on training and validation rows, and their stored noise, on the model's device."""
    device, latent = next(model.parameters()).device, model.latent_size
    noise = noise_bank(draws, latent, seed) if model.variational else torch.zeros(1, 1)
    noise = noise.to(device)
    images = bool(getattr(encoding, "shape", ()))

    @cache
    def subset(held_out: bool, most: int) -> Samples:
        return _subset(parts.validation if held_out else parts.train, latent, seed, most)

    def evidence(score: Score) -> TrainingEvidence:
        most = score.fit_images if images else score.fit_rows
        return partial(_evidence, model, encoding, subset(score.held_out, most), noise)

    scores = fit_scores(names, evidence)
    for score in scores.values():
        score.to(device)
    return scores, noise


def _other_graphs(
    model: Autoencoder, encoding: Encoding, noise: Tensor, saw_masks: bool
) -> dict[str, EntryPoint]:
    """Every entry point but the one that scores."""
    graphs: dict[str, EntryPoint] = {
        "explain": ExplainGraph(model, encoding, noise),
        "encode": EncodeGraph(model, encoding),
        "decode": DecodeGraph(model, encoding),
    }
    if isinstance(model, VAE):
        graphs["impute"] = ImputeGraph(model, encoding)
        if not saw_masks:
            graphs["step"] = StepGraph(model, encoding)
    return graphs


def _manifest(
    model: ModelConfig,
    config: ExportConfig,
    graphs: dict[str, EntryPoint],
    scores: dict[str, Score],
    default: str,
    about: dict[str, Any],
) -> Manifest:
    """What a bundle says of itself; warns of a rate that is out of reach, and of odd columns."""
    asked: float = _plain(config.false_alarm_rate)
    rate, warnings = calibration.attainable(asked, about["provenance"]["rows_calibration"])
    if rate != asked:
        about = {**about, "provenance": {**about["provenance"], "false_alarm_rate_asked": asked}}
    about = {**about, "warnings": (*warnings, *about["warnings"])}
    for warning in about["warnings"]:
        log.warning(warning)
    return Manifest(
        kind=model.kind,
        likelihood={"name": model.likelihood, "scale": model.scale, "output": model.output},
        architecture=_plain(asdict(model)),
        scores=tuple(scores),
        default_score=default,
        draws=_plain(config.draws),
        imputation=_plain(_imputation(config, graphs)),
        latent_size=graphs["score"].model.latent_size,
        false_alarm_rate=rate,
        tolerances=TOLERANCES,
        derived_from_rows=tuple(part for score in scores.values() for part in score.derived_from_rows),
        **about,
    )


def _imputation(config: ExportConfig, graphs: dict[str, EntryPoint]) -> dict[str, Any]:
    if "impute" not in graphs:
        return {}
    return {"draws": config.imputation_draws, "chunk": CHUNK, **(STEPS if "step" in graphs else {})}


def calibrate(fitted: Fitted, answers: Answers) -> None:
    """Sorted scores of the held-out rows as answered, by missing share; sets tables and p-values."""
    names = (*fitted.manifest.scores, "score")
    seed = int(fitted.manifest.provenance["seed"])
    fitted.calibration |= calibration_tables(
        lambda samples: answers.run("score", samples),
        fitted.calibration_samples,
        names,
        seed,
        fitted.manifest.false_alarm_rate,
    )
    table = torch.from_numpy(fitted.calibration["score_score"].astype(np.float32))
    fitted.score_graph.p_value = PValue(table.to(fitted.score_graph.noise.device))


def _odd_values(schema: Schema, train: Samples, wild: tuple[int, ...]) -> tuple[str, ...]:
    """Columns of one value, far from which a row is strange, and those that are scaled robustly unasked;
    bytes that are 0 or 1.
    """
    if not isinstance(schema, TableSchema):
        dim = train.values.dtype == np.uint8 and train.values.max(initial=0) <= 1
        return (BINARY_BYTES,) if dim else ()
    # The ends of a column of booleans are those that it can have.
    constant = [
        column.name
        for column, values in zip(schema.columns, train.values.T, strict=True)
        if column.low == column.high is not None
        or (column.truths and len(np.unique(values[~np.isnan(values)])) < 2)
    ]
    far = "scaled by quartiles, for a few training values are far from all others"
    found = {"constant in training": constant, far: [schema.names[i] for i in wild]}
    return tuple(f"{what}: {_first_of(names)}" for what, names in found.items() if names)


def _first_of(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _subset(samples: Samples, latent: int, seed: int, most: int) -> Samples:
    most = min(most, max(64, FIT_NUMBERS // latent))
    if len(samples.values) <= most:
        return samples
    rows = np.sort(np.random.default_rng(seed).choice(len(samples.values), most, replace=False))
    return Samples(samples.values[rows], samples.observed[rows])


def _evidence(model: Autoencoder, encoding: Encoding, samples: Samples, noise: Tensor) -> Iterator[Evidence]:
    data = Data.of(samples, noise.device)
    for rows in torch.arange(len(data), device=noise.device).split(256):
        with torch.no_grad():
            yield Evidence(model, encoding(*data.batch(rows)), noise, getattr(encoding, "shape", ()))


def _plain(value: Any) -> Any:
    """Tuples as lists and numbers of numpy as plain ones, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value
