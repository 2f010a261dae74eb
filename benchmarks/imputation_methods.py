"""Imputers of the benchmark: ours, scikit-learn's, miceforest and MIWAE, behind one signature."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

from benchmarks import miwae
from benchmarks.imputation_tasks import Rows, Task, exact_gaussian
from vae_anomaly import VAEImputer
from vae_anomaly.fitting import Settings
from vae_anomaly.imputer_fitting import imputer_settings
from vae_anomaly.schema import infer_schema

# Pixels with no gap while training leave too much to regress on all others: the nearest so many.
NEAREST_PIXELS = 100
# Training rows of peers whose time grows with all pairs of rows or columns of images.
KNN_IMAGES, ITERATIVE_IMAGES = 10_000, 2_000
FOREST: dict[str, Any] = {"n_estimators": 100, "max_features": "sqrt", "n_jobs": 1, "random_state": 0}
FOREST_ROUNDS = 6
MICE_ROUNDS = 10


class Filled(NamedTuple):
    """The query without gaps, and draws of shape (M, n, d) where asked for."""

    mean: Rows
    draws: Rows | None = None


Method = Callable[[Task], Filled]


class Kept:
    """The last thing fitted, for tasks that share training rows and seed: images, hidden in other ways."""

    def __init__(self, fit: Callable[[Task], Any]) -> None:
        self.fit = fit
        self.last: tuple[Rows, int, Any] | None = None

    def __call__(self, task: Task) -> Any:
        """Fitted on the task's rows."""
        if self.last is None or self.last[0] is not task.fit or self.last[1] != task.seed:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.last = task.fit, task.seed, self.fit(task)
        return self.last[2]


def ours(task: Task) -> Filled:
    """VAEImputer as it comes."""
    imputer = fit_ours(task)
    query = task.query.reshape(-1, *task.shape)
    mean = np.asarray(imputer.transform(query)).reshape(task.query.shape)
    return Filled(mean, imputer.sample(query, draws=task.draws, seed=task.seed) if task.draws else None)


@Kept
def fit_ours(task: Task) -> VAEImputer:
    """Told of the missing process where the protocol tells."""
    settings: dict[str, Any] = {"missing": "mnar-self-high"} if task.missing == "mnar" else {}
    return VAEImputer(random_state=task.seed, **settings).fit(task.fit.reshape(-1, *task.shape))


def varied(change: Callable[[Settings], Settings]) -> Method:
    """VAEImputer with other settings than its own."""

    def fill(task: Task) -> Filled:
        schema = infer_schema(task.fit)
        settings = change(imputer_settings(schema, schema.read(task.fit)))
        return Filled(VAEImputer(settings=settings, random_state=task.seed).fit_transform(task.fit))

    return fill


def at_half_the_rate(settings: Settings) -> Settings:
    """Of learning."""
    assert settings.training is not None
    return replace(
        settings, training=replace(settings.training, learning_rate=settings.training.learning_rate / 2)
    )


def with_twice_the_steps(settings: Settings) -> Settings:
    """In as many more epochs."""
    assert settings.training is not None
    return replace(settings, training=replace(settings.training, epochs=2 * settings.training.epochs))


def with_heavy_tails(settings: Settings) -> Settings:
    """Student's t in place of the normal distribution."""
    assert settings.model is not None
    return replace(settings, model=replace(settings.model, likelihood="student-t"))


def transformer(make: Callable[[Task], Any], image_rows: int | None = None) -> Method:
    """An imputer of scikit-learn's interface; fitted on at most so many images."""
    fitted = Kept(lambda task: make(task).fit(task.fit[:image_rows] if len(task.shape) == 2 else task.fit))
    return lambda task: Filled(fitted(task).transform(task.query))


def chained(task: Task) -> Any:
    """IterativeImputer with BayesianRidge, its default."""
    nearest = NEAREST_PIXELS if len(task.shape) == 2 else None
    return IterativeImputer(random_state=task.seed, n_nearest_features=nearest, keep_empty_features=True)


def forest(task: Task) -> Any:
    """missForest: chained random forests with its own defaults, 100 trees and sqrt(d) columns."""
    return IterativeImputer(
        RandomForestRegressor(**FOREST | {"random_state": task.seed}),
        random_state=task.seed,
        max_iter=FOREST_ROUNDS,
    )


def mice(task: Task) -> Filled:
    """Multiple imputation by chained Bayesian regressions: one chain per draw."""
    draws = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for chain in range(task.draws):
            imputer = IterativeImputer(
                sample_posterior=True, random_state=task.seed * 1000 + chain, max_iter=MICE_ROUNDS
            )
            draws.append(imputer.fit_transform(task.fit))
    return Filled(np.mean(draws, axis=0), np.stack(draws))


def gradient_boosted(task: Task) -> Filled:
    """miceforest: chained LightGBM with mean matching."""
    import miceforest

    frame = pd.DataFrame(task.fit, columns=[f"c{i}" for i in range(task.fit.shape[1])])
    datasets = task.draws or 5
    kernel = miceforest.ImputationKernel(frame, num_datasets=datasets, random_state=task.seed)
    kernel.mice(5, num_threads=1, verbosity=-1)
    completed = np.stack([kernel.complete_data(i).to_numpy(np.float64) for i in range(datasets)])
    return Filled(completed.mean(axis=0), completed if task.draws else None)


def importance_weighted(task: Task) -> Filled:
    """MIWAE; with its missing process where the protocol allows one."""
    return Filled(*miwae.impute(fit_miwae(task), task.query, 1000, task.draws))


@Kept
def fit_miwae(task: Task) -> Any:
    """MIWAE as the benchmark has it."""
    columns = task.fit.shape[1]
    config = miwae.MIWAEConfig()
    if len(task.shape) == 2:
        config = config._replace(images=True, hidden=256, latent=50, steps=6_000)
    if task.missing == "mnar":
        config = config._replace(self_masking=True, latent=columns - 1, batch=16, steps=30_000)
    return miwae.fit(task.fit, config, task.seed)


METHODS: dict[str, Method] = {
    "vae-anomaly": ours,
    "mean": transformer(lambda task: SimpleImputer(keep_empty_features=True)),
    "KNNImputer": transformer(lambda task: KNNImputer(keep_empty_features=True), KNN_IMAGES),
    "IterativeImputer": transformer(chained, ITERATIVE_IMAGES),
    "missForest": transformer(forest),
    "miceforest": gradient_boosted,
    "MIWAE": importance_weighted,
    "MICE draws": mice,
    "half the rate": varied(at_half_the_rate),
    "twice the steps": varied(with_twice_the_steps),
    "Student's t": varied(with_heavy_tails),
    "exact": lambda task: Filled(exact_gaussian(task)),
}
