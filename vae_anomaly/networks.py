"""Encoder and decoder trunks: multilayer perceptrons and convolutional networks of any size.

An encoder reads x and observed, shape (B, D), and returns a `Posterior`; a decoder reads z,
shape (..., L), and returns raw likelihood parameters, shape (..., P * D).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, linear, pad

from vae_anomaly.choices import check_fields
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.likelihoods import sum_elements

# sigma between e^-7 and e^7: keeps exp() finite in float32 for whatever input.
LOG_VARIANCE_LIMIT = 14.0
# What an encoder sees is bounded, in standardised units: farther values say no more about z, and
# make its output too large for float32 to agree on. The likelihood sees them whole.
INPUT_LIMIT = 10.0

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": lambda: nn.LeakyReLU(0.2),
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
# What ends a layer: convolution, norm and one of these.
ACTIVATED = (nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.Tanh)


class Posterior(NamedTuple):
    """q(z | x), a normal with diagonal covariance; an autoencoder's code has no variance.

    Attributes
    ----------
    mean : Tensor, shape (B, L)
    log_variance : Tensor, shape (B, L), or None
    """

    mean: Tensor
    log_variance: Tensor | None


@dataclass(frozen=True)
class ModelConfig:
    """What a model looks like; the ``[model]`` section of a recipe.

    Attributes
    ----------
    kind : {"vae", "autoencoder"}
    network : {"mlp", "conv"}
    hidden : tuple of int
        Widths of the encoder's layers (MLP) or channels of its stride-2 convolutions; the
        decoder mirrors them.
    latent_size : int
        L.
    likelihood : {"bernoulli", "continuous-bernoulli", "gaussian", "laplace", "student-t"}
        Of pixels, or of the columns of a table that are numbers.
    scale : float or {"learned", "element"}
        Of a Gaussian, Laplace or Student-t likelihood.
    output : {"identity", "sigmoid", "tanh"}
        What bounds the location of a Gaussian or Laplace likelihood.
    scaling : {"standard", "robust"}
        How columns of numbers come to one scale: by mean and standard deviation, or by median and
        quartiles, on which outliers among the training rows have no say. A column whose deviation a few
        wild cells make is scaled by quartiles in both cases.
    activation : {"relu", "leaky-relu", "silu", "tanh"}
    mask_input : bool
        Whether the encoder sees which elements are observed.
    dense : int
        Width of a fully connected layer between convolutions and latent space, 0 for none.
    batch_norm : bool
    kernel : int
        Side of the convolutions, 3 or 4.
    padding : int
        Rows and columns of missing pixels put around each image inside the model.
    head : {"conv", "transpose"}
        How a convolutional decoder ends: one more convolution at full size, or directly with
        the last transposed one.
    skip : bool
        Show a multilayer perceptron's last layer its input too: linear relations need no hidden layer.
    missing : {"mar", "mnar-self", "mnar-self-high", "mnar-self-low"}
        Whether gaps in the data may depend on what is missing: at random given what is observed, or each
        value decides about itself, as the data tell or high or low values going missing (Gaussian
        tables only).
    spatial_code : bool
        Keep the last feature map as the code, without a dense layer (autoencoders).
    """

    kind: Literal["vae", "autoencoder"] = "vae"
    network: Literal["mlp", "conv"] = "mlp"
    hidden: tuple[int, ...] = (256, 128)
    latent_size: int = 16
    likelihood: Literal["bernoulli", "continuous-bernoulli", "gaussian", "laplace", "student-t"] = "gaussian"
    scale: float | str = "learned"
    output: Literal["identity", "sigmoid", "tanh"] = "identity"
    scaling: Literal["standard", "robust"] = "standard"
    activation: Literal["relu", "leaky-relu", "silu", "tanh"] = "relu"
    mask_input: bool = True
    dense: int = 0
    batch_norm: bool = False
    kernel: int = 3
    padding: int = 0
    head: Literal["conv", "transpose"] = "conv"
    skip: bool = False
    missing: Literal["mar", "mnar-self", "mnar-self-high", "mnar-self-low"] = "mar"
    spatial_code: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.latent_size < 1:
            raise ConfigError(f"latent_size must be at least 1, got {self.latent_size}")
        if any(width < 1 for width in self.hidden):
            raise ConfigError(f"hidden widths must be at least 1, got {self.hidden}")
        if self.kernel not in (3, 4):
            raise ConfigError(f"kernel must be 3 or 4, got {self.kernel}")
        if self.padding < 0 or self.dense < 0:
            raise ConfigError(f"padding and dense must not be negative, got {self.padding} and {self.dense}")
        if self.spatial_code and (self.kind != "autoencoder" or self.network != "conv"):
            raise ConfigError("spatial_code is for convolutional autoencoders; set kind and network to match")
        if self.spatial_code and self.dense:
            raise ConfigError(f"spatial_code has no dense layer, got dense = {self.dense}; drop one")
        if self.skip and self.network != "mlp":
            raise ConfigError(f"skip is for multilayer perceptrons, got network = {self.network!r}; drop one")
        found = (self.kind, self.likelihood, self.output)
        if self.missing != "mar" and found != ("vae", "gaussian", "identity"):
            raise ConfigError(
                f"missing = {self.missing!r} needs a VAE of a Gaussian likelihood without bounds, got kind, "
                f"likelihood, output = {', '.join(found)}; set vae, gaussian, identity"
            )
        if self.network == "conv" and not self.hidden:
            raise ConfigError("a convolutional network needs hidden channels, got none; set hidden")


class GaussianHead(nn.Module):
    """Features to the mean and log-variance of q(z | x)."""

    def __init__(self, features: int, latent_size: int) -> None:
        super().__init__()
        self.mean = nn.Linear(features, latent_size)
        self.log_variance = nn.Linear(features, latent_size)

    def forward(self, features: Tensor) -> Posterior:
        """Features (B, F) to a posterior, its log-variance bounded."""
        log_variance = self.log_variance(features).clamp(-LOG_VARIANCE_LIMIT, LOG_VARIANCE_LIMIT)
        return Posterior(self.mean(features), log_variance)


class PointHead(nn.Module):
    """Features to an autoencoder's code; no layer at all for a spatial code.

    No prior gives the code a scale: its offset may dwarf its spread, so it is summed in float64.
    """

    def __init__(self, features: int, latent_size: int, spatial: bool) -> None:
        super().__init__()
        self.mean = nn.Identity() if spatial else nn.Linear(features, latent_size)

    def forward(self, features: Tensor) -> Posterior:
        """Features (B, F) to a code."""
        if isinstance(self.mean, nn.Identity):
            return Posterior(features, None)
        weight, bias = self.mean.weight.double(), self.mean.bias.double()
        return Posterior(linear(features.double(), weight, bias).to(features.dtype), None)


class MLPEncoder(nn.Module):
    """Fully connected layers over the elements, and over the mask when it is an input.

    Parameters
    ----------
    elements : int
        D.
    config : ModelConfig
    features : int, optional
        F, numbers of a row in model space, where that is not D.
    """

    def __init__(self, elements: int, config: ModelConfig, features: int | None = None) -> None:
        super().__init__()
        self.mask_input, self.skip = config.mask_input, config.skip
        widths = ((features or elements) + elements * config.mask_input, *config.hidden)
        self.trunk = _mlp(widths, config)
        self.head = make_head(widths[-1] + config.skip * widths[0], config)

    def forward(self, x: Tensor, observed: Tensor) -> Posterior:
        """Rows (B, F) with their mask (B, D) to their posterior."""
        seen = _with_mask(x, observed, self.mask_input)
        posterior: Posterior = self.head(_beside(self.trunk(seen), seen, self.skip))
        return posterior

    def activations(self, x: Tensor, observed: Tensor) -> Tensor:
        """Outputs of all layers, the posterior's mean the last, shape (B, F)."""
        seen = _with_mask(x, observed, self.mask_input)
        features, found = _layer_outputs(self.trunk, seen)
        return torch.cat([*found, self.head(_beside(features, seen, self.skip)).mean], dim=-1)


class MLPDecoder(nn.Module):
    """The encoder's layers, mirrored."""

    def __init__(self, outputs: int, config: ModelConfig) -> None:
        super().__init__()
        widths = (config.latent_size, *reversed(config.hidden))
        self.skip = config.skip
        self.trunk = _mlp(widths, config)
        self.out = nn.Linear(widths[-1] + config.skip * widths[0], outputs)

    def forward(self, z: Tensor) -> Tensor:
        """Latents (..., L) to raw parameters (..., P * D)."""
        # Batch norm takes the second axis for its channels: rows of all draws go as one.
        rows = z.flatten(0, -2)
        raw: Tensor = self.out(_beside(self.trunk(rows), rows, self.skip)).unflatten(0, z.shape[:-1])
        return raw


class ConvEncoder(nn.Module):
    """Convolutions of stride 2 over images of any height and width."""

    def __init__(self, shape: tuple[int, int, int], config: ModelConfig) -> None:
        super().__init__()
        self.shape, self.padding, self.mask_input = shape, config.padding, config.mask_input
        channels = (shape[0] * (1 + config.mask_input), *config.hidden)
        blocks: list[nn.Module] = []
        for before, after in pairwise(channels):
            blocks += [nn.Conv2d(before, after, config.kernel, stride=2, padding=1), *_after(after, config)]
        self.trunk = nn.Sequential(*blocks, nn.Flatten())
        sizes = map_sizes(shape, config)
        features = config.hidden[-1] * math.prod(sizes[-1])
        self.dense = _dense(features, config.dense, config)
        self.head = make_head(config.dense or features, config)

    def forward(self, x: Tensor, observed: Tensor) -> Posterior:
        """Flat images (B, D) to their posterior."""
        posterior: Posterior = self.head(self.dense(self.trunk(self._image(x, observed))))
        return posterior

    def activations(self, x: Tensor, observed: Tensor) -> Tensor:
        """Outputs of all layers, feature maps as their spatial means, and the posterior's mean,
        shape (B, F).
        """
        features, maps = _layer_outputs(self.trunk, self._image(x, observed))
        dense = self.dense(features)
        means = [sum_elements(each.flatten(2)) / (each.shape[2] * each.shape[3]) for each in maps]
        hidden = [] if isinstance(self.dense, nn.Identity) else [dense]
        return torch.cat([*means, *hidden, self.head(dense).mean], dim=-1)

    def _image(self, x: Tensor, observed: Tensor) -> Tensor:
        """What the first convolution sees, shape (B, C, H, W)."""
        image = x.unflatten(-1, self.shape)
        if self.mask_input:
            image = torch.cat([image, observed.unflatten(-1, self.shape).to(x.dtype)], dim=1)
        return pad(image, (self.padding,) * 4) if self.padding else image


class ConvDecoder(nn.Module):
    """Transposed convolutions that meet every feature map size of the encoder again."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, config: ModelConfig) -> None:
        super().__init__()
        sizes = map_sizes(shape, config)
        self.padding = config.padding
        self.first = (config.hidden[-1], *sizes[-1])
        features = math.prod(self.first)
        self.dense = _dense(config.latent_size, config.dense, config)
        self.widen = (
            nn.Identity() if config.spatial_code else nn.Linear(config.dense or config.latent_size, features)
        )
        self.trunk = nn.Sequential(*self._blocks(shape[0] * outputs, sizes, config))

    @staticmethod
    def _blocks(channels: int, sizes: list[tuple[int, int]], config: ModelConfig) -> list[nn.Module]:
        whole = config.head == "conv"
        widths = (
            [config.hidden[-1], *reversed(config.hidden)] if whole else [*reversed(config.hidden), channels]
        )
        blocks: list[nn.Module] = []
        steps = list(zip(sizes[::-1], sizes[-2::-1], widths, widths[1:], strict=False))
        for i, (small, large, before, after) in enumerate(steps):
            high, wide = (b - ((a - 1) * 2 - 2 + config.kernel) for a, b in zip(small, large, strict=True))
            blocks.append(
                Upsampling(before, after, config.kernel, stride=2, padding=1, output_padding=(high, wide))
            )
            if whole or i < len(steps) - 1:
                blocks += _after(after, config)
        return [*blocks, nn.Conv2d(widths[-1], channels, 3, padding=1)] if whole else blocks

    def forward(self, z: Tensor) -> Tensor:
        """Latents (..., L) to raw parameters (..., P * D)."""
        features = self.widen(self.dense(z.flatten(0, -2))).unflatten(-1, self.first)
        image = self.trunk(features)
        if self.padding:
            p = self.padding
            image = image[..., p:-p, p:-p]
        raw: Tensor = image.flatten(1).unflatten(0, z.shape[:-1])
        return raw


class Upsampling(nn.ConvTranspose2d):
    """A transposed convolution of stride 2, exported as four ordinary ones.

    Output pixels of one parity read every second tap of the kernel, a convolution of its own; the four
    results are interleaved. onnxruntime does that in half the time of its ``ConvTranspose`` [1]_.

    References
    ----------
    .. [1] Shi et al., "Is the deconvolution layer the same as a convolutional layer?", 2016.
       https://arxiv.org/abs/1609.07009
    """

    # Below so many channels interleaving costs more than it saves.
    LEAST_CHANNELS = 8

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Feature maps (B, C, H, W) to maps of about twice the height and width."""
        if torch.compiler.is_exporting() and self.out_channels >= self.LEAST_CHANNELS:
            return self.interleaved(x)
        return super().forward(x, output_size)

    def interleaved(self, x: Tensor) -> Tensor:
        """The same values from convolutions of stride 1."""
        rows = [torch.stack([self._parity(x, a, b) for b in (0, 1)], dim=-1).flatten(-2) for a in (0, 1)]
        height, width = (self._size(x.shape[axis], axis - 2) for axis in (2, 3))
        return torch.stack(rows, dim=-2).flatten(-3, -2)[..., :height, :width]

    def _size(self, before: int, axis: int) -> int:
        reach = self.kernel_size[axis] - 2 * int(self.padding[axis]) + self.output_padding[axis]
        return 2 * (before - 1) + reach

    def _parity(self, x: Tensor, row: int, column: int) -> Tensor:
        """Output pixels 2 i + row, 2 j + column."""
        weight, margins = self.weight.transpose(0, 1), []
        for axis, parity in ((3, column), (2, row)):
            padding = int(self.padding[axis - 2])
            first = (parity + padding) % 2
            taps = torch.arange(first, self.kernel_size[axis - 2], 2, device=x.device).flip(0)
            last = (parity + padding - first) // 2
            weight = weight.index_select(axis, taps)
            half = (self._size(x.shape[axis], axis - 2) + 1) // 2
            margins += [len(taps) - 1 - last, half + last - x.shape[axis]]
        return conv2d(pad(x, margins), weight, self.bias)


def map_sizes(shape: tuple[int, int, int], config: ModelConfig) -> list[tuple[int, int]]:
    """Height and width of the image (padded) and of each feature map after it."""
    sizes = [(shape[1] + 2 * config.padding, shape[2] + 2 * config.padding)]
    for _ in config.hidden:
        height, width = ((side + 2 - config.kernel) // 2 + 1 for side in sizes[-1])
        sizes.append((height, width))
    if min(sizes[-1]) < 1:
        raise ConfigError(
            f"{len(config.hidden)} convolutions of stride 2 leave nothing of {shape[1]}x{shape[2]} images; "
            "shorten hidden"
        )
    return sizes


def make_head(features: int, config: ModelConfig) -> GaussianHead | PointHead:
    """The layer that ends an encoder: a distribution for a VAE, a point for an autoencoder."""
    if config.kind == "vae":
        return GaussianHead(features, config.latent_size)
    if config.spatial_code and features != config.latent_size:
        raise ConfigError(
            f"a spatial code here has latent_size {features}, got {config.latent_size}; set it so"
        )
    return PointHead(features, config.latent_size, config.spatial_code)


def make_networks(
    shape: tuple[int, ...], outputs: int, config: ModelConfig, features: int | None = None
) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder for samples of a shape: (D,) or (C, H, W).

    Parameters
    ----------
    shape : tuple of int
    outputs : int
        Raw numbers that the decoder gives for one sample.
    config : ModelConfig
    features : int, optional
        F, numbers of a row in model space, where that is not D.

    Raises
    ------
    ConfigError
        If a convolutional network is asked for a table, or has too many layers for the image.
    """
    if config.network == "mlp":
        return MLPEncoder(math.prod(shape), config, features), MLPDecoder(outputs, config)
    if len(shape) != 3:
        raise ConfigError("a convolutional network needs images; set network to 'mlp' for tables")
    image = (shape[0], shape[1], shape[2])
    return ConvEncoder(image, config), ConvDecoder(image, outputs // math.prod(shape), config)


def _with_mask(x: Tensor, observed: Tensor, mask_input: bool) -> Tensor:
    x = x.clamp(-INPUT_LIMIT, INPUT_LIMIT)
    return torch.cat([x, observed.to(x.dtype)], dim=-1) if mask_input else x


def _beside(features: Tensor, seen: Tensor, skip: bool) -> Tensor:
    return torch.cat([features, seen], dim=-1) if skip else features


def _mlp(widths: tuple[int, ...], config: ModelConfig) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for before, after in pairwise(widths):
        blocks += [nn.Linear(before, after), *_after(after, config, nn.BatchNorm1d)]
    return nn.Sequential(*blocks)


def _layer_outputs(trunk: nn.Module, values: Tensor) -> tuple[Tensor, list[Tensor]]:
    """What a trunk gives, and the output of each of its layers."""
    found = []
    for module in trunk.children():
        values = module(values)
        if isinstance(module, ACTIVATED):
            found.append(values)
    return values, found


def _dense(before: int, after: int, config: ModelConfig) -> nn.Module:
    return (
        nn.Sequential(nn.Linear(before, after), ACTIVATIONS[config.activation]()) if after else nn.Identity()
    )


def _after(
    width: int, config: ModelConfig, norm: Callable[[int], nn.Module] = nn.BatchNorm2d
) -> list[nn.Module]:
    return [*([norm(width)] if config.batch_norm else []), ACTIVATIONS[config.activation]()]
