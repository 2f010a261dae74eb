"""Training learns, knows when to stop, and does what its settings say."""

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_training import (
    CONFIG,
    CPU,
    MASKED,
    MODEL,
    OBJECTIVE,
    TRAIN,
    VALIDATION,
    same,
    table,
    trainer,
    weights,
)
from torch import Tensor

from vae_anomaly import training
from vae_anomaly.checkpoints import read_checkpoint
from vae_anomaly.encoding import ImageEncoding, TableEncoding
from vae_anomaly.exceptions import DivergedError
from vae_anomaly.networks import ModelConfig, Posterior
from vae_anomaly.objectives import Losses, ObjectiveConfig, losses
from vae_anomaly.schema import ImageSchema, Samples
from vae_anomaly.training import Data, Epoch, Trainer, TrainingConfig
from vae_anomaly.vae import Autoencoder, make_model


@dataclass
class Scripted(Trainer):
    """Validation bounds from a list."""

    bounds: list[float] = field(default_factory=list)

    def _validate(self, data: Data) -> Epoch:
        return {"val_loss": self.bounds.pop(0), "active_units": 0.0}


def scripted(bounds: list[float], **settings: Any) -> tuple[Scripted, list[dict[str, Tensor]]]:
    plain = trainer()
    kept: list[dict[str, Tensor]] = []
    run = Scripted(
        plain.model,
        plain.encoding,
        config=replace(CONFIG, **settings),
        device="cpu",
        callbacks=[lambda _: kept.append(weights(plain.model))],
        bounds=bounds,
    )
    return run, kept


@pytest.mark.parametrize(
    ("bounds", "patience", "epochs", "best"),
    [
        ([5.0, 3.0, 4.0, 4.0, 1.0, 1.0], 2, 4, 2),
        ([5.0, 3.0, 4.0, 2.0, 2.5, 2.0], 2, 6, 4),
        ([5.0, 3.0, 4.0, 4.0, 4.0, 4.0], 0, 6, 2),
        ([-1.0, -1.0, -2.0, -1.0, -1.0, -3.0], 3, 6, 6),
        ([1.0, 2.0], 1, 2, 1),
    ],
)
def test_training_stops_when_validation_does_and_keeps_the_best(
    bounds: list[float], patience: int, epochs: int, best: int
) -> None:
    run, kept = scripted(list(bounds), patience=patience)
    history = run.fit(TRAIN, VALIDATION)
    assert [epoch["val_loss"] for epoch in history] == bounds[:epochs]
    assert same(weights(run.model), kept[best - 1])
    assert best == epochs or not same(kept[best - 1], kept[-1])
    assert not run.model.training


@pytest.mark.parametrize(
    ("bounds", "shown"), [([math.nan], "nan"), ([math.inf], "inf"), ([601.0, 700.0, 601.0], "601")]
)
def test_a_lost_validation_bound_stops_with_the_best_weights(bounds: list[float], shown: str) -> None:
    run, kept = scripted([5.0, 3.0, 4.0, *bounds])
    message = (
        f"the loss is {shown} after epoch {3 + len(bounds)}; the checkpoint of epoch 2 is kept; lower "
        "learning_rate (now 0.01) or clip_norm (now 100)"
    )
    with pytest.raises(DivergedError, match=f"^{re.escape(message)}$"):
        run.fit(TRAIN, VALIDATION)
    assert same(weights(run.model), kept[1])


def test_a_bound_may_grow_a_hundredfold() -> None:
    run, _ = scripted([5.0, 599.0, 599.0, 599.0, 2.0, 1.0])
    assert len(run.fit(TRAIN, VALIDATION)) == 6


def test_a_bound_may_lose_its_way_for_an_epoch() -> None:
    run, kept = scripted([5.0, 3.0, 9999.0, 9999.0, 4.0, 4.0])
    assert len(run.fit(TRAIN, VALIDATION)) == 6
    assert same(weights(run.model), kept[1])


def test_a_nan_training_loss_keeps_the_last_good_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = iter(range(10_000))
    # An epoch is 4 training batches (the last 2 rows too: 50 = 3 x 16 + 2) and 1 of validation.
    lost = 2 * 5 + 2

    def breaking(*args: Any) -> Losses:
        part = losses(*args)
        return part._replace(loss=part.loss * math.nan) if next(calls) == lost else part

    monkeypatch.setattr(training, "losses", breaking)
    kept: list[dict[str, Tensor]] = []
    run = trainer(checkpoints=tmp_path)
    run.callbacks = [lambda _: kept.append(weights(run.model))]
    with pytest.raises(
        DivergedError, match=r"^the loss is nan after epoch 3; the checkpoint of epoch \d is kept"
    ):
        run.fit(TRAIN, VALIDATION)
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found.epoch == 2
    assert same(weights(run.model), kept[found.best_epoch - 1])
    assert same(found.best, kept[found.best_epoch - 1])
    assert not run.model.training


def test_a_learning_rate_that_explodes_is_told_of() -> None:
    config = replace(CONFIG, learning_rate=1e30, schedule="constant", clip_norm=0.0)
    run = trainer(config)
    before = weights(run.model)
    with pytest.raises(DivergedError, match=r"no epoch was good; lower learning_rate \(now 1e\+30\)"):
        run.fit(TRAIN, VALIDATION)
    assert same(weights(run.model), before)


def test_training_learns() -> None:
    run = trainer(replace(CONFIG, epochs=40), init=1, model=replace(MODEL, batch_norm=False))
    history = run.fit(TRAIN, VALIDATION)
    assert history[-1]["val_loss"] < history[0]["val_loss"] - 1.2
    assert history[-1]["active_units"] >= 1


def test_a_linear_model_reaches_the_best_likelihood_there_is() -> None:
    """Probabilistic PCA (Tipping & Bishop, 1999): its maximum is known, and the ELBO is tight there."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(400, 1)) @ np.array([[1.5, -1.0, 0.5]]) + 0.5 * rng.normal(size=(400, 3))
    values -= values.mean(axis=0)
    spectrum = np.linalg.eigvalsh(np.cov(values.T, bias=True))[::-1]
    noise = spectrum[1:].mean()
    best = 0.5 * (3 * math.log(2 * math.pi) + math.log(spectrum[0]) + 2 * math.log(noise) + 3)
    model = make_model((3,), ModelConfig(hidden=(), latent_size=1), torch.Generator().manual_seed(0))
    samples = Samples(values, np.ones_like(values, dtype=np.bool_))
    run = Trainer(
        model,
        TableEncoding(torch.zeros(3), torch.ones(3)),
        ObjectiveConfig(draws=8),
        TrainingConfig(epochs=60, batch_size=50, learning_rate=3e-2, weight_decay=0.0, precision="float32"),
        device="cpu",
    )
    history = run.fit(samples, samples)
    # Never above the maximum but by the noise of 8 draws for each of 400 rows.
    assert min(epoch["val_loss"] for epoch in history) == pytest.approx(best, abs=0.03)
    scale = run.model.likelihood.variance(torch.zeros(1, 3)).mean().item()
    assert scale == pytest.approx(noise, rel=0.1)


def test_an_autoencoder_learns_through_the_same_code() -> None:
    model = replace(MODEL, kind="autoencoder", scale="learned")
    history = trainer(replace(CONFIG, epochs=20), model=model).fit(TRAIN, VALIDATION)
    assert history[-1]["val_loss"] < history[0]["val_loss"] - 1.0
    assert all(epoch["kl"] == 0 and epoch["loss"] == epoch["reconstruction"] for epoch in history)


def test_a_learned_scale_moves_ten_times_as_fast_as_weights() -> None:
    """Adam's first step is the learning rate, whatever the gradient."""
    config = replace(
        CONFIG, epochs=1, batch_size=50, learning_rate=1e-3, schedule="constant", optimizer="adam"
    )
    run = trainer(config, model=replace(MODEL, scale="learned", batch_norm=False))
    before = weights(run.model)
    run.fit(TRAIN, VALIDATION)
    moved = {
        name: (value - before[name]).abs().max().item() for name, value in run.model.state_dict().items()
    }
    assert moved.pop("likelihood.log_scale") == pytest.approx(1e-2, rel=1e-3)
    assert max(moved.values()) == pytest.approx(1e-3, rel=1e-3)


def test_figures_are_means_over_rows() -> None:
    """One step per epoch at a vanishing rate: the figures are those of the first weights."""
    config = replace(CONFIG, epochs=1, batch_size=50, learning_rate=1e-12)
    plain = replace(MODEL, batch_norm=False)
    run = trainer(config, model=plain, objective=ObjectiveConfig(draws=500, beta=0.5))
    before = make_model((4,), plain, torch.Generator().manual_seed(0))
    (figure,) = run.fit(TRAIN, VALIDATION)
    generator = torch.Generator().manual_seed(7)
    for samples, name in ((TRAIN, "loss"), (VALIDATION, "val_loss")):
        encoded = run.encoding(*Data.of(samples, CPU).batch(torch.arange(len(samples.values))))
        noise = torch.randn(500, len(samples.values), 2, generator=generator)
        expected = losses(before, encoded.x, encoded.observed, noise, run.objective, 0.5)
        assert figure[name] == pytest.approx(expected.loss.item(), rel=0.02)
        if name == "loss":
            assert figure["kl"] == pytest.approx(expected.kl.item(), rel=1e-4)
            assert figure["reconstruction"] == pytest.approx(expected.reconstruction.item(), rel=0.02)
    assert figure["epoch"] == 1
    assert figure["learning_rate"] > 0
    assert figure["samples_per_second"] == pytest.approx(50 / figure["seconds"])


def test_validation_looks_at_the_model_as_it_will_be_used() -> None:
    """Running statistics, full KL weight, whole rows: the reported bound is the kept model's."""
    run = trainer(replace(MASKED, epochs=1))
    (figure,) = run.fit(TRAIN, VALIDATION)
    encoded = run.encoding(*Data.of(VALIDATION, CPU).batch(torch.arange(len(VALIDATION.values))))
    noise = torch.randn(2, 20, 2, generator=torch.Generator().manual_seed(0))
    assert OBJECTIVE.kl_weight(0.0) == 0
    with torch.no_grad():
        expected = losses(run.model, encoded.x, encoded.observed, noise, OBJECTIVE, OBJECTIVE.beta)
    assert figure["val_loss"] == pytest.approx(expected.loss.item(), rel=1e-6)


def test_the_kl_weight_rises_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []

    def spying(*args: Any) -> Losses:
        given.append(args[5])
        return losses(*args)

    monkeypatch.setattr(training, "losses", spying)
    objective = ObjectiveConfig(beta=2.0, warmup_epochs=2.0)
    trainer(replace(CONFIG, epochs=3, batch_size=25), objective=objective).fit(TRAIN, VALIDATION)
    # Two steps per epoch, then validation at full weight.
    assert given == [0.0, 0.5, 2.0, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize("denoise", [False, True])
def test_denoising_judges_what_the_random_masks_took(monkeypatch: pytest.MonkeyPatch, denoise: bool) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def spying(*args: Any) -> Losses:
        if len(args) == 7:
            seen.append((args[2], args[6]))
        return losses(*args)

    monkeypatch.setattr(training, "losses", spying)
    trainer(replace(CONFIG, epochs=1, random_mask=1.0, denoise=denoise)).fit(TRAIN, VALIDATION)
    judged, shown = (torch.cat(masks) for masks in zip(*seen, strict=True))
    assert not (shown & ~judged).any()
    hidden = (judged & ~shown).float().mean().item()
    assert hidden == (pytest.approx(0.5, abs=0.1) if denoise else 0.0)


@pytest.mark.parametrize("clip", [1e-3, 0.0])
def test_the_gradient_is_clipped_to_its_norm(clip: float) -> None:
    run = trainer(replace(CONFIG, epochs=1, clip_norm=clip))
    run.fit(TRAIN, VALIDATION)
    norm = math.sqrt(sum(float((p.grad**2).sum()) for p in run.model.parameters() if p.grad is not None))
    assert norm == pytest.approx(1e-3, rel=1e-3) if clip else norm > 0.1


def test_weight_decay_shrinks_the_weights_apart_from_the_gradient() -> None:
    config = replace(CONFIG, epochs=1, batch_size=50, schedule="constant", learning_rate=0.01)
    plain, decayed = (trainer(replace(config, weight_decay=decay)) for decay in (0.0, 2.0))
    first = {name: value.clone() for name, value in plain.model.named_parameters()}
    for run in (plain, decayed):
        run.fit(TRAIN, VALIDATION)
    others = dict(decayed.model.named_parameters())
    for name, value in plain.model.named_parameters():
        torch.testing.assert_close(others[name], value - 0.01 * 2.0 * first[name], rtol=0, atol=1e-6)


def test_validation_uses_the_same_noise_every_epoch() -> None:
    history = trainer(
        replace(CONFIG, learning_rate=1e-30, schedule="constant"), model=replace(MODEL, batch_norm=False)
    ).fit(TRAIN, VALIDATION)
    assert len({epoch["val_loss"] for epoch in history}) == 1
    assert len({epoch["loss"] for epoch in history}) == 6


def test_a_last_batch_of_one_row_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counting(model: Autoencoder, x: Tensor, *rest: Any) -> Losses:
        sizes.append(len(x))
        return losses(model, x, *rest)

    monkeypatch.setattr(training, "losses", counting)
    config = replace(CONFIG, epochs=1)
    trainer(config).fit(table(33), VALIDATION)
    assert sizes == [16, 16, 20]


@pytest.mark.parametrize("denoise", [False, True])
def test_training_masks_add_to_the_gaps_and_hide_for_good(
    monkeypatch: pytest.MonkeyPatch, denoise: bool
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    samples = table(400)
    run = trainer(replace(CONFIG, epochs=1, batch_size=400, random_mask=1.0, denoise=denoise))
    encode = run.model.encode

    def spying(x: Tensor, observed: Tensor) -> Posterior:
        seen.append((x, observed))
        return encode(x, observed)

    monkeypatch.setattr(run.model, "encode", spying)
    run.fit(samples, samples)
    (x, observed), (whole, present), *_ = seen
    assert (x[~observed] == 0).all()
    assert (x[observed] != 0).all()
    # The rows come shuffled; nine in ten cells are there, the masks leave half of them.
    assert observed.float().mean().item() == pytest.approx(0.45, abs=0.06)
    assert torch.equal(present, torch.from_numpy(samples.observed))
    known = {tuple(row.tolist()) for row in whole}
    unmasked = observed.sum(dim=1) == 4
    assert {tuple(row.tolist()) for row in x[unmasked]} <= known


def test_the_clock_stops_training_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10_000))
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    # Three looks at the clock per epoch: 1, 4, 7 and 10 s are within the limit, 13 s is not.
    assert len(trainer(replace(CONFIG, max_seconds=10.0)).fit(TRAIN, VALIDATION)) == 4


def test_the_shortest_limit_still_trains_one_epoch() -> None:
    assert len(trainer(replace(CONFIG, max_seconds=1e-9)).fit(TRAIN, VALIDATION)) == 1


def test_bytes_stay_bytes_on_the_device() -> None:
    images = np.random.default_rng(0).integers(0, 256, (40, 1, 8, 8)).astype(np.uint8)
    samples = Samples(images, np.ones_like(images, dtype=np.bool_))
    data = Data.of(samples, CPU)
    assert data.values.dtype == torch.uint8
    assert data.observed is None
    x, observed = data.batch(torch.tensor([3, 1]))
    assert torch.equal(x, torch.from_numpy(images[[3, 1]]))
    assert observed.dtype == torch.bool
    assert observed.all()
    model = make_model((1, 8, 8), replace(MODEL, likelihood="bernoulli"), torch.Generator().manual_seed(0))
    encoding = ImageEncoding(ImageSchema(1, 8, 8))
    config = replace(CONFIG, random_mask=1.0, epochs=10)
    history = Trainer(model, encoding, config=config, device="cpu").fit(samples, samples)
    assert history[-1]["val_loss"] < history[0]["val_loss"]
    assert (samples.values == images).all()


def test_gaps_go_along_with_their_rows() -> None:
    data = Data.of(TRAIN, CPU)
    x, observed = data.batch(torch.tensor([5, 2, 7]))
    assert x.dtype == torch.float64
    assert torch.equal(observed, torch.from_numpy(TRAIN.observed[[5, 2, 7]]))
    assert torch.equal(torch.isnan(x), ~observed)
    assert len(data) == 50


def test_bfloat16_is_for_training_alone() -> None:
    exact, rounded = trainer(), trainer(replace(CONFIG, precision="bfloat16"))
    first, second = exact.fit(TRAIN, VALIDATION), rounded.fit(TRAIN, VALIDATION)
    assert not same(weights(exact.model), weights(rounded.model))
    assert second[-1]["val_loss"] == pytest.approx(first[-1]["val_loss"], abs=0.5)
    assert not rounded.model.mixed_precision
    assert all(value.dtype != torch.bfloat16 for value in weights(rounded.model).values())


def test_small_networks_train_in_one_thread() -> None:
    before, seen = torch.get_num_threads(), []
    run = trainer()
    run.callbacks = [lambda _: seen.append(torch.get_num_threads())]
    try:
        torch.set_num_threads(3)
        run.fit(TRAIN, VALIDATION)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
