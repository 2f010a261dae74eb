"""A self-masking process: its integrals against brute force, and what it changes in an imputation."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm

from vae_anomaly import VAEImputer, load_bundle
from vae_anomaly.assembly import ExportConfig
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError
from vae_anomaly.fitting import Settings
from vae_anomaly.likelihoods import Gaussian
from vae_anomaly.missing import RATE, SelfMasking
from vae_anomaly.networks import ModelConfig
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.sensitivity import missing_sensitivity
from vae_anomaly.training import TrainingConfig

GAUSSIAN = Gaussian(scale=0.5)
QUICK = Settings(
    ModelConfig(hidden=(16,), latent_size=1, scale="element", skip=True),
    ObjectiveConfig(bound="iw", draws=5),
    TrainingConfig(epochs=15, batch_size=32, learning_rate=2e-2, random_mask=0.3),
    ExportConfig(scores=("neg_elbo",)),
)
RNG = np.random.default_rng(0)
TRUTH = RNG.standard_normal((300, 1)) @ np.ones((1, 3)) + 0.7 * RNG.standard_normal((300, 3))
GAPS = np.where((TRUTH > 0.3) & (np.arange(3) == 0), np.nan, TRUTH)


def process(slope: float, threshold: float, elements: int = 1) -> SelfMasking:
    made = SelfMasking(elements, "mnar-self")
    with torch.no_grad():
        made.raw_slope.fill_(slope / RATE)
        made.raw_threshold.fill_(threshold / RATE)
    return made


@pytest.fixture(scope="module")
def imputer() -> VAEImputer:
    return VAEImputer(missing="mnar-self-high", settings=QUICK, device="cpu", random_state=0).fit(GAPS)


@pytest.mark.parametrize(("slope", "threshold"), [(2.0, 0.5), (-3.0, -0.2), (0.0, 0.0)], ids=str)
def test_moments_given_missing_are_the_integrals(slope: float, threshold: float) -> None:
    location, scale = 0.3, 0.5

    def moment(power: int) -> float:
        def density(x: float) -> float:
            missing = 1 / (1 + np.exp(-slope * (x - threshold)))
            return float(x**power * missing * norm.pdf(x, location, scale))

        return float(quad(density, -4, 5)[0])

    total, mean, square = (moment(power) for power in range(3))
    given = process(slope, threshold).given_missing(GAUSSIAN, torch.tensor([[location]]))
    expected = (np.log(total), mean / total, square / total - (mean / total) ** 2)
    np.testing.assert_allclose([float(part.detach()) for part in given], expected, rtol=2e-3)


def test_draws_given_missing_have_those_moments() -> None:
    masking, raw = process(4.0, 0.4), torch.full((100_000, 1), 0.3)
    noise = torch.randn(raw.shape, generator=torch.Generator().manual_seed(0))
    drawn, given = masking.sample(GAUSSIAN, raw, noise).detach(), masking.given_missing(GAUSSIAN, raw[:1])
    assert float(drawn.mean()) == pytest.approx(float(given.mean.detach()), abs=0.005)
    assert float(drawn.var()) == pytest.approx(float(given.variance.detach()), rel=0.03)


def test_present_and_missing_are_all_there_is() -> None:
    masking, x = process(2.0, 0.5), torch.linspace(-5, 5, 11)[:, None]
    total = masking.log_present(x).exp() + masking._missing(x)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_a_known_direction_is_kept_whatever_is_learned() -> None:
    for missing, sign in (("mnar-self-high", 1), ("mnar-self-low", -1)):
        masking = SelfMasking(4, missing)  # type: ignore[arg-type]
        with torch.no_grad():
            masking.raw_slope.copy_(torch.tensor([-9.0, -0.1, 0.1, 9.0]))
        assert (sign * masking.slope >= 0).all()


def test_an_unknown_direction_starts_from_the_tail_that_is_cut() -> None:
    masking = SelfMasking(2, "mnar-self")
    masking.start(torch.tensor([-0.8, 0.8]))
    assert masking.slope.tolist() == pytest.approx([1.0, -1.0])


def test_values_that_hide_themselves_are_imputed_higher(imputer: VAEImputer) -> None:
    hidden = np.isnan(GAPS)
    ignorant = VAEImputer(settings=QUICK, device="cpu", random_state=0).fit(GAPS)
    errors = [np.sqrt(np.mean((each.transform(GAPS) - TRUTH)[hidden] ** 2)) for each in (imputer, ignorant)]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize("rows", [90, 300])
def test_cells_that_training_hides_are_not_the_process(rows: int) -> None:
    """With random masks complete columns would seem to lose cells by their value."""
    made = VAEImputer(missing="mnar-self-high", settings=QUICK, device="cpu", random_state=0).fit(GAPS[:rows])
    assert made.settings_.training is not None
    assert made.settings_.training.random_mask == 0


def test_a_process_leaves_no_place_for_metropolis_steps(imputer: VAEImputer) -> None:
    assert "step" not in imputer.fitted_.graphs


def test_the_bundle_imputes_alike(imputer: VAEImputer, tmp_path: Path) -> None:
    imputer.export(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", device="cpu")
    np.testing.assert_allclose(bundle.impute(GAPS).mean, imputer.transform(GAPS), rtol=1e-4, atol=1e-4)
    draws = bundle.impute(GAPS[:40], draws=50).draws
    expected = imputer.sample(GAPS[:40], draws=50)
    np.testing.assert_allclose(draws, expected, atol=0.05)


def test_the_report_says_how_far_the_assumption_moves_a_column() -> None:
    report = missing_sensitivity(GAPS, settings=QUICK, device="cpu")
    assert list(report.index) == ["x0"]
    row = report.loc["x0"]
    assert max(row["mar"], row["mnar-self-low"]) < row["mnar-self-high"]
    spread = np.nanstd(GAPS[:, 0])
    largest = max(abs(row[name] - row["mar"]) for name in ("mnar-self-high", "mnar-self-low"))
    assert row["shift"] == pytest.approx(largest / spread)
    assert row["missing"] == pytest.approx(np.isnan(GAPS[:, 0]).mean())


def test_complete_data_have_no_report() -> None:
    message = "nothing is missing in these data; give a table with gaps"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        missing_sensitivity(TRUTH)


@pytest.mark.parametrize("assumptions", [(), "mar"], ids=["none", "text"])
def test_a_report_needs_assumptions(assumptions: Any) -> None:
    sentence = f"assumptions is {assumptions!r}; give a sequence of them, such as "
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}"):
        missing_sensitivity(GAPS, assumptions=assumptions)


def test_a_report_keeps_to_kinds_and_bounds_and_has_no_indicators() -> None:
    rows = pd.DataFrame(np.rint(2 * GAPS + 9), columns=list("abc")).assign(c=RNG.random(300) < 0.5)
    report = missing_sensitivity(
        rows,
        assumptions=["mar", "mnar-self-high"],
        kinds={"c": "real"},
        bounds={"a": (0.5, 40)},
        add_indicator=True,
        settings=QUICK,
        device="cpu",
    )
    assert list(report.index) == ["a"]
    assert report.loc["a", "mar"] < report.loc["a", "mnar-self-high"] <= 40


def test_a_report_of_other_columns_than_numbers_is_refused_before_training() -> None:
    rows = pd.DataFrame({"a": [1.5, np.nan] * 20, "ok": [True, False] * 20, "city": ["lima", "rome"] * 20})
    message = (
        "columns 'ok', 'city' are no numbers, and missing_sensitivity compares means of numbers; "
        "leave them out, or say by kinds that they are"
    )
    with pytest.raises(SchemaError, match=f"^{re.escape(message)}$"):
        missing_sensitivity(rows)
    with pytest.raises(SchemaError, match=r"^missing_sensitivity compares the columns of a table, and got"):
        missing_sensitivity(np.full((20, 8, 8), np.nan))


def test_a_process_needs_a_gaussian() -> None:
    message = (
        "missing = 'mnar-self' needs a VAE of a Gaussian likelihood without bounds, got kind, "
        "likelihood, output = vae, laplace, identity; set vae, gaussian, identity"
    )
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ModelConfig(likelihood="laplace", missing="mnar-self")
