"""vae-anomaly: one VAE, two answers - how strange is this sample, and what belongs in its gaps."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines import console
from pipelines.console import as_line, counted, err, facts, out, plain, start_logging, suggest
from pipelines.progress import rows_progress, training_progress
from vae_anomaly import __version__
from vae_anomaly.exceptions import ConfigError, DataError, MissingPackageError

app = typer.Typer(
    name="vae-anomaly",
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeName = Annotated[str, typer.Argument(help="recipe name, or path of a .toml file")]
Seed = Annotated[int | None, typer.Option(help="of everything random")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value, such as training.epochs=3; repeatable"),
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda; cuda without CUDA is an error")]
Root = Annotated[Path, typer.Option(help="folder of the local tracking store")]
ModelSource = Annotated[str, typer.Argument(help="bundle folder, runs:/<run id> or models:/<name>@<alias>")]
DataRoot = Annotated[
    str | None, typer.Option(help="where MNIST and relative data sources lie; no download then")
]
AsJson = Annotated[bool, typer.Option("--json", help="print the summary as JSON")]
IdColumn = Annotated[str | None, typer.Option(help="column that names a row")]
Label = Annotated[str | None, typer.Option(help="column with labels; for evaluation only")]
PassedOver = Annotated[str | None, typer.Option(help="column to pass over; its labels are not read")]
Exclude = Annotated[list[str] | None, typer.Option(help="column that is no feature; repeatable")]
# How rows are read, for `score` and `impute` alike.
KeepColumns = Annotated[list[str] | None, typer.Option(help="column to copy; repeatable")]
IgnoreUnknown = Annotated[bool, typer.Option(help="pass over unknown columns")]
MissingValue = Annotated[float | None, typer.Option(help="number that means missing")]
Mask = Annotated[Path | None, typer.Option(help="file or folder; black = missing")]
AlphaIsMask = Annotated[bool, typer.Option(help="transparent pixels are missing")]
Convert = Annotated[bool, typer.Option(help="adapt images that do not fit")]
OnDuplicate = Annotated[str, typer.Option(help="error or keep")]
Strict = Annotated[bool, typer.Option(help="stop at the first bad row")]
Delimiter = Annotated[str | None, typer.Option(help="of a CSV")]
Decimal = Annotated[str, typer.Option(help="decimal mark of a CSV")]
Input = Annotated[Path, typer.Argument(help="Parquet, Arrow, CSV, .npy, .npz or a folder of images")]
# Rows of an explanation that the shell shows.
SHOWN = 5
FalseAlarmRate = Annotated[float | None, typer.Option(help="in place of the model's own")]


def _version(value: bool) -> None:
    if value:
        typer.echo(f"vae-anomaly {__version__}")
        raise typer.Exit


@app.callback()
def common(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="say more")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
) -> None:
    """One VAE, two answers: how strange is this sample, and what belongs in its gaps."""
    start_logging(verbose)


@app.command()
def train(
    recipe: RecipeName = "digits",
    data: Annotated[str | None, typer.Option(help="file, folder or name of training data")] = None,
    data_root: DataRoot = None,
    id_column: IdColumn = None,
    label: Label = None,
    exclude: Exclude = None,
    novel: Annotated[
        list[str] | None,
        typer.Option(help="label of anomalies: kept out of training, all in test; repeatable"),
    ] = None,
    split_by: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="time|group COLUMN", help="no time, or no group, on both sides of a split"),
    ] = None,
    name: Annotated[str | None, typer.Option(help="name of run and registered model")] = None,
    seed: Seed = None,
    set_: Set = None,
    alias: Annotated[
        str | None, typer.Option(help="alias for the registered version, such as champion")
    ] = None,
    out_folder: Annotated[Path | None, typer.Option("--out", help="folder of the run")] = None,
    resume: Annotated[bool, typer.Option(help="go on from the newest checkpoint")] = False,
    track: Annotated[bool, typer.Option(help="log to MLflow and register")] = True,
    device: Device = "auto",
    root: Root = Path("mlruns"),
    as_json: AsJson = False,
) -> None:
    """Train a recipe, track it, seal its bundle and register it."""
    from pipelines.recipe import load_recipe
    from pipelines.train import train as run_training

    data_section = {
        "source": data,
        "data_root": data_root,
        "id_column": id_column,
        "label": label,
        "exclude": exclude or None,
        "novel": novel or None,
        "split_by": split_by and split_by[0],
        "split_column": split_by and split_by[1],
    }
    loaded = load_recipe(recipe, set_ or (), {"": {"name": name, "seed": seed}, "data": data_section})
    with training_progress(err) as progress:
        run = run_training(
            loaded,
            root=root,
            out=out_folder,
            device=device,
            alias=alias,
            resume=resume,
            track=track,
            callbacks=[progress],
            on_start=progress.expect,
        )
    if as_json:
        typer.echo(as_line(run.to_dict()))
        return
    rows = ", ".join(f"{count:,} {split}" for split, count in run.rows.items())
    plain(out, f"trained {loaded.name}: {run.parameters:,} parameters, {run.seconds:.1f} s; rows: {rows}")
    facts(
        ("bundle", run.bundle),
        ("digest", run.digest),
        ("registered", run.registered),
        ("tracking", run.tracking_uri),
    )
    suggest(f"vae-anomaly evaluate {run.bundle}")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="one bundle, or several to compare")],
    out_folder: Annotated[Path, typer.Option("--out", help="folder of report.html and report.json")] = Path(
        "report"
    ),
    data: Annotated[
        str | None, typer.Option(help="rows to judge by, in place of the model's own test rows")
    ] = None,
    data_root: DataRoot = None,
    id_column: IdColumn = None,
    label: Label = None,
    exclude: Exclude = None,
    novel: Annotated[list[str] | None, typer.Option(help="label of anomalies; repeatable")] = None,
    thumbnails: Annotated[bool, typer.Option(help="show single samples")] = True,
    false_alarm_rate: FalseAlarmRate = None,
    min_auroc: Annotated[float | None, typer.Option(help="gate: exit code 4 below it")] = None,
    device: Device = "auto",
    root: Root = Path("mlruns"),
    as_json: AsJson = False,
) -> None:
    """Judge bundles on rows they have never seen, and write one self-contained HTML report."""
    from pipelines.data import DataConfig
    from pipelines.evaluate import evaluate as run_evaluation
    from pipelines.models import open_model

    config = None
    if data is not None:
        config = DataConfig(
            data, data_root, id_column, label, exclude=tuple(exclude or ()), novel=tuple(novel or ())
        )
    elif id_column or label or exclude or novel:
        raise ConfigError("--id-column, --label, --exclude and --novel describe --data; give that too")
    page, evaluations = run_evaluation(
        [open_model(model, root, device) for model in models],
        out_folder,
        data=config,
        data_root=data_root,
        thumbnails=thumbnails,
        false_alarm_rate=false_alarm_rate,
    )
    if as_json:
        typer.echo(as_line([evaluation.metrics() for evaluation in evaluations]))
    else:
        for model, evaluation in zip(models, evaluations, strict=True):
            plain(out, model, style="bold")
            found = {"auroc": "n/a", **{key: f"{n:.4g}" for key, n in evaluation.metrics().items()}}
            facts(*found.items())
        facts(("report", page))
    _gate(min_auroc, [evaluation.metrics() for evaluation in evaluations])


@app.command()
def score(
    model: ModelSource,
    source: Input,
    out_file: Annotated[Path, typer.Option("--out", help="Parquet file to write")] = Path("scores.parquet"),
    id_column: IdColumn = None,
    label: Label = None,
    keep_columns: KeepColumns = None,
    ignore_unknown: IgnoreUnknown = False,
    missing_value: MissingValue = None,
    mask: Mask = None,
    alpha_is_mask: AlphaIsMask = False,
    convert: Convert = False,
    on_duplicate: OnDuplicate = "error",
    strict: Strict = False,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    false_alarm_rate: FalseAlarmRate = None,
    fdr: Annotated[
        float | None, typer.Option(help="share of the reported rows that may be normal, over the whole job")
    ] = None,
    rank: Annotated[bool, typer.Option(help="add a rank, 1 = most anomalous")] = False,
    device: Device = "auto",
    root: Root = Path("mlruns"),
    as_json: AsJson = False,
) -> None:
    """Score every row of a file or folder by how strange it is."""
    from pipelines.models import open_model
    from serving.batch import score_file

    options = _read_options(locals())
    with rows_progress(err, "scoring") as progress:
        bundle = open_model(model, root, device)
        summary = score_file(
            bundle,
            source,
            out_file,
            options,
            false_alarm_rate=false_alarm_rate,
            fdr=fdr,
            rank=rank,
            progress=progress,
        )
    _report_job(summary, as_json, counted(summary.outliers, "outlier"))


@app.command()
def explain(
    model: ModelSource,
    source: Annotated[Path, typer.Argument(help="as for score")],
    out_path: Annotated[
        Path | None, typer.Option("--out", help="Parquet file, or folder of heatmaps; why.parquet or why")
    ] = None,
    top: Annotated[int, typer.Option(help="columns shown per row")] = 5,
    every_row: Annotated[bool, typer.Option("--all", help="every row, not only outliers")] = False,
    id_column: IdColumn = None,
    label: Label = None,
    ignore_unknown: IgnoreUnknown = False,
    convert: Convert = False,
    device: Device = "auto",
    root: Root = Path("mlruns"),
    as_json: AsJson = False,
) -> None:
    """Say of each outlier which score decided, and which columns or pixels the model did not expect."""
    from pipelines.models import open_model
    from serving.chunks import ReadOptions
    from serving.explained import explain_file

    options = ReadOptions(id_column=id_column, label=label, ignore_unknown=ignore_unknown, convert=convert)
    with rows_progress(err, "explaining") as progress:
        bundle = open_model(model, root, device)
        target = out_path or Path("why.parquet" if bundle.schema.kind == "table" else "why")
        summary = explain_file(
            bundle, source, target, options, top=top, everything=every_row, progress=progress
        )
    _report_job(summary, as_json, counted(summary.outliers, "outlier"))
    if bundle.schema.kind == "table" and not as_json:
        _first_reasons(target)


@app.command()
def impute(
    model: ModelSource,
    source: Input,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", help="Parquet or .npy file, or folder of PNG; named after the input"),
    ] = None,
    draws: Annotated[int | None, typer.Option(help="multiple imputations in place of the mean")] = None,
    seed: Annotated[int, typer.Option(help="of the draws")] = 0,
    k: Annotated[int | None, typer.Option("--k", help="importance samples per row")] = None,
    std: Annotated[
        bool, typer.Option(help="write standard deviations, and of a table effective sample sizes")
    ] = False,
    id_column: IdColumn = None,
    label: Label = None,
    keep_columns: KeepColumns = None,
    ignore_unknown: IgnoreUnknown = False,
    missing_value: MissingValue = None,
    mask: Mask = None,
    alpha_is_mask: AlphaIsMask = False,
    convert: Convert = False,
    on_duplicate: OnDuplicate = "error",
    strict: Strict = False,
    delimiter: Delimiter = None,
    decimal: Decimal = ".",
    device: Device = "auto",
    root: Root = Path("mlruns"),
    as_json: AsJson = False,
) -> None:
    """Fill the gaps of a file or folder with what belongs there."""
    from pipelines.models import open_model
    from serving.batch import impute_file

    options = _read_options(locals())
    target = out_file or _imputed_name(source)
    with rows_progress(err, "imputing") as progress:
        bundle = open_model(model, root, device)
        summary = impute_file(
            bundle, source, target, options, draws=draws, seed=seed, k=k, with_std=std, progress=progress
        )
    _report_job(summary, as_json)


def _explained_settings() -> str:
    """The settings of the service, for its help; read only when that is asked for."""
    from serving.service.settings import described

    lines = [f"{name} ({default}): {help}" for name, default, help in described()]
    return "Settings, from the environment (default):\n\n" + "\n\n".join(lines)


@app.command(epilog=_explained_settings())
def serve(
    model: Annotated[
        str | None,
        typer.Argument(
            help="bundle folder, runs:/<run id> or models:/<name>@<alias>; bundled digits without"
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="address to listen on")] = None,
    port: Annotated[int | None, typer.Option(help="port of the service")] = None,
    ops_port: Annotated[int | None, typer.Option(help="own port for probes and metrics")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda")] = None,
    root: Root = Path("mlruns"),
) -> None:
    """Answer over HTTP: scores, explanations and imputations."""
    import os

    from serving.service.settings import Settings, unknown_variables

    given = {"host": host, "port": port, "ops_port": ops_port, "device": device}
    settings = Settings.from_environment(os.environ, **given)
    for warning in unknown_variables(os.environ):
        plain(err, warning, style="yellow")
    try:
        from serving.service.server import serve as run_service
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"serve needs {error.name}; pip install 'vae-anomaly[serve]'") from error
    from serving.embedded import BUNDLE
    from vae_anomaly.mlflow_access import default_tracking_uri

    run_service(model or str(BUNDLE), settings, default_tracking_uri(root))


@app.command()
def cross_fit(
    recipe: RecipeName = "default-table",
    data: Annotated[str | None, typer.Option(help="file, folder or name of the data")] = None,
    out_file: Annotated[Path, typer.Option("--out", help="Parquet file to write")] = Path("ranked.parquet"),
    folds: Annotated[int, typer.Option(help="models fitted, each without one part of the rows")] = 5,
    contamination: Annotated[
        float | None, typer.Option(help="share of the rows to call outliers; none without it")
    ] = None,
    data_root: DataRoot = None,
    id_column: IdColumn = None,
    label: PassedOver = None,
    exclude: Exclude = None,
    seed: Seed = None,
    set_: Set = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Look for outliers inside one file or folder: every row judged by a model that has not seen it."""
    from pipelines.crossfit import cross_fit as judge
    from pipelines.recipe import load_recipe

    section = {
        "source": data,
        "data_root": data_root,
        "id_column": id_column,
        "label": label,
        "exclude": exclude or None,
    }
    loaded = load_recipe(recipe, set_ or (), {"": {"seed": seed}, "data": section})
    with rows_progress(err, "cross-fitting") as progress:
        summary = judge(
            loaded, out_file, folds=folds, contamination=contamination, device=device, progress=progress
        )
    _report_job(summary, as_json, *([] if contamination is None else [counted(summary.outliers, "outlier")]))
    if not as_json:
        _first_ranked(out_file)


@app.command()
def recalibrate(
    model: ModelSource,
    source: Annotated[Path, typer.Argument(help="normal rows, as for score; none may train the model")],
    out_folder: Annotated[Path, typer.Option("--out", help="folder of the new bundle")] = Path(
        "recalibrated"
    ),
    id_column: IdColumn = None,
    label: PassedOver = None,
    ignore_unknown: IgnoreUnknown = False,
    convert: Convert = False,
    device: Device = "auto",
    root: Root = Path("mlruns"),
    as_json: AsJson = False,
) -> None:
    """Judge by other normal rows: the same model with a new calibration table, nothing trained."""
    from pipelines.models import open_model
    from serving.batch import read_all
    from serving.chunks import ReadOptions

    options = ReadOptions(
        id_column=id_column, label=label, ignore_unknown=ignore_unknown, convert=convert, strict=True
    )
    bundle = open_model(model, root, device)
    samples = read_all(source, bundle.schema, options)
    digest = bundle.recalibrate(samples.values, out_folder, samples.observed)
    if label:
        plain(err, f"every row counts as normal, whatever {label} says; leave anomalies out", "yellow")
    if as_json:
        told = {"bundle": str(out_folder), "digest": digest, "rows": len(samples.values)}
        typer.echo(as_line(told))
        return
    plain(out, f"calibrated by {counted(len(samples.values), 'row')}")
    facts(("bundle", out_folder), ("digest", digest))


@app.command()
def demo(
    root: Root = Path("mlruns"),
    epochs: Annotated[int | None, typer.Option(min=1, help="fewer for a quick look")] = None,
    device: Device = "auto",
) -> None:
    """Run the main job on bundled digits, one digit held out as the anomaly."""
    from pipelines.demo import run_demo

    with training_progress(err) as progress:
        result = run_demo(
            root, epochs, device, [progress], progress.expect, lambda text: plain(err, text, "dim")
        )
    plain(out, "\n".join(("", *result.headlines(), "")))
    facts(*result.places())
    suggest(*result.next_commands())


@app.command()
def doctor(
    model: Annotated[str | None, typer.Argument(help="bundle to try; a built-in graph otherwise")] = None,
    root: Root = Path("mlruns"),
    as_json: AsJson = False,
) -> None:
    """Check this machine: one real inference per device, tracking, disk, versions."""
    from pipelines.doctor import examine

    findings = examine(model, root)
    if as_json:
        typer.echo(as_line([finding.to_dict() for finding in findings]))
    else:
        for finding in findings:
            colour = {"ok": "green", "note": "yellow", "fail": "red"}[finding.status]
            plain(out, f"{finding.status:<5} {finding.what}: {finding.said}", colour)
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(console.FAILED)


@app.command()
def sync(
    run_id: Annotated[str, typer.Argument(help="run in the local store, as the tracker named it")],
    to: Annotated[str | None, typer.Option(help="the server; MLFLOW_TRACKING_URI by default")] = None,
    root: Root = Path("mlruns"),
) -> None:
    """Copy a run from the local tracking store to a server that was away while it ran."""
    from pipelines.sync import sync as copy_run

    plain(out, f"run {run_id} is on the server as {copy_run(run_id, to, root)}")


def _read_options(given: dict[str, Any]) -> Any:
    """Those of a verb's options that say how rows are read."""
    from serving.chunks import ReadOptions

    asked = {name: given[name] for name in ReadOptions.__dataclass_fields__ if name in given}
    return ReadOptions(**{**asked, "keep_columns": tuple(given["keep_columns"] or ())})


def _imputed_name(source: Path) -> Path:
    """``x.csv`` to ``x-imputed.parquet``, ``x.npy`` to ``x-imputed.npy``, a folder to another."""
    from serving.pictures import SUFFIXES

    named = source.resolve() if source.name in ("", "..") else source
    if source.is_dir():
        return named.with_name(named.name + "-imputed")
    if source.suffix.lower() in SUFFIXES:
        return named.with_name(named.stem + "-imputed")
    suffix = ".npy" if source.suffix.lower() in (".npy", ".npz") else ".parquet"
    return named.with_name(named.stem + "-imputed" + suffix)


def _report_job(summary: Any, as_json: bool, *findings: str) -> None:
    if as_json:
        typer.echo(as_line(vars(summary)))
    else:
        told = [counted(summary.rows, "row"), *findings]
        if summary.unobserved:
            told.append(f"{counted(summary.unobserved, 'row')} with nothing observed")
        if summary.unseen:
            told.append(f"{counted(summary.unseen, 'cell')} with a category unknown to the model")
        if summary.clipped:
            told.append(f"{counted(summary.clipped, 'cell')} clipped to the model's range")
        plain(out, ", ".join(told))
        if summary.resumed:
            plain(out, f"{counted(summary.resumed, 'row')} taken over from an earlier run that was stopped")
        facts(("written", summary.out), ("rejected", summary.rejected_out))
    if summary.rejected:
        rejected = f"{counted(summary.rejected, 'row')} rejected; see {summary.rejected_out}"
        plain(err, rejected, style="yellow")
        raise typer.Exit(console.REJECTED)


def _first_ranked(path: Path) -> None:
    """The rows of the least p-values."""
    import pyarrow.parquet as pq

    frame = pq.read_table(path).to_pandas().dropna(subset="rank").sort_values("rank", kind="stable")
    for line in frame.head(SHOWN).to_dict("records"):
        plain(out, f"  {next(iter(line.values()))}: p = {line['p_value']:.4g}")


def _first_reasons(path: Path) -> None:
    """The column that says most of each of the first rows of an explanation."""
    import pyarrow.parquet as pq

    batch = next(pq.ParquetFile(path).iter_batches(), None)
    if batch is None:
        return
    frame = batch.to_pandas()
    for line in frame[frame["place"] == 1].head(SHOWN).to_dict("records"):
        value, expected, low, high = (_short(line[key]) for key in ("value", "expected", "low", "high"))
        span = "" if math.isnan(line["low"]) else f" ({low} to {high})"
        plain(out, f"  {next(iter(line.values()))}: {line['column']} is {value}, expected {expected}{span}")


def _short(cell: float | str) -> str:
    """A number to four digits, also where names in other rows make it text."""
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return str(cell)


def _gate(min_auroc: float | None, metrics: list[dict[str, float]]) -> None:
    if min_auroc is None:
        return
    for found in metrics:
        if "auroc" not in found:
            raise DataError("--min-auroc needs labels of both classes; name them with --label or --novel")
        if found["auroc"] < min_auroc:
            plain(err, f"gate failed: AUROC {found['auroc']:.4f} is below {min_auroc}", style="red")
            raise typer.Exit(console.NEGATIVE)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with its exit code."""
    sys.exit(console.run(lambda: app(arguments, prog_name="vae-anomaly", standalone_mode=False)))


if __name__ == "__main__":
    main()
