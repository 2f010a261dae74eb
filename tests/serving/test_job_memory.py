"""Jobs hold memory constant: four times the rows take no more of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sample_models import grey_images, table_rows

REPOSITORY = Path(__file__).parents[2]
JOB = """
import sys
from pathlib import Path
from serving.batch import impute_file, score_file
from serving.chunks import ReadOptions
from vae_anomaly import load_bundle
most = 0
def watch(done, rows):
    # Pages of a mapped file are none of the job's: they go when anyone needs the room.
    global most
    most = max(most, int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]))
job = {"score": score_file, "impute": impute_file}[sys.argv[1]]
bundle = load_bundle(sys.argv[2], device="cpu", threads=1)
job(bundle, sys.argv[3], sys.argv[4], ReadOptions(chunk_rows=2000), progress=watch)
print(most)
"""


def peak(job: str, bundle: Path, source: Path) -> int:
    """Most memory, pages of files left out, of a process that does the job, MB."""
    # Arenas of the allocator are the machine's: one, so that their number is no part of the measure.
    out = "out.npy" if (job, source.suffix) == ("impute", ".npy") else "out.parquet"
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "MALLOC_ARENA_MAX": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", JOB, job, bundle, source, source.with_name(out)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout) >> 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("job", ["score", "impute"])
@pytest.mark.parametrize("ending", ["csv", "parquet", "npy"])
def test_memory_does_not_grow_with_the_rows_of_a_file(
    job: str, ending: str, table_folder: Path, tmp_path: Path
) -> None:
    rows = table_rows(2_000_000, 1)
    peaks = []
    for part in (rows[:600_000], rows):
        path = tmp_path / f"{len(part)}" / f"rows.{ending}"
        path.parent.mkdir()
        write(part, path)
        peaks.append(peak(job, table_folder, path))
    # 1,400,000 rows more: 45 MB of cells, 100 MB of CSV, and as much of what is written. The smaller file
    # is large enough to fill what pyarrow reads ahead.
    assert peaks[1] < peaks[0] + 30, peaks


def write(rows: pd.DataFrame, path: Path) -> None:
    """A file of one of three formats."""
    if path.suffix == ".csv":
        rows.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        rows.to_parquet(path, row_group_size=50_000)
    else:
        np.save(path, rows.to_numpy())


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_the_images_of_a_folder(image_folder: Path, tmp_path: Path) -> None:
    peaks = []
    for count in (2_000, 16_000):
        folder = tmp_path / f"{count}" / "images"
        folder.mkdir(parents=True)
        for i, image in enumerate(grey_images(count)):
            Image.fromarray(image).save(folder / f"{i}.png")
        peaks.append(peak("score", image_folder, folder))
    # Names are kept, all in all less than 1 kB each.
    assert peaks[1] < peaks[0] + 14, peaks
