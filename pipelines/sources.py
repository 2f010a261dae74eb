"""Readers of training data: every form ends as arrays in memory, with ids and labels beside them.

No reader decides anything about splits or schemas; `pipelines.data` does.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from pipelines.config import near_miss
from serving.delimited import GAPS
from vae_anomaly.exceptions import DataError, MissingPackageError, SchemaError
from vae_anomaly.mlflow_access import cache_folder

Array = npt.NDArray[Any]

TEXT_FILES = (".csv", ".tsv")
OFFICIAL = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}


@dataclass(frozen=True)
class Raw:
    """What a reader found, row by row."""

    values: Array | pd.DataFrame
    ids: Array
    labels: Array | None = None
    split_key: Array | None = None
    official_test: npt.NDArray[np.bool_] | None = None

    def take(self, rows: Array) -> Raw:
        """The same data restricted to ``rows``."""
        values = self.values.iloc[rows] if isinstance(self.values, pd.DataFrame) else self.values[rows]
        others = {name: getattr(self, name) for name in ("labels", "split_key", "official_test")}
        picked = {name: None if column is None else column[rows] for name, column in others.items()}
        return replace(self, values=values, ids=self.ids[rows], **picked)


def pick_rows(count: int, limit: int | None) -> Array:
    """At most ``limit`` of ``count`` rows, chosen at random but always the same, in their order."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).choice(count, limit, replace=False))


def read_digits() -> Raw:
    """scikit-learn's 1,797 bundled digits; their levels 0..16 stretched to 0..255."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _needs_train("digits", error) from error
    bundled = load_digits()
    values = np.rint(bundled.images * (255 / 16)).astype(np.uint8)[:, None]
    return Raw(values, np.arange(len(values)), bundled.target.astype(np.int64))


def read_official(name: str, data_root: str | None) -> Raw:
    """MNIST or Fashion-MNIST: 60,000 training images, then the 10,000 official test images.

    Parameters
    ----------
    name : {"mnist", "fashion-mnist"}
    data_root : str, optional
        Folder that holds them in torchvision's layout (``MNIST/raw/...``). Without it they
        are downloaded once into the user's cache.
    """
    try:
        from torchvision import datasets
    except ImportError as error:
        raise _needs_train(name, error) from error
    reader = getattr(datasets, OFFICIAL[name])
    root = str(Path(data_root).expanduser() if data_root else cache_folder() / "data")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints what it tries
            parts = [reader(root, train=train, download=data_root is None) for train in (True, False)]
    except (OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
        reason = " ".join(str(error).split())
        if data_root is None:
            raise DataError(
                f"could not download {name}: {reason}; with the files at hand, name their folder by data_root"
            ) from error
        raise DataError(
            f"no readable {name} below {data_root}: {reason}; expected {OFFICIAL[name]}/raw/*-ubyte"
        ) from error
    values = np.concatenate([part.data.numpy() for part in parts])[:, None]
    labels = np.concatenate([part.targets.numpy() for part in parts]).astype(np.int64)
    official = np.repeat([False, True], [len(part.data) for part in parts])
    return Raw(values, np.arange(len(values)), labels, official_test=official)


def read_arrays(path: Path, label: str | None) -> Raw:
    """``.npy``, or ``.npz`` with the values in ``X`` (or alone) and optional labels in ``y``."""
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"X": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot read {path}: {error}; expected numbers saved by numpy") from error
    if "X" not in arrays and len(arrays) != 1:
        raise DataError(f"{path} holds the arrays {', '.join(arrays) or 'none'}; call the one to read 'X'")
    values = arrays["X"] if "X" in arrays else next(iter(arrays.values()))
    labels = arrays.get(label or "y")
    if label is not None and labels is None:
        raise DataError(f"no array {label!r} in {path}; {near_miss(label, arrays)}")
    if values.ndim == 0:
        raise DataError(f"{path} holds a single number; expected one row per sample")
    if labels is not None and labels.shape != values.shape[:1]:
        raise DataError(f"labels in {path} have shape {labels.shape}; expected {values.shape[:1]}")
    return Raw(values, np.arange(len(values)), None if labels is None else tidy_labels(pd.Series(labels)))


def read_table(
    path: Path, id_column: str | None, label: str | None, split_column: str | None, exclude: Sequence[str]
) -> Raw:
    """CSV or Parquet; what is not named here is a feature, of numbers or categories.

    The id, label and split columns and those of ``exclude`` are no features.
    """
    frame = _read_csv(path) if path.suffix.lower() in TEXT_FILES else _read_parquet(path)
    columns = [str(name) for name in frame.columns]
    frame.columns = pd.Index(columns)
    if repeated := sorted({name for name in columns if columns.count(name) > 1}):
        raise SchemaError(f"column {repeated[0]!r} appears more than once; drop the repeats")
    named = [name for name in (id_column, label, split_column, *exclude) if name is not None]
    for name in named:
        if name not in columns:
            raise DataError(f"no column {name!r} in {path}; {near_miss(name, columns)}")
    features = frame.drop(columns=named)
    if features.shape[1] == 0:
        raise DataError(f"no feature column is left in {path}; exclude fewer")
    if path.suffix.lower() in TEXT_FILES:
        features = features.apply(_without_gaps)
    return Raw(
        features,
        np.arange(len(frame)) if id_column is None else _ids(frame[id_column], id_column),
        None if label is None else tidy_labels(frame[label]),
        None if split_column is None else frame[split_column].to_numpy(),
    )


def _without_gaps(column: pd.Series[Any]) -> pd.Series[Any]:
    """Text of a CSV as jobs read it: trimmed, missing where it is what other tools write into a gap."""
    if pd.api.types.infer_dtype(column, skipna=True) != "string":
        return column
    text = column.str.strip()
    return text.mask(text.isin(GAPS))


def tidy_labels(column: pd.Series[Any]) -> Array:
    """Labels as whole numbers where all are, else as text; a missing label is empty text."""
    missing = column.isna()
    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_bool_dtype(column.dtype):
        numbers = column[~missing].to_numpy(dtype=np.float64)
        if not np.any(numbers % 1):
            column = column.astype("Int64")
        if not np.any(numbers % 1) and not missing.any():
            return column.to_numpy(dtype=np.int64)
    return np.where(missing, "", column.astype(object).astype(str)).astype(object)


def _read_csv(path: Path) -> pd.DataFrame:
    from pyarrow import ArrowInvalid
    from pyarrow import csv as arrow_csv

    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline(1 << 20)
        separator = _separator(header)
        table = arrow_csv.read_csv(
            path,
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                null_values=sorted({*GAPS, *arrow_csv.ConvertOptions().null_values})
            ),
        )
    except (OSError, UnicodeDecodeError, ArrowInvalid) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    frame: pd.DataFrame = table.to_pandas()
    return frame


def _separator(header: str) -> str:
    try:
        return csv.Sniffer().sniff(header, delimiters=",;\t|").delimiter
    except csv.Error:  # a single column has none
        return ","


def _read_parquet(path: Path) -> pd.DataFrame:
    from pyarrow import ArrowException, parquet

    try:
        frame: pd.DataFrame = parquet.read_table(path).to_pandas(ignore_metadata=True)
    except (OSError, ArrowException) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    # pandas stores an unnamed index as a column; it numbers rows and tells nothing about them.
    unnamed = [name for name in frame.columns if re.fullmatch(r"__index_level_\d+__", str(name))]
    return frame.drop(columns=unnamed)


def _ids(column: pd.Series[Any], name: str) -> Array:
    if column.isna().any():
        raise DataError(f"id column {name!r} is empty in row {int(column.isna().argmax())}; fill it")
    if column.duplicated().any():
        value = column[column.duplicated()].tolist()[0]
        raise DataError(f"id {value!r} appears more than once in column {name!r}; make the ids unique")
    return column.to_numpy()


def _needs_train(name: str, error: ImportError) -> MissingPackageError:
    return MissingPackageError(
        f"{name} needs {error.name}; install it with: pip install 'vae-anomaly[train]'"
    )
