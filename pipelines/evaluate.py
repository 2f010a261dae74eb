"""Judge bundles on rows they have never seen, and write the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipelines.config import from_mapping
from pipelines.data import DataConfig, Dataset, load, novel_rows
from pipelines.report.context import EvaluationOptions
from pipelines.report.evaluation import evaluate_bundle
from pipelines.report.page import write_report
from pipelines.report.results import Evaluation
from pipelines.splits import Rows, split
from vae_anomaly.exceptions import DataError
from vae_anomaly.runtime import Bundle

REFERENCE_ROWS = 5000


@dataclass(frozen=True)
class TestSet:
    """Rows to judge a bundle by.

    Attributes
    ----------
    values : ndarray or DataFrame
    labels : bool ndarray or None
        True for anomalies.
    classes, ids : ndarray
        Labels as they are, and names of the rows.
    reference : ndarray or DataFrame or None
        Training rows, for the simpler imputers that the bundle is compared with.
    """

    __test__ = False  # not for pytest to collect

    values: Any
    labels: Any
    classes: Any
    ids: Any
    reference: Any


def evaluate(
    bundles: Sequence[Bundle],
    out: Path,
    *,
    data: DataConfig | None = None,
    data_root: str | None = None,
    thumbnails: bool = True,
    false_alarm_rate: float | None = None,
) -> tuple[Path, list[Evaluation]]:
    """Judge bundles and write ``report.html`` and ``report.json``.

    Parameters
    ----------
    bundles : sequence of Bundle
        Several share one page.
    out : Path
    data : DataConfig, optional
        Rows to judge by, all of them; else the test rows of the bundle's own training data.
    data_root : str, optional
        Where that training data lies now.
    thumbnails : bool
        False leaves out whatever shows single samples.
    false_alarm_rate : float, optional

    Raises
    ------
    DataError
        If the bundle's own data are absent or have changed since.
    """
    evaluations = []
    for bundle in bundles:
        test = whole_set(data) if data else held_out_set(bundle, data_root)
        evaluations.append(
            evaluate_bundle(
                bundle,
                test.values,
                test.labels,
                test.reference,
                bundle.manifest.provenance.get("history", ()),
                classes=test.classes,
                ids=test.ids,
                options=EvaluationOptions(false_alarm_rate=false_alarm_rate),
            )
        )
    return write_report(evaluations, out, thumbnails), evaluations


def whole_set(config: DataConfig) -> TestSet:
    """Every row of a data set, as test rows."""
    dataset = load(config)
    return _test_set(dataset, config, np.arange(len(dataset)), None)


def held_out_set(bundle: Bundle, data_root: str | None) -> TestSet:
    """The test rows of a bundle's own data, split again as they were for training."""
    provenance = bundle.manifest.provenance
    if "data" not in provenance:
        raise DataError(f"bundle {bundle.manifest.name} does not say what it was trained on; give --data")
    config = replace(from_mapping(DataConfig, provenance["data"], "data"), data_root=data_root)
    try:
        dataset = load(config)
    except DataError as error:
        raise DataError(
            f"cannot read again what bundle {bundle.manifest.name} was trained on: {error}; "
            "say where that lies now with --data-root, or give other rows with --data"
        ) from error
    if dataset.fingerprint != provenance["data_fingerprint"]:
        raise DataError(
            f"{dataset.name} has changed since bundle {bundle.manifest.name} was trained; "
            "give the rows to judge by with --data"
        )
    splits = split(dataset, config, int(provenance["seed"]))
    return _test_set(dataset, config, splits.test, splits.train[:REFERENCE_ROWS])


def _test_set(dataset: Dataset, config: DataConfig, rows: Rows, reference: Rows | None) -> TestSet:
    anomalies = _anomalies(dataset, config)
    return TestSet(
        _take(dataset.values, rows),
        None if anomalies is None else anomalies[rows],
        None if dataset.labels is None else dataset.labels[rows],
        dataset.ids[rows],
        None if reference is None else _take(dataset.values, reference),
    )


def _anomalies(dataset: Dataset, config: DataConfig) -> Any:
    """True for rows labelled novel, or labelled 1 where labels are 0 and 1; None without either."""
    if config.novel:
        return novel_rows(dataset, config)
    if dataset.labels is not None and {str(label) for label in np.unique(dataset.labels)} <= {"0", "1"}:
        return np.array([str(label) == "1" for label in dataset.labels])
    return None


def _take(values: Any, rows: Rows) -> Any:
    return values.iloc[rows] if isinstance(values, pd.DataFrame) else values[rows]
