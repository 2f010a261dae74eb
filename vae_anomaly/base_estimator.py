"""What `VAEDetector` and `VAEImputer` share: fitting, export, and what scikit-learn asks of their data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn import exceptions
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_random_state

from vae_anomaly.answers import Answers
from vae_anomaly.columns import Bounds, Kinds
from vae_anomaly.exceptions import ConfigError, NotFittedError, SchemaError
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import Fit, Settings, fit_model, split_parts
from vae_anomaly.samples import array_of
from vae_anomaly.schema import Samples, Schema, TableSchema, infer_schema


class _NotFittedError(NotFittedError, exceptions.NotFittedError):  # type: ignore[misc]
    """Ours and scikit-learn's in one: whoever waits for either catches it."""


class _InputError(SchemaError, TypeError):
    """Ours and scikit-learn's in one, which has a TypeError for some data and a ValueError for other."""


class VAEEstimator(BaseEstimator):  # type: ignore[misc]
    """What detector and imputer share: settings, fitting, export."""

    def __init__(
        self,
        *,
        settings: Settings | None = None,
        kinds: Kinds | None = None,
        bounds: Bounds | None = None,
        device: str = "auto",
        random_state: int | None = None,
    ) -> None:
        self.settings = settings
        self.kinds = kinds
        self.bounds = bounds
        self.device = device
        self.random_state = random_state

    def fit(self, X: Any, y: object = None) -> Any:
        """Fit to a table (n, d) or images (n, h, w) or (n, c, h, w); NaN means missing.

        Rows of a detector are split at random: most train the weights, 10 % choose the best epoch, 20 %
        are held out to calibrate.

        Raises
        ------
        ConfigError
            If a parameter is out of range, or does not go with the data.
        SchemaError
            If the data are neither a table of numbers and categories nor images of at least 8x8 pixels.
        DataError
            If there are too few rows, or a column without any value.
        """
        schema, samples = self._read(X)
        seed = int(check_random_state(self.random_state).randint(2**31))
        fit = self._fit(schema, samples, seed)
        self.fitted_ = fit.fitted
        self.settings_ = fit.settings
        self.history_ = fit.history
        self.schema_ = schema
        self.n_features_in_ = schema.elements
        # A refit to data without names must not leave those of the fit before.
        self.__dict__.pop("feature_names_in_", None)
        if isinstance(X, pd.DataFrame) and has_text_names(X):
            self.feature_names_in_ = np.array(X.columns, dtype=object)
        self._after_fit(X)
        return self

    def _read(self, X: Any) -> tuple[Schema, Samples]:
        """Training data, and what they are."""
        for name, kind, wanted in (
            ("settings", Settings, "Settings(...)"),
            ("kinds", Mapping, "a dictionary by column"),
            ("bounds", Mapping, "a dictionary by column"),
        ):
            if not isinstance(value := getattr(self, name), kind | None):
                raise ConfigError(f"{name} is {value!r}; give {wanted} or None")
        _refuse_text(X, self.kinds or {})
        _check_array(X, numeric=not self.kinds)
        schema = infer_schema(X, self.kinds, self.bounds)
        self._check_parameters(schema)
        return schema, schema.read(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags

    def _check_parameters(self, schema: Schema) -> None:
        """Refuse, before training, what one kind of estimator cannot do."""

    def _settings(self) -> Settings:
        """The settings to fit with."""
        return self.settings or Settings()

    def _fit(self, schema: Schema, samples: Samples, seed: int) -> Fit:
        """Train, on the split and settings of this kind of estimator."""
        parts = split_parts(samples, seed)
        return fit_model(schema, parts, self._settings(), seed=seed, device=self.device)

    def _after_fit(self, X: Any) -> None:
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

    def _answers_for(self, X: Any) -> Answers:
        """The answers, once X passes for what was fitted."""
        answers = self.answers_
        schema = self.schema_
        shape = _check_array(X, numeric=not (isinstance(schema, TableSchema) and schema.has_categories))
        # What is wrong with images the schema says: rows of pixels are one shape of several.
        if isinstance(schema, TableSchema) and len(shape) == 2 and shape[1] != self.n_features_in_:
            raise _InputError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
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


def has_text_names(frame: pd.DataFrame) -> bool:
    """Whether every column's name is text, as scikit-learn wants it of names that it keeps."""
    return all(isinstance(name, str) for name in frame.columns)


def _refuse_text(X: Any, kinds: Kinds) -> None:
    """Refuse text in columns of a bare array that `kinds` does not name."""
    cells = array_of(X, "cells") if isinstance(X, list | tuple) else X
    if not isinstance(cells, np.ndarray) or cells.ndim != 2 or cells.dtype.kind not in "OU":
        return
    for place, column in enumerate(cells.T):
        word = next((cell for cell in column if isinstance(cell, str) and not _is_number(cell)), None)
        if word is not None and place not in kinds and f"x{place}" not in kinds:
            raise _InputError(
                f"column {place} of the array holds text, such as {str(word)!r}; leave it out, or say what "
                f"it is by kinds={{{place}: 'categorical'}}"
            )


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _check_array(X: Any, numeric: bool = True) -> tuple[int, ...]:
    """Refuse in scikit-learn's words what is no array of numbers; the shape of what is.

    A data frame is left to the schema, which reads it by name.
    """
    if isinstance(X, pd.DataFrame):
        return ()
    if isinstance(X, np.ndarray) and X.dtype == object:
        X = array_of(X, "cells")
    try:
        # Images have four axes; the schema refuses infinite values, and an empty batch is answered.
        checked = check_array(
            X,
            dtype="numeric" if numeric else None,
            allow_nd=True,
            ensure_all_finite=False,
            ensure_min_samples=0,
            input_name="X",
        )
    except (TypeError, ValueError) as error:
        raise _InputError(str(error)) from error
    return tuple(checked.shape)
