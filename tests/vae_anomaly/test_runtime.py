"""A bundle on onnxruntime: the same bits however the work is cut, and no bundle that is not whole."""

from __future__ import annotations

import dataclasses
import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from sample_models import ALL_SCORES, fit, grey_images, table_rows

from vae_anomaly import runtime
from vae_anomaly.bundle import MANIFEST, Manifest, seal
from vae_anomaly.exceptions import BundleError, ConfigError, DeviceError, SchemaError, TamperedBundleError
from vae_anomaly.export import export_bundle
from vae_anomaly.fitting import recommended_model
from vae_anomaly.networks import ModelConfig
from vae_anomaly.runtime import CPU, CUDA, Bundle, load_bundle
from vae_anomaly.schema import infer_schema

AGAIN = "; fetch the bundle again or export it anew"
HAS_DRIVER = runtime._driver_present()
Array = npt.NDArray[Any]
ROWS = 1000


# -- identical bits ---------------------------------------------------------------------------------


def many_rows(bundle: Bundle) -> Array:
    """Ordinary rows, gaps, far values, copies of one row at odd places."""
    if bundle.schema.kind == "image":
        x: Array = grey_images(ROWS, seed=5)[:, None]
    else:
        x = table_rows(ROWS, seed=5).to_numpy(copy=True)
        x[17], x[500] = 1e300, -1e9
    x[[3, 18, 333, 999]] = x[3]
    return x


def mask_of(x: Array) -> npt.NDArray[np.bool_]:
    observed = np.random.default_rng(1).random(x.shape) < 0.8
    observed[::3] = True
    observed[[3, 18, 333, 999]] = observed[3]
    observed[77] = False
    return observed


def scores(bundle: Bundle, x: Array, observed: Array) -> list[Array]:
    return [bundle.verdicts(x, observed).astype(float).to_numpy()]


def explain(bundle: Bundle, x: Array, observed: Array) -> list[Array]:
    return [part for part in bundle.explain(x, observed) if isinstance(part, np.ndarray)]


def encode(bundle: Bundle, x: Array, observed: Array) -> list[Array]:
    return [part for part in bundle.encode(x, observed) if part is not None]


def impute(bundle: Bundle, x: Array, observed: Array) -> list[Array]:
    found = bundle.impute(x, observed)
    return [found.mean, found.std, found.ess]


def decode(bundle: Bundle, x: Array, observed: Array) -> list[Array]:
    """Latents made of the rows' own bits."""
    z = np.random.default_rng(2).normal(size=(7, bundle.latent_size))[np.arange(len(x)) % 7]
    return [bundle.decode(z + bundle.encode(x, observed).mean)]


QUESTIONS = [scores, explain, encode, impute, decode]
Question = Callable[[Bundle, Array, Array], list[Array]]


@pytest.fixture(scope="module", params=["table", "image"])
def vae(request: pytest.FixtureRequest) -> Bundle:
    """One multilayer perceptron, one convolutional network."""
    found: Bundle = request.getfixturevalue(f"{request.param}_bundle")
    return found


@pytest.fixture(scope="module")
def whole(vae: Bundle) -> dict[str, list[Array]]:
    """Every answer for all rows at once."""
    x = many_rows(vae)
    return {question.__name__: question(vae, x, mask_of(x)) for question in QUESTIONS}


def same_bits(actual: list[Array], expected: list[Array]) -> None:
    for mine, theirs in zip(actual, expected, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.tobytes() == np.ascontiguousarray(theirs).tobytes()


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (7, 2), (64, 3), (1000, 1), (64, 1)])
def test_bits_do_not_depend_on_batches_and_threads(
    vae: Bundle, whole: dict[str, list[Array]], question: Question, batch_size: int, threads: int
) -> None:
    other = load_bundle(vae.path, device="cpu", batch_size=batch_size, threads=threads, self_test=False)
    assert (other.batch_size, other.backend.threads) == (batch_size, threads)
    rows = slice(0, ROWS if batch_size > 1 else 100)
    x = many_rows(vae)
    found = question(other, x[rows], mask_of(x)[rows])
    same_bits(found, [part[rows] for part in whole[question.__name__]])


@pytest.mark.parametrize("question", [q for q in QUESTIONS if q is not decode])
def test_bits_do_not_depend_on_neighbours_and_place(
    vae: Bundle, whole: dict[str, list[Array]], question: Question
) -> None:
    x = many_rows(vae)
    observed, expected = mask_of(x), whole[question.__name__]
    order = np.random.default_rng(3).permutation(ROWS)
    same_bits(question(vae, x[order], observed[order]), [part[order] for part in expected])
    for rows in (slice(0, 1), slice(17, 18), slice(41, 58), slice(500, 777)):
        same_bits(question(vae, x[rows], observed[rows]), [part[rows] for part in expected])
    for part in expected:
        assert len(np.unique(part[[3, 18, 333, 999]], axis=0)) == 1


# -- opening ----------------------------------------------------------------------------------------


def test_a_bundle_opens_from_its_folder(table_folder: Path) -> None:
    for source in (table_folder, str(table_folder)):
        bundle = load_bundle(source, device="cpu")
        assert bundle.path == table_folder
        assert bundle.provider == CPU
        assert bundle.backend.threads >= 1
        assert repr(bundle) == f"Bundle('model', vae, {bundle.digest[:12]}, CPUExecutionProvider)"
        assert (bundle.kind, bundle.latent_size, bundle.default_score) == ("vae", 2, "neg_elbo")
        assert bundle.false_alarm_rate == 0.05
        assert load_bundle(source, device="cpu", expected_digest=bundle.digest).digest == bundle.digest


def test_another_digest_is_refused(table_folder: Path) -> None:
    with pytest.raises(
        TamperedBundleError, match=r"has the digest \w{64}, expected 0{64}; fetch the bundle again$"
    ):
        load_bundle(table_folder, device="cpu", expected_digest="0" * 64)


def test_no_bundle_no_answer(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"^no bundle folder at '.*nowhere'; give a folder, runs:/"):
        load_bundle(tmp_path / "nowhere")


@pytest.mark.parametrize(("name", "value"), [("threads", 0), ("threads", -1), ("batch_size", 0)])
def test_counts_are_at_least_one(table_folder: Path, name: str, value: int) -> None:
    choice: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"^{name} must be at least 1, got {value}$"):
        load_bundle(table_folder, device="cpu", **choice)


def test_a_session_is_deterministic_and_leaves_the_cores_alone(image_folder: Path) -> None:
    session = runtime.make_session((image_folder / "score.onnx").read_bytes(), CPU)
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (1, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.use_deterministic_compute
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert session.get_providers() == [CPU]


# -- devices ----------------------------------------------------------------------------------------


def test_an_unknown_device_is_refused(table_folder: Path) -> None:
    with pytest.raises(DeviceError, match=r"^unknown device 'gpu'; choose auto, cpu, cuda$"):
        load_bundle(table_folder, device="gpu")


@pytest.mark.skipif(HAS_DRIVER, reason="this machine has an NVIDIA driver")
def test_cuda_without_a_driver_is_an_error_and_auto_is_the_cpu(table_folder: Path) -> None:
    assert load_bundle(table_folder).provider == CPU
    problem = (
        "no NVIDIA driver was found (libcuda.so.1)"
        if CUDA in onnxruntime.get_available_providers()
        else "this onnxruntime was built without CUDA"
    )
    sentence = f"device 'cuda' cannot be used: {problem}; install vae-anomaly[cuda] or use device='cpu'"
    with pytest.raises(DeviceError, match=f"^{re.escape(sentence)}$"):
        load_bundle(table_folder, device="cuda")


def broken_start(graph: bytes, provider: str) -> None:
    raise RuntimeError("libcublas.so.13: cannot open shared object file\nstack")


class OnTheCpu:
    """A session that fell back without a word."""

    def get_providers(self) -> list[str]:
        return [CPU]


@pytest.mark.parametrize(
    ("start", "problem"),
    [
        (broken_start, "libcublas.so.13: cannot open shared object file"),
        (lambda graph, provider: OnTheCpu(), "libcudnn.so.9: cannot open shared object file"),
    ],
    ids=["refused", "fell back"],
)
def test_what_keeps_cuda_from_starting_is_named(
    monkeypatch: pytest.MonkeyPatch, start: Callable[..., Any], problem: str
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(runtime, "_driver_present", lambda: True)
    monkeypatch.setattr(runtime, "make_session", start)
    monkeypatch.setattr(runtime, "_missing_library", lambda: "libcudnn.so.9: cannot open shared object file")
    sentence = f"device 'cuda' cannot be used: {problem}; install vae-anomaly[cuda] or use device='cpu'"
    with pytest.raises(DeviceError, match=f"^{re.escape(sentence)}$"):
        runtime.choose_provider(b"", "cuda")
    assert runtime.choose_provider(b"", "auto") == CPU


def test_the_loader_names_the_library_that_is_missing() -> None:
    """Here the CUDA provider lacks at least the driver; without the provider there is nothing to name."""
    found = runtime._missing_library()
    assert "\n" not in found
    assert len(found) <= 200
    if CUDA in onnxruntime.get_available_providers() and not HAS_DRIVER:
        assert re.match(r"^lib\S+: cannot open shared object file", found)


# -- bundles that are not whole, or not what they were -----------------------------------------------


def resealed(
    source: Path,
    target: Path,
    *,
    drop: str = "",
    files: dict[str, bytes] | None = None,
    **changes: Any,
) -> Path:
    """A copy with files dropped or changed and valid seals: what a careful attacker hands over."""
    shutil.copytree(source, target)
    manifest = dataclasses.replace(Manifest.from_json((target / MANIFEST).read_bytes()), **changes)
    (target / MANIFEST).unlink()
    if drop:
        (target / drop).unlink()
    for name, data in (files or {}).items():
        (target / name).write_bytes(data)
    seal(target, manifest)
    return target


def refused(folder: Path, sentence: str) -> None:
    with pytest.raises(BundleError, match=f"^{re.escape(sentence)}$"):
        load_bundle(folder, device="cpu")


@pytest.mark.parametrize(
    "name",
    [
        *(f"{g}.onnx" for g in ("score", "explain", "encode", "decode", "impute")),
        "calibration.npz",
        "golden.npz",
    ],
)
def test_a_missing_file_is_named(table_folder: Path, tmp_path: Path, name: str) -> None:
    folder = resealed(table_folder, tmp_path / "b", drop=name)
    refused(folder, f"bundle {folder} has no {name}{AGAIN}")


def test_an_autoencoder_needs_no_impute_graph(autoencoder_folder: Path, tmp_path: Path) -> None:
    assert not (autoencoder_folder / "impute.onnx").exists()
    assert (
        load_bundle(resealed(autoencoder_folder, tmp_path / "b", drop="README.md"), device="cpu").kind
        == "autoencoder"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"default_score": "iw"},
            " decides by 'iw', which is none of its scores neg_elbo, iw_nll, recon, rate, latent_maha",
        ),
        ({"tolerances": {}}, ": scores is None, expected a number above 0"),
        ({"imputation": {"draws": 100}}, ": chunk is None, expected a number above 0"),
        ({"imputation": {"draws": 0, "chunk": 50}}, ": draws is 0, expected a number above 0"),
        ({"provenance": {"rows_calibration": True}}, ": rows_calibration is True, expected a number above 0"),
        (
            {"provenance": {"rows_calibration": 47}},
            ": calibration.npz holds no 47 calibration scores of 'neg_elbo'",
        ),
        ({"latent_size": 3}, ": calibration.npz holds no noise in 3 latent dimensions"),
        ({"scores": ("neg_elbo", "best")}, ": calibration.npz holds no 48 calibration scores of 'best'"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_manifest_that_promises_too_much(
    table_folder: Path, tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    folder = resealed(table_folder, tmp_path / "b", **changes)
    refused(folder, f"bundle {folder}{problem}{AGAIN}")


def npz(arrays: dict[str, Array]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def calibration_of(folder: Path, change: Callable[[dict[str, Array]], Any]) -> bytes:
    with np.load(folder / "calibration.npz") as stored:
        arrays = {key: stored[key] for key in stored.files}
    change(arrays)
    return npz(arrays)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda tables: tables.update(score_rate=tables["score_rate"][::-1]),
            ": calibration scores are not ascending, or hold NaN; drop NaN and sort them",
        ),
        (
            lambda tables: tables.update(score_rate=tables["score_rate"].astype(np.float32)),
            ": calibration.npz holds no 48 calibration scores of 'rate'",
        ),
        (lambda tables: tables.pop("noise"), ": calibration.npz holds no noise in 2 latent dimensions"),
        (
            lambda tables: tables.pop("score_score"),
            ": calibration.npz holds no 48 calibration scores of 'score'",
        ),
        (
            lambda tables: tables.update(score_score=tables["score_score"] - 1e9),
            " fails its self-test: score.onnx and calibration.npz disagree on p-values",
        ),
    ],
    ids=["descending", "float32", "no noise", "no table", "lowered"],
)
def test_altered_calibration_is_noticed(
    table_folder: Path, tmp_path: Path, change: Callable[[dict[str, Array]], Any], problem: str
) -> None:
    changed = calibration_of(table_folder, change)
    folder = resealed(table_folder, tmp_path / "b", files={"calibration.npz": changed})
    refused(folder, f"bundle {folder}{problem}{AGAIN}")


def with_weights(path: Path, change: Callable[[Array], Array], ends: str = "", dims: int = 0) -> bytes:
    """The graph with every float weight of a name or rank changed."""
    model = onnx.load(path)
    changed = 0
    for weights in model.graph.initializer:
        values = numpy_helper.to_array(weights)
        if values.dtype == np.float32 and weights.name.endswith(ends) and (not dims or values.ndim == dims):
            weights.CopyFrom(numpy_helper.from_array(change(values).astype(np.float32), weights.name))
            changed += 1
    assert changed
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("graph", ["score", "decode"])
def test_an_altered_graph_fails_its_self_test(table_folder: Path, tmp_path: Path, graph: str) -> None:
    path = table_folder / f"{graph}.onnx"
    changed = with_weights(path, lambda values: values * 1.01, dims=2)
    folder = resealed(table_folder, tmp_path / "b", files={path.name: changed})
    sentence = (
        rf"bundle \S+ fails its self-test: {graph}/\w+ is \S+ times its tolerance away; "
        "upgrade onnxruntime or export again"
    )
    with pytest.raises(BundleError, match=f"^{sentence}$"):
        load_bundle(folder, device="cpu")
    assert load_bundle(folder, device="cpu", self_test=False).manifest.name == "model"


def test_a_lowered_threshold_in_the_graph_fails_its_self_test(table_folder: Path, tmp_path: Path) -> None:
    """The calibration table alone: the scores stay, every row passes for normal."""
    changed = with_weights(table_folder / "score.onnx", lambda values: values + 1e9, ends="p_value.table")
    folder = resealed(table_folder, tmp_path / "b", files={"score.onnx": changed})
    refused(
        folder,
        f"bundle {folder} fails its self-test: score.onnx and calibration.npz disagree on p-values{AGAIN}",
    )


def test_a_graph_of_other_outputs_fails_its_self_test(table_folder: Path, tmp_path: Path) -> None:
    model = onnx.load(table_folder / "score.onnx")
    del model.graph.output[-1]
    folder = resealed(table_folder, tmp_path / "b", files={"score.onnx": model.SerializeToString()})
    refused(folder, f"bundle {folder} fails its self-test: score does not give 'clipped'{AGAIN}")


def test_a_golden_test_without_inputs_fails(table_folder: Path, tmp_path: Path) -> None:
    folder = resealed(table_folder, tmp_path / "b", files={"golden.npz": npz({"x": np.zeros(3)})})
    sentence = rf"bundle \S+ fails its self-test: score does not run: .+{AGAIN}"
    with pytest.raises(BundleError, match=f"^{sentence}$"):
        load_bundle(folder, device="cpu")


def test_a_graph_that_onnxruntime_refuses_is_no_crash(table_folder: Path, tmp_path: Path) -> None:
    model = onnx.load(table_folder / "explain.onnx")
    model.graph.node[0].op_type = "NoSuchOperator"
    folder = resealed(table_folder, tmp_path / "b", files={"explain.onnx": model.SerializeToString()})
    bundle = load_bundle(folder, device="cpu")
    sentence = (
        rf"the graph 'explain' does not start in onnxruntime {onnxruntime.__version__}: .+; "
        "upgrade onnxruntime, or fetch the bundle again or export it anew"
    )
    with pytest.raises(BundleError, match=f"^{sentence}$"):
        bundle.explain(table_rows(3))
    assert len(bundle.scores(table_rows(3))) == 3


def test_a_changed_file_is_refused_before_it_is_parsed(table_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(table_folder, folder)
    (folder / "decode.onnx").write_bytes(b"\0" * 100)
    with pytest.raises(TamperedBundleError, match=r"^bundle file decode\.onnx was changed after export"):
        load_bundle(folder, device="cpu")


def test_a_bundle_answers_after_its_folder_is_gone(table_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(table_folder, tmp_path / "b")
    bundle = load_bundle(tmp_path / "b", device="cpu", self_test=False)
    shutil.rmtree(tmp_path / "b")
    assert np.isfinite(bundle.scores(table_rows(3))["score"]).all()


def test_text_in_a_sample_reaches_no_graph(table_bundle: Bundle) -> None:
    with pytest.raises(SchemaError, match=r"^column 'plain' has dtype"):
        table_bundle.scores(table_rows(2).assign(plain=["a", "b"]))


# -- networks of real size --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["mlp", "conv"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """784-400-20 and the recommended convolutions, on 28x28: kernels of another size, other code paths."""
    images = np.random.default_rng(0).integers(0, 256, (240, 28, 28)).astype(np.uint8)
    config = (
        ModelConfig(hidden=(400,), latent_size=20, likelihood="bernoulli", mask_input=False)
        if request.param == "mlp"
        else recommended_model(infer_schema(images))
    )
    fitted = fit(images, config, epochs=1, scores=ALL_SCORES, draws=2, imputation_draws=50)
    folder = tmp_path_factory.mktemp("real") / "bundle"
    export_bundle(fitted, folder)
    return load_bundle(folder, device="cpu", threads=1)


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS)
def test_bits_hold_for_networks_of_real_size(real: Bundle, question: Question) -> None:
    many = 200 if question is impute else ROWS
    x = np.random.default_rng(1).integers(0, 256, (ROWS, 1, 28, 28)).astype(np.uint8)
    observed = mask_of(x)[:many]
    x = x[:many]
    expected = question(real, x, observed)
    for batch_size, threads in ((1, 1), (7, 2), (64, 4), (1000, 1)):
        other = load_bundle(real.path, device="cpu", batch_size=batch_size, threads=threads, self_test=False)
        rows = slice(0, many if batch_size > 7 else 50)
        same_bits(question(other, x[rows], observed[rows]), [part[rows] for part in expected])
