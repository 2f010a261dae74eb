"""The rows of one data set judged among themselves, into a Parquet file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.data import load
from pipelines.recipe import Recipe
from pipelines.train import samples_of
from serving.batch import NOTHING_OBSERVED, JobSummary, Progress, check_scores_out
from serving.claim import Claim
from serving.writers import TableWriter, output_schema, ranks
from vae_anomaly.answers import Answers
from vae_anomaly.crossfit import check_contamination, cross_fitted, strangest
from vae_anomaly.devices import choose_device
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.fitting import fit_model, split_parts
from vae_anomaly.schema import Samples, TableSchema

# Beside the id.
COLUMNS = (
    pa.field("score", pa.float64()),
    pa.field("p_value", pa.float64()),
    pa.field("fold", pa.int64()),
    pa.field("is_outlier", pa.bool_()),
    pa.field("rank", pa.int64()),
    pa.field("note", pa.string()),
)


def cross_fit(
    recipe: Recipe,
    out: Path,
    *,
    folds: int = 5,
    contamination: float | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> JobSummary:
    """Score and p-value of every row of a recipe's data, by a model that has not seen it.

    Columns: the id, ``score`` (larger = more anomalous, on the scale of its fold's model), ``p_value``,
    ``fold``, ``is_outlier`` (null without ``contamination``), ``rank`` by p-value (1 = most anomalous, ties
    share the best), ``note``. The figures are those of ``VAEDetector.cross_fit`` with the recipe's seed.

    Parameters
    ----------
    recipe : Recipe
        For detection; its labels are not read, and none of its rows is kept apart.
    out : Path
    folds : int
        As many models are fitted, and none is kept.
    contamination : float, optional
        The share of the rows to call outliers.
    device : {"auto", "cpu", "cuda"}
    progress : callable, optional
        Called after each fold with the rows judged and their number.

    Raises
    ------
    ConfigError
        If there cannot be so many folds, or the recipe is not about this.
    DataError, SchemaError
        If the data cannot be used, or the output cannot be written.
    """
    choose_device(device)
    check_contamination(contamination)
    _check_recipe(recipe)
    check_scores_out(Path(recipe.data.data_root or "") / recipe.data.source, out)
    with Claim(out) as claim:
        dataset = load(recipe.data)
        schema, samples = dataset.schema, samples_of(dataset, np.arange(len(dataset)))
        judged = 0

        def fit(rows: Samples, seed: int) -> Answers:
            nonlocal judged
            parts = split_parts(rows, seed)
            found = fit_model(schema, parts, recipe.settings(schema, parts.train), seed=seed, device=device)
            judged += len(samples.values) - len(rows.values)
            if progress is not None:
                progress(judged, len(samples.values))
            return found.fitted.answers()

        names = schema.names if isinstance(schema, TableSchema) else ()
        ids = pa.array(dataset.ids)
        written = output_schema([pa.field(recipe.data.id_column or "id", ids.type), *COLUMNS])
        frame = cross_fitted(fit, samples, folds, np.random.RandomState(recipe.seed), names)
        p_values = frame["p_value"]
        frame["is_outlier"] = None if contamination is None else strangest(p_values, contamination)
        frame["rank"] = ranks(-p_values.to_numpy())
        frame["note"] = p_values.isna().map({True: NOTHING_OBSERVED, False: None})
        cells = [ids, *(pa.array(frame[field.name], field.type, from_pandas=True) for field in COLUMNS)]
        with TableWriter(claim.temporary(out), written, out) as writer:
            writer.write(pa.table(cells, schema=written))
    return JobSummary(
        rows=len(frame),
        rejected=0,
        out=out,
        unobserved=int(p_values.isna().sum()),
        outliers=0 if contamination is None else int(frame["is_outlier"].sum()),
    )


def _check_recipe(recipe: Recipe) -> None:
    if recipe.task != "detection":
        raise ConfigError(f"recipe {recipe.name!r} trains an imputer; name one of a detector")
    if recipe.data.split_by != "random":
        raise ConfigError(
            f"split_by is {recipe.data.split_by!r}, and folds are drawn at random; leave it out"
        )
    if recipe.data.novel:
        raise ConfigError(f"novel is {list(recipe.data.novel)}, and every row is judged here; leave it out")
