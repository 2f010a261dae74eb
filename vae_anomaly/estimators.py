"""The scikit-learn face: `VAEDetector` ranks outliers, `VAEImputer` fills gaps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.base import OneToOneFeatureMixin, OutlierMixin, TransformerMixin
from sklearn.impute import MissingIndicator
from sklearn.utils import check_random_state
from sklearn.utils._set_output import _get_output_config

from vae_anomaly import calibration
from vae_anomaly.base_estimator import VAEEstimator, has_text_names
from vae_anomaly.batches import Float
from vae_anomaly.choices import whole_number
from vae_anomaly.columns import Bounds, Kinds
from vae_anomaly.crossfit import check_contamination, cross_fitted, strangest
from vae_anomaly.exceptions import ConfigError, UnsupportedError
from vae_anomaly.explanation import Explanation
from vae_anomaly.fitting import Fit, Settings
from vae_anomaly.imputer_fitting import fit_imputer, imputer_parts, imputer_settings
from vae_anomaly.missing import Missing
from vae_anomaly.objectives import ObjectiveConfig
from vae_anomaly.schema import Array, Samples, Schema, TableSchema


class VAEDetector(OutlierMixin, VAEEstimator):  # type: ignore[misc]
    """Outlier detector: a variational autoencoder's scores with conformal p-values.

    Parameters
    ----------
    settings : Settings, optional
        Model, objective, training and export; recommended from the data where None.
    kinds : mapping of column to kind, optional
        "real", "positive", "integer", "binary", "categorical" or "ordinal", in place of what
        `columns.infer_column` takes a column for; a list of categories is an ordinal column in that
        order. Columns of a bare array go by their place.
    bounds : mapping of column to (lower, upper), optional
        What expected and imputed values keep to; None for no bound.
    false_alarm_rate : float, optional
        Share of normal rows that `predict` may call outliers; kept by rows held out from training. That of
        ``settings`` where None: 0.05, unless they say otherwise.
    contamination : float, optional
        As in scikit-learn: the share, at most 0.5, of the rows given to `fit` that `predict` calls
        outliers. It moves `offset_` alone, at `fit`; `verdicts`, p-values and bundles keep to
        ``false_alarm_rate``.
    trim : float or "auto", optional
        For rows given to `fit` that may hold anomalies: the share, below 0.5, that the model is not shown
        because it fits them worst; "auto" estimates it without labels, 0.1 to 0.2. Calibration rows
        are not trimmed: anomalies among them make p-values larger, never too small.
    device : {"auto", "cpu", "cuda"}
    random_state : int, RandomState or None

    Attributes
    ----------
    offset_ : float
        ``decision_function`` = ``score_samples`` - ``offset_``: the conformal threshold, or with
        ``contamination`` that quantile of ``score_samples`` over the rows given to `fit`. Parameters
        set after `fit` count from the next one.
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
        kinds: Kinds | None = None,
        bounds: Bounds | None = None,
        false_alarm_rate: float | None = None,
        contamination: float | None = None,
        trim: float | str | None = None,
        device: str = "auto",
        random_state: int | None = None,
    ) -> None:
        super().__init__(
            settings=settings, kinds=kinds, bounds=bounds, device=device, random_state=random_state
        )
        self.false_alarm_rate = false_alarm_rate
        self.contamination = contamination
        self.trim = trim

    def _check_parameters(self, schema: Schema) -> None:
        check_contamination(self.contamination)

    def _settings(self) -> Settings:
        settings = super()._settings()
        if self.trim is not None:
            objective = settings.objective or ObjectiveConfig()
            settings = replace(settings, objective=replace(objective, trim=self.trim))
        if self.false_alarm_rate is None:
            return settings
        return replace(settings, export=replace(settings.export, false_alarm_rate=self.false_alarm_rate))

    def _after_fit(self, X: Any) -> None:
        if self.contamination is not None:
            # NaN are rows with nothing observed: no verdict on them, and none by them.
            self.offset_ = float(np.nanquantile(self.score_samples(X), self.contamination))
            return
        table, rate = self.answers_.tables.table("score"), self.fitted_.manifest.false_alarm_rate
        self.offset_ = -calibration.threshold(table, rate)

    def scores(self, X: Any) -> pd.DataFrame:
        """`score` (the default) and one column per score; larger = more anomalous.

        `score` of rows with gaps is on the scale of whole ones; the other columns are as the model has them.
        NaN for a row with nothing observed, here and in all that follows from it.
        """
        return self._answers_for(X).scores(X)

    def verdicts(
        self, X: Any, *, false_alarm_rate: float | None = None, fdr: float | None = None
    ) -> pd.DataFrame:
        """`score`, `p_value`, `is_outlier` and every score, by any rate without refit.

        Parameters
        ----------
        false_alarm_rate : float, optional
            In place of the one fitted with. ``contamination`` has no say here, only in `predict`.
        fdr : float, optional
            In its place the share of the rows called outliers that may be normal, on average, by
            Benjamini and Hochberg over all rows of X.

        Raises
        ------
        CalibrationError
            If too few rows were held out for the rate: it says how many it takes.
        """
        return self._answers_for(X).verdicts(X, false_alarm_rate=false_alarm_rate, fdr=fdr)

    def cross_fit(self, X: Any, folds: int = 5) -> pd.DataFrame:
        """Look for outliers inside one table: score and p-value of every row by a model that has not seen it.

        Fits as many detectors with these settings as there are folds and keeps none; this one is left as it
        is. A row's p-value is the share of its own fold and of the calibration rows of that fit that score
        at least as much, itself included: for a normal row at most alpha in a share alpha of the cases. Where
        X holds a share e of anomalies, most of theirs are not far below e.

        Parameters
        ----------
        X : as for `fit`
        folds : int
            At least 2; more leave each fit more rows, and take as much longer.

        Returns
        -------
        DataFrame
            ``score`` (larger = more anomalous, on the scale of its fold's model), ``p_value`` (compares
            across folds: rank by it), ``fold``; NaN for rows with nothing observed. With ``contamination``
            also ``is_outlier``: that share of the rows, and those that tie with its last.

        Raises
        ------
        ConfigError
            If there cannot be so many folds.
        DataError
            If a column of a table has all its values in one fold.
        """
        # One schema for all folds: what a column is must not depend on which rows are left out.
        schema, samples = self._read(X)
        frame = cross_fitted(
            lambda rows, seed: self._fit(schema, rows, seed).fitted.answers(),
            samples,
            folds,
            check_random_state(self.random_state),
            schema.names if isinstance(schema, TableSchema) else (),
        )
        if self.contamination is not None:
            frame["is_outlier"] = strangest(frame["p_value"], self.contamination)
        return frame.set_axis(X.index) if isinstance(X, pd.DataFrame) else frame

    def p_values(self, X: Any, *, score: str | None = None) -> Float:
        """Conformal p-values of the default score, or of another, shape (n,)."""
        return self._answers_for(X).p_values(X, score=score)

    def explain(self, X: Any) -> Explanation:
        """Contribution per element, which sum to `recon`; which score decided, and how strange each is."""
        return self._answers_for(X).explain(X)

    def ranked_columns(self, X: Any, top: int = 5) -> pd.DataFrame:
        """The columns of each row of a table that contribute most, with expected value and range."""
        return self._answers_for(X).ranked_columns(X, top=top)

    def score_samples(self, X: Any) -> Float:
        """scikit-learn's sign: lower = more abnormal, shape (n,)."""
        return -self.scores(X)["score"].to_numpy()

    def decision_function(self, X: Any) -> Float:
        """`score_samples` - `offset_`: negative for outliers, shape (n,)."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """+1 for inliers, -1 for outliers, shape (n,): -1 where `decision_function` is negative.

        +1 for a row with nothing observed, of which nothing strange is known, and without ``contamination``
        for one with gaps that too few calibration rows judge, as `verdicts` warns.
        """
        if self.contamination is not None:
            return np.where(self.decision_function(X) < 0, -1, 1)
        strange = self.verdicts(X)["is_outlier"].fillna(False).to_numpy(dtype=np.bool_)
        return np.where(strange, -1, 1)


class VAEImputer(OneToOneFeatureMixin, TransformerMixin, VAEEstimator):  # type: ignore[misc]
    """Imputer: the importance-weighted masked decode of a variational autoencoder.

    A table of 100 rows or more trains on all of them but 2 %, at least 19, that calibrate scores. A
    tenth of the cells is hidden from trainings of up to four lengths; a last one, that sees everything, is as
    long as these cells speak for; see docs/missing.md.

    Parameters
    ----------
    settings : Settings, optional
        Model, objective, training and export; recommended from the data where None.
    kinds : mapping of column to kind, optional
        "real", "positive", "integer", "binary", "categorical" or "ordinal", in place of what
        `columns.infer_column` takes a column for; a list of categories is an ordinal column in that
        order. Columns of a bare array go by their place.
    bounds : mapping of column to (lower, upper), optional
        What expected and imputed values keep to; None for no bound.
    missing : {"mar", "mnar-self", "mnar-self-high", "mnar-self-low"}
        Whether gaps may depend on what is missing: at random given what is observed, or each value
        of a table decides about itself, as the data tell or high or low values going missing. Nothing in
        the data proves it: see `missing_sensitivity`.
    add_indicator : bool
        As in scikit-learn: append to a table one column of 0 and 1 for each column that had gaps
        in the rows given to `fit`, 1 where the value was missing.
    device : {"auto", "cpu", "cuda"}
    random_state : int, RandomState or None

    Attributes
    ----------
    indicator_ : MissingIndicator or None
    history_ : list of dict
        Figures per epoch.

    References
    ----------
    .. [1] Mattei & Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data
       Sets", ICML 2019. https://arxiv.org/abs/1812.02633
    .. [2] Ipsen, Mattei & Frellsen, "not-MIWAE: Deep Generative Modelling with Missing not at Random
       Data", ICLR 2021. https://arxiv.org/abs/2006.12871

    Examples
    --------
    >>> import numpy as np
    >>> from vae_anomaly import VAEImputer
    >>> rng = np.random.default_rng(0)
    >>> a = rng.normal(size=(90, 1))
    >>> X = np.hstack([a, 2 * a])
    >>> imputer = VAEImputer(random_state=0).fit(X)
    >>> filled = imputer.transform([[1.0, np.nan]])
    >>> bool(filled[0, 0] == 1.0), bool(abs(filled[0, 1] - 2.0) < 0.3)
    (True, True)
    """

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        kinds: Kinds | None = None,
        bounds: Bounds | None = None,
        missing: Missing = "mar",
        add_indicator: bool = False,
        device: str = "auto",
        random_state: int | None = None,
    ) -> None:
        super().__init__(
            settings=settings, kinds=kinds, bounds=bounds, device=device, random_state=random_state
        )
        self.missing = missing
        self.add_indicator = add_indicator

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def _check_parameters(self, schema: Schema) -> None:
        if self.add_indicator and not isinstance(schema, TableSchema):
            raise ConfigError(
                "add_indicator appends columns to a table, and got images; set it to False "
                "and keep np.isnan(X) beside the result"
            )

    def _fit(self, schema: Schema, samples: Samples, seed: int) -> Fit:
        recommended = imputer_settings(schema, samples)
        settings = self.settings.otherwise(recommended) if self.settings else recommended
        if self.missing != "mar" and settings.model is not None:
            settings = replace(settings, model=replace(settings.model, missing=self.missing))
        return fit_imputer(schema, imputer_parts(samples, seed), settings, seed=seed, device=self.device)

    def _after_fit(self, X: Any) -> None:
        self.indicator_: Any = None
        if self.add_indicator:
            self.indicator_ = MissingIndicator(error_on_new=False).fit(self.schema_.read(X).values)

    @classmethod
    def from_detector(cls, detector: VAEDetector) -> VAEImputer:
        """An imputer with a detector's fitted model: one fit, both answers.

        Without indicator columns: a detector does not keep which columns had gaps.
        """
        detector.answers_  # noqa: B018 - raises when not fitted
        same = ("settings", "kinds", "bounds", "device", "random_state")
        imputer = cls(**{name: getattr(detector, name) for name in same})
        for name in ("fitted_", "settings_", "history_", "schema_", "n_features_in_", "feature_names_in_"):
            if hasattr(detector, name):
                setattr(imputer, name, getattr(detector, name))
        imputer.indicator_ = None
        return imputer

    def transform(self, X: Any) -> Any:
        """Samples with their gaps filled; never refits.

        Parameters
        ----------
        X : array-like or DataFrame, shape (n, *sample shape)
            NaN means missing.

        Returns
        -------
        ndarray or DataFrame
            Like X: shape, dtype, index and order of columns are kept, observed cells are
            bit-identical, and no NaN is left. After ``set_output``, or with indicators beside columns
            whose names are not text, columns have the names and order of `get_feature_names_out`.

        Raises
        ------
        SchemaError
            If the samples do not fit what was fitted.
        UnsupportedError
            If ``set_output`` asks for a table, and X holds images of several axes.
        NotFittedError
            Before `fit`.
        """
        answers, container = self._answers_for(X), _get_output_config("transform", self)["dense"]
        if container != "default" and not isinstance(X, pd.DataFrame) and np.ndim(X) > 2:
            raise UnsupportedError(
                f"images do not fit the {container} table that set_output asks for; "
                "call set_output(transform='default') or give each image as a row"
            )
        filled, schema = answers.impute(X).mean, self.schema_
        if not isinstance(schema, TableSchema):
            return filled
        renamed = isinstance(filled, pd.DataFrame) and (
            container != "default" or (self.indicator_ is not None and not has_text_names(filled))
        )
        if renamed:
            filled = filled.iloc[:, schema.order([str(name) for name in filled.columns])]
        return filled if self.indicator_ is None else self._with_indicators(filled, schema, X)

    def _with_indicators(self, filled: Any, schema: TableSchema, X: Any) -> Any:
        gaps = np.isnan(schema.read(X).values) & ~schema.unseen(X)
        missing = gaps[:, self.indicator_.features_].astype(np.float32)
        if not isinstance(filled, pd.DataFrame):
            return np.hstack([filled, missing])
        names = self.get_feature_names_out()
        if not has_text_names(filled):
            # scikit-learn refuses a table of mixed names, and those of indicators are text.
            filled = filled.set_axis(names[: self.n_features_in_], axis=1)
        added = pd.DataFrame(missing, filled.index, names[self.n_features_in_ :], np.float64)
        return pd.concat([filled, added], axis=1)

    def sample(self, X: Any, *, draws: int = 20, seed: int = 0, k: int | None = None) -> Array:
        """Multiple imputations, shape (draws, n, *sample shape); columns in the order of `fit`.

        Each is one plausible filling, noise and all, where `transform` gives the mean: their spread
        is the uncertainty. Same seed and row, same draws; out of ``k`` importance samples where given, else
        of as many as the settings say. Categories come as the model's numbers; NaN for
        a name that training did not have, which is kept and has none.
        """
        drawn = self._answers_for(X).impute(X, draws=whole_number("draws", draws), seed=seed, k=k).draws
        if drawn is None:
            raise TypeError("an imputation with draws holds them")
        return drawn

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[np.object_]:
        """Names of the columns as `fit` knew them, x0, x1, ... for a bare array; then indicators.

        Raises
        ------
        ValueError
            If input_features are not those of `fit`.
        """
        self.answers_  # noqa: B018 - raises when not fitted
        names: npt.NDArray[np.object_] = super().get_feature_names_out(input_features)
        if self.indicator_ is None:
            return names
        return np.concatenate([names, self.indicator_.get_feature_names_out(names)])
