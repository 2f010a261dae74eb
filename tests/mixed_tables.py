"""A table with a column of every kind, made of one factor."""

from __future__ import annotations

import numpy as np
import pandas as pd

CITIES = np.array(["lima", "oslo", "rome"])
SIZES = np.array(["s", "m", "l", "xl"])


def mixed_rows(rows: int = 240, seed: int = 0, gaps: float = 0.1) -> pd.DataFrame:
    """Real, positive-looking, integer, binary, categorical, ordinal and text columns; cells missing."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=rows)

    def cut(noise: float, classes: int) -> np.ndarray:
        return np.clip((z + rng.normal(scale=noise, size=rows) + 2) * classes / 4, 0, classes - 1).astype(int)

    frame = pd.DataFrame(
        {
            "real": z + rng.normal(scale=0.2, size=rows),
            "price": np.exp(1.5 * z + rng.normal(scale=0.2, size=rows)),
            "count": pd.array(np.maximum(0, np.rint(3 * z + 6)).astype(int), dtype="Int64"),
            "ok": pd.array(z + rng.normal(scale=0.3, size=rows) > 0, dtype="boolean"),
            "city": pd.Categorical(CITIES[cut(0.2, 3)], categories=CITIES[::-1]),
            "size": pd.Categorical(SIZES[cut(0.2, 4)], categories=SIZES, ordered=True),
            "word": np.where(z > 0.5, "hi", "lo"),
            "grade": pd.Categorical(np.array([3, 7, 9])[cut(0.1, 3)]),
        },
        index=[f"r{i}" for i in range(rows)],
    )
    for name in frame:
        frame.loc[rng.random(rows) < gaps, name] = pd.NA if name in ("count", "ok") else None
    return frame
