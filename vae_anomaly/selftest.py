"""Whether a bundle is whole and still says what it said at export.

Runs on every load: `check_complete` before any session starts, `check_golden` after. Export proves
parity with the same measure of `disagreement`. Imports without torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vae_anomaly import calibration
from vae_anomaly.answers import Backend
from vae_anomaly.bundle import GRAPHS, Manifest, SealedBundle
from vae_anomaly.exceptions import BundleError, CalibrationError
from vae_anomaly.schema import Array, ImageSchema

SELF_TEST = "golden"
TOLERANCES = ("scores", "columns", "ess", "cuda")
AGAIN = "fetch the bundle again or export it anew"
NOTHING = np.empty(0)
RAW_OUTPUTS = ("reconstruction", "mean_raw", "std_raw")


def graphs_of(manifest: Manifest) -> tuple[str, ...]:
    """The graphs that a bundle of this kind must hold."""
    return tuple(name for name in GRAPHS if manifest.kind == "vae" or name != "impute")


def check_complete(sealed: SealedBundle) -> None:
    """Refuse a bundle that could not give every answer that its manifest promises.

    Raises
    ------
    BundleError
        If a file, a calibration table or a figure that a question needs is missing or misshapen.
    """
    manifest = sealed.manifest
    wanted = [f"{name}.onnx" for name in graphs_of(manifest)] + ["calibration.npz", f"{SELF_TEST}.npz"]
    if missing := [name for name in wanted if name not in manifest.files]:
        raise BundleError(f"bundle {sealed.path} has no {missing[0]}; {AGAIN}")
    if manifest.default_score not in manifest.scores:
        known = ", ".join(manifest.scores)
        raise BundleError(
            f"bundle {sealed.path} decides by {manifest.default_score!r}, which is none of its scores {known}; "
            f"{AGAIN}"
        )
    if problem := _figures_problem(manifest) or _tables_problem(manifest, sealed.arrays("calibration")):
        raise BundleError(f"bundle {sealed.path}: {problem}; {AGAIN}")


def _figures_problem(manifest: Manifest) -> str | None:
    figures = [(name, manifest.tolerances.get(name)) for name in TOLERANCES]
    figures.append(("rows_calibration", manifest.provenance.get("rows_calibration")))
    if manifest.kind == "vae":
        figures += [(name, manifest.imputation.get(name)) for name in ("draws", "chunk")]
    for name, value in figures:
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            return f"{name} is {value!r}, expected a number above 0"
    return None


def _tables_problem(manifest: Manifest, tables: Mapping[str, Array]) -> str | None:
    rows, latent = manifest.provenance["rows_calibration"], manifest.latent_size
    for name in (*manifest.scores, "score"):
        table = tables.get(f"score_{name}")
        if table is None or table.shape != (rows,) or table.dtype != np.float64:
            return f"calibration.npz holds no {rows} calibration scores of {name!r}"
        try:
            calibration.p_values(table, [])
        except CalibrationError as error:
            return str(error)
    noise = tables.get("noise")
    if manifest.kind == "vae" and (noise is None or noise.ndim != 2 or noise.shape[1] != latent):
        return f"calibration.npz holds no noise in {latent} latent dimensions"
    return None


def check_golden(sealed: SealedBundle, backend: Backend, *, loose: bool = False) -> None:
    """Run the stored synthetic inputs and compare with the stored outputs.

    Raises
    ------
    BundleError
        If a graph gives other values than it did at export.
    """
    golden = sealed.arrays(SELF_TEST)
    tolerances = sealed.manifest.tolerances
    limit = tolerances["cuda"] / tolerances["scores"] if loose else 1.0
    for graph, names in _tested(sealed.manifest).items():
        parts = {key.split("/")[2]: value for key, value in golden.items() if key.startswith(f"{graph}/in/")}
        try:
            out = backend.run(graph, parts)
        except BundleError:
            raise
        except Exception as error:  # onnxruntime raises several unrelated classes here
            raise BundleError(
                f"bundle {sealed.path} fails its self-test: {graph} does not run: {first_line(error)}; {AGAIN}"
            ) from error
        for name in names:
            # What one side lacks has another shape, and so disagrees.
            expected, actual = golden.get(f"{graph}/out/{name}", NOTHING), out.get(name, NOTHING)
            worst = disagreement(name, expected, actual, sealed.manifest) if expected.size else np.inf
            if worst > limit:
                raise BundleError(
                    f"bundle {sealed.path} fails its self-test: {graph}/{name} is {worst:.3g} times its "
                    "tolerance away; upgrade onnxruntime or export again"
                )
    _check_tables_agree(sealed, golden)


def _tested(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """The outputs that the self-test compares."""
    return {"score": (*manifest.scores, "score", "p_value", "clipped"), "decode": ("reconstruction",)}


def _check_tables_agree(sealed: SealedBundle, golden: Mapping[str, Array]) -> None:
    """The stored calibration scores and the table inside the score graph give one p-value."""
    tables, default = sealed.arrays("calibration"), sealed.manifest.default_score
    for table in (tables["score_score"], tables[f"score_{default}"]):
        found = calibration.p_values(table, golden["score/out/score"])
        if not np.array_equal(found, golden["score/out/p_value"]):
            raise BundleError(
                f"bundle {sealed.path} fails its self-test: calibration.npz and score.onnx disagree on "
                f"p-values; {AGAIN}"
            )


def disagreement(name: str, expected: Array, actual: Array, manifest: Manifest) -> float:
    """Largest difference between two runs of an output, in units of its tolerance."""
    if expected.shape != actual.shape:
        return np.inf
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    differ = ~((expected == actual) | (np.isnan(expected) & np.isnan(actual)))
    if not (np.isfinite(expected[differ]).all() and np.isfinite(actual[differ]).all()):
        return np.inf
    distance = np.zeros_like(expected)
    np.subtract(actual, expected, out=distance, where=differ)
    allowed = tolerance_of(name, np.where(np.isfinite(expected), expected, 0.0), manifest)
    return float(np.max(np.abs(distance) / allowed, initial=0.0))


def tolerance_of(name: str, expected: Array, manifest: Manifest) -> Array:
    """Allowed absolute difference per entry of an output.

    Scores: 1e-5 of the larger of the value and the batch's median; raw units: 1e-5 of the
    column's range, or of the distance to it; contributions: 1e-5 of the column's largest, at least
    of one nat; latents: 1e-5 of the column's largest; effective sample sizes: 1e-4; p-values:
    2/(n+1).
    """
    tolerances, size = manifest.tolerances, np.abs(expected)
    allowed: Array
    if name == "p_value":
        allowed = np.full_like(expected, 2.0 / (manifest.provenance["rows_calibration"] + 1) + 1e-12)
    elif name == "clipped":
        allowed = np.full_like(expected, 0.5)
    elif name == "ess":
        allowed = tolerances["ess"] * np.maximum(size, 1.0)
    elif name == "score" or name in manifest.scores:
        allowed = tolerances["scores"] * np.maximum(size, np.median(size)) + 1e-30
    elif name in RAW_OUTPUTS:
        low, span = raw_range(manifest)
        allowed = tolerances["columns"] * np.maximum(span, np.abs(expected - low))
    else:
        floor = 1.0 if name == "contributions" else 1e-3
        allowed = np.broadcast_to(tolerances["columns"] * size.max(axis=0, initial=floor), size.shape)
    return allowed


def raw_range(manifest: Manifest) -> tuple[Array, Array]:
    """Lowest raw value and range of each column, or of all pixels."""
    schema = manifest.schema
    if isinstance(schema, ImageSchema):
        return np.array(schema.low), np.array(schema.high - schema.low)
    low = np.array([column.low or 0.0 for column in schema.columns])
    span = np.array([(column.high or 0.0) - (column.low or 0.0) for column in schema.columns])
    return low, np.where(span > 0, span, 1.0)


def first_line(error: Exception) -> str:
    """What an error of a foreign library says, cut to one short line."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
