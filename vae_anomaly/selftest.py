"""Whether a bundle is whole and still says what it said at export.

Runs on every load: `check_complete` before any session starts, `check_golden` after. Export proves
parity with the same measure of `disagreement`. Imports without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from vae_anomaly import calibration
from vae_anomaly.batches import Backend, Feeds
from vae_anomaly.bundle import GRAPHS, Manifest, SealedBundle
from vae_anomaly.exceptions import BundleError, CalibrationError
from vae_anomaly.schema import Array, ImageSchema, Mask

SELF_TEST = "golden"
TOLERANCES = ("scores", "columns", "ess", "cuda")
AGAIN = "fetch the bundle again or export it anew"
TESTED = ("score", "decode", "step")
STEPS = ("chains", "warm_up", "steps")
# Scores that sum over elements.
ELEMENT_SUMS = ("neg_elbo", "iw_nll", "recon", "conditional", "typicality")
# Scores that are differences of bounds, `iw_nll` among them: as exact as what they are taken of.
DIFFERENCES = ("typicality", "background_ratio")
# Scores that enlarge small differences: of large activations; of latents far from 0, by their spread; of
# components, by the spread of validation rows, at most 1 / `quantiles.RESOLUTION` fold. Two digits of
# float32 go.
ENLARGED = ("lpath", "rapp", "latent_maha", "combined")
# p (1 - p) of a probability that float32 rounds to 1.
VARIANCE_ROUNDING = 2.0**-22
# Outputs in raw units.
RAW = ("reconstruction", "low", "high", "mean_raw", "std_raw")
# The smallest normal number.
TINY = 2.0**-1022


def graphs_of(manifest: Manifest) -> tuple[str, ...]:
    """The graphs that a bundle of this kind must hold."""
    absent = set() if manifest.kind == "vae" else {"impute", "step"}
    if "steps" not in manifest.imputation:
        absent.add("step")
    return tuple(name for name in GRAPHS if name not in absent)


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
        known, name = ", ".join(manifest.scores), manifest.default_score
        raise BundleError(
            f"bundle {sealed.path} decides by {name!r}, which is none of its scores {known}; {AGAIN}"
        )
    if problem := _figures_problem(manifest) or _tables_problem(manifest, sealed.arrays("calibration")):
        raise BundleError(f"bundle {sealed.path}: {problem}; {AGAIN}")


def _figures_problem(manifest: Manifest) -> str | None:
    figures = [(name, manifest.tolerances.get(name)) for name in TOLERANCES]
    figures.append(("rows_calibration", manifest.provenance.get("rows_calibration")))
    if manifest.kind == "vae":
        steps = STEPS if "steps" in manifest.imputation else ()
        figures += [(name, manifest.imputation.get(name)) for name in ("draws", "chunk", *steps)]
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
    golden, limit = sealed.arrays(SELF_TEST), _limit(sealed.manifest, loose)
    for graph in (name for name in TESTED if name in graphs_of(sealed.manifest)):
        given, expected = _part(golden, f"{graph}/in/"), _part(golden, f"{graph}/out/")
        try:
            out = backend.run(graph, given)
        except BundleError:
            raise
        except Exception as error:  # onnxruntime raises several unrelated classes here
            raise _failed(sealed, f"{graph} does not run: {first_line(error)}; {AGAIN}") from error
        if lost := _promised(graph, sealed.manifest) - (expected.keys() & out.keys()):
            raise _failed(sealed, f"{graph} does not give {min(lost)!r}; {AGAIN}")
        found = disagreements(expected, out, sealed.manifest)
        worst = max(found, key=lambda name: found[name])
        if found[worst] > limit:
            raise _failed(
                sealed,
                f"{graph}/{worst} is {found[worst]:.3g} times its tolerance away; "
                "upgrade onnxruntime or export again",
            )
        if graph == "score" and not p_values_agree(out, _table_in_graph(sealed.arrays("calibration"))):
            raise _failed(sealed, f"score.onnx and calibration.npz disagree on p-values; {AGAIN}")


def _table_in_graph(tables: Mapping[str, Array]) -> Array:
    """What score.onnx judges by: recalibration leaves it as it was exported."""
    return tables.get("graph_score", tables["score_score"])


def _limit(manifest: Manifest, loose: bool) -> float:
    return float(manifest.tolerances["cuda"] / manifest.tolerances["scores"]) if loose else 1.0


def _part(arrays: Feeds, prefix: str) -> Feeds:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _promised(graph: str, manifest: Manifest) -> set[str]:
    if graph == "score":
        return {*manifest.scores, "score", "p_value", "clipped"}
    return {"proposed", "current", "ess"} if graph == "step" else {"reconstruction"}


def _failed(sealed: SealedBundle, why: str) -> BundleError:
    return BundleError(f"bundle {sealed.path} fails its self-test: {why}")


def p_values_agree(out: Feeds, table: Array) -> bool:
    """Whether the score graph's p-values are those of its scores in a calibration table, exactly."""
    return np.array_equal(calibration.p_values(table, out["score"]), out["p_value"])


def disagreements(expected: Feeds, actual: Feeds, manifest: Manifest) -> dict[str, float]:
    """Largest difference between two runs of a graph, per output, in units of its tolerance.

    Left out are the running state, which is compared in raw units; draws, which jump where two
    draws all but tie; p-values, which jump where scores tie: `p_values_agree` judges those.
    """
    names = [name for name in expected if name in actual and not name.startswith("next_")]
    return {
        name: _disagreement(expected[name], actual[name], tolerance_of(name, expected, manifest))
        for name in names
        if name not in ("draws_raw", "p_value")
    }


def _disagreement(expected: Array, actual: Array, allowed: Array) -> float:
    if expected.shape != actual.shape:
        return np.inf
    expected, actual = expected.astype(np.float64), actual.astype(np.float64)
    differ = ~((expected == actual) | (np.isnan(expected) & np.isnan(actual)))
    if not (np.isfinite(expected[differ]).all() and np.isfinite(actual[differ]).all()):
        return np.inf
    distance = np.abs(np.subtract(actual, expected, out=np.zeros_like(expected), where=differ))
    return float(np.max(distance / allowed, initial=0.0))


def tolerance_of(name: str, outputs: Feeds, manifest: Manifest) -> Array:
    """Allowed absolute difference per entry of an output of a graph.

    Scores: 1e-5 of the larger of the value and the batch's median, and of a floor: 1 nat, or 0.1
    nat per element where elements are summed, for terms that cancel; 100 for `lpath`, `rapp`,
    `latent_maha` and `combined`, which enlarge small differences. Raw units: 1e-5 of the column's range,
    or of the distance to it, and one step where decoding rounds: see `_jumps`; of a positive column its
    logarithm may differ by so much.
    Contributions, the terms of a score: 1e-5 of their sum in the row, of the column's largest and of
    one nat, whichever is most; acceptance ratios like scores. Latents: 1e-5 of the column's largest,
    at least of a tenth of all columns'. Effective sample sizes: 1e-4. What is weighted by
    importance may differ by what log-weights, which are scores, may differ: `_weight_error`.
    """
    tolerances, values = manifest.tolerances, _finite(outputs[name])
    size, relative = np.abs(values), tolerances["columns"]
    if name == "clipped":
        return np.full_like(values, 0.5)
    if name == "score" or name in manifest.scores:
        if name in DIFFERENCES and "iw_nll" in outputs:
            size = np.maximum(size, np.abs(_finite(outputs["iw_nll"])))
        floor = _score_floor(manifest.default_score if name == "score" else name, manifest)
        return np.asarray(tolerances["scores"] * np.maximum(size, max(float(np.median(size)), floor)))
    if name in ("proposed", "current"):
        return np.asarray(tolerances["scores"] * np.maximum(size, _score_floor("iw_nll", manifest)))
    if name == "ess":
        return np.asarray(size * (tolerances["ess"] + 2 * _weight_error(outputs, manifest)))
    if name in RAW:
        return _raw_tolerance(name, values, outputs, manifest)
    largest = size.max(axis=0, initial=0.0)
    if name == "contributions":
        total = size.sum(axis=tuple(range(1, size.ndim)), keepdims=True)
        return np.asarray(relative * np.maximum(np.maximum(largest, total), 1.0))
    floor = max(1e-3, 0.1 * float(largest.max(initial=0.0)))
    return np.broadcast_to(relative * np.maximum(largest, floor), size.shape)


def _raw_tolerance(name: str, values: Array, outputs: Feeds, manifest: Manifest) -> Array:
    finite = {key: _finite(outputs[key]) for key in RAW if key in outputs}
    allowed = _range_tolerance(name, finite, outputs, manifest, *raw_range(manifest))
    positive = _positive(manifest)
    if not positive.any():
        return allowed
    logs, scale = {key: _log(found, positive) for key, found in finite.items()}, np.abs(values)
    if "std_raw" in finite:
        scale = np.where(positive, finite["mean_raw"], 1.0)
        logs["std_raw"] = finite["std_raw"] / np.maximum(scale, TINY)
    own = _range_tolerance(name, logs, outputs, manifest, *_log_range(manifest))
    if name == "std_raw":
        # What the mean may differ by, the spread goes along with.
        own = own + logs[name] * _range_tolerance("mean_raw", logs, outputs, manifest, *_log_range(manifest))
    return np.where(positive, np.maximum(scale, TINY) * own, allowed)


def _log(values: Array, positive: Mask) -> Array:
    return np.asarray(np.log(np.where(positive, np.maximum(values, TINY), 1.0)))


def _log_range(manifest: Manifest) -> tuple[Array, Array]:
    """Lowest logarithm and its range of each positive column; 0 and 1 for every other."""
    positive = _positive(manifest)
    columns = () if isinstance(manifest.schema, ImageSchema) else manifest.schema.columns
    low, high = (
        _log(np.array(end, dtype=np.float64), positive)
        for end in ([column.low or 1.0 for column in columns], [column.high or 1.0 for column in columns])
    )
    return low, np.where(high > low, high - low, 1.0)


def _range_tolerance(
    name: str, finite: Feeds, outputs: Feeds, manifest: Manifest, low: Array, span: Array
) -> Array:
    """What an output in raw units, or in their logarithms, may differ by in columns of such a range."""
    columns, jumps, values = manifest.tolerances["columns"], _jumps(manifest), finite[name]
    if name == "reconstruction":
        return np.asarray(columns * np.maximum(span, np.abs(values - low)) + jumps)
    if name in ("low", "high"):
        reach = np.abs(values - finite["reconstruction"])
        return np.asarray(
            columns * np.maximum(span, np.abs(values - low)) + jumps + 2 * _root_rounding(reach / 2, span)
        )
    error = _weight_error(outputs, manifest).reshape(-1, *[1] * (values.ndim - 1))
    if name == "mean_raw":
        spread = finite["std_raw"]
        return np.asarray(columns * np.maximum(span, np.abs(values - low)) + error * spread + jumps)
    return np.asarray(columns * np.maximum(span, values) + error * values + _root_rounding(values, span))


def _root_rounding(deviation: Array, span: Array) -> Array:
    """What float32's rounding of a variance near 0 does to its square root."""
    least = math.sqrt(VARIANCE_ROUNDING) * span
    return np.asarray(VARIANCE_ROUNDING * span * (span / np.maximum(deviation, least)))


def _jumps(manifest: Manifest) -> Array:
    """How far a column's decoded value may move by a last bit: halfway between two whole numbers, or
    where two classes are all but equally probable. What is rounded is compared as score and spread.
    """
    schema = manifest.schema
    if isinstance(schema, ImageSchema):
        return np.array(0.0)
    _, span = raw_range(manifest)
    kinds = [column.kind for column in schema.columns]
    whole = np.array([kind == "integer" for kind in kinds], dtype=np.float64)
    return np.where([kind in ("binary", "categorical", "ordinal") for kind in kinds], span, whole)


def _positive(manifest: Manifest) -> Mask:
    """Which columns are logarithms in model space."""
    schema = manifest.schema
    columns = () if isinstance(schema, ImageSchema) else schema.columns
    return np.array([column.kind == "positive" for column in columns], dtype=np.bool_)


def _score_floor(name: str, manifest: Manifest) -> float:
    if name in ENLARGED:
        return 100.0
    return max(1.0, 0.1 * manifest.schema.elements) if name in ELEMENT_SUMS else 1.0


def _weight_error(outputs: Feeds, manifest: Manifest) -> Array:
    """How far importance weights may differ, relatively, shape (B,); chains have none."""
    if "next_log_total" not in outputs:
        return np.zeros(len(outputs["ess"]))
    return np.asarray(manifest.tolerances["scores"] * np.maximum(np.abs(outputs["next_log_total"]), 1.0))


def _finite(values: Array) -> Array:
    values = values.astype(np.float64)
    return np.where(np.isfinite(values), values, 0.0)


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
