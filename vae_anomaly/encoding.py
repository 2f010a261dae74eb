"""Raw values <-> model space, as modules that are exported inside the graphs.

Model space is flat and float32: shape (B, D), zero where nothing was observed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vae_anomaly.columns import Column, feature_starts, group_columns
from vae_anomaly.exceptions import DataError
from vae_anomaly.log_columns import TINY, LogAverages, log_range
from vae_anomaly.schema import ImageSchema, Mask, Samples, Schema, TableSchema

# Standardised units beyond which a table's cell is clipped: far outside any training range, and
# small enough that squares and products of it stay finite in float32.
TABLE_LIMIT = 1e4
# Distance of a standard normal's quartiles.
NORMAL_QUARTILES = 1.3489795
# Spreads of the middle half: a standard deviation that many times as large is made by what lies as far
# from the median, if that is but a few cells.
WILD = 10.0
# Share of a column's cells that are a few, but one cell always is.
FEW = 0.01


class Encoded(NamedTuple):
    """Samples in model space.

    Attributes
    ----------
    x : Tensor, shape (B, F)
        Zero where not observed. F is D but for tables with classes.
    observed : bool Tensor, shape (B, D)
    clipped : int64 Tensor, shape (B,)
        Observed cells that lay outside the model's range.
    """

    x: Tensor
    observed: Tensor
    clipped: Tensor


class ImageEncoding(nn.Module):
    """Pixels to [low, high] of the likelihood, and back.

    Parameters
    ----------
    schema : ImageSchema
    low, high : float
        The likelihood's range: 0 and 1, or -1 and 1 for a tanh output.
    """

    logs: LogAverages | None = None

    def __init__(self, schema: ImageSchema, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.shape = schema.shape
        self.raw_low, self.raw_high = schema.low, schema.high
        self.low = low
        self.scale = (high - low) / (schema.high - schema.low)
        self.dtype = torch.uint8 if schema.dtype == "uint8" else torch.float32
        self.wild: tuple[int, ...] = ()

    def forward(self, x: Tensor, observed: Tensor) -> Encoded:
        """Read raw images (B, C, H, W) with their mask."""
        x, observed = x.flatten(1), observed.flatten(1)
        if self.dtype == torch.uint8:
            clipped = torch.zeros_like(x[:, 0], dtype=torch.int64)
            pixels = x.float()
        else:
            observed = observed & ~torch.isnan(x)
            outside = observed & ((x < self.raw_low) | (x > self.raw_high))
            clipped = outside.long().sum(dim=1)
            pixels = x.clamp(self.raw_low, self.raw_high)
        y = (pixels - self.raw_low) * self.scale + self.low
        return Encoded(torch.where(observed, y, 0.0), observed, clipped)

    def decode(self, y: Tensor) -> Tensor:
        """Model space (..., D) to raw units (..., C, H, W), float32, inside the raw range."""
        raw = (y - self.low) / self.scale + self.raw_low
        image: Tensor = raw.clamp(self.raw_low, self.raw_high).unflatten(-1, self.shape)
        return image

    def decode_scale(self, deviation: Tensor, mean: Tensor) -> Tensor:
        """A standard deviation (..., D) in model space, in raw units (..., C, H, W)."""
        image: Tensor = (deviation / self.scale).unflatten(-1, self.shape)
        return image


class TableEncoding(nn.Module):
    """Standardised columns, computed in float64 so that large offsets keep their digits.

    Parameters
    ----------
    mean, scale : float64 Tensor, shape (D,)
        Raw units. Of robust scaling the median, and the distance of the quartiles over 1.349, which is a
        normal's standard deviation. A scale of 0 is a constant column's: it is read as with 1, and what
        is decoded is the constant.
    wild : tuple of int, optional
        Columns that are scaled robustly unasked, for a few cells far from all others.
    """

    logs: LogAverages | None = None

    def __init__(self, mean: Tensor, scale: Tensor, wild: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.wild = wild
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", mean.double())
        self.register_buffer("scale", scale.double())
        self.dtype = torch.float64

    @classmethod
    def fit(cls, samples: Samples, schema: TableSchema, scaling: str = "standard") -> TableEncoding:
        """Mean and standard deviation of the observed cells of each column, or their robust counterparts.

        Those also where a few cells make the deviation: one 999 among values near 1 would leave all others
        no room in which they could differ.

        Raises
        ------
        DataError
            If a column holds no value at all.
        """
        _refuse_empty(samples, schema)
        mean, deviation = _moments(samples.values, samples.observed)
        middle, spread, wild = _robust_moments(samples.values, samples.observed, deviation)
        if scaling == "robust":
            return cls(torch.from_numpy(middle), torch.from_numpy(spread))
        mean, scale = np.where(wild, middle, mean), np.where(wild, spread, deviation)
        return cls(torch.from_numpy(mean), torch.from_numpy(scale), tuple(np.flatnonzero(wild).tolist()))

    def forward(self, x: Tensor, observed: Tensor) -> Encoded:
        """Read raw rows (B, D), float64, with their mask."""
        observed = observed & ~torch.isnan(x)
        scale = torch.where(self.scale == 0, 1.0, self.scale)
        units = (torch.where(observed, x, self.mean) - self.mean) / scale
        clipped = (units.abs() > TABLE_LIMIT).long().sum(dim=1)
        return Encoded(units.clamp(-TABLE_LIMIT, TABLE_LIMIT).float(), observed, clipped)

    def decode(self, y: Tensor) -> Tensor:
        """Standardised units (..., D) to raw units, float64."""
        return y.double() * self.scale + self.mean

    def decode_scale(self, deviation: Tensor, mean: Tensor) -> Tensor:
        """A standard deviation in standardised units, in raw units, float64."""
        return deviation.double() * self.scale


class MixedEncoding(nn.Module):
    """Columns of several kinds: numbers standardised, 0 and 1 for a binary one, one-hot classes.

    Of a positive column the logarithm is standardised. It keeps to the range of training widened by ten
    standard deviations, both ways; a value beyond, and what is not above 0, counts as clipped.

    What comes back keeps to the kind: whole numbers, one of a binary column's two values, the code
    of the most probable class, and a column's bounds.

    Parameters
    ----------
    columns : sequence of Column
    numbers : TableEncoding or None
        Of the columns that are one number in model space, in their order; of logarithms where positive. None
        where there are none: operators over no columns would not export.

    Attributes
    ----------
    logs : LogAverages or None
        How positive columns are averaged over draws, where there are any.
    """

    single: Tensor
    classes: Tensor
    single_features: Tensor
    owner: Tensor
    level: Tensor
    feature_order: Tensor
    column_order: Tensor
    whole: Tensor
    truth: Tensor
    positive: Tensor
    least: Tensor
    most: Tensor
    lower: Tensor
    upper: Tensor
    logs: LogAverages | None

    def __init__(self, columns: Sequence[Column], numbers: TableEncoding | None) -> None:
        super().__init__()
        self.numbers = numbers
        self.dtype = torch.float64
        single = [i for i, column in enumerate(columns) if not column.classes]
        classes = [i for i, column in enumerate(columns) if column.classes]
        starts = feature_starts(columns)
        hot = [starts[i] + j for i in classes for j in range(columns[i].classes)]
        self.groups = group_columns([columns[i] for i in classes])
        self._keep("single", single)
        self._keep("classes", classes)
        self._keep("single_features", [starts[i] for i in single])
        self._keep("owner", [n for n, i in enumerate(classes) for _ in range(columns[i].classes)])
        levels = [float(number) for i in classes for number in columns[i].numbers]
        self._keep("level", levels, torch.float64)
        self._keep("feature_order", _inverse([*(starts[i] for i in single), *hot]))
        own = [[starts[classes[n]] + j for n in g for j in range(c)] for (_, c), g in self.groups]
        for number, places in enumerate(own):
            self._keep(f"group_{number}", places)
            own_levels = [x for n in self.groups[number][1] for x in columns[classes[n]].numbers]
            self._keep(f"levels_{number}", own_levels, torch.float64)
        decoded = [*single, *(classes[n] for _, g in self.groups for n in g)]
        self._keep("column_order", _inverse(decoded))
        kinds = [columns[i].kind for i in single]
        self._keep("whole", [kind == "integer" for kind in kinds], torch.bool)
        self._keep("truth", [kind == "binary" for kind in kinds], torch.bool)
        self._keep_logs(
            [columns[i] for i in single], [starts[i] for i in single], sum(c.features for c in columns)
        )
        ends = [(columns[i].lower, columns[i].upper) for i in single]
        self._keep("lower", [-math.inf if low is None else low for low, _ in ends], torch.float64)
        self._keep("upper", [math.inf if high is None else high for _, high in ends], torch.float64)
        self.wild = tuple(single[i] for i in numbers.wild) if numbers is not None else ()

    def _keep_logs(self, columns: Sequence[Column], starts: Sequence[int], features: int) -> None:
        """What positive columns need; the ranges of all others are infinite."""
        own = [i for i, column in enumerate(columns) if column.kind == "positive"]
        ends = [(-math.inf, math.inf)] * len(columns)
        self.logs = None
        if own and self.numbers is not None:
            mean, scale = self.numbers.mean, self.numbers.scale
            for i in own:
                ends[i] = log_range(columns[i], float(mean[i]), float(scale[i]))
            positive, places = [columns[i] for i in own], [starts[i] for i in own]
            self.logs = LogAverages(positive, places, features, mean[own], scale[own])
        self._keep("positive", [column.kind == "positive" for column in columns], torch.bool)
        self._keep("least", [low for low, _ in ends], torch.float64)
        self._keep("most", [high for _, high in ends], torch.float64)

    def _keep(self, name: str, values: Sequence[float], dtype: torch.dtype = torch.int64) -> None:
        self.register_buffer(name, torch.tensor(values, dtype=dtype), persistent=False)

    @classmethod
    def fit(cls, samples: Samples, schema: TableSchema, scaling: str = "standard") -> MixedEncoding:
        """Moments of the columns that are numbers; of the others the schema knows all.

        Raises
        ------
        DataError
            If a column holds no value at all.
        """
        _refuse_empty(samples, schema)
        columns = schema.columns
        single = [i for i, column in enumerate(columns) if not column.classes]
        if not single:
            return cls(columns, None)
        rows = Samples(
            _logged(samples.values[:, single], [columns[i] for i in single]), samples.observed[:, single]
        )
        numbers = TableEncoding.fit(rows, TableSchema(tuple(columns[i] for i in single)), scaling)
        for place, column in enumerate(columns[i] for i in single):
            if column.kind == "binary":
                low, high = column.low or 0.0, column.high if column.high is not None else 1.0
                numbers.mean[place] = low
                numbers.scale[place] = high - low
        return cls(columns, numbers)

    def forward(self, x: Tensor, observed: Tensor) -> Encoded:
        """Read raw rows (B, D), float64, with their mask."""
        observed = observed & ~torch.isnan(x)
        # A number that is no class: the schema calls it missing, here it scores as if it were certain.
        hot = x.index_select(1, self.classes).index_select(1, self.owner) == self.level
        hot = hot & observed.index_select(1, self.classes).index_select(1, self.owner)
        if self.numbers is None:
            none = torch.zeros_like(observed[:, 0], dtype=torch.int64)
            return Encoded(hot.float().index_select(1, self.feature_order), observed, none)
        own, seen = x.index_select(1, self.single), observed.index_select(1, self.single)
        own, outside = self._read_positive(own, seen)
        numbers = self.numbers(own, seen)
        truths = numbers.x.clamp(0.0, 1.0).round()
        units = torch.where(self.truth, truths, numbers.x)
        clipped = numbers.clipped + outside + (self.truth & (truths != numbers.x)).long().sum(dim=1)
        features = torch.cat([units, hot.float()], dim=1).index_select(1, self.feature_order)
        return Encoded(features, observed, clipped)

    def decode(self, y: Tensor) -> Tensor:
        """Model space (..., F) to raw units (..., D), float64, of each column's kind."""
        found = [] if self.numbers is None else [self._numbers(self.numbers, y)]
        for number, own in enumerate(self._groups(y)):
            first = torch.arange(own.shape[-2], device=own.device) * own.shape[-1]
            found.append(getattr(self, f"levels_{number}")[own.argmax(dim=-1) + first])
        return torch.cat(found, dim=-1).index_select(-1, self.column_order)

    def _numbers(self, numbers: TableEncoding, y: Tensor) -> Tensor:
        units = y.index_select(-1, self.single_features)
        units = torch.where(self.truth, units.clamp(0.0, 1.0).round(), units)
        raw = numbers.decode(units)
        if self.logs is not None:
            raw = torch.where(self.positive, self._exp(raw), raw)
        raw = torch.where(self.whole, raw.round(), raw)
        return torch.minimum(torch.maximum(raw, self.lower), self.upper)

    def decode_scale(self, deviation: Tensor, mean: Tensor) -> Tensor:
        """Standard deviations in raw units; for classes the probability of all but the most probable.

        Of a positive column that times the mean: exact for the averages of `LogAverages`, whose deviation
        is one relative to the mean.
        """
        doubts = [1.0 - p.amax(dim=-1).clamp(0.0, 1.0).double() for p in self._groups(mean)]
        if self.numbers is None:
            return torch.cat(doubts, dim=-1).index_select(-1, self.column_order)
        own = deviation.index_select(-1, self.single_features)
        spread = self.numbers.decode_scale(own, mean)
        if self.logs is not None:
            raw = self.numbers.decode(mean.index_select(-1, self.single_features))
            spread = torch.where(self.positive, spread * self._exp(raw), spread)
        return torch.cat([spread, *doubts], dim=-1).index_select(-1, self.column_order)

    def _read_positive(self, own: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithms of positive columns, and how many cells of a row lie outside their range."""
        if self.logs is None:
            return own, torch.zeros_like(own[:, 0], dtype=torch.int64)
        logs = torch.where(self.positive, torch.log(own.clamp_min(TINY)), own)
        inside = torch.minimum(torch.maximum(logs, self.least), self.most)
        outside = observed & self.positive & (inside != logs)
        return torch.where(self.positive, inside, own), outside.long().sum(dim=1)

    def _exp(self, logs: Tensor) -> Tensor:
        """Values of logarithms, within their range; 1 where the column is none."""
        inside = torch.minimum(torch.maximum(logs, self.least), self.most)
        return torch.exp(torch.where(self.positive, inside, 0.0))

    def _groups(self, y: Tensor) -> list[Tensor]:
        """Classes of the columns that have equally many, (..., n, C) each."""
        return [
            y.index_select(-1, getattr(self, f"group_{number}")).unflatten(-1, (len(members), classes))
            for number, ((_, classes), members) in enumerate(self.groups)
        ]


Encoding = ImageEncoding | TableEncoding | MixedEncoding


def fit_encoding(
    schema: Schema, samples: Samples, output_range: tuple[float, float], scaling: str = "standard"
) -> Encoding:
    """The encoding for a schema, its statistics taken from training samples."""
    if isinstance(schema, ImageSchema):
        return ImageEncoding(schema, *output_range)
    plain = all(column.kind == "real" and column.lower is column.upper is None for column in schema.columns)
    return (TableEncoding if plain else MixedEncoding).fit(samples, schema, scaling)


def _refuse_empty(samples: Samples, schema: TableSchema) -> None:
    seen = np.asarray(samples.observed.any(axis=0)).tolist()
    empty = [name for name, some in zip(schema.names, seen, strict=True) if not some]
    if empty:
        raise DataError(f"training column {empty[0]!r} has no value in any row; leave it out")


def _logged(values: np.ndarray, columns: Sequence[Column]) -> np.ndarray:
    """Values with the logarithm in place of those of positive columns."""
    positive = np.array([column.kind == "positive" for column in columns], dtype=np.bool_)
    return np.where(positive, np.log(np.where(positive, np.maximum(values, TINY), 1.0)), values)


def _inverse(places: list[int]) -> list[int]:
    """Where each entry stands after a permutation."""
    return [int(place) for place in np.argsort(places)]


def _robust_moments(
    values: np.ndarray, observed: Mask, deviation: np.ndarray
) -> tuple[np.ndarray, np.ndarray, npt.NDArray[np.bool_]]:
    """Median, spread of the middle half, and whether a few cells alone make the deviation of a column.

    The deviation in place of the spread where that half is but one value, or so narrow that more
    than a few cells would lie beyond the limit.
    """
    cells = np.where(observed, values, np.nan)
    low, middle, high = np.nanquantile(cells, (0.25, 0.5, 0.75), axis=0)
    spread = high / NORMAL_QUARTILES - low / NORMAL_QUARTILES
    few = np.maximum(1, FEW * observed.sum(axis=0))

    def only_few(spreads: float) -> npt.NDArray[np.bool_]:
        with np.errstate(over="ignore", invalid="ignore"):
            beyond = np.abs(cells - middle) > spreads * spread
        return np.asarray(beyond.sum(axis=0) <= few)

    # Rounding of one value is no spread.
    usable = (spread > 4 * np.finfo(np.float64).eps * np.abs(middle)) & only_few(TABLE_LIMIT)
    wild = usable & only_few(WILD) & (deviation / WILD > spread)
    return middle, np.where(usable, spread, deviation), wild


def _moments(values: np.ndarray, observed: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation per column.

    Divided by a power of two, so that 1e300 does not overflow and no digit is lost; measured from
    a value of the column, so that a constant one has exactly no deviation.
    """
    filled = np.where(observed, values, 0.0)
    exponent = np.frexp(np.abs(filled).max(axis=0))[1]
    unit = np.ldexp(filled, -exponent)
    origin = np.take_along_axis(unit, observed.argmax(axis=0)[None], axis=0)
    count = observed.sum(axis=0)
    shift = np.where(observed, unit - origin, 0.0)
    mean = shift.sum(axis=0) / count
    deviation = np.sqrt((np.where(observed, shift - mean, 0.0) ** 2).sum(axis=0) / count)
    # A few last bits are rounding of the source, not spread.
    deviation = np.where(deviation <= 4 * np.finfo(np.float64).eps, 0.0, deviation)
    return np.ldexp(origin[0] + mean, exponent), np.ldexp(deviation, exponent)
