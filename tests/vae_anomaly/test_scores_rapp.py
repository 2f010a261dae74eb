"""Differences of activations, whitened by the training rows' singular values."""

from dataclasses import replace

import pytest
import torch
from score_evidence import encoded, normal
from torch import Tensor

from vae_anomaly.networks import ModelConfig
from vae_anomaly.scores import LEADING_DIRECTIONS, Evidence, Rapp
from vae_anomaly.scores.whitening import KEPT
from vae_anomaly.vae import Autoencoder, make_model

MLP = ModelConfig(hidden=(24, 12), latent_size=3, scale="element", activation="tanh")
CONV = ModelConfig(network="conv", hidden=(4, 6), latent_size=3, dense=10, padding=1, activation="silu")
MODELS = {
    "mlp": ((7,), MLP),
    "autoencoder": ((7,), replace(MLP, kind="autoencoder", mask_input=False)),
    "conv": ((2, 9, 8), CONV),
    "long": ((7,), replace(MLP, hidden=(400, 300))),
}


def model_of(name: str) -> Autoencoder:
    shape, config = MODELS[name]
    return make_model(shape, config, torch.Generator().manual_seed(0)).eval()


def rows(model: Autoencoder, count: int = 300, elements: int = 7, seed: int = 0) -> Evidence:
    seen = torch.rand(count, elements, generator=torch.Generator().manual_seed(seed)) < 0.9
    return Evidence(model, encoded(normal(count, elements, seed=seed).float(), seen), torch.zeros(1, 3))


def difference(found: Evidence) -> Tensor:
    """Layer by layer, from the activation modules' own outputs."""
    parts: list[Tensor] = []

    def keep(_: object, __: object, out: Tensor) -> None:
        parts.append(out.mean(dim=(2, 3)) if out.ndim == 4 else out)

    encoder = found.model.encoder
    kinds = (torch.nn.Tanh, torch.nn.SiLU)
    hooks = [m.register_forward_hook(keep) for m in encoder.modules() if isinstance(m, kinds)]
    x, observed, _ = found.encoded
    sides = []
    for values in (x, torch.where(observed, found.expected, 0.0)):
        parts.clear()
        code = found.model.encode(values, observed).mean
        sides.append(torch.cat([*parts, code], dim=1))
    for hook in hooks:
        hook.remove()
    return (sides[0] - sides[1]).double()


@pytest.mark.parametrize(
    ("name", "features"), [("mlp", 39), ("autoencoder", 39), ("conv", 23), ("long", 703)]
)
@torch.no_grad()
def test_rapp_is_the_whitened_difference_of_all_layers(name: str, features: int) -> None:
    elements = 144 if name == "conv" else 7
    model = model_of(name)
    training, new = rows(model, elements=elements), rows(model, 50, elements, seed=1)
    score = Rapp()
    score.fit(lambda: iter([training]))
    assert difference(training).shape == (300, features)
    kept = score.whitening.kept
    assert score(training).mean().item() == pytest.approx(kept, rel=1e-4)
    if name == "long":
        assert kept <= LEADING_DIRECTIONS
        return
    centre = difference(training).mean(dim=0)
    _, singular, right = torch.linalg.svd(difference(training) - centre, full_matrices=False)
    large = singular**2 >= KEPT * singular.max() ** 2
    assert kept == large.sum()
    coordinates = (difference(new) - centre) @ right[large].T / singular[large]
    torch.testing.assert_close(
        score(new).double(), 300 * coordinates.square().sum(dim=1), rtol=1e-3, atol=1e-3
    )


@torch.no_grad()
def test_the_reconstruction_is_seen_through_the_rows_own_mask() -> None:
    model = model_of("mlp")
    training = rows(model)
    score = Rapp()
    score.fit(lambda: iter([training]))
    nothing = Evidence(
        model, encoded(torch.ones(1, 7), torch.zeros(1, 7, dtype=torch.bool)), torch.zeros(1, 3)
    )
    # Nothing observed: x and reconstruction are alike to the encoder.
    centre = score.whitening.squared_norm(torch.zeros(1, 39))
    torch.testing.assert_close(score(nothing), centre)


@pytest.mark.parametrize("count", [2, 3, 24])
@torch.no_grad()
def test_few_rows_keep_half_as_many_directions_and_are_told_apart(count: int) -> None:
    model = model_of("mlp")
    training = rows(model, count)
    score = Rapp()
    score.fit(lambda: iter([training]))
    _, singular, right = torch.linalg.svd(
        difference(training) - difference(training).mean(dim=0), full_matrices=False
    )
    assert score.whitening.kept == count // 2
    coordinates = (difference(training) - score.whitening.centre) @ right[: count // 2].T
    expected = count * (coordinates / singular[: count // 2]).square().sum(dim=1)
    torch.testing.assert_close(score(training).double(), expected, rtol=1e-3, atol=1e-3)
    # Along all directions there are, each is count - 1.
    assert count < 3 or score(training).std() > 0.1
