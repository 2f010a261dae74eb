"""Files of every format with the same rows, and a bundle whose answers can be computed by hand."""

from __future__ import annotations

import resource
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from PIL import Image

from serving.batch import JobSummary, impute_file, score_file
from serving.formats import Chunk, ReadOptions, open_source
from vae_anomaly.calibration import benjamini_hochberg
from vae_anomaly.exceptions import CalibrationError, UnsupportedError
from vae_anomaly.schema import Column, ImageSchema, Schema, TableSchema

NAN = float("nan")
TABLE = TableSchema((Column("a"), Column("b"), Column("c")))
ROWS = pd.DataFrame(
    {
        "a": [1.0, -2.0, 3.5, NAN, NAN, 0.1, 7.0],
        "b": [0.5, NAN, 1e300, 2.0, NAN, -0.0, 8.0],
        "c": [3.0, 4.0, NAN, 1e-300, NAN, 0.25, 9.0],
    }
)
GREY = ImageSchema(1, 8, 10)
COLOUR = ImageSchema(3, 8, 10)


def grey_images(count: int = 6) -> np.ndarray:
    """uint8, shape (count, 1, 8, 10); no two alike."""
    return np.random.default_rng(7).integers(0, 256, (count, 1, 8, 10), dtype=np.uint8)


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, row_group_size=3)


def write_arrow(frame: pd.DataFrame, path: Path, opener: Callable[..., Any] = pa.ipc.new_file) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with opener(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_arrow_stream(frame: pd.DataFrame, path: Path) -> None:
    write_arrow(frame, path, pa.ipc.new_stream)


def write_feather(frame: pd.DataFrame, path: Path) -> None:
    pyarrow.feather.write_feather(frame, path)


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False)


def write_semicolons(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, sep=";")


def write_tabs(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, index=False, sep="\t", lineterminator="\r\n", encoding="utf-8-sig")


def write_npy(frame: pd.DataFrame, path: Path) -> None:
    np.save(path, np.ascontiguousarray(frame.to_numpy()))


def write_fortran_npy(frame: pd.DataFrame, path: Path) -> None:
    np.save(path, np.asfortranarray(frame.to_numpy()))


def write_big_endian_npy(frame: pd.DataFrame, path: Path) -> None:
    np.save(path, frame.to_numpy().astype(">f8"))


def write_npz(frame: pd.DataFrame, path: Path) -> None:
    np.savez(path, y=np.zeros(len(frame)), X=np.ascontiguousarray(frame.to_numpy()))


def write_fortran_npz(frame: pd.DataFrame, path: Path) -> None:
    np.savez_compressed(path, X=np.asfortranarray(frame.to_numpy()))


def write_compressed_npz(frame: pd.DataFrame, path: Path) -> None:
    np.savez_compressed(path, whatever=np.ascontiguousarray(frame.to_numpy()))


# Every format that holds named columns, and those that do not.
NAMED: list[tuple[str, Callable[[pd.DataFrame, Path], None]]] = [
    ("rows.parquet", write_parquet),
    ("rows.pq", write_parquet),
    ("rows.arrow", write_arrow),
    ("stream.arrow", write_arrow_stream),
    ("rows.feather", write_feather),
    ("rows.csv", write_csv),
    ("semicolons.csv", write_semicolons),
    ("rows.tsv", write_tabs),
]
BARE: list[tuple[str, Callable[[pd.DataFrame, Path], None]]] = [
    ("rows.npy", write_npy),
    ("fortran.npy", write_fortran_npy),
    ("big_endian.npy", write_big_endian_npy),
    ("rows.npz", write_npz),
    ("fortran.npz", write_fortran_npz),
    ("compressed.npz", write_compressed_npz),
]


def write_images(folder: Path, images: np.ndarray, names: list[str] | None = None) -> list[str]:
    """PNG of uint8 images, shape (n, C, 8, 10); names in sorted order."""
    names = names or [f"{'ab'[i % 2]}/{i:02}.png" for i in range(len(images))]
    for name, image in zip(names, images, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(folder / name)
    return sorted(names)


class FakeImputation(NamedTuple):
    mean: Any
    std: np.ndarray
    draws: np.ndarray | None
    ess: np.ndarray
    flags: np.ndarray


class FakeBundle:
    """Arithmetic in place of a model.

    The score is the sum of the observed cells' absolute values, p is 1 / (1 + score); a missing
    cell of place j is imputed as 10 j + 0.75 with spread 2 (j + 1), its draw m as a number hashed
    from seed, id and m.
    """

    score_names = ("sum", "max")
    digest, provider = "0" * 64, "CPUExecutionProvider"

    def __init__(self, schema: Schema, generative: bool = True) -> None:
        self.schema, self.generative = schema, generative
        self.ids: list[Any] = []

    def verdicts(self, x: Any, observed: Any = None, false_alarm_rate: float | None = None) -> pd.DataFrame:
        rate = 0.2 if false_alarm_rate is None else false_alarm_rate
        if rate < 0.01:
            raise CalibrationError(f"a false alarm rate of {rate} needs at least 99 normal rows, got 20")
        samples = self.schema.read(x, observed)
        flat = np.abs(samples.values.astype(np.float64)).reshape(len(samples.values), self.schema.elements)
        present = samples.observed.reshape(flat.shape)
        size = np.where(present, flat, 0.0)
        empty = ~present.any(axis=1)
        total = np.where(empty, np.nan, [float(sum(row)) for row in size.tolist()])
        p = 1 / (1 + total)
        flags = pd.array(p <= rate, dtype="boolean")
        flags[np.asarray(empty)] = pd.NA
        most = np.where(empty, np.nan, size.max(axis=1, initial=0))
        return pd.DataFrame(
            {
                "score": total,
                "p_value": p,
                "is_outlier": flags,
                "score_sum": total,
                "score_max": most,
                "clipped": (size > 1e4).sum(axis=1),
            }
        )

    def discoveries(self, p_values: Any, fdr: float) -> npt.NDArray[np.bool_]:
        if fdr < 0.01:
            raise CalibrationError(f"a false discovery rate of {fdr} needs at least 99 normal rows, got 20")
        return benjamini_hochberg(p_values, fdr)

    def impute(
        self,
        x: Any,
        observed: Any = None,
        draws: int | None = None,
        seed: int = 0,
        ids: Any = None,
        k: int | None = None,
    ) -> FakeImputation:
        if not self.generative:
            raise UnsupportedError("an autoencoder gives no imputations; train a VAE")
        samples = self.schema.read(x, observed)
        shape = samples.values.shape
        place = np.arange(self.schema.elements, dtype=np.float64).reshape(shape[1:])
        mean = np.where(samples.observed, samples.values, 10 * place + 0.75)
        std = np.where(samples.observed, 0.0, 2 * (place + 1))
        drawn = None
        if draws:
            self.ids += list(ids)
            noise = np.array([[hashed(seed, key, m) for key in ids] for m in range(draws)], dtype=np.float64)
            noise = noise.reshape((draws, len(ids), *[1] * (len(shape) - 1)))
            drawn = np.where(samples.observed, samples.values, noise)
        empty = ~samples.observed.reshape(shape[0], self.schema.elements).any(axis=1)
        ess = 5.0 * samples.observed.reshape(shape[0], self.schema.elements).sum(axis=1)
        return FakeImputation(mean, std, drawn, ess, np.where(empty, "nothing_observed", ""))


class Counting(FakeBundle):
    """Counts the rows it is asked about; past ``most`` it raises."""

    def __init__(self, schema: Schema, most: int | None = None, error: BaseException | None = None) -> None:
        super().__init__(schema)
        self.asked, self.most, self.error = 0, most, error or KeyboardInterrupt()

    def verdicts(self, x: Any, observed: Any = None, false_alarm_rate: float | None = None) -> pd.DataFrame:
        self._count(x)
        return super().verdicts(x, observed, false_alarm_rate)

    def impute(self, x: Any, *args: Any, **kwargs: Any) -> FakeImputation:
        self._count(x)
        return super().impute(x, *args, **kwargs)

    def _count(self, x: Any) -> None:
        if self.most is not None and self.asked + len(x) > self.most:
            raise self.error
        self.asked += len(x)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A disk that is full for files beyond so many bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def hashed(seed: int, key: object, draw: int) -> int:
    """The fake draw, 0 to 199."""
    return zlib.crc32(f"{seed}/{key}/{draw}".encode()) % 200


CHUNKS = [1, 2, 7, None]
FORMATS = pytest.mark.parametrize(("name", "write"), NAMED + BARE, ids=[name for name, _ in NAMED + BARE])
TABLES = pytest.mark.parametrize(("name", "write"), NAMED, ids=[name for name, _ in NAMED])
Write = Callable[[pd.DataFrame, Path], None]


def read(path: Path, schema: Schema = TABLE, **options: Any) -> list[Chunk]:
    return list(open_source(path, schema, ReadOptions(**options)).chunks())


def values_of(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.values for chunk in chunks])


def observed_of(chunks: list[Chunk]) -> np.ndarray:
    return np.concatenate([chunk.observed for chunk in chunks])


def ids_of(chunks: list[Chunk]) -> list[Any]:
    return [key for chunk in chunks for key in chunk.ids.to_pylist()]


def rejects_of(chunks: list[Chunk]) -> list[tuple[Any, ...]]:
    return [tuple(reject) for chunk in chunks for reject in chunk.rejects]


def rows_csv(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


IMAGES = grey_images()
UNIT = ImageSchema(1, 8, 10, "float32", 0.0, 1.0)
BUNDLE = FakeBundle(TABLE)


def score(source: Path, out: Path, bundle: Any = BUNDLE, **arguments: Any) -> tuple[JobSummary, pd.DataFrame]:
    names = ("false_alarm_rate", "fdr", "rank", "progress")
    settings = {name: arguments.pop(name) for name in names if name in arguments}
    summary = score_file(bundle, source, out, ReadOptions(**arguments), **settings)
    return summary, pd.read_parquet(out)


def impute(source: Path, out: Path, bundle: Any = BUNDLE, **arguments: Any) -> JobSummary:
    names = ("draws", "seed", "with_std", "progress")
    settings = {name: arguments.pop(name) for name in names if name in arguments}
    return impute_file(bundle, source, out, ReadOptions(**arguments), **settings)


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def infinite_rows(path: Path) -> Path:
    frame = ROWS.assign(key=[f"k{i}" for i in range(7)])
    frame.loc[2, "c"], frame.loc[6, "a"] = np.inf, -np.inf
    write_csv(frame, path)
    return path
