"""What is exported says what torch says, gives nothing away, and appears whole or not at all."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper
from sample_models import ALL_SCORES, colour_images, fit, grey_images, stretch_logits, table_rows

from vae_anomaly import export
from vae_anomaly.answers import Answers
from vae_anomaly.assembly import Fitted, TorchBackend
from vae_anomaly.calibration import p_values
from vae_anomaly.encoding import ImageEncoding
from vae_anomaly.estimators import VAEDetector
from vae_anomaly.exceptions import BundleError, ParityError
from vae_anomaly.export import check_parity, export_bundle, parity_feeds, synthetic, to_onnx
from vae_anomaly.networks import ModelConfig
from vae_anomaly.runtime import Bundle, OnnxBackend, load_bundle
from vae_anomaly.schema import Column, ImageSchema, TableSchema

ROOT = Path(__file__).parents[2]
KINDS = ("table", "image", "autoencoder")
Array = npt.NDArray[Any]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(kind: str, request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(f"{kind}_folder")
    return found


@pytest.fixture
def bundle(kind: str, request: pytest.FixtureRequest) -> Bundle:
    found: Bundle = request.getfixturevalue(f"{kind}_bundle")
    return found


@pytest.fixture
def fitted(kind: str, request: pytest.FixtureRequest) -> Fitted:
    if kind == "table":
        detector: VAEDetector = request.getfixturevalue("table_detector")
        return detector.fitted_
    found: Fitted = request.getfixturevalue(f"{kind}_fitted")
    return found


def unseen(kind: str) -> Array:
    """Ordinary rows, far ones, gaps: none of them in the gate's own batches."""
    makers: dict[str, Callable[..., Any]] = {
        "table": table_rows,
        "image": grey_images,
        "autoencoder": colour_images,
    }
    x = np.array(makers[kind](100, seed=7))
    if kind == "table":
        x[0], x[1], x[2, 0] = 1e300, -1e6, 1e9
    elif kind == "image":
        x[0], x[1] = 0, 255
    else:
        x[0], x[1], x[2], x[3, :, ::2] = -1e30, 1e30, 0.5, np.nan
    return x


def gaps(x: Array) -> npt.NDArray[np.bool_]:
    observed = np.random.default_rng(0).random(x.shape) < 0.7
    observed[:50], observed[-1] = True, False
    return observed


def close(actual: Array, expected: Array, scale: Array | float, tolerance: float) -> None:
    """|a - b| <= tolerance * max(scale, |b|)."""
    allowed = tolerance * np.maximum(scale, np.abs(expected))
    assert np.all((np.abs(actual - expected) <= allowed) | (np.isnan(actual) & np.isnan(expected)))


def same_answers(torch_answers: Answers, bundle: Answers, x: Array, observed: Array) -> None:
    ours, theirs = torch_answers.verdicts(x, observed), bundle.verdicts(x, observed)
    for name in ("score", *(f"score_{name}" for name in bundle.score_names)):
        close(theirs[name], ours[name], max(1.0, np.nanmedian(np.abs(ours[name]))), 1e-5)
    assert np.array_equal(theirs["clipped"], ours["clipped"])
    assert np.array_equal(theirs["score"].isna(), ours["score"].isna())
    explained, expected = bundle.explain(x, observed), torch_answers.explain(x, observed)
    close(
        explained.contributions, expected.contributions, np.nanmax(expected.contributions, axis=0) + 1, 1e-5
    )
    spread = np.nanmax(np.abs(expected.reconstruction), axis=0)
    close(explained.reconstruction, expected.reconstruction, spread, 1e-5)
    for actual, latent in zip(bundle.encode(x, observed), torch_answers.encode(x, observed), strict=True):
        if latent is not None:
            close(actual, latent, np.abs(latent).max(axis=0), 1e-5)
    if bundle.kind == "vae":
        same_imputations(torch_answers, bundle, x, observed)


def same_imputations(torch_answers: Answers, bundle: Answers, x: Array, observed: Array) -> None:
    ours, theirs = (answers.impute(x, observed, k=100) for answers in (torch_answers, bundle))
    # Weights are exponentials of log-weights, which agree to 1e-5 of their size.
    score = torch_answers.scores(x, observed)["score"].abs().clip(1).fillna(1).to_numpy()
    loose = 1e-5 * score.reshape(-1, *[1] * (ours.std.ndim - 1))
    scale = np.nanmax(np.abs(ours.std), axis=0) + 1e-5 * np.abs(np.asarray(ours.mean)).reshape(ours.std.shape)
    low, high = np.asarray(theirs.mean, float), np.asarray(ours.mean, float)
    step = 1.0 if np.asarray(ours.mean).dtype == np.uint8 else 0.0
    assert np.all(np.abs(low - high).reshape(ours.std.shape) <= step + (1e-5 + loose) * scale)
    np.testing.assert_array_less(np.abs(theirs.std - ours.std), (1e-4 + loose) * scale + 1e-30)
    np.testing.assert_array_less(np.abs(theirs.ess - ours.ess), (1e-4 + 2 * loose.reshape(-1)) * ours.ess)


def test_the_graphs_answer_as_the_modules_do(fitted: Fitted, bundle: Bundle, kind: str) -> None:
    x = unseen(kind)
    same_answers(fitted.answers(), bundle, x, gaps(x))
    z = np.random.default_rng(1).normal(scale=3, size=(40, bundle.latent_size))
    expected = fitted.answers().decode(z)
    close(bundle.decode(z), expected, np.abs(expected).max(axis=0), 1e-5)


def test_p_values_of_graph_and_table_are_one(bundle: Bundle, kind: str) -> None:
    samples = bundle.schema.read(unseen(kind))
    out = bundle.run("score", samples)
    assert np.array_equal(out["p_value"], p_values(bundle.calibration["score_score"], out["score"]))
    whole = samples.observed.reshape(len(samples.observed), -1).all(axis=1)
    assert np.array_equal(bundle.p_values(unseen(kind))[whole], out["p_value"][whole])
    for name in bundle.score_names:
        found = bundle.p_values(unseen(kind), score=name)
        expected = p_values(bundle.calibration[f"score_{name}"], out[name])
        assert np.array_equal(found[whole], expected[whole])


def test_the_calibration_table_is_the_graphs_own_scores(fitted: Fitted, bundle: Bundle) -> None:
    """Not torch's, which differ in their last bits: every tie would come out wrong."""
    held_out = fitted.calibration_samples
    frame = bundle.scores(held_out.values, held_out.observed)
    for name in (*bundle.score_names, "score"):
        assert np.array_equal(bundle.calibration[f"score_{name}"], np.sort(frame[name]))
    n = len(frame)
    ranks = frame["score"].rank(method="max", ascending=False)
    assert np.array_equal(bundle.p_values(held_out.values, held_out.observed), (1 + ranks) / (n + 1))


def test_export_leaves_the_fitted_model_as_it_was(
    fitted: Fitted, bundle: Bundle, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its p-values come from the table of its own scores, before and after."""
    held_out = fitted.calibration_samples
    frame = fitted.answers().verdicts(held_out.values, held_out.observed)
    for name in (*fitted.manifest.scores, "score"):
        column = "score" if name == "score" else f"score_{name}"
        assert np.array_equal(fitted.calibration[f"score_{name}"], np.sort(frame[column]))
    assert np.array_equal(fitted.score_graph.p_value.table.numpy(), fitted.calibration["score_score"])
    assert np.array_equal(frame["p_value"], p_values(fitted.calibration["score_score"], frame["score"]))


def test_the_manifest_tells_where_the_bundle_comes_from(fitted: Fitted, bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.kind == fitted.manifest.kind
    assert manifest.schema == fitted.manifest.schema
    assert manifest.scores == fitted.manifest.scores
    assert manifest.provenance["rows_calibration"] == len(fitted.calibration_samples.values) == 48
    assert manifest.provenance["rows_train"] == 168
    assert manifest.provenance["versions"]["torch"] == importlib.metadata.version("torch")
    assert bundle.digest == sha256((bundle.path / "manifest.json").read_bytes()).hexdigest()


def nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from nodes(inner)


def test_graphs_hold_no_notes_no_paths_and_no_chance(folder: Path) -> None:
    files = sorted(folder.glob("*.onnx"))
    assert files
    for path in files:
        data = path.read_bytes()
        for secret in (b".py", b"/home", b"torch.nn", b"pkg.torch", b"Traceback", str(ROOT).encode()):
            assert secret not in data, (path.name, secret)
        model = onnx.load_from_string(data)
        assert not model.functions
        assert not model.metadata_props
        assert [item.domain for item in model.opset_import] == [""]
        for node in nodes(model.graph):
            assert node.domain in ("", "ai.onnx")
            assert "Random" not in node.op_type
            assert node.op_type not in ("Multinomial", "Bernoulli", "Dropout"), path.name
            assert not node.doc_string
            assert not node.metadata_props


def test_graphs_take_raw_samples_of_any_number(folder: Path, kind: str) -> None:
    dtype = {"table": "DOUBLE", "image": "UINT8", "autoencoder": "FLOAT"}[kind]
    for name in ("score", "explain", "encode"):
        graph = onnx.load(folder / f"{name}.onnx").graph
        given = {item.name: item.type.tensor_type for item in graph.input}
        assert list(given) == ["x", "observed"]
        assert given["x"].elem_type == getattr(onnx.TensorProto, dtype)
        assert given["observed"].elem_type == onnx.TensorProto.BOOL
        assert given["x"].shape.dim[0].dim_param


def test_a_bundle_holds_no_row_it_was_made_from(table_detector: VAEDetector, table_folder: Path) -> None:
    """No cell of any training or calibration row but the ends of each column's range, told as such."""
    rows = table_rows()
    ends = {float(value) for column in rows for value in (rows[column].min(), rows[column].max())}
    cells = [value for value in rows.to_numpy().ravel() if np.isfinite(value) and value not in ends]
    stored = {path.name: path.read_bytes() for path in table_folder.iterdir()}
    for name in ("calibration.npz", "golden.npz"):
        with np.load(table_folder / name) as arrays:
            stored |= {f"{name}/{key}": arrays[key].tobytes() for key in arrays.files}
    for cell in cells:
        for name, data in stored.items():
            assert np.float64(cell).tobytes() not in data, (name, cell)
            assert repr(float(cell)).encode() not in data, (name, cell)


def test_made_up_samples_are_extreme_and_reproducible() -> None:
    table = TableSchema((Column("a", low=-1.0, high=3.0), Column("b", low=5.0, high=5.0)))
    grey, colour = ImageSchema(1, 8, 8), ImageSchema(3, 8, 8, "float32", 0.0, 1.0)
    for schema in (table, grey, colour):
        values, observed = synthetic(schema, 16, seed=1)
        again = synthetic(schema, 16, seed=1)
        assert np.array_equal(values, again.values)
        assert np.array_equal(observed, again.observed)
        assert observed[:8].all()
        assert not observed[-1].any()
        assert np.isfinite(values).all()
    assert synthetic(table, 16, 1).values[:3].tolist() == [[-1.0, 5.0], [3.0, 5.0], [1e300, 1e300]]
    assert synthetic(colour, 16, 1).values[2].min() == 1001.0
    assert synthetic(grey, 16, 1).values.dtype == np.uint8


@pytest.fixture
def autoencoder_protos(autoencoder_folder: Path) -> dict[str, onnx.ModelProto]:
    return {path.stem: onnx.load(path) for path in autoencoder_folder.glob("*.onnx")}


def prepared(monkeypatch: pytest.MonkeyPatch, protos: dict[str, onnx.ModelProto]) -> None:
    """Export takes these graphs in place of tracing the modules again."""
    monkeypatch.setattr(export, "to_onnx", lambda entry, name, feeds: protos[name])


def test_a_graph_that_differs_is_never_sealed(
    autoencoder_fitted: Fitted,
    autoencoder_protos: dict[str, onnx.ModelProto],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = [w for w in autoencoder_protos["decode"].graph.initializer if len(w.dims) == 4]
    changed = numpy_helper.to_array(weights[0]) * np.float32(1.001)
    weights[0].CopyFrom(numpy_helper.from_array(changed, weights[0].name))
    prepared(monkeypatch, autoencoder_protos)
    sentence = (
        r"decode/reconstruction differs between torch and onnxruntime by \d\S* times its tolerance; "
        "the bundle was not written: report this as a bug"
    )
    with pytest.raises(ParityError, match=f"^{sentence}$"):
        export_bundle(autoencoder_fitted, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_no_agreement(
    autoencoder_fitted: Fitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even with themselves."""
    torch_backend, feeds = TorchBackend(autoencoder_fitted.graphs), parity_feeds(autoencoder_fitted)
    assert max(check_parity(autoencoder_fitted, torch_backend, feeds).values()) == 0
    decode = ImageEncoding.decode
    monkeypatch.setattr(ImageEncoding, "decode", lambda encoding, y: decode(encoding, y) * np.nan)
    sentence = (
        "explain/reconstruction holds a value that is not finite; "
        "the bundle was not written: report this as a bug"
    )
    with pytest.raises(ParityError, match=f"^{re.escape(sentence)}$"):
        check_parity(autoencoder_fitted, torch_backend, feeds)


def test_a_graph_without_its_table_is_never_sealed(
    autoencoder_fitted: Fitted,
    autoencoder_protos: dict[str, onnx.ModelProto],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for weights in autoencoder_protos["score"].graph.initializer:
        if weights.name.endswith(export.TABLE):
            for node in autoencoder_protos["score"].graph.node:
                node.input[:] = ["t" if name == weights.name else name for name in node.input]
            weights.name = "t"
    prepared(monkeypatch, autoencoder_protos)
    sentence = "the score graph lost its calibration table; report this as a bug"
    with pytest.raises(ParityError, match=f"^{sentence}$"):
        export_bundle(autoencoder_fitted, tmp_path / "bundle")


def test_the_same_model_gives_the_same_bundle(
    autoencoder_fitted: Fitted,
    autoencoder_protos: dict[str, onnx.ModelProto],
    autoencoder_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """To the digest, once the graphs are the same; an empty folder is as good as none."""
    prepared(monkeypatch, autoencoder_protos)
    (tmp_path / "bundle").mkdir()
    digest = export_bundle(autoencoder_fitted, tmp_path / "bundle")
    for path in autoencoder_bundle.path.glob("*.npz"):
        with np.load(path) as ours, np.load(tmp_path / "bundle" / path.name) as theirs:
            assert ours.files == theirs.files
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours.files)
    assert load_bundle(tmp_path / "bundle", device="cpu", expected_digest=digest).digest == digest
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_a_taken_place_is_refused(autoencoder_fitted: Fitted, tmp_path: Path, taken: str) -> None:
    place = tmp_path / "bundle"
    place.write_text("mine") if taken == "file" else shutil.copytree(Path(__file__).parent, place)
    before = sorted(tmp_path.rglob("*"))
    sentence = f"{place} exists already; export to a new folder"
    with pytest.raises(BundleError, match=f"^{re.escape(sentence)}$"):
        export_bundle(autoencoder_fitted, place)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()], ids=repr)
def test_a_failed_export_leaves_nothing_behind(
    autoencoder_fitted: Fitted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(fitted: Fitted, folder: Path) -> str:
        (folder / "score.onnx").write_bytes(b"half")
        assert not (tmp_path / "bundle").exists()
        fitted.calibration.clear()
        raise error

    monkeypatch.setattr(export, "_write", fail)
    table = autoencoder_fitted.score_graph.p_value
    with pytest.raises(type(error)):
        export_bundle(autoencoder_fitted, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
    assert autoencoder_fitted.score_graph.p_value is table
    assert "score_score" in autoencoder_fitted.calibration


STRETCHED = {
    "gaussian": (table_rows, ModelConfig(hidden=(8,), latent_size=2, scale="element")),
    "bernoulli": (grey_images, ModelConfig(hidden=(8,), latent_size=2, likelihood="bernoulli")),
    "continuous-bernoulli": (
        colour_images,
        ModelConfig(hidden=(8,), latent_size=2, likelihood="continuous-bernoulli", mask_input=False),
    ),
}


@pytest.mark.parametrize("name", STRETCHED)
def test_scores_survive_logits_of_200(name: str) -> None:
    """One graph only: the whole sweep is `test_parity_over_every_kind_of_model`."""
    data, config = STRETCHED[name]
    fitted = fit(data(60), config, scores=ALL_SCORES, draws=4)
    stretch_logits(fitted)
    feeds = parity_feeds(fitted)["score"]
    graph = to_onnx(fitted.graphs["score"], "score", feeds[0]).SerializeToString()
    backend = OnnxBackend({"encode": graph}, "cpu")
    for batch in feeds:
        expected, actual = TorchBackend(fitted.graphs).run("score", batch), backend.run("encode", batch)
        for score in ALL_SCORES:
            assert np.isfinite(actual[score]).all()
            close(actual[score], expected[score], max(1.0, np.median(np.abs(expected[score]))), 1e-5)


def conv(**choices: Any) -> ModelConfig:
    return ModelConfig(network="conv", hidden=(4, 8), **({"latent_size": 2} | choices))


def mlp(**choices: Any) -> ModelConfig:
    return ModelConfig(hidden=(8,), latent_size=2, **choices)


# Bounded locations are not logits: at +-50 before their sigmoid or tanh they are at its ends.
SWEEP: dict[str, tuple[Callable[[], Any], ModelConfig, float]] = {
    "table, Gaussian, one sigma, no mask": (table_rows, mlp(mask_input=False), 200),
    "table, Gaussian, fixed sigma": (table_rows, mlp(scale=0.7071), 200),
    "table, Gaussian, sigma per column": (table_rows, mlp(scale="element"), 200),
    "table, Laplace": (table_rows, mlp(likelihood="laplace", batch_norm=True), 200),
    "table, Laplace, scale per column": (table_rows, mlp(likelihood="laplace", scale="element"), 200),
    "table, autoencoder": (table_rows, mlp(kind="autoencoder"), 200),
    "uint8, MLP, Bernoulli, no mask": (grey_images, mlp(likelihood="bernoulli", mask_input=False), 200),
    "uint8, MLP, continuous": (grey_images, mlp(likelihood="continuous-bernoulli", batch_norm=True), 200),
    "uint8, conv, Bernoulli": (grey_images, conv(likelihood="bernoulli", batch_norm=True), 200),
    "uint8, conv, continuous": (
        grey_images,
        conv(likelihood="continuous-bernoulli", head="transpose"),
        200,
    ),
    "uint8, conv, Gaussian, padded": (grey_images, conv(output="sigmoid", dense=16, padding=1), 50),
    "uint8, spatial autoencoder": (
        grey_images,
        conv(kind="autoencoder", latent_size=48, likelihood="bernoulli", spatial_code=True),
        200,
    ),
    "float32, conv, Laplace, tanh": (
        colour_images,
        conv(likelihood="laplace", output="tanh", kernel=4, head="transpose", batch_norm=True),
        50,
    ),
    "float32, conv, Gaussian, sigma per pixel": (
        colour_images,
        conv(output="sigmoid", scale="element"),
        50,
    ),
    "float32, conv, continuous": (
        colour_images,
        conv(likelihood="continuous-bernoulli", kernel=4, head="transpose", mask_input=False),
        200,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("stretched", [False, True], ids=["plain", "stretched"])
@pytest.mark.parametrize("name", SWEEP)
def test_parity_over_every_kind_of_model(name: str, stretched: bool, tmp_path: Path) -> None:
    data, config, reach = SWEEP[name]
    scores = ALL_SCORES if config.kind == "vae" else ()
    fitted = fit(data(), config, 2 if stretched else 20, scores=scores, draws=4, imputation_draws=100)
    if stretched:
        stretch_logits(fitted, reach)
    export_bundle(fitted, tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", device="cpu", threads=1)
    frame = bundle.verdicts(np.asarray(data()))
    assert np.isfinite(frame["score"]).all()
    out = bundle.run("score", bundle.schema.read(np.asarray(data())))
    assert np.array_equal(out["p_value"], p_values(bundle.calibration["score_score"], out["score"]))


@pytest.mark.slow
def test_a_collapsed_posterior_is_exported(tmp_path: Path) -> None:
    """mu and sigma say nothing: `rate` and `latent_maha` are float32's rounding of 0."""
    fitted = fit(table_rows(), mlp(), scores=ALL_SCORES)
    with torch.no_grad():
        for name, parameter in fitted.model.encoder.named_parameters():
            if name.startswith("head"):
                parameter.mul_(1e-6)
    export_bundle(fitted, tmp_path / "bundle")
    assert load_bundle(tmp_path / "bundle", device="cpu").scores(table_rows())["rate"].max() < 1e-3


@pytest.mark.slow
def test_rows_that_repeat_are_exported(tmp_path: Path) -> None:
    """Half the rows alike: a p-value jumps by half where torch and onnxruntime differ by one bit."""
    rows = table_rows()
    rows.iloc[::2] = [0.1, -20.0, 3e-7, 1.7e9]
    export_bundle(fit(rows, mlp(), epochs=20), tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle", device="cpu")
    assert bundle.scores(rows.iloc[::2])["score"].nunique() == 1
