"""Training data: one configuration, one data set in memory, whatever the source."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.config import near_miss
from pipelines.images import ImageMode, read_folder
from pipelines.sources import OFFICIAL, Raw, pick_rows, read_arrays, read_digits, read_official, read_table
from vae_anomaly.columns import infer_column
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError
from vae_anomaly.schema import Schema, TableSchema, infer_schema

Array = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

MIN_ROWS = 20  # fewer leave no row for one of the four splits at their default shares
ARRAYS = (".npy", ".npz")
TABLES = (".csv", ".tsv", ".parquet", ".pq")

# Settings that only some forms of data understand.
TABLE_SETTINGS = ("id_column", "exclude", "split_by", "split_column")
IMAGE_SETTINGS = ("image_mode", "image_size")


@dataclass(frozen=True)
class Fractions:
    """Shares of the normal rows; they sum to 1."""

    train: float = 0.6
    validation: float = 0.1
    calibration: float = 0.15
    test: float = 0.15

    def __post_init__(self) -> None:
        shares = (self.train, self.validation, self.calibration, self.test)
        if min(shares) < 0 or self.train == 0:
            raise ConfigError(f"fractions are {shares}; give none below 0, and some to train")
        if self.calibration == 0:
            raise ConfigError(f"fractions are {shares}; give some to calibrate, or no score has a p-value")
        if not math.isclose(sum(shares), 1, abs_tol=1e-6):
            raise ConfigError(f"fractions {shares} sum to {sum(shares):g}; they must sum to 1")


@dataclass(frozen=True)
class DataConfig:
    """What to train on and how to divide it.

    Attributes
    ----------
    source : str
        "digits", "mnist", "fashion-mnist", or the path of a .npy, .npz, CSV or Parquet file or
        of a folder of images.
    data_root : str, optional
        Folder of MNIST and Fashion-MNIST in torchvision's layout; without it they are
        downloaded. A path in ``source`` is relative to it.
    id_column, label : str, optional
        Columns of a table. Labels serve evaluation only; ``label`` also names the array of an
        .npz file ("y" by default), and folders of images have their first-level subfolders.
    exclude : tuple of str
        Columns of a table that are no features.
    kinds : mapping of column to kind
        "real", "positive", "integer", "binary", "categorical" or "ordinal", or the categories of an
        ordinal column in order; in place of what `columns.infer_column` takes a column for.
    bounds : mapping of column to (lower, upper)
        What expected and imputed values keep to; an infinite one is none.
    novel : tuple of label values
        The anomalies: rows with these labels are kept out of training, validation and
        calibration, and are all in test.
    limit : int, optional
        At most so many rows, chosen at random but always the same.
    fractions : Fractions
    official_test : {"keep", "divide", "merge"}
        For the sources with an official test set. "keep": it is the test split, and the 60,000
        training images are divided among the other three in proportion. "divide": train on all
        60,000, divide the 10,000 official test images among validation, calibration and test
        in proportion (published losses compare with this one). "merge": divide all 70,000.
    split_by : {"random", "time", "group"}
        "time": oldest rows train, newest test. "group": no group straddles two splits.
    split_column : str, optional
        Column with the time (number or ISO 8601) or group; never a feature.
    image_mode : {"as-is", "grey", "rgb"}
    image_size : (height, width), optional
        Folders of images are resized only when this is given.
    """

    source: str = "digits"
    data_root: str | None = None
    id_column: str | None = None
    label: str | None = None
    exclude: tuple[str, ...] = ()
    kinds: dict[str, str | tuple[str, ...]] = field(default_factory=dict)
    bounds: dict[str, tuple[float, float]] = field(default_factory=dict)
    novel: tuple[str | int | bool, ...] = ()
    limit: int | None = None
    fractions: Fractions = Fractions()
    official_test: Literal["keep", "divide", "merge"] = "keep"
    split_by: Literal["random", "time", "group"] = "random"
    split_column: str | None = None
    image_mode: ImageMode = "as-is"
    image_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.split_by == "random") != (self.split_column is None):
            raise ConfigError(
                f"split_by is {self.split_by!r} and split_column {self.split_column!r}; "
                "time and group need a column, random takes none"
            )
        if self.limit is not None and self.limit < MIN_ROWS:
            raise ConfigError(f"limit is {self.limit}; at least {MIN_ROWS} rows are needed")
        if self.image_size is not None and min(self.image_size) < 8:
            raise ConfigError(f"image_size is {self.image_size}; both sides must be at least 8 pixels")


@dataclass(frozen=True)
class Dataset:
    """Samples in memory, in the model's own dtype.

    Attributes
    ----------
    name : str
    values : ndarray, shape (B, C, H, W), or DataFrame of feature columns: float64, or categories by name
    schema : Schema
    ids : ndarray, shape (B,)
    labels : ndarray, shape (B,), or None
        Whole numbers or text; for evaluation only.
    fingerprint : str
        sha256 of the schema and the values' bytes.
    split_key : ndarray, shape (B,), or None
        Time or group of each row.
    official_test : bool ndarray, shape (B,), or None
        True for rows of the source's official test set.
    """

    name: str
    values: Array | pd.DataFrame
    schema: Schema
    ids: Array
    labels: Array | None = None
    fingerprint: str = ""
    split_key: Array | None = None
    official_test: Mask | None = None

    def __len__(self) -> int:
        return len(self.values)


def load(config: DataConfig) -> Dataset:
    """Read the data set that ``config`` describes.

    Raises
    ------
    DataError
        If files are absent, unreadable or do not fit together, or hold too few rows.
    SchemaError
        If columns hold neither numbers nor categories, or cells are infinite.
    ConfigError
        If a setting makes no sense for this source.
    """
    name, raw = _read(config)
    if config.limit is not None and config.limit < len(raw.ids):
        raw = raw.take(pick_rows(len(raw.ids), config.limit))
    if len(raw.ids) < MIN_ROWS:
        raise DataError(
            f"{name} has {len(raw.ids)} rows; at least {MIN_ROWS} are needed to train and judge a model"
        )
    if isinstance(raw.values, pd.DataFrame):
        _refuse_text(raw.values, config)
    schema = infer_schema(raw.values, config.kinds, config.bounds)
    read = schema.read(raw.values).values
    values = _table(schema, read) if isinstance(schema, TableSchema) else read
    return Dataset(
        name,
        values,
        schema,
        raw.ids,
        raw.labels,
        _fingerprint(schema, read),
        raw.split_key,
        raw.official_test,
    )


def _table(schema: TableSchema, read: Array) -> pd.DataFrame:
    """The rows as numbers, but names as such: another model may have other codes for them."""
    frame = pd.DataFrame(read, columns=list(schema.names))
    for place, column in enumerate(schema.columns):
        if column.named:
            frame[column.name] = column.label(read[:, place])
    return frame


def novel_rows(dataset: Dataset, config: DataConfig) -> Mask:
    """True for the rows whose label is one of ``config.novel``, shape (B,).

    Raises
    ------
    DataError
        If there are no labels, or none is equal to a value asked for.
    """
    if not config.novel:
        return np.zeros(len(dataset), dtype=np.bool_)
    if dataset.labels is None:
        raise DataError(
            f"novel is {list(config.novel)} but {dataset.name} has no labels; name the column by label"
        )
    labels = np.array([str(label) for label in dataset.labels])
    known = sorted(set(labels.tolist()))
    for value in config.novel:
        if str(value) not in known:
            raise DataError(f"no row of {dataset.name} is labelled {value!r}; {near_miss(str(value), known)}")
    return np.isin(labels, [str(value) for value in config.novel])


def _read(config: DataConfig) -> tuple[str, Raw]:
    """Name and raw rows; refuses settings that the source would ignore."""
    if config.source in OFFICIAL:
        _refuse(config, *TABLE_SETTINGS, *IMAGE_SETTINGS, "label")
        return config.source, read_official(config.source, config.data_root)
    _refuse(config, "official_test")
    if config.source == "digits":
        _refuse(config, *TABLE_SETTINGS, *IMAGE_SETTINGS, "label", "data_root")
        return config.source, read_digits()
    path = Path(config.data_root or "") / Path(config.source).expanduser()
    if path.is_dir():
        _refuse(config, *TABLE_SETTINGS, "label")
        return path.resolve().name, read_folder(path, config.image_mode, config.image_size, config.limit)
    if not path.is_file():
        raise DataError(f"no data at {str(path)!r}; {near_miss(config.source, ['digits', *OFFICIAL])}")
    _refuse(config, *IMAGE_SETTINGS)
    if path.suffix.lower() in ARRAYS:
        _refuse(config, *TABLE_SETTINGS)
        return path.stem, read_arrays(path, config.label)
    if path.suffix.lower() in TABLES:
        return path.stem, read_table(
            path, config.id_column, config.label, config.split_column, config.exclude
        )
    raise DataError(f"cannot read {str(path)!r}; give {', '.join(ARRAYS + TABLES)} or a folder of images")


def _refuse_text(features: pd.DataFrame, config: DataConfig) -> None:
    """Raise `SchemaError` that names every column which is neither numbers nor categories."""
    strange = []
    for name, column in features.items():
        try:
            infer_column(column, str(name), config.kinds.get(str(name)))
        except SchemaError:
            strange.append(str(name))
    if strange:
        raise SchemaError(
            f"columns {strange} of {config.source} hold neither numbers nor categories; leave them out with "
            "--exclude, name one with --id-column or --label, or say by data.kinds what they are"
        )


def _refuse(config: DataConfig, *settings: str) -> None:
    defaults = {item.name: item.default for item in fields(DataConfig)}
    for setting in settings:
        if (value := getattr(config, setting)) != defaults[setting]:
            raise ConfigError(
                f"{setting} is {value!r}, which means nothing for {config.source!r}; leave it out"
            )


def _fingerprint(schema: Schema, values: Array) -> str:
    digest = hashlib.sha256(json.dumps(schema.to_dict(), sort_keys=True).encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
