"""Metropolis steps on onnxruntime: right where the truth is known, the same bits wherever a row stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from linear_gaussian import NOISE, D, L, conditional, linear_gaussian, rows_under_every_mask
from sample_models import TABLE_MODEL, settings, table_rows

from vae_anomaly import VAEImputer, imputing, load_bundle
from vae_anomaly.encoding import TableEncoding
from vae_anomaly.exceptions import BundleError
from vae_anomaly.export import to_onnx
from vae_anomaly.graphs import ImputeGraph, StepGraph
from vae_anomaly.imputing import MaskedDecode, fresh_state
from vae_anomaly.runtime import Bundle, OnnxBackend
from vae_anomaly.schema import Column, Samples, TableSchema
from vae_anomaly.scores import noise_bank
from vae_anomaly.selftest import graphs_of
from vae_anomaly.stepping import fresh_chains

ROWS = 40


@pytest.fixture(scope="module")
def unmasked_imputer() -> VAEImputer:
    """Trained on complete rows, without a mask ever hiding anything."""
    choices = settings(TABLE_MODEL, epochs=30, imputation_draws=50, draws=2, scores=("neg_elbo",))
    assert choices.training is not None
    choices = replace(choices, training=replace(choices.training, random_mask=0.0))
    rows = table_rows().fillna(table_rows().median())
    return VAEImputer(settings=choices, device="cpu", random_state=0).fit(rows)


@pytest.fixture(scope="module")
def folder(unmasked_imputer: VAEImputer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("unmasked") / "bundle"
    unmasked_imputer.export(path)
    return path


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Bundle:
    return load_bundle(folder, device="cpu", threads=1)


def gappy() -> tuple[np.ndarray, np.ndarray]:
    """Complete rows of which two columns are hidden, one row with nothing, one with all."""
    x = table_rows(ROWS, 5).fillna(0.0).to_numpy(copy=True)
    observed = np.ones(x.shape, bool)
    observed[:, 1:3], observed[3], observed[4] = False, False, True
    return x, observed


def stepped_rows(found: Any) -> np.ndarray:
    rows = np.flatnonzero(found.flags == "metropolis")
    assert 5 < len(rows) < ROWS - 2
    return rows


def same(left: Any, right: Any, rows: Any = slice(None)) -> None:
    for name in ("mean", "std", "ess"):
        assert np.array_equal(np.asarray(getattr(left, name)), np.asarray(getattr(right, name))[rows]), name
    assert np.array_equal(left.flags, right.flags[rows])
    if left.draws is not None:
        assert np.array_equal(left.draws, right.draws[:, rows])


def test_only_a_model_that_never_saw_masks_has_the_graph(folder: Path, table_folder: Path) -> None:
    assert (folder / "step.onnx").exists()
    assert not (table_folder / "step.onnx").exists()
    assert graphs_of(load_bundle(folder, device="cpu", self_test=False).manifest) == (
        "score",
        "explain",
        "impute",
        "step",
        "encode",
        "decode",
    )


def test_poorly_weighed_rows_are_stepped_and_no_other(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, observed = gappy()
    found = bundle.impute(x, observed, draws=3)
    rows = stepped_rows(found)
    monkeypatch.setattr(imputing, "STEP_BELOW", 0.0)
    weighed = bundle.impute(x, observed, draws=3)
    others = np.setdiff1d(np.arange(ROWS), rows)
    same(bundle_part(found, others), weighed, others)
    assert (weighed.ess[rows] < 10).all()
    assert (found.ess[rows] > weighed.ess[rows]).mean() > 0.9
    assert found.flags[3] == "nothing_observed"
    assert found.flags[4] == ""
    for part in (found.mean, found.std, found.draws):
        assert np.isfinite(part).all()
    assert found.draws is not None
    seen = np.broadcast_to(observed, found.draws.shape)
    assert np.array_equal(found.draws[seen], np.broadcast_to(x, found.draws.shape)[seen])


def bundle_part(found: Any, rows: np.ndarray) -> Any:
    return found._replace(
        mean=found.mean[rows],
        std=found.std[rows],
        draws=found.draws[:, rows],
        ess=found.ess[rows],
        flags=found.flags[rows],
    )


@pytest.mark.parametrize(("batch_size", "threads"), [(16, 1), (48, 2)])
def test_a_stepped_row_has_the_same_bits_wherever_it_stands(
    bundle: Bundle, folder: Path, batch_size: int, threads: int
) -> None:
    x, observed = gappy()
    ids = [f"row {i}" for i in range(ROWS)]
    expected = bundle.impute(x, observed, draws=2, seed=3, ids=ids)
    stepped_rows(expected)
    other = load_bundle(folder, device="cpu", batch_size=batch_size, threads=threads, self_test=False)
    order = np.random.default_rng(0).permutation(ROWS)[:23]
    same(
        other.impute(x[order], observed[order], draws=2, seed=3, ids=[ids[i] for i in order]), expected, order
    )
    another = bundle.impute(x, observed, draws=2, seed=4, ids=ids)
    assert np.array_equal(another.mean, expected.mean)
    assert not np.array_equal(another.draws, expected.draws)


def test_draws_of_different_rows_and_of_one_row_are_independent(bundle: Bundle) -> None:
    x, observed = gappy()
    row = stepped_rows(bundle.impute(x, observed))[0]
    many = np.repeat(x[[row]], 200, axis=0), np.repeat(observed[[row]], 200, axis=0)
    draws = bundle.impute(*many, draws=2).draws
    assert draws is not None
    one, other = draws[0, :, 1], draws[1, :, 1]
    assert len(np.unique(one)) == 200
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.3
    found = bundle.impute(x[[row]], observed[[row]])
    error = found.std[0, 1] * np.sqrt(1 / 400 + 1 / found.ess[0])
    assert abs(draws[:, :, 1].mean() - np.asarray(found.mean)[0, 1]) < 5 * error


def test_an_estimator_steps_as_its_bundle_does(unmasked_imputer: VAEImputer, bundle: Bundle) -> None:
    x, observed = gappy()
    mine = unmasked_imputer.answers_.impute(x, observed)
    theirs = bundle.impute(x, observed)
    rows = stepped_rows(theirs)
    assert (mine.flags == theirs.flags).mean() > 0.9
    both = np.intersect1d(rows, np.flatnonzero(mine.flags == "metropolis"))
    # A proposal at the edge may go either way: the chains part, the answers stay.
    error = theirs.std[both, 1] * np.sqrt(2 / theirs.ess[both] + 0.02)
    assert (np.abs(mine.mean[both, 1] - theirs.mean[both, 1]) < 5 * error).all()


def test_a_changed_step_graph_fails_its_self_test(folder: Path, tmp_path: Path) -> None:
    import shutil

    from vae_anomaly.bundle import seal
    from vae_anomaly.manifest import Manifest

    shutil.copytree(folder, tmp_path / "b")
    model = onnx.load(folder / "step.onnx")
    for weights in model.graph.initializer:
        values = onnx.numpy_helper.to_array(weights)
        if values.dtype == np.float32 and values.ndim == 2:
            weights.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.01), weights.name))
    (tmp_path / "b" / "step.onnx").write_bytes(model.SerializeToString())
    manifest = Manifest.from_json((tmp_path / "b" / "manifest.json").read_bytes())
    (tmp_path / "b" / "manifest.json").unlink()
    seal(tmp_path / "b", manifest)
    with pytest.raises(BundleError, match=r"fails its self-test: step/\w+ is \S+ times its tolerance away"):
        load_bundle(tmp_path / "b", device="cpu")


def test_a_bundle_that_promises_steps_must_hold_the_graph(folder: Path, tmp_path: Path) -> None:
    import shutil

    from vae_anomaly.bundle import seal
    from vae_anomaly.manifest import Manifest

    shutil.copytree(folder, tmp_path / "b")
    manifest = Manifest.from_json((tmp_path / "b" / "manifest.json").read_bytes())
    for name in ("step.onnx", "manifest.json"):
        (tmp_path / "b" / name).unlink()
    seal(tmp_path / "b", manifest)
    with pytest.raises(BundleError, match=r"has no step\.onnx; fetch the bundle again or export it anew$"):
        load_bundle(tmp_path / "b", device="cpu")


# -- where the answer is known ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(table_bundle: Bundle) -> MaskedDecode:
    """The linear Gaussian model behind a poor proposal, exported, on onnxruntime."""
    model = linear_gaussian(0.3, 1.4).float()
    encoding = TableEncoding(torch.zeros(D), torch.ones(D))
    rows, draws = 4, 3
    shape = (draws, rows, D)
    both = {"x": np.zeros((rows, D)), "observed": np.ones((rows, D), bool)}
    feeds = {
        "impute": {
            **both,
            "latent": np.zeros((50, rows, L), np.float32),
            "gumbel": np.zeros((draws, 50, rows), np.float32),
            "element": np.zeros(shape, np.float32),
            **fresh_state(rows, D, draws),
        },
        "step": {
            **both,
            **fresh_chains(np.zeros((rows, D), np.float32), draws, L),
            "proposal": np.zeros((draws, rows, L), np.float32),
            "element": np.zeros(shape, np.float32),
            "log_uniform": np.zeros((draws, rows)),
        },
    }
    entries = {"impute": ImputeGraph(model, encoding), "step": StepGraph(model, encoding)}
    graphs = {name: to_onnx(entry, name, feeds[name]).SerializeToString() for name, entry in entries.items()}
    manifest = replace(
        table_bundle.manifest,
        schema=TableSchema(tuple(Column(f"x{i}") for i in range(D))),
        latent_size=L,
        imputation={"draws": 50, "chunk": 50, "chains": 64, "warm_up": 20, "steps": 400},
    )
    backend = OnnxBackend({"encode": b"", **graphs}, "cpu", threads=1)
    return MaskedDecode(manifest, noise_bank(50, L, 0).numpy(), backend, 1024)


def test_steps_give_the_exact_conditional_mean_and_spread(
    known: MaskedDecode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imputing, "STEP_BELOW", np.inf)
    rows = rows_under_every_mask()
    usable = (rows.observed[:, :3].any(dim=1) & rows.observed[:, 3:].any(dim=1)).numpy()
    samples = Samples(rows.x.numpy()[usable], rows.observed.numpy()[usable])
    out = known.answer(samples, list(range(len(samples.values))), 40, 0, 50)
    gaps = ~samples.observed.all(axis=1)
    assert np.array_equal(out["stepped"], gaps)
    truth = conditional(torch.from_numpy(samples.values), torch.from_numpy(samples.observed))
    exact, variance = (part.numpy() for part in truth)
    hidden = ~samples.observed
    spread = np.sqrt(variance)
    error = spread / np.sqrt(out["ess"])[:, None]
    assert out["ess"][gaps].min() > 50
    assert (np.abs(out["mean_raw"] - exact) / error)[hidden].max() < 5
    np.testing.assert_allclose(out["std_raw"][hidden], spread[hidden], rtol=0.15)
    drawn = out["draws"][:, :, 0][gaps & hidden[:, 0]]
    place = exact[:, 0][gaps & hidden[:, 0]]
    assert np.abs((drawn - place[:, None]).mean()) < 5 * spread[:, 0].max() / np.sqrt(drawn.size)
    assert drawn.std(axis=1).min() > NOISE / 2


def test_memory_of_the_chains_does_not_grow_with_their_steps(
    known: MaskedDecode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imputing, "STEP_BELOW", np.inf)
    sizes: list[int] = []
    backend = known.backend

    class Watched:
        provider, threads = backend.provider, 1

        def run(self, graph: str, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            sizes.append(sum(value.nbytes for value in feeds.values()))
            return backend.run(graph, feeds)

    rows = rows_under_every_mask()
    samples = Samples(rows.x.numpy(), rows.observed.numpy())
    longest = {}
    for steps in (10, 40):
        sizes.clear()
        manifest = replace(known.manifest, imputation={**known.manifest.imputation, "steps": steps})
        replace(known, manifest=manifest, backend=Watched()).answer(samples, [], None, 0, 50)
        longest[steps] = max(sizes)
        assert len(sizes) == 1 + 20 + steps
    assert longest[10] == longest[40]
