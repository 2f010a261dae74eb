"""Outliers inside one file, from the shell: what Python's `cross_fit` says, beside the ids."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sample_models import grey_images, table_rows
from tiny_runs import Shell

from vae_anomaly import VAEDetector
from vae_anomaly.fitting import Settings
from vae_anomaly.training import TrainingConfig

RECIPE = """
[training]
epochs = 2
batch_size = 32
random_mask = 0.5
precision = "float32"
"""
QUICK = ("quick.toml", "--folds", "2", "--device", "cpu")
FEATURES = ("plain", "large", "tiny", "time")
TABLE = ("--data", "orders.csv", "--id-column", "order", "--label", "fraud")


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with a recipe; nothing hidden is left in it."""
    monkeypatch.chdir(tmp_path)
    Path("quick.toml").write_text(RECIPE)
    yield tmp_path
    assert not list(tmp_path.rglob(".vae-anomaly-*"))


@pytest.fixture
def orders() -> pd.DataFrame:
    """Two hundred rows, of which one is far out and one holds nothing."""
    frame = table_rows(200, seed=3).fillna(0.0)
    frame.iloc[7] = [9.0, -9000.0, 9e-6, 1.6e9]
    frame.iloc[30] = np.nan
    frame.insert(0, "order", [f"o{i}" for i in range(200)])
    frame["fraud"] = np.arange(200) % 2
    frame.to_csv("orders.csv", index=False)
    return frame


def test_a_file_is_judged_as_python_does(shell: Shell, orders: pd.DataFrame) -> None:
    done = shell("cross-fit", *QUICK, *TABLE, "--seed", "5", "--contamination", "0.1")
    found = pd.read_parquet("ranked.parquet").astype({"is_outlier": "boolean"})
    settings = Settings(training=TrainingConfig(2, 32, random_mask=0.5, precision="float32"))
    detector = VAEDetector(settings=settings, contamination=0.1, random_state=5, device="cpu")
    expected = detector.cross_fit(orders[[*FEATURES]], folds=2)
    expected.insert(0, "order", orders["order"])
    pd.testing.assert_frame_equal(found[list(expected)], expected, check_dtype=False)
    assert found["rank"].equals(found["p_value"].rank(method="min"))
    assert found["note"].dropna().to_dict() == {30: "nothing observed"}
    strange = int(expected["is_outlier"].sum())
    assert (done.code, done.err) == (0, "")
    told = done.out.splitlines()
    assert told[0] == f"200 rows, {strange} outliers, 1 row with nothing observed"
    assert told[1].split() == ["written", "ranked.parquet"]
    first = found.sort_values("rank", kind="stable").head(5)
    assert told[2:] == [f"  {i}: p = {p:.4g}" for i, p in zip(first["order"], first["p_value"], strict=True)]
    assert "o7" in set(first["order"])


def test_nothing_is_called_an_outlier_unasked(shell: Shell, orders: pd.DataFrame) -> None:
    done = shell("cross-fit", *QUICK, "--data", "orders.csv", "--exclude", "order", "--out", "r.parquet")
    found = pd.read_parquet("r.parquet")
    assert done.out.startswith("200 rows\n")
    assert found["is_outlier"].isna().all()
    # Whole though a label was not named: it is a column like any other.
    assert found["id"].tolist() == list(range(200))
    assert found["p_value"].notna().all()
    told = json.loads(shell("cross-fit", *QUICK, "--data", "orders.csv", "--exclude", "order", "--json").out)
    assert told["rows"] == 200
    assert told["out"] == "ranked.parquet"
    pd.testing.assert_frame_equal(pd.read_parquet("ranked.parquet"), found)


def test_pictures_are_judged_by_their_names(shell: Shell) -> None:
    Path("in").mkdir()
    for i, image in enumerate(grey_images(24, seed=5)):
        Image.fromarray(image).save(f"in/{i:02}.png")
    assert shell("cross-fit", *QUICK, "--data", "in").code == 0
    found = pd.read_parquet("ranked.parquet")
    assert found["id"].tolist() == [f"{i:02}.png" for i in range(24)]
    assert found["p_value"].between(0, 1, inclusive="right").all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--folds", "1"], "folds must be at least 2 and at most the 200 rows, got 1"),
        (["--contamination", "0.7"], "contamination must be above 0 and at most 0.5, got 0.7; leave it out"),
        (["--out", "ranked.csv"], "scores are written as Parquet, got 'ranked.csv'; name the output scores"),
        (["--set", "task=imputation"], "recipe 'quick' trains an imputer; name one of a detector"),
        (["--set", "data.novel=[1]"], "novel is [1], and every row is judged here; leave it out"),
        (
            ["--set", "data.split_by=time", "--set", "data.split_column=time"],
            "split_by is 'time', and folds are drawn at random; leave it out",
        ),
        (["--id-column", "fold"], "no column 'fold' in orders.csv"),
        (["--device", "tpu"], "unknown device 'tpu'; choose auto, cpu or cuda"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], sentence: str, shell: Shell, orders: pd.DataFrame
) -> None:
    done = shell("cross-fit", *QUICK, *TABLE, *arguments)
    assert done.code in (1, 2)
    assert sentence in " ".join(done.err.split())
    assert not Path("ranked.parquet").exists()


def test_an_id_named_as_what_is_written_is_refused_before_any_fit(shell: Shell, orders: pd.DataFrame) -> None:
    orders.rename(columns={"order": "fold"}).to_csv("orders.csv", index=False)
    done = shell("cross-fit", *QUICK, "--data", "orders.csv", "--id-column", "fold")
    assert done.code == 1
    assert "column 'fold' is one that the job writes; rename it in the input" in " ".join(done.err.split())


@pytest.mark.parametrize("verb", ["train", "cross-fit"])
def test_data_in_the_place_of_a_recipe_is_told(verb: str, shell: Shell, orders: pd.DataFrame) -> None:
    done = shell(verb, "orders.csv")
    assert done.code == 2
    assert "orders.csv is no recipe; where it is the data, give --data orders.csv" in done.err
