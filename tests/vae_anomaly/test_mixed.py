"""Columns that are no real numbers: densities by value, and tables of every kind of column end to end."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mixed_tables import SIZES, mixed_rows
from sample_models import TABLE_MODEL, settings, stretch_logits
from torch import Tensor

from serving.explained import explain_file
from vae_anomaly import VAEDetector, VAEImputer, load_bundle
from vae_anomaly.columns import Column
from vae_anomaly.encoding import MixedEncoding, TableEncoding, fit_encoding
from vae_anomaly.export import export_bundle
from vae_anomaly.likelihoods import Gaussian, Likelihood, observed_log_prob
from vae_anomaly.mixed import Categorical, Mixed, Ordinal, log_mass
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import TableSchema, infer_schema

DOUBLE = torch.float64
COLUMNS = (
    Column("real"),
    Column("city", "categorical", categories=("a", "b", "c")),
    Column("ok", "binary", 0.0, 1.0),
    Column("size", "ordinal", categories=("s", "m", "l", "xl")),
    Column("count", "integer", 0.0, 9.0, lower=0.0),
    Column("word", "categorical", categories=("x", "y", "z")),
)


def ordinal(classes: int) -> Ordinal:
    likelihood = Ordinal(1, classes).double().requires_grad_(False)
    likelihood.first.fill_(-1.5)
    return likelihood


def one_hot(classes: int) -> Tensor:
    return torch.eye(classes, dtype=DOUBLE)


@pytest.mark.parametrize("reach", [0.0, 3.0, 200.0], ids=str)
@pytest.mark.parametrize(
    ("likelihood", "classes"),
    [(Categorical(1, 5), 5), (Categorical(1, 1), 1), (ordinal(5), 5), (ordinal(2), 2), (ordinal(1), 1)],
    ids=["categorical", "categorical-one", "ordinal", "ordinal-two", "ordinal-one"],
)
def test_probabilities_of_classes_sum_to_one(likelihood: Likelihood, classes: int, reach: float) -> None:
    raw = reach * torch.linspace(-1, 1, likelihood.outputs(1), dtype=DOUBLE).expand(3, -1)
    log_p = likelihood.log_prob(raw[0], one_hot(classes))
    assert log_p.isfinite().all()
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(likelihood.mean(raw[0]), log_p.squeeze(-1).exp())
    assert likelihood.best_log_prob(raw, one_hot(classes)[:1].expand(3, -1)).tolist() == [[0.0]] * 3


def test_known_probabilities() -> None:
    logits = torch.tensor([math.log(0.2), math.log(0.3), math.log(0.5)], dtype=DOUBLE)
    found = Categorical(1, 3).log_prob(logits + 7, one_hot(3)).squeeze(-1).exp()
    np.testing.assert_allclose(found, [0.2, 0.3, 0.5])
    # Cuts at 0 and log 3 around a location of 0: 1/2, 3/4 - 1/2, 1/4.
    likelihood = Ordinal(1, 3).double().requires_grad_(False)
    likelihood.first.zero_()
    likelihood.steps.fill_(math.log(math.expm1(math.log(3))))
    found = likelihood.log_prob(torch.zeros(1, dtype=DOUBLE), one_hot(3)).squeeze(-1).exp()
    np.testing.assert_allclose(found, [0.5, 0.25, 0.25])


def test_classes_of_an_ordinal_column_begin_equally_probable_and_move_with_the_location() -> None:
    likelihood = Ordinal(2, 4)
    assert likelihood.mean(torch.zeros(2)).flatten().tolist() == pytest.approx([0.25] * 8)
    probable = likelihood.mean(torch.tensor([[-30.0] * 2, [-0.5] * 2, [0.5] * 2, [30.0] * 2])).view(4, 2, 4)
    expected = probable[:, 0] @ torch.arange(4.0)
    assert (expected.diff() > 0.5).all()
    assert expected[[0, 3]].tolist() == pytest.approx([0.0, 3.0])


def test_log_mass_keeps_its_digits() -> None:
    width = torch.tensor([1e-12, 1e-4, 0.00999, 0.01001, 1.0, 50.0], dtype=DOUBLE)
    exact = torch.log(-torch.expm1(-width))
    torch.testing.assert_close(log_mass(width), exact, rtol=0, atol=1e-9)


@pytest.mark.parametrize("likelihood", [Categorical(1, 3), ordinal(3)], ids=["categorical", "ordinal"])
def test_draws_of_classes_are_as_frequent_as_probable(likelihood: Likelihood) -> None:
    likelihood = likelihood.double()
    raw = torch.tensor([0.3, -1.0, 0.8], dtype=DOUBLE)[: likelihood.outputs(1)]
    noise = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)
    drawn = likelihood.sample(raw.expand(40_000, -1), noise)
    assert (drawn.sum(dim=1) == 1).all()
    np.testing.assert_allclose(drawn.mean(dim=0), likelihood.mean(raw), atol=0.01)
    spread = likelihood.variance(raw)
    np.testing.assert_allclose(drawn.var(dim=0), spread, atol=0.01)


def mixed(columns: Sequence[Column] = COLUMNS) -> Mixed:
    torch.manual_seed(0)
    return Mixed(columns, Gaussian(scale="element"))


def random_rows(count: int = 5) -> Tensor:
    """Rows of COLUMNS in model space."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(count, 1)), np.eye(3)[rng.integers(3, size=count)]]
    parts += [rng.integers(2, size=(count, 1)), np.eye(4)[rng.integers(4, size=count)]]
    parts += [rng.normal(size=(count, 1)), np.eye(3)[rng.integers(3, size=count)]]
    return torch.from_numpy(np.hstack(parts)).float()


def test_every_column_of_a_mixed_table_has_the_density_of_its_kind() -> None:
    likelihood, x = mixed(), random_rows()
    assert (likelihood.outputs(6), likelihood.features(6)) == (4 + 6 + 1 + 1, 13)
    raw = torch.randn(5, 12, generator=torch.Generator().manual_seed(1))
    numbers, cities, truth, size = raw.split([4, 6, 1, 1], dim=1)
    expected = torch.stack(
        [
            *Gaussian(scale="element").log_prob(numbers, x[:, [0, 9]]).T[:1],
            (cities[:, :3].log_softmax(1) * x[:, 1:4]).sum(1),
            torch.where(x[:, 4] == 1, truth[:, 0].sigmoid().log(), (-truth[:, 0]).sigmoid().log()),
            Ordinal(1, 4).log_prob(size, x[:, 5:9])[:, 0],
            *Gaussian(scale="element").log_prob(numbers, x[:, [0, 9]]).T[1:],
            (cities[:, 3:].log_softmax(1) * x[:, 10:]).sum(1),
        ],
        dim=1,
    )
    torch.testing.assert_close(likelihood.log_prob(raw, x), expected)
    assert likelihood.mean(raw).shape == likelihood.variance(raw).shape == (5, 13)
    assert (likelihood.surprise(raw, x)[:, 1:4] >= 0).all()


def test_a_missing_cell_has_no_say_in_a_mixed_table() -> None:
    likelihood, x = mixed(), random_rows()
    raw = torch.randn(5, 12, requires_grad=True)
    observed = torch.tensor([True, False, True, False, True, True]).expand(5, -1)
    wide = likelihood.widened(observed)
    assert wide[0].tolist() == [True, *[False] * 3, True, *[False] * 4, True, *[True] * 3]
    other = torch.where(wide, x, random_rows().flip(0))
    a, b = (observed_log_prob(likelihood, raw, values, observed) for values in (x, other))
    assert torch.equal(a, b)
    (slope,) = torch.autograd.grad(a.sum(), raw)
    assert slope.isfinite().all()
    assert not slope[:, 4:7].any()  # the logits of city


def encoding_of(frame: pd.DataFrame) -> tuple[TableSchema, MixedEncoding]:
    schema = infer_schema(frame)
    assert isinstance(schema, TableSchema)
    encoding = fit_encoding(schema, schema.read(frame), (0.0, 1.0))
    assert isinstance(encoding, MixedEncoding)
    return schema, encoding


def test_whole_rows_come_back_from_model_space() -> None:
    frame = mixed_rows(40)
    schema, encoding = encoding_of(frame)
    samples = schema.read(frame)
    encoded = encoding(torch.from_numpy(samples.values), torch.from_numpy(samples.observed))
    assert encoded.x.shape == (40, schema.features)
    assert not encoded.clipped.any()
    decoded = encoding.decode(encoded.x).numpy()
    scale = np.nanstd(samples.values, axis=0)
    assert (np.abs(decoded - samples.values) < 1e-5 * scale)[samples.observed].all()


def test_what_is_decoded_keeps_to_its_kind_and_bounds() -> None:
    frame = mixed_rows(40)
    schema, encoding = encoding_of(frame)
    far = 5 * torch.randn(200, schema.features, generator=torch.Generator().manual_seed(0))
    rows = schema.frame(encoding.decode(far).numpy())
    assert set(rows["ok"]) == {True, False}
    assert rows["count"].dtype == np.int64
    assert rows["count"].min() == 0
    assert set(rows["size"]) == set(SIZES)
    assert set(rows["grade"]) == {3, 7, 9}


def test_the_spread_of_a_category_is_the_probability_of_another() -> None:
    columns = (Column("city", "categorical", categories=("a", "b", "c")), Column("x", "integer"))
    encoding = MixedEncoding(columns, fit_numbers())
    mean = torch.tensor([[0.2, 0.7, 0.1, 0.0]])
    found = encoding.decode_scale(torch.tensor([[9.0, 9.0, 9.0, 0.5]]), mean)
    np.testing.assert_allclose(found, [[0.3, 1.0]], rtol=1e-6)


def fit_numbers() -> TableEncoding:
    return TableEncoding(torch.zeros(1), torch.full((1,), 2.0))


@pytest.fixture(scope="module")
def detector() -> VAEDetector:
    scores = ("neg_elbo", "recon", "rapp", "conditional")
    return VAEDetector(
        settings=settings(TABLE_MODEL, epochs=40, scores=scores, imputation_draws=50),
        kinds={"price": "positive"},
        device="cpu",
        random_state=0,
    ).fit(mixed_rows())


@pytest.fixture(scope="module")
def bundle(detector: VAEDetector, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder: Path = tmp_path_factory.mktemp("mixed") / "bundle"
    detector.export(folder)
    return load_bundle(folder, device="cpu")


def test_a_row_scores_the_same_alone(bundle: Bundle) -> None:
    rows = mixed_rows(50, seed=1)
    together = bundle.scores(rows).to_numpy()
    for row in (0, 17, 49):
        assert np.array_equal(bundle.scores(rows.iloc[[row]]).to_numpy()[0], together[row])
    assert np.array_equal(bundle.scores(rows.sample(frac=1, random_state=0)).loc[rows.index], together)


def test_rows_of_unlikely_combinations_score_higher(bundle: Bundle) -> None:
    rows = mixed_rows(300, seed=2, gaps=0.0)
    odd = rows.copy()
    odd["city"] = rows["city"].to_numpy()[::-1]
    odd["size"] = rows["size"].to_numpy()[::-1]
    score, strange = (bundle.scores(x)["recon"].to_numpy() for x in (rows, odd))
    assert np.median(strange) > 1.5 * np.median(score)


def test_ranked_columns_name_categories(bundle: Bundle, tmp_path: Path) -> None:
    rows = mixed_rows(5, seed=6, gaps=0.0)
    found = bundle.ranked_columns(rows, top=8)
    cities = found[found["column"] == "city"].set_index("row")
    assert cities["value"].to_dict() == rows["city"].astype(str).to_dict()
    assert set(cities["expected"]) <= {"lima", "oslo", "rome"}
    assert cities["low"].isna().all()
    assert found[found["column"] == "real"]["low"].notna().all()
    rows.to_csv(tmp_path / "rows.csv", index=False)
    explain_file(bundle, tmp_path / "rows.csv", tmp_path / "out.parquet", top=8, everything=True)
    written = pd.read_parquet(tmp_path / "out.parquet")
    assert written[written["column"] == "city"]["value"].tolist() == rows["city"].astype(str).tolist()
    assert np.allclose(written[written["column"] == "real"]["value"].astype(float), rows["real"], rtol=1e-12)


def test_imputations_keep_to_every_kind(bundle: Bundle, detector: VAEDetector) -> None:
    rows = mixed_rows(80, seed=3, gaps=0.3)
    imputer = VAEImputer.from_detector(detector)
    for filled in (bundle.impute(rows).mean, imputer.transform(rows)):
        assert filled.dtypes.tolist() == rows.dtypes.tolist()
        assert not filled.isna().any().any()
        present = rows.notna()
        pd.testing.assert_frame_equal(filled.astype(object)[present], rows.astype(object)[present])
        assert (filled["price"] >= 0).all()
        assert (filled["count"] >= 0).all()
    draws = bundle.impute(rows, draws=3, seed=1).draws
    assert draws is not None
    drawn = [bundle.schema.frame(part) for part in draws]  # type: ignore[union-attr]
    assert all(set(part["city"]) <= {"lima", "oslo", "rome"} for part in drawn)
    assert any((a["city"] != b["city"]).any() for a, b in itertools.pairwise(drawn))


@pytest.mark.slow
def test_a_mixed_model_without_masks_imputes_by_metropolis_steps(tmp_path: Path) -> None:
    choices = settings(TABLE_MODEL, epochs=40, imputation_draws=50)
    assert choices.training is not None
    choices = replace(choices, training=replace(choices.training, random_mask=0.0))
    complete = mixed_rows(gaps=0.0)
    imputer = VAEImputer(settings=choices, kinds={"price": "positive"}, device="cpu", random_state=0).fit(
        complete
    )
    imputer.export(tmp_path / "bundle")
    rows = mixed_rows(200, seed=7, gaps=0.0)
    hidden, odd, given = rows.copy(), np.arange(200) % 2 == 1, ["real", "count"]
    for name in rows.columns.difference(given):
        hidden[name] = hidden[name].where(~odd)
    found = load_bundle(tmp_path / "bundle", device="cpu").impute(hidden)
    stepped = found.flags == "metropolis"
    assert stepped.sum() > 5
    assert not stepped[~odd].any()
    assert found.mean.dtypes.tolist() == rows.dtypes.tolist()
    assert not found.mean.isna().any().any()
    pd.testing.assert_frame_equal(found.mean[given], rows[given])
    assert (found.mean["city"] == rows["city"])[stepped].mean() > 0.75


def test_most_hidden_categories_are_found(bundle: Bundle) -> None:
    rows = mixed_rows(200, seed=4, gaps=0.0)
    hidden = rows.copy()
    hidden["city"] = hidden["city"].where(np.arange(200) % 2 == 0)
    filled = bundle.impute(hidden)
    odd = np.arange(200) % 2 == 1
    assert (filled.mean["city"] == rows["city"])[odd].mean() > 0.75
    place = bundle.schema.names.index("city")  # type: ignore[union-attr]
    # A probability of being wrong: on average as large as the share that is.
    doubt = filled.std[odd, place].mean()
    assert abs(doubt - (filled.mean["city"] != rows["city"])[odd].mean()) < 0.15


def test_an_unseen_category_counts_as_missing_and_stays(bundle: Bundle) -> None:
    rows = mixed_rows(4, seed=5, gaps=0.0)
    strange = rows.assign(city=["lima", "bonn", "oslo", "rome"])
    known = strange.assign(city=["lima", None, "oslo", "rome"])
    verdicts = bundle.verdicts(strange)
    assert verdicts["unseen"].tolist() == [0, 1, 0, 0]
    assert verdicts["score"].tolist() == bundle.verdicts(known)["score"].tolist()
    filled = bundle.impute(strange)
    assert filled.mean["city"].tolist() == ["lima", "bonn", "oslo", "rome"]
    assert not filled.std.any()


@pytest.mark.slow
def test_graphs_agree_with_torch_at_extreme_logits(tmp_path: Path) -> None:
    fitted = (
        VAEDetector(
            settings=settings(TABLE_MODEL, epochs=1, scores=("neg_elbo", "recon"), imputation_draws=50),
            device="cpu",
            random_state=0,
        )
        .fit(mixed_rows(60))
        .fitted_
    )
    stretch_logits(fitted)
    export_bundle(fitted, tmp_path / "bundle")
    rows = mixed_rows(30, seed=6)
    scores = load_bundle(tmp_path / "bundle", device="cpu").scores(rows)
    assert np.isfinite(scores.to_numpy()).all()
    # But for `score`: the export has calibrated anew, and by that rows with gaps are put on one scale.
    own = list(fitted.manifest.scores)
    np.testing.assert_allclose(scores[own], fitted.answers().scores(rows)[own], rtol=1e-4)


def test_a_count_that_training_saw_as_zero_and_one_is_strange_and_not_missing() -> None:
    a = np.random.default_rng(0).normal(size=200)
    rows = pd.DataFrame({"a": a, "tickets": (a > 0).astype(np.int64)})
    detector = VAEDetector(settings=settings(TABLE_MODEL, epochs=20), device="cpu", random_state=0).fit(rows)
    verdicts = detector.verdicts(pd.DataFrame({"a": [0.5, 0.5], "tickets": [1, 50]}))
    assert verdicts["score_recon"][1] > 10 * detector.verdicts(rows)["score_recon"].max()
    assert verdicts["p_value"][1] == detector.verdicts(rows)["p_value"].min()
    imputer = VAEImputer.from_detector(detector)
    gaps = rows[:50].assign(tickets=pd.array([pd.NA] * 50, dtype="Int64"))
    assert set(imputer.transform(gaps)["tickets"]) <= {0, 1}
    assert set(np.unique(imputer.sample(gaps, draws=5)[..., 1])) == {0.0, 1.0}


def test_a_table_of_categories_alone_is_scored_and_filled_in_batches_of_any_size(tmp_path: Path) -> None:
    rows = mixed_rows(120)[["city", "size"]].assign(same=["a", "a", None, "a"] * 30)
    choices = settings(TABLE_MODEL, epochs=30, imputation_draws=50, scores=("neg_elbo", "latent_knn"))
    detector = VAEDetector(settings=choices, device="cpu", random_state=0).fit(rows)
    detector.export(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", device="cpu")
    for count in (1, 7, 120):
        expected = detector.scores(rows[:count])["score"]
        np.testing.assert_allclose(bundle.scores(rows[:count])["score"], expected, rtol=1e-4, atol=1e-4)
    gaps = rows.mask(np.random.default_rng(1).random(rows.shape) < 0.3)
    imputation = bundle.impute(gaps, draws=2)
    filled = imputation.mean
    assert not filled.isna().any(axis=None)
    assert set(filled["same"]) == {"a"}
    assert imputation.std[:, 2].max() < 1e-6
    assert imputation.draws is not None
    assert not imputation.draws[..., 2].any()
    assert set(filled["size"]) <= set(SIZES)
    assert filled["city"].dtype == rows["city"].dtype
