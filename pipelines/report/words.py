"""Numbers and foreign text, ready to print."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipelines.report.metrics import Array

NOT_AVAILABLE = "n/a"


def number(value: float | None) -> str:
    """Three telling digits; "n/a" for None.

    Examples
    --------
    >>> number(0.98765), number(1234567.0), number(12.0), number(15.97), number(None)
    ('0.988', '1.23e+06', '12', '16.0', 'n/a')
    """
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    whole = value == round(value)
    return f"{value:.{0 if whole else max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def percent(value: float | None) -> str:
    """A share in percent; "n/a" for None.

    Examples
    --------
    >>> percent(0.05), percent(0.05573), percent(0.0004), percent(None)
    ('5\xa0%', '5.6\xa0%', '0.04\xa0%', 'n/a')
    """
    if value is None:
        return NOT_AVAILABLE
    text = f"{100 * value:.2g}" if 0 < value < 0.01 else f"{100 * value:.1f}".removesuffix(".0")
    return f"{text}\N{NO-BREAK SPACE}%"


def count(value: int, one: str, many: str = "") -> str:
    """A number with its noun.

    Examples
    --------
    >>> count(1, "row"), count(2, "row"), count(1500, "anomaly", "anomalies")
    ('1 row', '2 rows', '1,500 anomalies')
    """
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def printable(text: Any, at_most: int = 120) -> str:
    """Foreign text made safe to write as UTF-8, and short."""
    clean = str(text).encode("utf-8", "replace").decode("utf-8")
    clean = "".join(c if c.isprintable() else " " for c in clean)
    return clean if len(clean) <= at_most else clean[: at_most - 1] + "…"


def jsonable(value: Any) -> Any:
    """The same in the types of JSON: arrays as lists, NaN and infinities as null, the rest as text."""
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, np.ndarray):
        array: Array = value
        return jsonable(array.tolist())
    if isinstance(value, np.generic):
        return jsonable(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def flattened(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested fields as rows of a table, names joined by dots, long lists cut."""
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            rows += flattened(value, f"{name}.")
        elif isinstance(value, float):
            rows.append((name, number(value)))
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(str(item) for item in value[:10])))
        else:
            rows.append((name, NOT_AVAILABLE if value is None else str(value)))
    return rows
