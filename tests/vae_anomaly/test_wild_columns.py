"""A few wild cells among the training rows: found, told, and no harm to what the model tells apart."""

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from vae_anomaly import VAEDetector, VAEImputer
from vae_anomaly.fitting import Settings
from vae_anomaly.training import TrainingConfig

NAMES = [f"x{i}" for i in range(6)]


def rank_two(rows: int, seed: int) -> pd.DataFrame:
    """Rows of two factors with noise."""
    loadings = np.random.default_rng(0).standard_normal((2, 6))
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((rows, 2)) @ loadings + 0.2 * rng.standard_normal((rows, 6))
    return pd.DataFrame(values, columns=NAMES)


def with_wild_cells(frame: pd.DataFrame, wild: float) -> pd.DataFrame:
    """The same with one wild cell in every column."""
    values = frame.to_numpy().copy()
    values[np.arange(6) * 7, np.arange(6)] = wild
    return pd.DataFrame(values, columns=NAMES)


def settings(epochs: int) -> Settings:
    """Half of the rows under random masks."""
    return Settings(
        training=TrainingConfig(epochs=epochs, batch_size=64, learning_rate=3e-3, random_mask=0.5)
    )


def shuffled(frame: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Columns that know nothing of each other."""
    return np.random.default_rng(3).permuted(frame.to_numpy(), axis=0)


@pytest.mark.parametrize("wild", [999.0, -1e12])
def test_detection_survives_a_few_wild_cells(wild: float) -> None:
    detector = VAEDetector(settings=settings(60), random_state=0, false_alarm_rate=0.1)
    detector.fit(with_wild_cells(rank_two(500, 1), wild))
    # Some of the six rows are for validation and calibration.
    (told,) = detector.answers_.manifest.warnings
    what, _, names = told.partition(": ")
    assert what == "scaled by quartiles, for a few training values are far from all others"
    assert 2 < len(names.split(", ")) <= 6
    assert set(names.split(", ")) <= set(NAMES)
    normal = rank_two(400, 2)
    rows = pd.DataFrame(np.concatenate([normal.to_numpy(), shuffled(normal)]), columns=NAMES)
    assert roc_auc_score(np.arange(800) >= 400, -detector.score_samples(rows)) > 0.85


def test_imputation_survives_a_few_wild_cells() -> None:
    imputer = VAEImputer(settings=settings(60), random_state=0)
    imputer.fit(with_wild_cells(rank_two(500, 1), 999.0))
    rows = rank_two(200, 2)
    hidden = rows.mask(np.random.default_rng(4).random(rows.shape) < 0.2)
    errors = (imputer.transform(hidden) - rows).to_numpy()[hidden.isna().to_numpy()]
    assert np.sqrt(np.mean(errors**2)) < 0.6 * rows.to_numpy().std()
