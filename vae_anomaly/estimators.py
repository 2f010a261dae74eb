"""The scikit-learn face: `VAEDetector` ranks outliers, `VAEImputer` fills gaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn import exceptions
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin
from sklearn.utils import check_random_state

from vae_anomaly import calibration
from vae_anomaly.answers import Answers, Explanation, Float
from vae_anomaly.exceptions import NotFittedError
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import Settings, fit_model, split_parts
from vae_anomaly.schema import Array, TableSchema, infer_schema


class _NotFittedError(NotFittedError, exceptions.NotFittedError):  # type: ignore[misc]
    """Ours and scikit-learn's in one: whoever waits for either catches it."""


class _VAEEstimator(BaseEstimator):  # type: ignore[misc]
    """What detector and imputer share: settings, fitting, export."""

    def __init__(
        self, *, settings: Settings | None = None, device: str = "auto", random_state: int | None = None
    ) -> None:
        self.settings = settings
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> Any:
        """Fit to a table (n, d) or images (n, h, w) or (n, c, h, w); NaN means missing.

        Rows are split at random: most train the weights, 10 % choose the best epoch, 20 % are
        held out to calibrate.

        Raises
        ------
        SchemaError
            If the data are neither a table of numbers nor images of at least 8x8 pixels.
        DataError
            If there are too few rows, or a column without any value.
        """
        schema = infer_schema(X)
        seed = int(check_random_state(self.random_state).randint(2**31))
        parts = split_parts(schema.read(X), seed)
        fit = fit_model(schema, parts, self._settings(), seed=seed, device=self.device)
        self.fitted_ = fit.fitted
        self.settings_ = fit.settings
        self.history_ = fit.history
        self.schema_ = schema
        self.n_features_in_ = schema.elements
        if isinstance(schema, TableSchema) and schema.named:
            self.feature_names_in_ = np.array(schema.names, dtype=object)
        self._after_fit()
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags

    def _settings(self) -> Settings:
        """The settings to fit with."""
        return self.settings or Settings()

    def _after_fit(self) -> None:
        """Set what one kind of estimator has beyond the fitted model."""

    @property
    def answers_(self) -> Answers:
        """Every question that a bundle answers, from the fitted modules."""
        if not hasattr(self, "fitted_"):
            raise _NotFittedError(
                f"this {type(self).__name__} is not fitted yet; call fit with training data first"
            )
        answers: Answers = self.fitted_.answers()
        return answers

    def export(self, folder: str | Path) -> str:
        """Write a sealed bundle that runs without torch; returns its digest.

        Raises
        ------
        ParityError
            If a graph and its torch module disagree.
        BundleError
            If the folder is taken.
        """
        self.answers_  # noqa: B018 - raises when not fitted
        return export_bundle(self.fitted_, folder)


class VAEDetector(OutlierMixin, _VAEEstimator):  # type: ignore[misc]
    """Outlier detector: a variational autoencoder's scores with conformal p-values.

    Parameters
    ----------
    settings : Settings, optional
        Model, objective, training and export; recommended from the data where None.
    false_alarm_rate : float
        Share of normal rows that `predict` may call outliers.
    device : {"auto", "cpu", "cuda"}
    random_state : int, RandomState or None

    Attributes
    ----------
    offset_ : float
        ``decision_function`` = ``score_samples`` - ``offset_``.
    history_ : list of dict
        Figures per epoch.

    References
    ----------
    .. [1] An & Cho, "Variational Autoencoder based Anomaly Detection using Reconstruction
       Probability", SNU Data Mining Center 2015.
    .. [2] Bates et al., "Testing for Outliers with Conformal p-values", Annals of Statistics 2023.
       https://arxiv.org/abs/2104.08279

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly import VAEDetector
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(300, 2)) @ np.array([[1.0, 0.9], [0.0, 0.2]])
    >>> detector = VAEDetector(random_state=0).fit(X)
    >>> detector.predict([[0.0, 0.0], [4.0, -4.0]])
    array([ 1, -1])
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        false_alarm_rate: float = 0.05,
        device: str = "auto",
        random_state: int | None = None,
    ) -> None:
        super().__init__(settings=settings, device=device, random_state=random_state)
        self.false_alarm_rate = false_alarm_rate

    def _settings(self) -> Settings:
        settings = super()._settings()
        return replace(settings, export=replace(settings.export, false_alarm_rate=self.false_alarm_rate))

    def _after_fit(self) -> None:
        table, rate = self.fitted_.calibration["score_score"], self.fitted_.manifest.false_alarm_rate
        self.offset_ = -calibration.threshold(table, rate)

    def scores(self, X: Any) -> pd.DataFrame:
        """`score` (the default) and one column per score; larger = more anomalous."""
        return self.answers_.scores(X)

    def p_values(self, X: Any, *, score: str | None = None) -> Float:
        """Conformal p-values of the default score, or of another, shape (n,)."""
        return self.answers_.p_values(X, score=score)

    def explain(self, X: Any) -> Explanation:
        """Contribution per element; they sum to `recon`."""
        return self.answers_.explain(X)

    def score_samples(self, X: Any) -> Float:
        """scikit-learn's sign: lower = more abnormal, shape (n,)."""
        return -self.scores(X)["score"].to_numpy()

    def decision_function(self, X: Any) -> Float:
        """`score_samples` - `offset_`: negative for outliers, shape (n,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """+1 for inliers, -1 for outliers at `false_alarm_rate`, shape (n,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)


class VAEImputer(TransformerMixin, _VAEEstimator):  # type: ignore[misc]
    """Imputer: the importance-weighted masked decode of a variational autoencoder.

    Parameters
    ----------
    settings : Settings, optional
        Model, objective, training and export; recommended from the data where None.
    device : {"auto", "cpu", "cuda"}
    random_state : int, RandomState or None

    References
    ----------
    .. [1] Mattei & Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
       Sets", ICML 2019. https://arxiv.org/abs/1812.02633

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly import VAEImputer
    >>> rng = np.random.default_rng(0)
    >>> a = rng.normal(size=(300, 1))
    >>> X = np.hstack([a, 2 * a])
    >>> imputer = VAEImputer(random_state=0).fit(X)
    >>> filled = imputer.transform([[1.0, np.nan]])
    >>> bool(filled[0, 0] == 1.0), bool(abs(filled[0, 1] - 2.0) < 0.3)
    (True, True)
    """

    @classmethod
    def from_detector(cls, detector: VAEDetector) -> VAEImputer:
        """An imputer with a detector's fitted model: one fit, both answers."""
        detector.answers_  # noqa: B018 - raises when not fitted
        imputer = cls(settings=detector.settings, device=detector.device, random_state=detector.random_state)
        for name in ("fitted_", "settings_", "history_", "schema_", "n_features_in_", "feature_names_in_"):
            if hasattr(detector, name):
                setattr(imputer, name, getattr(detector, name))
        return imputer

    def transform(self, X: Any) -> Any:
        """Samples with their gaps filled; observed cells are bit-identical, order and index kept."""
        return self.answers_.impute(X).mean

    def sample(self, X: Any, *, draws: int = 20, seed: int = 0) -> Array:
        """Multiple imputations, shape (draws, n, *sample shape)."""
        drawn = self.answers_.impute(X, draws=draws, seed=seed).draws
        if drawn is None:
            raise TypeError("an imputation with draws holds them")
        return drawn

    def get_feature_names_out(self, input_features: object = None) -> npt.NDArray[np.object_]:
        """Names of the columns, as they went in."""
        names = self.schema_.names if isinstance(self.schema_, TableSchema) else range(self.n_features_in_)
        return np.array([str(name) for name in names], dtype=object)
