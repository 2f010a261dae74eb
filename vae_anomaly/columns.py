"""What a column of a table holds: its kind, its categories, its bounds, and how cells become numbers.

The model reads float64: a number as it is, and so a category that is a number; one that is a name as
its code 0, 1, ... in the order of `Column.categories`. Text never reaches a graph.
"""

from __future__ import annotations

import logging
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vae_anomaly.exceptions import ConfigError, SchemaError

log = logging.getLogger(__name__)

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Category = str | int | float | bool
Kinds = Mapping[Any, str | Sequence[Category]]
Bounds = Mapping[Any, Sequence[float | None]]

KINDS = ("real", "positive", "integer", "binary", "categorical", "ordinal")
# One-hot columns and decoder outputs grow with it; beyond, a column is names rather than classes.
MOST_CATEGORIES = 100
NAMED_AT_MOST = 5


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes
    ----------
    name : str
    kind : {"real", "positive", "integer", "binary", "categorical", "ordinal"}
    low, high : float
        Range seen in training, raw units or codes.
    dtype : str
        The training column's own dtype, such as "int64".
    categories : tuple of str, int, float or bool
        Of a categorical or ordinal column, and of a binary one of names.
    lower, upper : float, optional
        Bounds that expected, imputed and drawn values keep to.
    """

    name: str
    kind: str = "real"
    low: float | None = None
    high: float | None = None
    dtype: str = "float64"
    categories: tuple[Category, ...] = ()
    lower: float | None = None
    upper: float | None = None

    @property
    def classes(self) -> int:
        """C, how many classes a categorical or ordinal column has; 0 for every other kind."""
        return len(self.categories) if self.kind in ("categorical", "ordinal") else 0

    @property
    def features(self) -> int:
        """Numbers that stand for the column in model space: one per class, else one."""
        return self.classes or 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; what only some kinds have is left out where it is empty."""
        every = asdict(self) | {"categories": list(self.categories)}
        return {k: v for k, v in every.items() if k not in ("categories", "lower", "upper") or v or v == 0}

    @property
    def truths(self) -> bool:
        """Whether the training cells were booleans."""
        return self.kind == "binary" and self.dtype in ("bool", "boolean")

    @cached_property
    def named(self) -> bool:
        """Whether categories are names, which codes stand for."""
        return any(isinstance(category, str) for category in self.categories)

    @cached_property
    def numbers(self) -> Floats:
        """The number that the model takes for each category: itself, or the code of a name."""
        values = range(len(self.categories)) if self.named else self.categories
        return np.array(values, dtype=np.float64)

    @property
    def levels(self) -> Floats:
        """The only numbers that the model takes: those of categories, or both of a binary column."""
        return self.numbers if self.categories else np.array([self.low, self.high], dtype=np.float64)

    @cached_property
    def _codes(self) -> dict[str, float]:
        return {str(category): float(code) for code, category in enumerate(self.categories)}

    def _code(self, cell: Any) -> float:
        """The code of a name; a whole number is the name that it is written as: 1.0, which a gap makes of
        1, is "1" unless there is a "1.0".
        """
        name = plain(cell)
        if isinstance(name, float) and name.is_integer() and str(name) not in self._codes:
            name = int(name)
        return self._codes.get(str(name), np.nan)

    def read(self, cells: pd.Series[Any], *, coded: bool = False) -> tuple[Floats, Mask]:
        """The cells as the model takes them, and which of them hold a value never seen in training.

        Parameters
        ----------
        cells : Series
        coded : bool
            Where categories are names, cells of a float dtype are codes already.

        Returns
        -------
        float64 ndarray, shape (B,)
            NaN where missing or never seen.
        bool ndarray, shape (B,)

        Raises
        ------
        SchemaError
            If a column of numbers holds anything else.
        """
        own, unseen = self.read_own(cells, coded=coded)
        return np.where(unseen, np.nan, own), unseen

    def read_own(self, cells: pd.Series[Any], *, coded: bool = False) -> tuple[Floats, Mask]:
        """As `read`, but a number never seen is itself, not NaN; a name never seen has none."""
        cells = without_arrow(cells)
        if self.named and not (coded and pd.api.types.is_float_dtype(cells.dtype)):
            place, names = pd.factorize(cells)
            codes = np.array([*map(self._code, names), np.nan])
            read = codes[place]
            return read, np.isnan(read) & (place >= 0)
        if isinstance(cells.dtype, pd.CategoricalDtype):
            cells = cells.astype(object)
        read = to_numbers(cells, self.name)
        if not self.categories and self.kind != "binary":
            return read, np.zeros(len(read), dtype=np.bool_)
        return read, ~np.isnan(read) & ~np.isin(read, self.levels)

    def label(self, values: Floats) -> pd.Series[Any]:
        """The model's numbers as a caller would write them: categories by name, whole numbers whole."""
        if self.categories:
            order = np.argsort(self.numbers)
            codes = order[np.searchsorted(self.numbers, values, sorter=order).clip(max=len(order) - 1)]
            codes[~np.isin(values, self.numbers)] = -1
            classes = pd.CategoricalDtype(list(self.categories), ordered=self.kind == "ordinal")
            named = pd.Categorical.from_codes(codes, dtype=classes)
            return pd.Series(named if self.dtype == "category" else named.astype(object), name=self.name)
        whole = self.kind in ("integer", "binary") and self.dtype != "float64"
        if whole and not np.isnan(values).any():
            kind = np.bool_ if self.truths else np.int64
            return pd.Series(values.astype(kind), name=self.name)
        return pd.Series(values, name=self.name)


def infer_column(
    cells: pd.Series[Any], name: str, kind: str | Sequence[Category] | None = None, *, typed: bool = True
) -> Column:
    """The column that training cells are of, by dtype and values.

    ======================================================  ==================
    cells                                                   kind
    ======================================================  ==================
    booleans                                                binary
    whole numbers: an integer dtype, or a float dtype       integer
    with gaps, which pandas makes of it
    other numbers                                           real
    pandas categories, ordered / not ordered                ordinal, categorical
    text of at most 100 values, each twice on average       categorical
    ======================================================  ==================

    Parameters
    ----------
    cells : Series
    name : str
    kind : str or sequence, optional
        In place of the inferred one; a sequence is the categories of an ordinal column, in order.
    typed : bool
        False for the columns of a bare array: numbers stay real.

    Raises
    ------
    SchemaError
        If the cells hold neither numbers nor categories, or too many of them, or do not go with ``kind``.
    ConfigError
        If there is no such kind.
    """
    cells = without_arrow(cells)
    order: Sequence[Category] | None = None
    if kind is not None and not isinstance(kind, str):
        kind, order = "ordinal", tuple(plain(category) for category in kind)
    if kind is not None and kind not in KINDS:
        close = get_close_matches(kind, KINDS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose {', '.join(KINDS)}"
        raise ConfigError(f"kind of column {name!r} is {kind!r}; {hint}")
    kind = kind or _inferred_kind(cells, name, typed)
    if kind in ("categorical", "ordinal") or (kind == "binary" and not _is_numeric(cells)):
        return _with_categories(cells, name, kind, order)
    return _with_numbers(cells, name, kind)


def without_arrow(cells: pd.Series[Any]) -> pd.Series[Any]:
    """Dictionaries of Arrow as pandas categories, its booleans as nullable ones; other cells as they are."""
    if not isinstance(cells.dtype, pd.ArrowDtype):
        return cells
    if pd.api.types.is_bool_dtype(cells.dtype):
        return cells.astype("boolean")
    if str(cells.dtype).startswith("dictionary"):
        return pd.Series(cells.array.__arrow_array__().to_pandas().array, cells.index, name=cells.name)
    return cells


def plain(value: Any) -> Category:
    """A category as JSON holds it: what is no text, truth or number becomes text."""
    if isinstance(value, str | bool | np.bool_):
        return str(value) if isinstance(value, str) else bool(value)
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and np.isfinite(float(value)) else str(value)


def to_numbers(column: pd.Series[Any], name: str) -> Floats:
    """A column of numbers of any dtype as float64, NaN where missing; `SchemaError` for anything else."""
    if not (pd.api.types.is_numeric_dtype(column.dtype) or column.dtype == object) or (
        pd.api.types.is_complex_dtype(column.dtype)
    ):
        raise SchemaError(
            f"column {name!r} has dtype {column.dtype}; expected numbers: convert it or leave it out"
        )
    if column.dtype == object:
        return object_numbers(column.where(column.notna(), np.nan).to_numpy(), f"column {name!r}: cells")
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def object_numbers(values: npt.NDArray[Any], what: str) -> Floats:
    """Python numbers as float64; text and complex numbers are refused."""
    odd = (v for v in values.ravel() if isinstance(v, str | bytes | complex) or not hasattr(v, "__float__"))
    if (found := next((v for v in odd if v is not None), None)) is not None:
        raise SchemaError(f"{what} hold {type(found).__name__} values; expected numbers: leave them out")
    try:
        return values.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"{what} have dtype object and do not convert to numbers") from error


def bounded(column: Column, bounds: Sequence[float | None]) -> Column:
    """The column with these bounds; those of an integer column are rounded inward.

    Raises
    ------
    ConfigError
        If it has no numbers to bound, or the bounds leave out some of its training values.
    """
    lower, upper = _ends(column.name, bounds)
    if column.categories or column.kind == "binary":
        raise ConfigError(f"column {column.name!r} is {column.kind}; only numbers have bounds")
    if column.kind == "integer":
        lower = None if lower is None else float(np.ceil(lower))
        upper = None if upper is None else float(np.floor(upper))
        if lower is not None and upper is not None and lower > upper:
            raise ConfigError(
                f"bounds of column {column.name!r} are {bounds[0]} to {bounds[1]} with no whole number "
                "between them; widen the bounds"
            )
    below = lower is not None and column.low is not None and column.low < lower
    if below or (upper is not None and column.high is not None and column.high > upper):
        raise ConfigError(
            f"bounds of column {column.name!r} are {lower} to {upper}, its training values run from "
            f"{column.low:g} to {column.high:g}; widen the bounds or mend the data"
        )
    return replace(
        column,
        lower=column.lower if lower is None else lower,
        upper=column.upper if upper is None else upper,
    )


def _ends(name: str, bounds: Any) -> tuple[float | None, float | None]:
    """A lower and an upper bound, infinite ones as None."""
    pair = bounds if isinstance(bounds, Sequence | np.ndarray) and not isinstance(bounds, str) else ()
    if len(pair) != 2 or not all(
        bound is None or (isinstance(bound, numbers.Real) and not np.isnan(float(bound))) for bound in pair
    ):
        raise ConfigError(
            f"bounds of column {name!r} are {bounds!r}; give a lower and an upper number, None for no bound"
        )
    lower, upper = (None if bound is None or np.isinf(bound) else float(bound) for bound in pair)
    if lower is not None and upper is not None and lower > upper:
        raise ConfigError(f"bounds of column {name!r} are {lower} to {upper}, the upper one first; swap them")
    return lower, upper


Group = tuple[tuple[str, int], list[int]]


def group_columns(columns: Sequence[Column]) -> list[Group]:
    """Places of the columns that share a likelihood, by family and number of classes."""
    groups: dict[tuple[str, int], list[int]] = {}
    for place, column in enumerate(columns):
        groups.setdefault((family(column), column.classes), []).append(place)
    return list(groups.items())


def family(column: Column) -> str:
    """Which likelihood a column has: "number", or its kind."""
    return column.kind if column.classes or column.kind == "binary" else "number"


def feature_starts(columns: Sequence[Column]) -> list[int]:
    """Place of each column's first feature in model space."""
    starts, next_one = [], 0
    for column in columns:
        starts.append(next_one)
        next_one += column.features
    return starts


def _is_numeric(cells: pd.Series[Any]) -> bool:
    if cells.dtype == object:
        return all(isinstance(cell, numbers.Number) for cell in cells[cells.notna()])
    return pd.api.types.is_numeric_dtype(cells.dtype)


def _is_text(cells: pd.Series[Any]) -> bool:
    if cells.dtype == object:
        return any(isinstance(cell, str) for cell in cells[cells.notna()])
    return pd.api.types.is_string_dtype(cells.dtype)


def _inferred_kind(cells: pd.Series[Any], name: str, typed: bool) -> str:
    if isinstance(cells.dtype, pd.CategoricalDtype):
        return "ordinal" if cells.dtype.ordered else "categorical"
    if not _is_numeric(cells):
        if typed and _is_text(cells):
            _refuse_names(cells, name)
            return "categorical"
        to_numbers(cells, name)
    if not typed:
        return "real"
    present = to_numbers(cells, name)
    gaps = np.isnan(present)
    present = present[~gaps]
    if len(present) and _are_truths(cells):
        return "binary"
    own = pd.api.types.is_integer_dtype(cells.dtype)
    if cells.dtype == object:
        own = all(isinstance(cell, numbers.Integral) for cell in cells[cells.notna()])
    if not len(present) or not np.isfinite(present).all() or not (own or gaps.any()) or np.any(present % 1):
        return "real"
    return "integer"


def _are_truths(cells: pd.Series[Any]) -> bool:
    if cells.dtype == object:
        return all(isinstance(cell, bool | np.bool_) for cell in cells[cells.notna()])
    return pd.api.types.is_bool_dtype(cells.dtype)


def _refuse_names(cells: pd.Series[Any], name: str) -> None:
    different, present = int(cells.nunique()), int(cells.notna().sum())
    if different > min(MOST_CATEGORIES, present / 2):
        numbers = pd.to_numeric(cells.dropna(), errors="coerce").notna().all()
        advice = (
            "all of them numbers; convert it with pandas.to_numeric or leave it out"
            if numbers
            else "names rather than categories; leave it out, group its values, or say by kinds what it is"
        )
        raise SchemaError(
            f"column {name!r} is text with {different} different values in {present} cells, {advice}"
        )


def _with_numbers(cells: pd.Series[Any], name: str, kind: str) -> Column:
    values = to_numbers(cells, name)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    lower = upper = None
    dtype = str(cells.dtype)
    if kind == "binary":
        if finite.size and _are_truths(cells):
            low, high, dtype = 0.0, 1.0, "bool" if cells.dtype == object else dtype
        if len(different := np.unique(finite)) > 2:
            raise SchemaError(f"column {name!r} has {len(different)} values; a binary one has 2")
    elif kind == "positive":
        lower = 0.0
        if low is not None and low <= 0:
            raise SchemaError(f"column {name!r} holds {low:g}; a positive one is above 0")
    elif kind == "integer":
        if np.any(finite % 1):
            raise SchemaError(f"column {name!r} holds {finite[finite % 1 != 0][0]:g}; expected whole numbers")
        lower = 0.0 if low is not None and low >= 0 else None
        # A flag stays one where it is imputed; a count seen later is far from it, and scores so.
        upper = 1.0 if (low, high) == (0.0, 1.0) else None
    return Column(name, kind, low, high, dtype, lower=lower, upper=upper)


def _with_categories(cells: pd.Series[Any], name: str, kind: str, order: Sequence[Category] | None) -> Column:
    present = cells[cells.notna()]
    if isinstance(cells.dtype, pd.CategoricalDtype):
        occurring = set(present.unique())
        found = [plain(value) for value in cells.dtype.categories if value in occurring]
    else:
        found = [plain(value) for value in present.unique()]
        numeric = all(not isinstance(value, str) for value in found)
        if kind == "ordinal" and order is None and not numeric:
            raise SchemaError(
                f"column {name!r} is text without an order; give its categories in order by kinds, "
                "or make it an ordered pandas category"
            )
        found.sort(key=None if numeric else str)
    if order is not None:
        if strange := [value for value in found if value not in order]:
            raise SchemaError(f"column {name!r} holds {strange[0]!r}, which its categories leave out; add it")
        found = [value for value in order if value in found]
    found = _each_name_once(found, name)
    most = 2 if kind == "binary" else MOST_CATEGORIES
    if len(found) > most:
        raise SchemaError(
            f"column {name!r} has {len(found)} categories; a {kind} one has at most {most}: "
            "group the rare ones, or leave it out"
        )
    column = Column(name, kind, dtype=str(cells.dtype), categories=tuple(found))
    return (
        replace(column, low=float(column.numbers.min()), high=float(column.numbers.max()))
        if found
        else column
    )


def _each_name_once(found: list[Category], name: str) -> list[Category]:
    """Categories of which none reads as another: among names a number is one, 1 as "1"."""
    names = {str(category): category for category in found}
    if len(names) == len(found) or not any(isinstance(category, str) for category in found):
        return found
    twice = next(name for name in names if sum(name == str(category) for category in found) > 1)
    log.warning(
        "column %r holds %r both as text and as a number or truth; they are one category", name, twice
    )
    return list(names)
