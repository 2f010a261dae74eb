"""How imputations move with what is assumed about why values are missing.

Data missing not at random cannot prove it: the observed values fit several reasons alike. What can be
told is how much an answer hangs on the assumption.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from vae_anomaly.columns import family
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError
from vae_anomaly.missing import Missing
from vae_anomaly.schema import TableSchema, infer_schema

ASSUMPTIONS: tuple[Missing, ...] = ("mar", "mnar-self-high", "mnar-self-low")


def missing_sensitivity(
    X: Any, *, assumptions: Sequence[Missing] = ASSUMPTIONS, random_state: int | None = 0, **parameters: Any
) -> pd.DataFrame:
    """Fit one imputer per assumption, and compare what they put into the gaps.

    Parameters
    ----------
    X : DataFrame or array-like, shape (n, d)
        A table of numbers with gaps; NaN means missing.
    assumptions : sequence of str
        Values of ``VAEImputer(missing=...)``; the first is what the others are compared with.
    random_state : int, optional
    **parameters
        Of `VAEImputer`; indicator columns are left out.

    Returns
    -------
    DataFrame
        One row per column with gaps: ``missing`` (share of its cells), ``observed`` (mean of the observed
        values), one column per assumption (mean of the imputed ones) and ``shift``: the largest distance
        of any of these from the first, in standard deviations of the observed values.

    Raises
    ------
    ConfigError
        If there are no assumptions.
    DataError
        If nothing is missing.
    SchemaError
        If X is not a table of numbers.
    """
    from vae_anomaly.estimators import VAEImputer

    if isinstance(assumptions, str) or not len(assumptions):
        raise ConfigError(f"assumptions is {assumptions!r}; give a sequence of them, such as {ASSUMPTIONS}")
    schema = infer_schema(X, parameters.get("kinds"), parameters.get("bounds"))
    if not isinstance(schema, TableSchema):
        raise SchemaError("missing_sensitivity compares the columns of a table, and got images; give a table")
    if other := [repr(column.name) for column in schema.columns if family(column) != "number"]:
        raise SchemaError(
            f"columns {', '.join(other)} are no numbers, and missing_sensitivity compares means of numbers; "
            "leave them out, or say by kinds that they are"
        )
    samples = schema.read(X)
    gaps = ~samples.observed
    if not gaps.any():
        raise DataError("nothing is missing in these data; give a table with gaps")
    parameters |= {"random_state": random_state, "add_indicator": False}
    known = np.where(gaps, np.nan, samples.values)
    columns = np.flatnonzero(gaps.any(axis=0))
    found: dict[str, Any] = {
        "missing": gaps.mean(axis=0)[columns],
        "observed": np.nanmean(known[:, columns], axis=0),
    }
    for assumption in assumptions:
        imputer = VAEImputer(missing=assumption, **parameters).fit(X)
        filled = schema.read(imputer.transform(X)).values
        found[assumption] = np.array([filled[gaps[:, column], column].mean() for column in columns])
    first, spread = found[assumptions[0]], np.nanstd(known[:, columns], axis=0)
    shifts = np.abs(np.stack([found[assumption] - first for assumption in assumptions])).max(axis=0)
    found["shift"] = shifts / np.where(spread > 0, spread, 1.0)
    return pd.DataFrame(found, index=[schema.names[column] for column in columns])
