"""The command line: what goes in, what comes out, and how it says no."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sample_models import grey_images, table_rows
from tiny_runs import TINY, Done, Shell, Tracked

from pipelines.cli import _imputed_name, _short
from pipelines.config import recipe_names
from serving import chunks
from serving.claim import Claim
from vae_anomaly import __version__
from vae_anomaly.assembly import Fitted
from vae_anomaly.mlflow_access import local_tracking_uri, mlflow_client
from vae_anomaly.runtime import Bundle, load_bundle
from vae_anomaly.vae import parameter_count

VERBS = [
    "cross-fit",
    "demo",
    "doctor",
    "evaluate",
    "explain",
    "impute",
    "recalibrate",
    "score",
    "sync",
    "train",
]
COLUMNS = ["plain", "large", "tiny", "time"]


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not list(tmp_path.rglob(".vae-anomaly-*"))


@pytest.fixture
def rows() -> pd.DataFrame:
    """Rows of the table model with an id, a label and a text."""
    frame = table_rows(50, seed=3)
    frame.insert(0, "order", [f"o{i}" for i in range(50)])
    return frame.assign(fraud=np.arange(50) % 2, comment='says "x", so')


@pytest.fixture
def pictures(inside: Path) -> Path:
    """Twelve images of the image model below a folder with a space in its name."""
    folder = inside / "in pics"
    (folder / "sub").mkdir(parents=True)
    for i, image in enumerate(grey_images(12, seed=5)):
        Image.fromarray(image).save(folder / ("sub" if i > 8 else "") / f"n {i:02}.png")
    return folder


def one_line(done: Done, code: int = 1) -> str:
    """The message of a failure, which is all that it says."""
    assert (done.code, done.out) == (code, "")
    assert done.err.startswith("vae-anomaly: ")
    assert done.err.count("\n") == 1
    return done.err.removeprefix("vae-anomaly: ").rstrip("\n")


# -- usage


def test_help_names_every_verb(shell: Shell) -> None:
    done = shell("--help")
    assert done.code == 0
    words = done.out.split()
    assert [verb for verb in VERBS if verb not in words] == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, shell: Shell) -> None:
    done = shell(verb, "-h")
    assert (done.code, done.err) == (0, "")
    assert f"Usage: vae-anomaly {verb}" in done.out


def test_the_version(shell: Shell) -> None:
    assert shell("--version") == (0, f"vae-anomaly {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scor"], "No such command 'scor'. Did you mean 'score'"),
        (["train", "--sed", "3"], "No such option: --sed (Possible options: --seed, --set)"),
        (["score", "bundle"], "Missing argument 'source'"),
        (["score", "b", "x.csv", "--missing-value", "none"], "Invalid value for '--missing-value'"),
        (["demo", "--epochs", "0"], "Invalid value for '--epochs'"),
    ],
)
def test_wrong_usage_is_code_2(arguments: list[str], said: str, shell: Shell) -> None:
    done = shell(*arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "digts"], "unknown recipe 'digts'; did you mean 'digits'?"),
        (["train", "zzz"], f"unknown recipe 'zzz'; known: {', '.join(recipe_names())}"),
        (["train", "no.toml"], "cannot read settings from no.toml: No such file or directory"),
        (
            ["train", "--set", "training.epoch=3"],
            "unknown key 'epoch' in [training]; did you mean 'epochs'?",
        ),
        (["train", "--set", "epochs"], "cannot read the setting 'epochs'; write it as table.key=value"),
        (["train", "--split-by", "tme", "day"], "data.split_by is 'tme'; did you mean 'time'?"),
        (["train", "--resume"], "nothing to resume in mlruns/work/digits; leave out --resume"),
        (["train", "table"], "recipe 'table' names no data; give --data FILE, or a folder of images"),
    ],
)
def test_a_wrong_setting_is_one_line_and_code_2(arguments: list[str], said: str, shell: Shell) -> None:
    assert one_line(shell(*arguments), code=2) == said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "--novel", "12"], "no row of digits is labelled '12'; did you mean '2'?"),
        (["train", "--data", "no.csv"], "no data at 'no.csv'; known: digits, mnist, fashion-mnist"),
        (["train", "--device", "tpu"], "unknown device 'tpu'; choose auto, cpu or cuda"),
        (
            ["score", "nothing", "x.csv"],
            "no bundle folder at 'nothing'; give a folder, runs:/<run id>, models:/<name>@<alias> or "
            "models:/<name>/<version>",
        ),
    ],
)
def test_a_failure_is_one_line_and_code_1(arguments: list[str], said: str, shell: Shell) -> None:
    assert one_line(shell(*arguments)) == said


# -- train


COLUMN_OPTIONS = ["--id-column", "order", "--label", "fraud", "--novel", "1", "--exclude", "comment"]
SMALL = ["--set", "model.hidden=[8]", "--set", "model.latent_size=2", "--set", "training.epochs=2"]


@pytest.fixture
def orders(rows: pd.DataFrame) -> list[str]:
    """How to train on 150 orders, half of them frauds."""
    many = pd.concat([rows] * 3, ignore_index=True)
    many.assign(order=np.arange(150)).to_csv("my orders.csv", index=False)
    return ["train", "table", "--data", "my orders.csv", *COLUMN_OPTIONS, *SMALL]


def test_train_a_csv(shell: Shell, orders: list[str], exported: list[Fitted]) -> None:
    done = shell(*orders, "--name", "orders", "--seed", "3", "--no-track")
    assert done.code == 0, done.err
    (fitted,) = exported
    assert fitted.manifest.schema.names == ("plain", "large", "tiny", "time")
    provenance = fitted.manifest.provenance
    assert (fitted.manifest.name, provenance["seed"]) == ("orders", 3)
    wanted = {"source": "my orders.csv", "id_column": "order", "label": "fraud", "novel": ["1"]}
    assert {key: provenance["data"][key] for key in wanted} == wanted
    lines = done.out.splitlines()
    # The 75 frauds are all in test; the rest is divided by the default shares.
    assert lines[0].startswith(f"trained orders: {parameter_count(fitted.model):,} parameters, ")
    assert lines[0].endswith(" s; rows: 45 train, 7 validation, 12 calibration, 86 test")
    assert lines[1] == "  bundle  mlruns/work/orders/1/bundle"
    assert [line.split()[0] for line in lines[2:]] == ["digest", "next:", "vae-anomaly"]
    assert lines[-1] == "  vae-anomaly evaluate mlruns/work/orders/1/bundle"
    said = done.err.splitlines()
    assert [line.split()[1] for line in said if line.startswith("epoch")] == ["1/2", "2/2"]
    assert [line for line in said if not line.startswith("epoch")] == [
        "warning: a false alarm rate of 0.05 needs more than the 12 calibration rows there are; "
        "the smallest attainable rate 0.07692 is used"
    ]


@pytest.mark.slow
def test_train_and_judge(shell: Shell, orders: list[str], inside: Path) -> None:
    told = json.loads(shell(*orders, "--no-track", "--json").out)
    assert told["bundle"] == "mlruns/work/table/1/bundle"
    assert (told["run_id"], told["registered"]) == (None, None)
    judged = shell("evaluate", told["bundle"], "--out", "re port", "--json")
    assert judged.code == 0, judged.err
    assert 0 <= json.loads(judged.out)[0]["auroc"] <= 1
    assert (inside / "re port" / "report.html").exists()
    # The same command in the same folder is another run.
    again = json.loads(shell(*orders, "--no-track", "--json").out)
    assert again["bundle"] == "mlruns/work/table/2/bundle"
    assert {**again["last"], **clock(told["last"])} == told["last"]
    fails = one_line(shell(*orders, "--no-track", "--resume"), code=2)
    assert fails.startswith("mlruns/work/table/2 holds a finished run; ")


def clock(figures: dict[str, float]) -> dict[str, float]:
    """What is never the same twice."""
    return {name: figures[name] for name in ("seconds", "samples_per_second")}


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (
            {},
            [],
            "columns ['order'] of rows.csv hold neither numbers nor categories; leave them out "
            "with --exclude, name one with --id-column or --label, or say by data.kinds what they are",
        ),
        ({}, ["--label", "frad"], "no column 'frad' in rows.csv; did you mean 'fraud'?"),
        (
            {"order": "same"},
            ["--id-column", "order", "--exclude", "comment"],
            "id 'same' appears more than once in column 'order'; make the ids unique",
        ),
        (
            {"tiny": np.nan},
            ["--exclude", "order", "--exclude", "comment"],
            "columns ['tiny'] have no value in any training row; leave them out with --exclude",
        ),
    ],
)
def test_unfit_training_data(
    change: dict[str, Any], arguments: list[str], said: str, shell: Shell, rows: pd.DataFrame
) -> None:
    rows.assign(**change).to_csv("rows.csv", index=False)
    assert one_line(shell("train", "table", "--data", "rows.csv", "--no-track", *arguments)) == said


def test_an_alias_is_what_models_are_called_by(shell: Shell, tracked: Tracked, inside: Path) -> None:
    np.save(inside / "x.npy", np.zeros((3, 8, 8), np.uint8))
    done = shell("score", "models:/digits@champion", "x.npy", "--root", tracked.root)
    assert (done.code, done.err) == (0, "")
    assert len(pd.read_parquet("scores.parquet")) == 3
    near = shell("score", "models:/digits@chmpion", "x.npy", "--root", tracked.root)
    assert one_line(near) == "model 'digits' has no alias 'chmpion'; did you mean 'champion'?"


def test_sync_copies_a_run_to_a_server(shell: Shell, tracked: Tracked, root: Path) -> None:
    server = local_tracking_uri(root)
    done = shell("sync", tracked.run.run_id, "--to", server, "--root", tracked.root)
    assert done.code == 0, done.err
    copy = done.out.split()[-1]
    assert done.out == f"run {tracked.run.run_id} is on the server as {copy}\n"
    version = mlflow_client(server).get_model_version("digits", "1")
    assert (version.run_id, version.tags["bundle_digest"]) == (copy, tracked.run.digest)


def _heed_interrupts() -> None:
    # A shell starts what it runs in the background with interrupts ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_stopped_training_says_how_to_go_on(number: int, code: int, inside: Path) -> None:
    settings = [part for setting in (*TINY, "training.epochs=100000") for part in ("--set", setting)]
    command = [sys.executable, "-m", "pipelines.cli", "train", "--no-track", *settings]
    repository = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": repository, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=_heed_interrupts
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 3/"):
                process.send_signal(number)
                break
        last = process.stderr.read().splitlines()[-1]
    assert process.returncode == code
    assert last == "warning: stopped; the same command with --resume goes on from mlruns/work/digits/1"


# -- score


def test_score_a_csv(shell: Shell, table_folder: Path, table_bundle: Bundle, rows: pd.DataFrame) -> None:
    rows.to_csv("my rows.csv", index=False)
    columns = ["--id-column", "order", "--label", "fraud", "--keep-columns", "comment"]
    done = shell("score", table_folder, "my rows.csv", *columns, "--out", "s p.parquet", "--rank")
    verdicts = table_bundle.verdicts(rows[COLUMNS])
    outliers = int(verdicts["is_outlier"].sum())
    assert done == (0, f"50 rows, {outliers} outliers\n  written  s p.parquet\n", "")
    found = pd.read_parquet("s p.parquet")
    names = [f"score_{name}" for name in table_bundle.score_names]
    judged = ["score", "p_value", "is_outlier", *names, "rank", "note"]
    assert list(found) == ["order", "comment", *judged]
    assert found["order"].tolist() == rows["order"].tolist()
    assert np.array_equal(found["score"], verdicts["score"])
    assert found["rank"].tolist() == (-verdicts["score"]).rank(method="min").tolist()


def test_score_by_a_false_discovery_rate(shell: Shell, table_folder: Path, table_bundle: Bundle) -> None:
    frame = table_rows(60, 3).fillna(0.0)
    frame.iloc[:12] *= 4.0
    frame.to_csv("rows.csv", index=False)
    done = shell("score", table_folder, "rows.csv", "--out", "s.parquet", "--fdr", "0.3", "--json")
    expected = table_bundle.verdicts(frame, fdr=0.3)["is_outlier"]
    assert json.loads(done.out)["outliers"] == expected.sum() > 0
    assert pd.read_parquet("s.parquet")["is_outlier"].tolist() == expected.tolist()


def test_explain_the_outliers_of_a_csv(shell: Shell, table_folder: Path, table_bundle: Bundle) -> None:
    frame = table_rows(40, 3).fillna(0.0)
    frame.loc[7, "large"] = 9e3
    frame.insert(0, "order", [f"o{i}" for i in range(40)])
    frame.to_csv("rows.csv", index=False)
    done = shell("explain", table_folder, "rows.csv", "--id-column", "order", "--top", "2")
    strange = frame[table_bundle.verdicts(frame[COLUMNS])["is_outlier"].to_numpy(dtype=bool)]
    why = pd.read_parquet("why.parquet")
    assert (done.code, done.err) == (0, "")
    told = done.out.splitlines()
    assert told[:2] == [f"40 rows, {len(strange)} outliers", "  written  why.parquet"]
    firsts = why[why["place"] == 1].head(5)
    assert [line.split(":")[0].strip() for line in told[2:]] == firsts["order"].tolist()
    spike = firsts.set_index("order").loc["o7"]
    span = f"({spike['low']:.4g} to {spike['high']:.4g})"
    assert f"  o7: large is 9000, expected {spike['expected']:.4g} {span}" in told
    assert why["order"].tolist() == [name for name in strange["order"] for _ in range(2)]
    expected = table_bundle.ranked_columns(strange[COLUMNS], top=2).drop(columns="row")
    pd.testing.assert_frame_equal(why[list(expected)], expected)
    first = why[why["order"] == "o7"].iloc[0]
    assert (first["column"], first["value"]) == ("large", 9e3)
    assert first["reason"].startswith("neg_elbo decided, p = 0.0204, above 100.0 % of calibration rows")
    every = json.loads(shell("explain", table_folder, "rows.csv", "--ignore-unknown", "--all", "--json").out)
    assert every["rows"] == 40
    assert len(pd.read_parquet("why.parquet")) == 40 * 4


@pytest.mark.parametrize(
    ("cell", "told"), [(0.123456, "0.1235"), ("18.192792736819882", "18.19"), ("late", "late"), (9e3, "9000")]
)
def test_a_cell_is_told_to_four_digits(cell: float | str, told: str) -> None:
    assert _short(cell) == told


def test_explain_pictures(shell: Shell, image_folder: Path, image_bundle: Bundle, pictures: Path) -> None:
    done = shell("explain", image_folder, pictures, "--all", "--out", "heat")
    assert done.code == 0
    names = sorted(path.relative_to(pictures) for path in pictures.rglob("*.png"))
    assert sorted(path.relative_to("heat") for path in Path("heat").rglob("*.png")) == names
    heat = image_bundle.explain(np.asarray(Image.open(pictures / names[3]))[None]).heatmaps[0]
    assert np.array_equal(np.asarray(Image.open(Path("heat") / names[3])), np.rint(heat * (255 / heat.max())))


def test_heatmaps_of_two_pictures_may_not_meet(shell: Shell, image_folder: Path, pictures: Path) -> None:
    first = sorted(pictures.rglob("*.png"))[0]
    Image.open(first).save(first.with_suffix(".jpg"))
    done = shell("explain", image_folder, pictures, "--all", "--out", "heat")
    heatmap = Path("heat").absolute() / first.relative_to(pictures)
    message = f"two images would both be written as {heatmap}; rename one of them"
    assert (done.code, done.err) == (1, f"vae-anomaly: {message}\n")
    assert not Path("heat").exists()


def test_recalibrate_by_a_file(
    shell: Shell, table_folder: Path, table_bundle: Bundle, rows: pd.DataFrame
) -> None:
    rows.to_csv("normal.csv", index=False)
    options = ["--id-column", "order", "--label", "fraud", "--ignore-unknown", "--out", "new"]
    done = shell("recalibrate", table_folder, "normal.csv", *options, "--json")
    told = json.loads(done.out)
    assert (done.code, told["bundle"], told["rows"]) == (0, "new", 50)
    assert done.err == "every row counts as normal, whatever fraud says; leave anomalies out\n"
    found = load_bundle("new", device="cpu", expected_digest=told["digest"])
    scores = table_bundle.scores(rows[COLUMNS])[table_bundle.default_score]
    assert np.array_equal(found.calibration["score_score"], np.sort(scores))
    again = shell("recalibrate", table_folder, "normal.csv", *options)
    assert (again.code, again.err) == (1, "vae-anomaly: new exists already; write to a new folder\n")
    rows.head(18).to_csv("few.csv", index=False)
    few = shell("recalibrate", table_folder, "few.csv", *options[:-1], "other")
    assert few.code == 1
    assert "needs at least 19 normal rows, got 18" in few.err
    rows.assign(large="x").to_csv("text.csv", index=False)
    assert shell("recalibrate", table_folder, "text.csv", *options[:-1], "other").code == 1
    assert not Path("other").exists()


@pytest.mark.parametrize("form", ["parquet", "npy", "npz", "feather", "tsv"])
def test_score_every_form_of_a_table(
    form: str, shell: Shell, table_folder: Path, table_bundle: Bundle, rows: pd.DataFrame
) -> None:
    frame, path = rows[COLUMNS], Path(f"rows.{form}")
    if form == "parquet":
        frame[COLUMNS[::-1]].to_parquet(path)
    elif form == "feather":
        frame.to_feather(path)
    elif form == "tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif form == "npy":
        np.save(path, frame.to_numpy())
    else:
        np.savez(path, X=frame.to_numpy())
    done = shell("score", table_folder, path, "--json")
    assert (done.code, done.err) == (0, "")
    told = json.loads(done.out)
    assert (told["rows"], told["rejected"], told["out"]) == (50, 0, "scores.parquet")
    assert np.array_equal(pd.read_parquet("scores.parquet")["score"], table_bundle.scores(frame)["score"])


def test_a_semicolon_and_a_decimal_comma(
    shell: Shell, table_folder: Path, table_bundle: Bundle, rows: pd.DataFrame
) -> None:
    rows[COLUMNS].to_csv("rows.csv", index=False, sep=";", decimal=",")
    refused = one_line(shell("score", table_folder, "rows.csv"))
    assert refused.endswith("expected a number; for a decimal comma pass --decimal ,")
    assert shell("score", table_folder, "rows.csv", "--decimal", ",").code == 0
    found = pd.read_parquet("scores.parquet")["score"]
    assert np.array_equal(found, table_bundle.scores(rows[COLUMNS])["score"])


def test_rows_that_cannot_be_read_are_set_aside_with_code_3(
    shell: Shell, table_folder: Path, rows: pd.DataFrame, inside: Path
) -> None:
    rows.loc[[3, 7], "large"] = np.inf
    rows.loc[8, "large"] = 1e300
    rows.loc[9, COLUMNS] = np.nan
    rows.drop(columns=["fraud", "comment"]).to_parquet("rows.parquet")
    done = shell("score", table_folder, "rows.parquet", "--id-column", "order")
    assert done.code == 3
    assert done.err == f"2 rows rejected; see {inside / 'scores.rejected.parquet'}\n"
    told = done.out.splitlines()[0]
    assert told.endswith("1 row with nothing observed, 1 cell clipped to the model's range")
    rejected = pd.read_parquet("scores.rejected.parquet")
    assert rejected["id"].tolist() == ["o3", "o7"]
    assert set(rejected["reason"]) == {"infinite"}
    found = pd.read_parquet("scores.parquet").set_index("order")
    assert len(found) == 48
    assert np.isfinite(found.loc["o8", "score"])
    assert np.isnan(found.loc["o9", "score"])
    assert found.loc["o9", "note"] == "nothing observed"
    options = ["--id-column", "order", "--strict", "--out", "o.parquet"]
    assert one_line(shell("score", table_folder, "rows.parquet", *options)) == (
        "row 3 (id 'o3'): infinite value in column 'large'; strict stops at the first row that cannot be read"
    )
    assert not (inside / "o.parquet").exists()


@pytest.mark.parametrize(
    ("change", "arguments", "said"),
    [
        (
            lambda f: f.drop(columns="tiny"),
            [],
            "missing columns ['tiny']; to leave a value out, keep the column and set it to NaN",
        ),
        (lambda f: f.assign(plian=1), [], "unknown column 'plian'; did you mean 'plain'?"),
        (lambda f: f, ["--id-column", "tme"], "no column 'tme' in the input; did you mean 'time'?"),
        (
            lambda f: f.assign(tiny=["a"] + [1] * (len(f) - 1)),
            [],
            "column 'tiny' of rows.csv holds 'a' in row 0; expected a number",
        ),
        (
            lambda f: f.assign(order=1),
            ["--id-column", "order"],
            "id 1 of rows 0 and 1 is not unique; make ids unique, or pass --on-duplicate keep",
        ),
        (
            lambda f: f,
            ["--out", "scores.csv"],
            "scores are written as Parquet, got 'scores.csv'; name the output scores.parquet",
        ),
        (lambda f: f, ["--on-duplicate", "drop"], "on_duplicate is 'drop'; expected 'error' or 'keep'"),
        (lambda f: f, ["--mask", "no.csv"], "no such file: no.csv"),
        (
            lambda f: f,
            ["--alpha-is-mask"],
            "alpha_is_mask applies to image files only; use mask or missing_value",
        ),
    ],
)
def test_a_table_that_does_not_fit(
    change: Any, arguments: list[str], said: str, shell: Shell, table_folder: Path, rows: pd.DataFrame
) -> None:
    change(rows[COLUMNS]).to_csv("rows.csv", index=False)
    of_the_options = ("scores are written", "on_duplicate", "alpha_is_mask")
    code = 2 if said.startswith(of_the_options) else 1
    assert one_line(shell("score", table_folder, "rows.csv", *arguments), code) == said
    assert not Path("scores.parquet").exists()


def test_repeated_ids_can_be_kept_and_unknown_columns_passed_over(
    shell: Shell, table_folder: Path, rows: pd.DataFrame
) -> None:
    rows.assign(order="same").to_csv("rows.csv", index=False)
    options = ["--id-column", "order", "--on-duplicate", "keep", "--ignore-unknown"]
    assert shell("score", table_folder, "rows.csv", *options).code == 0
    assert set(pd.read_parquet("scores.parquet")["order"]) == {"same"}


@pytest.mark.parametrize(
    ("rate", "code", "said"),
    [
        (
            "0.0001",
            1,
            "a false alarm rate of 0.0001 needs at least 9999 normal rows, got 48; fit or recalibrate "
            "with more rows, or accept a rate of 1/49 or more",
        ),
        ("1.5", 2, "the false alarm rate is 1.5; choose one above 0 and below 1, such as 0.05"),
    ],
)
def test_a_rate_that_cannot_be_promised(
    rate: str, code: int, said: str, shell: Shell, table_folder: Path, rows: pd.DataFrame
) -> None:
    rows[COLUMNS].to_csv("rows.csv", index=False)
    assert one_line(shell("score", table_folder, "rows.csv", "--false-alarm-rate", rate), code) == said


@pytest.mark.parametrize(("count", "said"), [(0, "0 rows, 0 outliers"), (1, "1 row, ")])
def test_no_row_and_one_row(
    count: int, said: str, shell: Shell, table_folder: Path, rows: pd.DataFrame
) -> None:
    rows[COLUMNS].iloc[:count].to_csv("rows.csv", index=False)
    done = shell("score", table_folder, "rows.csv")
    assert (done.code, done.out.startswith(said)) == (0, True)
    assert len(pd.read_parquet("scores.parquet")) == count


def test_damaged_files_and_bundles_are_named(shell: Shell, table_folder: Path, inside: Path) -> None:
    for name in ("empty.csv", "cut.parquet", "zero.npy"):
        (inside / name).write_bytes(b"")
        assert name in one_line(shell("score", table_folder, name))
    copy = inside / "a bundle"
    copy.mkdir()
    for path in table_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("changed")
    said = one_line(shell("score", copy, "x.csv"))
    assert said.startswith("bundle file README.md was changed after export: its sha256 is ")


def test_an_output_belongs_to_one_job(
    shell: Shell, table_folder: Path, rows: pd.DataFrame, inside: Path
) -> None:
    rows[COLUMNS].to_csv("rows.csv", index=False)
    with Claim(inside / "scores.parquet"):
        said = one_line(shell("score", table_folder, "rows.csv"))
    assert said.startswith(f"job {os.getpid()}, started ")
    assert said.endswith(f"is writing {inside / 'scores.parquet'}; wait for it or stop it")


def test_score_images_and_set_aside_what_is_none(
    shell: Shell, image_folder: Path, image_bundle: Bundle, pictures: Path
) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((5, 9), np.uint8)).save(pictures / "small.png")
    done = shell("score", image_folder, pictures, "--json")
    assert done.code == 3
    assert json.loads(done.out)["rejected"] == 2
    found = pd.read_parquet("scores.parquet")
    assert found["id"].tolist()[8:10] == ["n 08.png", "sub/n 09.png"]
    assert np.array_equal(found["score"], image_bundle.scores(grey_images(12, seed=5))["score"])
    assert pd.read_parquet("scores.rejected.parquet")["id"].tolist() == ["broken.png", "small.png"]
    assert shell("score", image_folder, pictures, "--convert", "--json").code == 3
    assert pd.read_parquet("scores.rejected.parquet")["id"].tolist() == ["broken.png"]


def test_pixels_in_other_units_are_refused(shell: Shell, image_folder: Path) -> None:
    np.save("x.npy", grey_images(12).astype(np.float32) / 255)
    assert one_line(shell("score", image_folder, "x.npy")).endswith(
        "the model was trained on 0 to 255; rescale them to the trained range"
    )


@pytest.mark.parametrize("arguments", [["score", "--rank"], ["impute", "--draws", "3", "--std"]], ids=str)
def test_a_stopped_job_goes_on(
    arguments: list[str],
    shell: Shell,
    table_folder: Path,
    rows: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 20)
    verb, *options = arguments
    rows[COLUMNS].mask(rows[COLUMNS] > 1).to_csv("rows.csv", index=False)
    job = [verb, table_folder, "rows.csv", *options, "--json", "--out"]
    assert shell(*job, "whole.parquet").code == 0
    asked: list[int] = []
    answer = getattr(Bundle, "verdicts" if verb == "score" else "impute")

    def stopping(self: Bundle, x: Any, *rest: Any, **settings: Any) -> Any:
        asked.append(len(x))
        if asked == [0, 20, 20]:  # the first looks at the settings alone
            os.kill(os.getpid(), signal.SIGTERM)
        return answer(self, x, *rest, **settings)

    monkeypatch.setattr(Bundle, answer.__name__, stopping)
    stopped = shell(*job, "out.parquet")
    assert (stopped.code, stopped.out) == (143, "")
    assert stopped.err.startswith("warning: stopped; the same job goes on where it stopped, from ")
    asked.clear()
    done = shell(*(part for part in job if part != "--json"), "out.parquet")
    # The chunk in progress was finished.
    assert done.out.splitlines()[1] == "40 rows taken over from an earlier run that was stopped"
    assert asked == [0, 10]
    assert Path("out.parquet").read_bytes() == Path("whole.parquet").read_bytes()


# -- impute


def test_impute_a_csv(shell: Shell, table_folder: Path, table_bundle: Bundle, rows: pd.DataFrame) -> None:
    rows.to_csv("my rows.csv", index=False)
    done = shell("impute", table_folder, "my rows.csv", "--id-column", "order", "--ignore-unknown", "--std")
    assert done == (0, "50 rows\n  written  my rows-imputed.parquet\n", "")
    found = pd.read_parquet("my rows-imputed.parquet")
    expected = table_bundle.impute(rows[COLUMNS])
    assert list(found)[:7] == list(rows)
    pd.testing.assert_frame_equal(found[COLUMNS], expected.mean)
    assert np.array_equal(found[[f"{name}__std" for name in COLUMNS]], expected.std)
    assert np.array_equal(found["ess"], expected.ess)
    assert found["comment"].tolist() == rows["comment"].tolist()
    seen = rows[COLUMNS].notna()
    assert found[COLUMNS].where(seen).equals(rows[COLUMNS])


def test_draws_make_a_long_table(shell: Shell, table_folder: Path, rows: pd.DataFrame) -> None:
    rows.to_csv("rows.csv", index=False)
    options = ["--id-column", "order", "--ignore-unknown", "--draws", "3", "--out", "f.parquet"]
    tables = []
    for seed in ("4", "4", "5"):
        assert shell("impute", table_folder, "rows.csv", *options, "--seed", seed).code == 0
        tables.append(pd.read_parquet("f.parquet"))
    first, again, other = tables
    assert first.equals(again)
    assert not first.equals(other)
    assert first["row"].tolist() == np.repeat(np.arange(50), 3).tolist()
    assert first["draw"].tolist() == [0, 1, 2] * 50
    gaps = rows["plain"].isna().to_numpy()
    spread = first.groupby("row")["plain"].nunique().to_numpy()
    assert (spread[gaps] == 3).all()
    assert (spread[~gaps] == 1).all()


def test_missing_values_said_by_a_number_and_by_a_mask(
    shell: Shell, table_folder: Path, table_bundle: Bundle, rows: pd.DataFrame
) -> None:
    frame = rows[COLUMNS]
    expected = table_bundle.impute(frame).mean
    frame.fillna(-999.0).to_csv("marked.csv", index=False)
    frame.fillna(0.5).to_csv("filled.csv", index=False)
    frame.notna().astype(int).to_csv("mask.csv", index=False)
    said = {"marked": ["--missing-value", "-999"], "filled": ["--mask", "mask.csv"]}
    for name, options in said.items():
        assert shell("impute", table_folder, f"{name}.csv", *options, "--out", f"{name}.parquet").code == 0
        pd.testing.assert_frame_equal(pd.read_parquet(f"{name}.parquet")[COLUMNS], expected)


def test_impute_an_array_with_a_mask(shell: Shell, image_folder: Path, image_bundle: Bundle) -> None:
    images = grey_images(12, seed=5)
    observed = np.random.default_rng(0).random(images.shape) < 0.5
    np.save("x.npy", images)
    np.save("mask.npy", observed)
    done = shell("impute", image_folder, "x.npy", "--mask", "mask.npy", "--draws", "2")
    assert done == (0, "12 rows\n  written  x-imputed.npy\n", "")
    found = np.load("x-imputed.npy")
    assert (found.shape, found.dtype) == ((2, 12, 8, 9), np.uint8)
    assert np.array_equal(found[1][observed], images[observed])
    draws = image_bundle.impute(images, observed, draws=2).draws
    assert draws is not None
    assert np.array_equal(found, np.rint(np.asarray(draws)).reshape(found.shape).astype(np.uint8))


def test_impute_pictures_with_one_mask_for_all(
    shell: Shell, image_folder: Path, pictures: Path, inside: Path
) -> None:
    mask = np.full((8, 9), 255, np.uint8)
    mask[:4] = 0
    Image.fromarray(mask).save("mask.png")
    done = shell("impute", image_folder, "in pics", "--mask", "mask.png", "--std")
    assert done == (0, "12 rows\n  written  in pics-imputed\n", "")
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.png"))
    out = inside / "in pics-imputed"
    marked = [name.replace(".png", "__std.png") for name in names]
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*.png")) == sorted(names + marked)
    for name, image in zip(names, grey_images(12, seed=5), strict=True):
        filled = np.asarray(Image.open(out / name))
        assert np.array_equal(filled[4:], image[4:])
        assert (filled[:4] != image[:4]).any()


def test_transparent_pixels_are_missing(shell: Shell, image_folder: Path, inside: Path) -> None:
    grey = grey_images(1, seed=5)[0]
    alpha = np.full_like(grey, 255)
    alpha[:, :5] = 0
    Image.fromarray(np.dstack([grey, alpha]), "LA").save("half.png")
    assert shell("impute", image_folder, "half.png").code == 3
    assert shell("impute", image_folder, "half.png", "--alpha-is-mask").code == 0
    filled = np.asarray(Image.open(inside / "half-imputed" / "half.png"))
    assert np.array_equal(filled[:, 5:], grey[:, 5:])
    assert (filled[:, :5] != grey[:, :5]).any()


def test_an_autoencoder_says_why_it_imputes_nothing(shell: Shell, autoencoder_folder: Path) -> None:
    np.save("x.npy", np.zeros((2, 3, 8, 10), np.float32))
    assert "autoencoder" in one_line(shell("impute", autoencoder_folder, "x.npy"))


@pytest.mark.parametrize(
    ("source", "folder", "named"),
    [
        ("x.csv", False, "x-imputed.parquet"),
        ("a/x.y.parquet", False, "a/x.y-imputed.parquet"),
        ("x.NPY", False, "x-imputed.npy"),
        ("x.npz", False, "x-imputed.npy"),
        ("x.JPG", False, "x-imputed"),
        ("scans.v1", True, "scans.v1-imputed"),
    ],
)
def test_imputations_are_named_after_their_input(source: str, folder: bool, named: str) -> None:
    if folder:
        Path(source).mkdir()
    assert str(_imputed_name(Path(source))) == named


def test_the_working_folder_itself_has_a_name(inside: Path) -> None:
    assert _imputed_name(Path()) == inside.with_name(inside.name + "-imputed")
