"""Bundles are judged on rows they have never seen."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sample_models import table_rows
from sklearn.metrics import roc_auc_score
from tiny_runs import NOVEL, Shell, Tracked

from pipelines.data import DataConfig, load
from pipelines.evaluate import REFERENCE_ROWS, evaluate, held_out_set, whole_set
from pipelines.splits import split
from vae_anomaly.exceptions import DataError
from vae_anomaly.runtime import Bundle, load_bundle


@pytest.fixture(scope="module")
def digits(tracked: Tracked) -> Bundle:
    return load_bundle(tracked.run.bundle, device="cpu", threads=1)


@pytest.fixture(scope="module")
def plain(tiny_autoencoder: Path) -> Bundle:
    return load_bundle(tiny_autoencoder, device="cpu", threads=1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """The table model's own kind of rows; every tenth is turned upside down."""
    frame = table_rows(120, seed=1)
    odd = np.arange(len(frame)) % 10 == 0
    frame.loc[odd, ["plain", "large"]] *= [40, -40]
    path = tmp_path / "rows.csv"
    frame.assign(odd=odd.astype(int), group=np.where(odd, "late", "ok")).to_csv(path, index=False)
    return path


def trained_on(config: DataConfig, **changes: Any) -> Any:
    """As much of a bundle as says what it was trained on."""
    data = {"source": config.source, "label": config.label, "exclude": list(config.exclude)}
    provenance = {"data": data, "data_fingerprint": load(config).fingerprint, "seed": 7, **changes}
    return SimpleNamespace(manifest=SimpleNamespace(name="m", provenance=provenance))


def test_held_out_rows_are_the_test_rows_of_the_split(tracked: Tracked, digits: Bundle) -> None:
    data = tracked.recipe.data
    dataset = load(data)
    assert isinstance(dataset.values, np.ndarray)
    parts = split(dataset, data, tracked.recipe.seed)
    found = held_out_set(digits, None)
    assert np.array_equal(found.values, dataset.values[parts.test])
    assert np.array_equal(found.ids, dataset.ids[parts.test])
    assert np.array_equal(found.reference, dataset.values[parts.train[:REFERENCE_ROWS]])
    assert dataset.labels is not None
    assert np.array_equal(found.labels, dataset.labels[parts.test] == NOVEL)
    assert found.labels.sum() == (dataset.labels == NOVEL).sum() > 0
    assert np.array_equal(found.classes, dataset.labels[parts.test])


def test_the_seed_of_the_bundle_divides_the_rows(rows: Path) -> None:
    config = DataConfig(str(rows), label="odd", exclude=("group",))
    dataset = load(config)
    assert isinstance(dataset.values, pd.DataFrame)
    found = held_out_set(trained_on(config), None)
    test = split(dataset, config, 7).test
    assert found.values.equals(dataset.values.iloc[test])
    assert not np.array_equal(test, split(dataset, config, 8).test)
    # A label of 0 and 1 tells anomalies apart without --novel.
    assert np.array_equal(found.labels, test % 10 == 0)


def test_changed_data_are_refused(rows: Path) -> None:
    config = DataConfig(str(rows), label="odd", exclude=("group",))
    bundle = trained_on(config)
    frame = pd.read_csv(rows)
    frame.loc[3, "plain"] = 0.5
    frame.to_csv(rows, index=False)
    with pytest.raises(
        DataError,
        match=r"^rows has changed since bundle m was trained; give the rows to judge by with --data$",
    ):
        held_out_set(bundle, None)


def test_absent_data_say_where_to_name_them(rows: Path) -> None:
    config = DataConfig(rows.name, str(rows.parent), label="odd", exclude=("group",))
    bundle = trained_on(config)
    assert len(held_out_set(bundle, str(rows.parent)).ids) == 18
    with pytest.raises(DataError) as caught:
        held_out_set(bundle, None)
    assert str(caught.value) == (
        "cannot read again what bundle m was trained on: no data at 'rows.csv'; known: digits, mnist, "
        "fashion-mnist; say where that lies now with --data-root, or give other rows with --data"
    )


def test_a_bundle_of_unknown_data_needs_some() -> None:
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(name="m", provenance={}))
    with pytest.raises(DataError, match=r"^bundle m does not say what it was trained on; give --data$"):
        held_out_set(bundle, None)


@pytest.mark.parametrize(
    ("changes", "anomalies"),
    [
        ({"label": "odd", "exclude": ("group",)}, 12),
        ({"label": "group", "exclude": ("odd",), "novel": ("late",)}, 12),
        ({"label": "group", "exclude": ("odd",)}, None),
        ({"exclude": ("group", "odd")}, None),
    ],
)
def test_all_own_rows_are_test_rows(rows: Path, changes: dict[str, Any], anomalies: int | None) -> None:
    found = whole_set(DataConfig(str(rows), **changes))
    assert (len(found.values), found.reference) == (120, None)
    assert (None if found.labels is None else int(found.labels.sum())) == anomalies


def test_two_bundles_share_a_page(digits: Bundle, plain: Bundle, tmp_path: Path) -> None:
    page, evaluations = evaluate([digits, plain], tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    models = report["models"]
    assert [model["kind"] for model in models] == ["vae", "autoencoder"]
    assert [model["digest"] for model in models] == [digits.digest, plain.digest]
    assert [model["history"][-1]["epoch"] for model in models] == [3, 2]
    first, second = (evaluation.metrics() for evaluation in evaluations)
    assert 0 <= first["auroc"] <= 1
    assert first["imputation_nrmse_knn"] > 0
    assert not any(name.startswith("imputation") for name in second)
    text = page.read_text()
    assert text.count(digits.digest[:12]) > 0 < text.count(plain.digest[:12])


def test_the_false_alarm_rate_is_the_one_asked(digits: Bundle, tmp_path: Path) -> None:
    _, (evaluation,) = evaluate([digits], tmp_path, false_alarm_rate=0.5)
    alarms = evaluation.summary["false_alarms"]
    assert alarms["asked"] == 0.5
    normal = held_out_set(digits, None)
    p = digits.p_values(normal.values)[~normal.labels]
    assert alarms["alarms"] == (p <= 0.5).sum()


def test_own_rows_with_labels_and_a_gate(
    shell: Shell, table_folder: Path, rows: Path, tmp_path: Path
) -> None:
    command = ["evaluate", table_folder, "--data", rows, "--label", "odd", "--exclude", "group"]
    passed = shell(*command, "--out", tmp_path / "a b", "--min-auroc", 0.9, "--json")
    assert (passed.code, passed.err) == (0, "")
    (metrics,) = json.loads(passed.out)
    frame = pd.read_csv(rows)
    scores = load_bundle(table_folder, device="cpu", threads=1).scores(frame.drop(columns=["odd", "group"]))
    assert metrics["auroc"] == pytest.approx(roc_auc_score(frame["odd"], scores["score"]))
    assert (tmp_path / "a b" / "report.html").stat().st_size < 5_000_000
    failed = shell(*command, "--out", tmp_path / "b", "--min-auroc", 1.01)
    assert failed.code == 4
    assert failed.err == f"gate failed: AUROC {metrics['auroc']:.4f} is below 1.01\n"
    assert f"auroc                   {metrics['auroc']:.4g}\n" in failed.out


def test_labels_of_one_class_read_n_a(shell: Shell, table_folder: Path, tmp_path: Path) -> None:
    table_rows(40, seed=2).assign(odd=0).to_csv(tmp_path / "rows.csv", index=False)
    command = ["evaluate", table_folder, "--data", tmp_path / "rows.csv", "--label", "odd", "--out", tmp_path]
    done = shell(*command)
    assert done.code == 0
    assert done.out.splitlines()[1].split() == ["auroc", "n/a"]
    gated = shell(*command, "--min-auroc", 0.5)
    assert gated.code == 1
    assert gated.err == (
        "vae-anomaly: --min-auroc needs labels of both classes; name them with --label or --novel\n"
    )


def test_what_describes_rows_needs_rows(shell: Shell, table_folder: Path) -> None:
    done = shell("evaluate", table_folder, "--label", "odd")
    said = "vae-anomaly: --id-column, --label, --exclude and --novel describe --data; give that too\n"
    assert done == (2, "", said)
