"""The loops over draws: memory that K does not change, rows that are never decoded."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from sample_models import table_rows

from vae_anomaly.batches import PAD_TO, Feeds
from vae_anomaly.imputing import MaskedDecode
from vae_anomaly.runtime import CPU, Bundle
from vae_anomaly.schema import Samples


class Watched:
    """A backend that notes the size of what it is given and gives back."""

    threads = 1
    provider = CPU

    def __init__(self, bundle: Bundle) -> None:
        self.backend = bundle.backend
        self.runs: list[int] = []
        self.rows: list[int] = []

    def run(self, graph: str, feeds: Feeds) -> Feeds:
        out = self.backend.run(graph, feeds)
        self.runs.append(sum(part.nbytes for part in (*feeds.values(), *out.values())))
        self.rows.append(len(feeds["x"]))
        return out


@pytest.fixture
def samples(table_bundle: Bundle) -> Samples:
    x = table_rows(40, 3).to_numpy(copy=True)
    x[:, 0] = np.nan
    return table_bundle.schema.read(x)


def decode(bundle: Bundle, watched: Watched) -> MaskedDecode:
    return MaskedDecode(bundle.manifest, bundle.calibration["noise"], watched, 1024)


@pytest.mark.parametrize("draws", [None, 3], ids=["mean", "draws"])
def test_ten_thousand_samples_take_the_memory_of_a_hundred(
    table_bundle: Bundle, samples: Samples, draws: int | None
) -> None:
    largest, peak, runs = {}, {}, {}
    for k in (100, 10_000):
        watched = Watched(table_bundle)
        tracemalloc.start()
        decode(table_bundle, watched).answer(samples, list(range(40)), draws, 0, k)
        peak[k] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        largest[k], runs[k] = max(watched.runs), len(watched.runs)
    assert runs[10_000] == 100 * runs[100]
    assert largest[10_000] == largest[100]
    # Beside the arrays there is the list of their sizes.
    assert peak[10_000] < 1.05 * peak[100] + 50_000


def test_rows_without_a_gap_are_never_decoded(table_bundle: Bundle, samples: Samples) -> None:
    full = Samples(np.nan_to_num(samples.values), np.ones_like(samples.observed))
    full.observed[[3, 20, 21]] = samples.observed[[3, 20, 21]] & False
    watched = Watched(table_bundle)
    found = decode(table_bundle, watched).answer(full, list(range(40)), 2, 0, 100)
    assert set(watched.rows) == {PAD_TO}
    others = np.setdiff1d(np.arange(40), [3, 20, 21])
    assert (found["ess"][others] == 100).all()
    alone = Samples(full.values[[3, 20, 21]], full.observed[[3, 20, 21]])
    expected = decode(table_bundle, watched).answer(alone, [3, 20, 21], 2, 0, 100)
    for name in ("mean_raw", "std_raw", "ess", "draws"):
        assert np.array_equal(found[name][[3, 20, 21]], expected[name]), name


def test_batches_of_a_perceptron_fit_a_cores_cache(table_bundle: Bundle) -> None:
    wide = replace(
        table_bundle.manifest, architecture={**table_bundle.manifest.architecture, "hidden": [256]}
    )
    watched = Watched(table_bundle)
    asked = replace(decode(table_bundle, watched), manifest=wide)
    values = np.full((100, 4), np.nan)
    asked.answer(Samples(values, np.zeros(values.shape, np.bool_)), [], None, 0, 50)
    # 32 rows x 50 draws x 256 units x 4 bytes are 1.6 MB.
    assert watched.rows == [32, 32, 32, 16]
