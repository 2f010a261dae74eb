"""The report: what it says, what it must not say, and that it fits into one file.

The judged model is a probabilistic PCA in numpy: its latents, reconstructions and imputations
are exact, so that no training is needed to look at a page.
"""

from __future__ import annotations

import base64
import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from PIL import Image

from pipelines.report import Evaluation, EvaluationOptions, evaluate_bundle, pictures, write_report
from pipelines.report.latent import traversal, two_dimensions
from pipelines.report.words import number
from vae_anomaly.calibration import p_values
from vae_anomaly.exceptions import DataError, UnsupportedError
from vae_anomaly.explanation import Explanation
from vae_anomaly.schema import ImageSchema, Schema, infer_schema

if TYPE_CHECKING:
    from pipelines.report.protocols import EvaluatedBundle
    from vae_anomaly.runtime import Bundle

Array = npt.NDArray[Any]
ROOT = Path(__file__).parents[2]


class Imputed(NamedTuple):
    mean: Array
    std: Array
    draws: Array | None = None


class Encoded(NamedTuple):
    mean: Array


@dataclass(frozen=True)
class FakeManifest:
    name: str = "digits-pca"
    provenance: dict[str, Any] = field(
        default_factory=lambda: {"run_id": "0123abcd", "versions": {"numpy": "2"}}
    )
    imputation: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


class FakeBundle:
    """Probabilistic PCA with the methods of a bundle: x = mean + loadings z + noise."""

    default_score = "recon"
    false_alarm_rate = 0.05
    digest = "5f" * 32

    def __init__(
        self, train: Any, calibration: Any, latent_size: int, kind: str = "vae", manifest: Any = None
    ) -> None:
        self.schema: Schema = infer_schema(train)
        self.kind, self.latent_size = kind, latent_size
        self.manifest = manifest or FakeManifest()
        x = self._flat(*self.schema.read(train))
        self.mean = np.nanmean(x, axis=0)
        self.scale = np.ones(x.shape[1]) if self.schema.kind == "image" else np.nanstd(x, axis=0) + 1e-9
        x = np.nan_to_num((x - self.mean) / self.scale)
        _, spread, axes = np.linalg.svd(x, full_matrices=False)
        variances = spread**2 / len(x)
        self.noise = float(variances[latent_size:].sum() / x.shape[1]) + 1e-6
        self.loadings = axes[:latent_size].T * np.sqrt(variances[:latent_size])
        self.table = np.sort(self.scores(calibration))
        self.calibration: dict[str, Array] = {"score_score": self.table}

    def _flat(self, values: Array, observed: Array) -> Array:
        flat = np.where(observed, values.astype(np.float64), np.nan)
        return np.asarray(flat.reshape(len(values), self.schema.elements))

    def _posterior(self, row: Array) -> tuple[Array, Array]:
        seen = ~np.isnan(row)
        part = self.loadings[seen]
        covariance = np.linalg.inv(np.eye(self.latent_size) + part.T @ part / self.noise)
        return covariance @ part.T @ row[seen] / self.noise, covariance

    def _standard(self, x: Any, observed: Any) -> Array:
        return np.asarray((self._flat(*self.schema.read(x, observed)) - self.mean) / self.scale)

    def _raw(self, standard: Array) -> Array:
        raw = standard * self.scale + self.mean
        return np.asarray(raw.reshape(len(standard), *self.schema.shape))

    def encode(self, x: Any, observed: Any = None) -> Encoded:
        rows = self._standard(x, observed)
        return Encoded(np.array([self._posterior(r)[0] for r in rows]).reshape(len(rows), self.latent_size))

    def decode(self, z: Any) -> Array:
        return self._raw(np.asarray(z, np.float64) @ self.loadings.T)

    def explain(self, x: Any, observed: Any = None) -> Explanation:
        rebuilt = self.decode(self.encode(x, observed).mean)
        parts, recon = self._decomposed(x, observed)
        ranks = np.searchsorted(self.table, recon) / len(self.table)
        return Explanation(
            parts.reshape(rebuilt.shape),
            rebuilt,
            recon,
            p_values(self.table, recon),
            ranks[:, None],
            ("recon",),
            self.default_score,
            rebuilt - 1.96 * np.sqrt(self.noise) * self._spread,
            rebuilt + 1.96 * np.sqrt(self.noise) * self._spread,
        )

    @property
    def _spread(self) -> Array:
        return np.asarray(self.scale.reshape(self.schema.shape))

    def _decomposed(self, x: Any, observed: Any) -> tuple[Array, Array]:
        rows, rebuilt = self._standard(x, observed), self.decode(self.encode(x, observed).mean)
        flat = (rebuilt.reshape(rows.shape) - self.mean) / self.scale
        parts = np.nan_to_num((rows - flat) ** 2 / (2 * self.noise))
        return parts, np.where(np.isnan(rows).all(axis=1), np.nan, parts.sum(axis=1))

    def scores(self, x: Any, observed: Any = None) -> Array:
        return self._decomposed(x, observed)[1]

    def verdicts(self, x: Any, observed: Any = None, false_alarm_rate: float | None = None) -> pd.DataFrame:
        scores = self.scores(x, observed)
        p = p_values(self.table, scores)
        distance = (self.encode(x, observed).mean ** 2).sum(axis=1)
        asked = self.false_alarm_rate if false_alarm_rate is None else false_alarm_rate
        alarms = pd.array(p <= asked, dtype="boolean")
        alarms[np.isnan(p)] = pd.NA
        columns = {"score": scores, "p_value": p, "is_outlier": alarms, "score_recon": scores}
        return pd.DataFrame({**columns, "score_latent_maha": distance, "clipped": 0})

    def impute(self, x: Any, observed: Any = None, draws: int | None = None, seed: int = 0) -> Imputed:
        if self.kind != "vae":
            raise UnsupportedError("an autoencoder has no imputation; train a VAE")
        rows = self._standard(x, observed)
        means, stds = np.empty_like(rows), np.empty_like(rows)
        for i, row in enumerate(rows):
            z, covariance = self._posterior(row)
            means[i] = np.where(np.isnan(row), self.loadings @ z, row)
            spread = np.einsum("dl,lm,dm->d", self.loadings, covariance, self.loadings) + self.noise
            stds[i] = np.where(np.isnan(row), np.sqrt(spread), 0.0) * self.scale
        mean, std = self._raw(means), stds.reshape(len(rows), *self.schema.shape)
        noise = np.random.default_rng(seed).standard_normal((draws or 0, *mean.shape))
        return Imputed(mean, std, mean + std * noise if draws else None)

    def sample(self, n: int, seed: int = 0) -> Array:
        if self.kind != "vae":
            raise UnsupportedError("an autoencoder has no prior; train a VAE")
        return self.decode(np.random.default_rng(seed).standard_normal((n, self.latent_size)))


if TYPE_CHECKING:

    def _a_bundle_can_be_judged(bundle: Bundle) -> EvaluatedBundle:
        return bundle


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]


HISTORY = [
    {"epoch": 1.0, "loss": 30.0, "val_loss": 31.0, "reconstruction": 25.0, "kl": 5.0, "active_units": 3.0},
    {
        "epoch": 2.0,
        "loss": 20.0,
        "val_loss": math.nan,
        "reconstruction": 16.0,
        "kl": 4.0,
        "active_units": 4.0,
    },
]


def digits() -> tuple[Array, Array]:
    """Images of two strokes: normal ones cross in the middle, anomalies (the last 20) at the edge."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 40, (200, 8, 8)).astype(np.uint8)
    places = np.where(np.arange(200) < 180, rng.integers(2, 6, 200), 0)
    for image, place in zip(images, places, strict=True):
        image[place], image[:, place] = 220, 220
    return images, places


@pytest.fixture(scope="module")
def evaluation() -> Evaluation:
    images, places = digits()
    bundle = FakeBundle(images[:80], images[80:140], latent_size=4)
    return evaluate_bundle(
        bundle,
        images[140:],
        np.arange(140, 200) >= 180,
        images[:80],
        HISTORY,
        classes=places[140:],
        ids=[f"cross-{i}" for i in range(140, 200)],
        options=EvaluationOptions(shown=4),
    )


def frame(rows: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((rows, 1))
    values = z @ np.array([[2.0, -1.0, 0.5]]) + 0.1 * rng.standard_normal((rows, 3))
    return pd.DataFrame(values, columns=["height", "<script>alert(1)</script>", "$\\frac$"])


@pytest.fixture(scope="module")
def table_evaluation() -> Evaluation:
    test = frame(40, 3)
    test.iloc[7] = [2.0, 1.0, 0.5]
    test.iloc[5, 1] = np.nan
    bundle = FakeBundle(frame(100, 1), frame(60, 2), latent_size=1)
    return evaluate_bundle(bundle, test, [int(i == 7) for i in range(40)], frame(100, 1), HISTORY)


@pytest.fixture(scope="module")
def written(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(evaluation, tmp_path_factory.mktemp("report") / "new" / "folder")


def test_page_asks_nothing_of_the_network(written: Path) -> None:
    page = Page(written)
    assert "http://" not in page.html
    assert "https://" not in page.html
    assert all(picture["src"].startswith("data:image/png;base64,") for picture in page.all("img"))
    links = [attributes["href"] for tag, attributes in page.tags if "href" in attributes]
    assert links
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    assert "@import" not in page.html
    assert len(page.all("style")) == 1
    assert not re.search(r"url\((?!#)", page.html)


def test_anchors_lead_somewhere(evaluation: Evaluation, tmp_path: Path) -> None:
    page = Page(write_report([evaluation, evaluation], tmp_path))
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    targets = {link["href"][1:] for link in page.all("a")}
    assert len(targets) == 14
    assert all(ids.count(target) == 1 for target in targets)


def test_every_picture_has_words(written: Path) -> None:
    page = Page(written)
    drawings = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(drawings) == len(page.all("svg")) == 10
    # Eight samples, three patterns of four strips, traversal, prior, reconstructions.
    assert len(page.all("img")) == 8 + 12 + 3
    assert all(len(picture["alt"]) > 10 for picture in page.all("img"))
    assert all(len(drawing["aria-label"]) > 10 for drawing in drawings)


def test_headline_figures_are_those_of_the_evaluation(evaluation: Evaluation, written: Path) -> None:
    text = Page(written).text
    ranks, alarms = evaluation.summary["scores"]["score"], evaluation.summary["false_alarms"]
    assert ranks["auroc"] > 0.9
    assert f"{ranks['auroc']:.3f}"[:4] in text
    assert alarms["rows"] == 40
    assert f"{alarms['alarms']} of 40" in text
    assert evaluation.summary["rows"] == {
        "test": 60,
        "anomalies": 20,
        "unscored": 0,
        "clipped": 0,
        "calibration": 60,
    }
    assert evaluation.metrics()["auroc"] == ranks["auroc"]
    assert evaluation.metrics()["false_alarm_rate"] == alarms["alarms"] / 40
    assert evaluation.metrics()["imputation_nrmse_model"] < evaluation.metrics()["imputation_nrmse_mean"]


def test_most_anomalous_come_first(evaluation: Evaluation) -> None:
    scores = evaluation.scores
    most = [entry["row"] for entry in evaluation.most.described]
    least = [entry["row"] for entry in evaluation.least.described]
    assert most == np.argsort(-scores, kind="stable")[:4].tolist()
    assert least == np.argsort(scores, kind="stable")[:4].tolist()
    first = evaluation.most.described[0]
    assert first == {
        "row": most[0],
        "id": f"cross-{140 + most[0]}",
        "class": "0",
        "anomaly": True,
        "score": float(scores[most[0]]),
        "p_value": 1 / 61,
        "reason": "recon decided, p = 0.0164, above 100.0 % of calibration rows",
        "ranks": {"recon": 1.0},
    }


def test_json_says_the_same_and_survives_a_round_trip(evaluation: Evaluation, written: Path) -> None:
    path = written.with_name("report.json")
    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda name: pytest.fail(name))
    assert (read["format"], read["thumbnails"]) == (1, True)
    assert read["models"] == [evaluation.summary]
    assert read["models"][0]["history"][1]["val_loss"] is None
    assert json.loads(json.dumps(read)) == read
    assert [found.name for found in path.parent.iterdir() if found.name.startswith(".")] == []


def test_same_evaluation_same_bytes_and_matplotlib_as_it_was(
    evaluation: Evaluation, written: Path, tmp_path: Path
) -> None:
    before = dict(matplotlib.rcParams)
    assert write_report(evaluation, tmp_path).read_bytes() == written.read_bytes()
    assert dict(matplotlib.rcParams) == before


def test_private_data_shows_no_sample(evaluation: Evaluation, tmp_path: Path) -> None:
    path = write_report(evaluation, tmp_path, thumbnails=False)
    page = Page(path)
    assert page.all("img") == []
    assert "cross-" not in page.html
    assert "left out on request" in page.text
    numbers = json.loads(path.with_name("report.json").read_text())
    assert "cross-" not in json.dumps(numbers)
    assert "samples" not in numbers["models"][0]
    # What is not a sample stays: scores, curves, tables.
    assert len(page.all("svg")) == 10
    assert "Error on hidden" not in page.text
    assert "mean fill" in page.text


def test_private_table_shows_no_cell(table_evaluation: Evaluation, tmp_path: Path) -> None:
    path = write_report(table_evaluation, tmp_path, thumbnails=False)
    assert "Most anomalous" not in Page(path).text
    assert "row 7" not in path.read_text()
    columns = json.loads(path.with_name("report.json").read_text())["models"][0]["schema"]["columns"]
    assert [sorted(column) for column in columns] == [["dtype", "kind", "name"]] * 3


def test_draws_of_a_table_are_judged(table_evaluation: Evaluation, tmp_path: Path) -> None:
    patterns = table_evaluation.summary["imputation"]["patterns"]
    for pattern in patterns.values():
        found = pattern["draws"]
        assert [part["level"] for part in found["intervals"]] == [0.5, 0.8, 0.95]
        widths = [part["width"] for part in found["intervals"]]
        assert widths == sorted(widths)
        assert found["crps"] <= pattern["methods"]["model"]["nmae"]
        assert set(pattern["methods"]) == {"model", "mean", "median", "knn", "regression"}
        assert len(pattern["column_errors"]["model"]) == len(found["pooled"])
    pooled = next(part for part in patterns["random"]["draws"]["pooled"] if part["estimate"] is not None)
    assert pooled["low"] < pooled["estimate"] < pooled["high"]
    text = Page(write_report(table_evaluation, tmp_path)).text
    for words in ("95 % interval", "Column means from draws", "imputed, one draw", "iterated regressions"):
        assert words in text


def test_table_ranks_columns_by_contribution(table_evaluation: Evaluation, tmp_path: Path) -> None:
    # Row 7 breaks the rule that the second column falls as the first one rises.
    first = table_evaluation.most.described[0]
    assert (first["row"], first["id"], first["anomaly"]) == (7, "row 7", True)
    parts = [column["contribution"] for column in first["columns"]]
    assert parts == sorted(parts, reverse=True)
    assert sum(parts) == pytest.approx(first["score"])
    height = {c["name"]: c for c in first["columns"]}["height"]
    assert height["value"] == 2.0
    assert height["low"] < height["expected"] < height["high"] < 2.0
    assert first["ranks"] == {"recon": 1.0}
    assert first["reason"].startswith("recon decided, p = ")
    page = Page(write_report(table_evaluation, tmp_path))
    assert page.all("img") == []
    assert "expected" in page.text
    assert f"{number(height['low'])} to {number(height['high'])}" in page.text
    assert "recon 100.0%" in page.text


def test_foreign_text_is_escaped(table_evaluation: Evaluation, tmp_path: Path) -> None:
    name = "<script>alert(1)</script>"
    summary = {
        **table_evaluation.summary,
        "name": name,
        "warnings": [name],
        "provenance": {name: [name], "url": "bad \udcff name"},
    }
    page = Page(write_report(replace(table_evaluation, summary=summary), tmp_path))
    assert page.all("script") == []
    assert "<script" not in page.html
    assert page.html.count("&lt;script&gt;") > 5
    assert "bad ? name" in page.text


def test_class_names_are_escaped_and_never_read_as_mathematics(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    names = ["<img src=x onerror=alert(1)>", "$\\frac{", "_hidden"]
    groups = [names[i % 3] for i in range(len(evaluation.latent.points))]
    latent = replace(evaluation.latent, groups=groups)
    page = Page(write_report(replace(evaluation, latent=latent), tmp_path))
    assert len(page.all("img")) == 23
    assert all(name in page.text for name in names)


@pytest.mark.parametrize("labels", [None, np.zeros(20), np.ones(20)], ids=["none", "normal", "anomalous"])
def test_one_class_reads_not_available(labels: Array | None, tmp_path: Path) -> None:
    bundle = FakeBundle(frame(100, 1), frame(60, 2), latent_size=1)
    found = evaluate_bundle(bundle, frame(20, 4), labels)
    path = write_report(found, tmp_path)
    numbers = json.loads(path.with_name("report.json").read_text())["models"][0]
    assert set(numbers["scores"]["score"].values()) == {None}
    assert "auroc" not in found.metrics()
    tiles = re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd>', path.read_text())
    assert dict(tiles)["AUROC"] == "n/a"
    assert (dict(tiles)["False alarms"] == "n/a") == (labels is None or bool(labels.all()))


def test_rows_with_nothing_observed_are_counted_not_ranked() -> None:
    test = frame(30, 5)
    test.iloc[:2] = np.nan
    bundle = FakeBundle(frame(100, 1), frame(60, 2), latent_size=1)
    found = evaluate_bundle(bundle, test, [1, *[0] * 28, 1])
    assert found.summary["rows"]["unscored"] == 2
    assert found.summary["false_alarms"]["rows"] == 27
    assert {0, 1}.isdisjoint(entry["row"] for entry in found.most.described + found.least.described)


def test_an_autoencoder_says_why_it_cannot_impute(tmp_path: Path) -> None:
    images, _ = digits()
    bundle = FakeBundle(images[:80], images[80:140], 2, "autoencoder", FakeManifest("plain"))
    found = evaluate_bundle(bundle, images[140:], None, images[:80])
    assert found.summary["imputation"] == {"reason": "an autoencoder has no imputation; train a VAE"}
    text = Page(write_report(found, tmp_path)).text
    assert "Not available: an autoencoder has no imputation; train a VAE." in text
    assert "Samples from the prior" not in text
    assert "Latent traversal" in text


def test_two_bundles_stand_side_by_side(evaluation: Evaluation, tmp_path: Path) -> None:
    other = replace(evaluation, summary={**evaluation.summary, "name": "plain"})
    page = Page(write_report([evaluation, other], tmp_path))
    assert "digits-pca and plain" in page.text
    beside = page.html[page.html.index('id="together"') : page.html.index('class="break"')]
    assert beside.count("<svg") == 2
    assert beside.count("Scatter of latent means of 60 test rows") == 2
    models = json.loads((tmp_path / "report.json").read_text())["models"]
    assert [model["name"] for model in models] == ["digits-pca", "plain"]


@pytest.mark.parametrize(
    ("limit", "pictures", "plots"),
    [(3_400_000, 23, 9), (1_000_000, 23, 9), (300_000, 0, 9), (30_000, 0, 0)],
)
def test_page_never_exceeds_its_limit(
    limit: int, pictures: int, plots: int, noisy: Evaluation, tmp_path: Path
) -> None:
    path = write_report(noisy, tmp_path, max_bytes=limit)
    page = Page(path)
    assert path.stat().st_size <= limit
    assert (len(page.all("img")), len(page.all("svg"))) == (pictures, plots)
    assert (f"below {limit:,} bytes" in page.text) == (pictures == 0)


@pytest.fixture(scope="module")
def noisy() -> Evaluation:
    """Colour noise, which no PNG makes smaller."""
    images = np.random.default_rng(0).integers(0, 256, (100, 3, 48, 48)).astype(np.uint8)
    options = EvaluationOptions(shown=4, imputed_rows=8)
    bundle = FakeBundle(images[:40], images[40:70], latent_size=2)
    return evaluate_bundle(bundle, images[70:], np.arange(30) < 5, None, HISTORY, options=options)


def test_a_limit_below_the_tables_is_refused(evaluation: Evaluation, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^the report takes [\d,]+ bytes without any picture, the limit is 9; "
    ):
        write_report(evaluation, tmp_path, max_bytes=9)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(evaluation: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    folder = tmp_path / "taken" / "report"
    message = (
        f"cannot write the report to {folder}: Not a directory; choose another folder or free some space"
    )
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        write_report(evaluation, folder)


@pytest.mark.parametrize(
    ("rows", "extra", "message"),
    [
        (0, {}, "an evaluation needs test rows, got 0; pass at least one"),
        (3, {"ids": ["a"]}, "ids hold 1 values; expected one per row, 3"),
        (3, {"classes": [1, 2]}, "classes hold 2 values; expected one per row, 3"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(rows: int, extra: dict[str, Any], message: str) -> None:
    bundle = FakeBundle(frame(100, 1), frame(60, 2), latent_size=1)
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        evaluate_bundle(bundle, frame(rows, 4), **extra)


def test_another_false_alarm_rate_needs_no_other_bundle(tmp_path: Path) -> None:
    bundle = FakeBundle(frame(100, 1), frame(60, 2), latent_size=1)
    strict = evaluate_bundle(bundle, frame(40, 3), options=EvaluationOptions(false_alarm_rate=0.02))
    # 61 * 0.02 = 1.2: only scores above the largest calibration score raise an alarm.
    assert strict.summary["threshold"] == bundle.table[-1]
    assert strict.summary["flagged"] == int((strict.scores > bundle.table[-1]).sum())


def test_latent_points_are_principal_axes_for_more_than_two_dimensions() -> None:
    rng = np.random.default_rng(0)
    means = rng.standard_normal((50, 4)) * [0.1, 3.0, 0.2, 1.0] + 7
    points, axes = two_dimensions(means)
    centred = means - means.mean(axis=0)
    variances = np.linalg.eigvalsh(centred.T @ centred / 50)[::-1]
    np.testing.assert_allclose(points.var(axis=0), variances[:2])
    assert axes[0] == f"principal axis 1 ({variances[0] / variances.sum():.0%})"
    np.testing.assert_array_equal(two_dimensions(means[:, :2])[0], means[:, :2])
    np.testing.assert_array_equal(two_dimensions(means[:, :1])[0][:, 1], 0)
    assert two_dimensions(means[:1])[0].shape == (1, 2)


def test_traversal_runs_over_the_two_most_active_dimensions() -> None:
    bundle = FakeBundle(digits()[0][:80], digits()[0][80:140], latent_size=3)
    means = np.random.default_rng(0).standard_normal((50, 3)) * [1.0, 0.1, 2.0]
    walk = traversal(bundle, means)
    assert walk.images.shape == (121, 1, 8, 8)
    np.testing.assert_allclose(walk.images[0], bundle.decode([[3.0, 0.0, -3.0]])[0])
    np.testing.assert_allclose(walk.images[-1], bundle.decode([[-3.0, 0.0, 3.0]])[0])
    np.testing.assert_allclose(walk.images[60], bundle.decode([[0.0, 0.0, 0.0]])[0])
    bundle.kind = "autoencoder"
    np.testing.assert_allclose(
        traversal(bundle, means).images[60], bundle.decode(means.mean(0, keepdims=True))[0], 1e-5
    )


def unpacked(address: str) -> Array:
    return np.asarray(Image.open(BytesIO(base64.b64decode(address.partition(",")[2]))))


def test_small_images_are_enlarged_by_whole_factors() -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (3, 8, 10, 3)).astype(np.uint8)
    image = unpacked(pictures.sheet(tiles, 2, 64))
    # 56 // 10 = 5: tiles of 40 x 50, two in a row, a gap of 2.
    assert image.shape == (82, 102, 4)
    np.testing.assert_array_equal(image[:40:5, 52::5, :3], tiles[1])
    np.testing.assert_array_equal(image[42::5, :50:5, :3], tiles[2])
    assert not image[:, 50:52, 3].any()
    assert not image[42:, 52:, 3].any()


def test_large_images_shrink_to_the_side() -> None:
    tiles = np.full((1, 100, 200, 3), 77, np.uint8)
    assert unpacked(pictures.sheet(tiles, 1, 64)).tolist() == np.full((32, 64, 4), [77, 77, 77, 255]).tolist()


def test_pixels_follow_the_range_of_the_schema() -> None:
    schema = ImageSchema(1, 8, 8, "float32", -1.0, 1.0)
    raw = np.full((1, 1, 8, 8), -1.0)
    raw[0, 0, 0, :3] = [1.0, 0.0, 9.0]
    grey = pictures.pixels(raw, schema)
    assert grey[0, 0, :4].tolist() == [[255] * 3, [128] * 3, [255] * 3, [0] * 3]
    colour = pictures.pixels(np.arange(192).reshape(1, 3, 8, 8), ImageSchema(3, 8, 8))
    assert colour[0, 0, 0].tolist() == [0, 64, 128]


def test_hidden_pixels_are_painted_when_any_channel_is_hidden() -> None:
    hidden = np.zeros((1, 2, 8, 8), np.bool_)
    hidden[0, 1, 2, 3] = True
    painted = pictures.masked(np.zeros((1, 8, 8, 3), np.uint8), hidden)
    assert tuple(painted[0, 2, 3]) == pictures.HIDDEN
    assert painted.sum() == sum(pictures.HIDDEN)


def test_report_needs_neither_torch_nor_pyplot() -> None:
    unwanted = {"torch", "matplotlib.pyplot", "mlflow"}
    code = f"import sys, pipelines.report; print(sorted({unwanted} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout == "[]\n"
