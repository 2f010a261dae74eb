"""Networks fit every image, and the published ones have the published number of parameters."""

import math
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vae_anomaly.exceptions import ConfigError
from vae_anomaly.networks import (
    INPUT_LIMIT,
    LOG_VARIANCE_LIMIT,
    GaussianHead,
    ModelConfig,
    Upsampling,
    make_networks,
    map_sizes,
)
from vae_anomaly.vae import make_model, parameter_count

MNIST_MLP = ModelConfig(hidden=(400,), latent_size=20, likelihood="bernoulli", mask_input=False)
FASHION_CONV = ModelConfig(
    network="conv",
    hidden=(32, 64, 128),
    latent_size=2,
    likelihood="bernoulli",
    mask_input=False,
    padding=2,
)
RGB_CONV = ModelConfig(
    network="conv",
    hidden=(64, 128, 256, 512),
    latent_size=128,
    likelihood="laplace",
    output="tanh",
    activation="leaky-relu",
    mask_input=False,
    batch_norm=True,
    kernel=4,
    head="transpose",
)
TINY = ModelConfig(network="conv", hidden=(3, 4), latent_size=2, likelihood="bernoulli")


def networks(shape: tuple[int, ...], config: ModelConfig, outputs: int = 1) -> tuple[nn.Module, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, decoder = make_networks(shape, outputs * math.prod(shape), config)
    return encoder.eval(), decoder.eval()


def rows(shape: tuple[int, ...], count: int = 2) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, math.prod(shape), generator=torch.Generator().manual_seed(0))
    return x, torch.ones_like(x, dtype=torch.bool)


def test_mnist_mlp_has_the_published_parameters() -> None:
    model = make_model((1, 28, 28), MNIST_MLP, torch.Generator())
    # 784x400 + 400, twice 400x20 + 20, 20x400 + 400, 400x784 + 784
    assert parameter_count(model) == 652_824


def test_fashion_conv_has_the_published_parameters() -> None:
    encoder, decoder = networks((1, 28, 28), FASHION_CONV)
    assert (parameter_count(encoder), parameter_count(decoder)) == (100_868, 246_273)


def test_the_fashion_autoencoder_lacks_the_log_variance_alone() -> None:
    encoder, decoder = networks((1, 28, 28), replace(FASHION_CONV, kind="autoencoder"))
    assert (parameter_count(encoder), parameter_count(decoder)) == (100_868 - 2 * (2048 + 1), 246_273)


def test_padding_means_32_pixels_a_side_inside_and_28_outside() -> None:
    encoder, decoder = networks((1, 28, 28), FASHION_CONV)
    assert map_sizes((1, 28, 28), FASHION_CONV) == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert parameter_count(encoder) == parameter_count(
        networks((1, 32, 32), replace(FASHION_CONV, padding=0))[0]
    )
    assert decoder(torch.zeros(3, 2)).shape == (3, 784)


def test_padding_is_missing_pixels_around_the_image() -> None:
    padded, plain = replace(TINY, padding=2), TINY
    inner, outer = networks((2, 9, 10), padded), networks((2, 13, 14), plain)
    for part, other in zip(inner, outer, strict=True):
        other.load_state_dict(part.state_dict())
    x, observed = rows((2, 9, 10))
    wide = [pad(part.float().unflatten(1, (2, 9, 10)), (2, 2, 2, 2)).flatten(1) for part in (x, observed)]
    torch.testing.assert_close(inner[0](x, observed), outer[0](wide[0], wide[1] > 0))
    z = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    framed = outer[1](z).unflatten(1, (2, 13, 14))
    torch.testing.assert_close(inner[1](z).unflatten(1, (2, 9, 10)), framed[..., 2:-2, 2:-2])


def test_rgb_autoencoder_has_a_code_of_512_by_4_by_4() -> None:
    config = replace(RGB_CONV, kind="autoencoder", spatial_code=True, latent_size=512 * 4 * 4)
    encoder, decoder = networks((3, 64, 64), config)
    assert map_sizes((3, 64, 64), config)[-1] == (4, 4)
    x, observed = rows((3, 64, 64))
    code = encoder(x, observed)
    assert code.log_variance is None
    assert code.mean.shape == (2, 8192)
    assert decoder(code.mean).shape == (2, 3 * 64 * 64)
    assert not [
        layer for part in (encoder, decoder) for layer in part.modules() if isinstance(layer, nn.Linear)
    ]
    convolutions = (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512) * 16
    assert parameter_count(encoder) == convolutions + 3 * (64 + 128 + 256 + 512)


@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("head", ["conv", "transpose"])
def test_convolutions_fit_any_height_and_width(kernel: int, head: Any) -> None:
    config = replace(TINY, kernel=kernel, head=head, batch_norm=kernel == 4, dense=5 if head == "conv" else 0)
    for i, height in enumerate(range(8, 41)):
        shape = (1 + i % 4, height, 8 + (i * 14) % 33)
        outputs = 1 + i % 2
        encoder, decoder = networks(shape, config, outputs)
        mean, log_variance = encoder(*rows(shape))
        assert mean.shape == log_variance.shape == (2, 2)
        raw = decoder(torch.zeros(5, 2, 2))
        assert raw.shape == (5, 2, outputs * math.prod(shape)), shape
        assert raw.isfinite().all()


@pytest.mark.parametrize("padding", [0, 1, 3])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_convolutions_of_any_depth_and_padding_return_to_the_image(depth: int, padding: int) -> None:
    config = replace(TINY, hidden=(2, 3, 4)[:depth], padding=padding)
    _, decoder = networks((2, 13, 22), config)
    assert decoder(torch.zeros(1, 2)).shape == (1, 2 * 13 * 22)


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (7, 4)])
def test_interleaved_convolutions_are_the_transposed_one(
    size: tuple[int, int], kernel: int, extra: tuple[int, int]
) -> None:
    layer = Upsampling(3, 8, kernel, stride=2, padding=1, output_padding=extra).double()
    maps = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer.interleaved(maps), layer(maps), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("channels", "transposed"), [(8, False), (1, True)])
def test_only_narrow_transposed_convolutions_are_exported_as_such(channels: int, transposed: bool) -> None:
    layer = Upsampling(2, channels, 4, stride=2, padding=1)
    nodes = torch.export.export(layer, (torch.zeros(1, 2, 3, 3),)).graph.nodes
    assert any("conv_transpose" in str(node.target) for node in nodes) == transposed


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_latents_of_any_rank_decode_alike(network: Any, batch_norm: bool) -> None:
    config = replace(TINY, network=network, latent_size=3, batch_norm=batch_norm)
    _, decoder = networks((1, 9, 8), config, outputs=2)
    decoder.train()
    z = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(1))
    raw = decoder(z)
    assert raw.shape == (4, 5, 2 * 72)
    torch.testing.assert_close(decoder(z.reshape(20, 3)).reshape(4, 5, -1), raw)


@pytest.mark.parametrize("network", ["mlp", "conv"])
@pytest.mark.parametrize("mask_input", [True, False])
def test_the_mask_is_an_input_if_asked(network: Any, mask_input: bool) -> None:
    encoder, _ = networks(
        (2, 9, 10), replace(TINY, network=network, mask_input=mask_input, activation="tanh")
    )
    x, observed = rows((2, 9, 10))
    hidden = observed.clone()
    hidden[:, :40] = False
    whole, part = encoder(x, observed), encoder(x, hidden)
    assert torch.equal(whole.mean, part.mean) is not mask_input
    assert torch.equal(whole.log_variance, part.log_variance) is not mask_input


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_a_row_does_not_depend_on_its_batch(network: Any) -> None:
    encoder, _ = networks((2, 9, 10), replace(TINY, network=network, batch_norm=True))
    x, observed = rows((2, 9, 10), 6)
    alone = torch.cat([encoder(x[i : i + 1], observed[i : i + 1]).mean for i in range(6)])
    torch.testing.assert_close(encoder(x, observed).mean, alone)


def test_a_multilayer_perceptron_without_layers_is_linear() -> None:
    encoder, decoder = networks((6,), ModelConfig(hidden=(), latent_size=2))
    assert (parameter_count(encoder), parameter_count(decoder)) == (2 * (12 * 2 + 2), 2 * 6 + 6)


def test_far_values_stay_finite_in_the_encoder() -> None:
    encoder, _ = networks((4,), ModelConfig(hidden=(8,), latent_size=2))
    far = torch.tensor([[1e4, -1e4, 3e38, 0.0], [INPUT_LIMIT, -INPUT_LIMIT, INPUT_LIMIT, 0.0]])
    mean, log_variance = encoder(far, torch.ones_like(far, dtype=torch.bool))
    assert torch.equal(mean[0], mean[1])
    assert torch.equal(log_variance[0], log_variance[1])


def test_log_variance_is_bounded() -> None:
    head = GaussianHead(1, 2)
    head.load_state_dict(
        {
            "mean.weight": torch.tensor([[1.0], [2.0]]),
            "mean.bias": torch.zeros(2),
            "log_variance.weight": torch.tensor([[100.0], [-100.0]]),
            "log_variance.bias": torch.zeros(2),
        }
    )
    mean, log_variance = head(torch.tensor([[1.0], [0.1]]))
    assert mean.tolist() == [[1, 2], [pytest.approx(0.1), pytest.approx(0.2)]]
    limit = LOG_VARIANCE_LIMIT
    assert log_variance.tolist() == [[limit, -limit], [10, -10]]
    assert torch.exp(log_variance).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"latent_size": 0}, "latent_size must be at least 1, got 0"),
        ({"hidden": (8, 0)}, "hidden widths must be at least 1, got (8, 0)"),
        ({"kernel": 5}, "kernel must be 3 or 4, got 5"),
        ({"padding": -1}, "padding and dense must not be negative, got -1 and 0"),
        (
            {"network": "conv", "hidden": ()},
            "a convolutional network needs hidden channels, got none; set hidden",
        ),
        ({"kind": "autoencodr"}, "kind is 'autoencodr'; did you mean 'autoencoder'?"),
        ({"network": "rnn"}, "network is 'rnn'; choose mlp, conv"),
        ({"likelihood": "bernouli"}, "likelihood is 'bernouli'; did you mean 'bernoulli'?"),
        (
            {"spatial_code": True},
            "spatial_code is for convolutional autoencoders; set kind and network to match",
        ),
        (
            {"spatial_code": True, "kind": "autoencoder", "network": "conv", "dense": 7},
            "spatial_code has no dense layer, got dense = 7; drop one",
        ),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        ModelConfig(**settings)


@pytest.mark.parametrize(
    ("shape", "config", "message"),
    [
        (
            (12,),
            TINY,
            "a convolutional network needs images; set network to 'mlp' for tables",
        ),
        (
            (1, 8, 40),
            replace(TINY, kernel=4, hidden=(2,) * 4),
            "4 convolutions of stride 2 leave nothing of 8x40 images; shorten hidden",
        ),
        (
            (1, 8, 8),
            replace(TINY, kind="autoencoder", spatial_code=True),
            "a spatial code here has latent_size 16, got 2; set it so",
        ),
    ],
    ids=["table", "too deep", "code size"],
)
def test_networks_that_cannot_be_are_refused(
    shape: tuple[int, ...], config: ModelConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_networks(shape, math.prod(shape), config)
