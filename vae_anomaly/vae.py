"""The models, and the one quantity that everything else reads."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from vae_anomaly.columns import family
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.heavy_tails import StudentT
from vae_anomaly.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    LocationScale,
    observed_log_prob,
    sum_elements,
    sum_elements_exactly,
)
from vae_anomaly.missing import SelfMasking
from vae_anomaly.mixed import Mixed
from vae_anomaly.networks import ModelConfig, Posterior, make_networks
from vae_anomaly.schema import Schema, TableSchema

# Variance of first weights times the number of inputs: what keeps a signal's size through rectifiers
# (He et al., "Delving Deep into Rectifiers", ICCV 2015, https://arxiv.org/abs/1502.01852), and
# PyTorch's own.
HE, TORCH = 2.0, 1 / 3


class Autoencoder(nn.Module):
    """An encoder to a code and a decoder back: the baseline, without a distribution over z.

    Parameters
    ----------
    encoder : Module, (x, observed) -> Posterior
        Of shape (B, L); its method ``activations`` gives what the layers on the way put out.
    decoder : Module, z -> raw
        Raw likelihood parameters, shape (..., P * D) for z of shape (..., L).
    likelihood : Likelihood
        Reads raw parameters as a distribution over D elements.
    latent_size : int
        L.
    missing : SelfMasking, optional
        Why values are missing, where that depends on the values.
    """

    variational = False
    # Networks in bfloat16 while training; densities and sums always keep the input's precision.
    mixed_precision = False

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        latent_size: int,
        missing: SelfMasking | None = None,
    ) -> None:
        super().__init__()
        self.missing = missing
        self.latent_size = latent_size
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood

    def encode(self, x: Tensor, observed: Tensor) -> Posterior:
        """q(z | x observed) for rows in model space, shape (B, D)."""
        with self._precision(x):
            mean, log_variance = self.encoder(x, observed)
        return Posterior(mean.to(x.dtype), None if log_variance is None else log_variance.to(x.dtype))

    def activations(self, x: Tensor, observed: Tensor) -> Tensor:
        """Outputs of the encoder's layers for rows in model space, shape (B, F)."""
        with self._precision(x):
            found: Tensor = self.encoder.activations(x, observed)  # type: ignore[operator]
        return found.to(x.dtype)

    def decode(self, z: Tensor) -> Tensor:
        """Raw likelihood parameters, shape (..., P * D), of latents (..., L)."""
        with self._precision(z):
            raw: Tensor = self.decoder(z)
        return raw.to(z.dtype)

    def _precision(self, like: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(like.device.type, torch.bfloat16) if self.mixed_precision else nullcontext()

    def log_likelihood(self, z: Tensor, x: Tensor, observed: Tensor) -> Tensor:
        """log p(x observed | z) in nats, shape (..., B), for z of shape (..., B, L)."""
        return self.evidence(self.decode(z), x, observed)

    def evidence(self, raw: Tensor, x: Tensor, observed: Tensor, *, exactly: bool = False) -> Tensor:
        """The same of raw decoder output; with a missing process log p(x observed, mask | z)."""
        found = observed_log_prob(self.likelihood, raw, x, observed, exactly=exactly)
        if self.missing is None:
            return found
        gaps = self.missing.given_missing(self._location_scale(), raw).log_missing
        terms = torch.where(observed, self.missing.log_present(x), gaps)
        return found + (sum_elements_exactly(terms) if exactly else sum_elements(terms))

    def expected(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of missing elements given z, shape (..., D)."""
        if self.missing is None:
            return self.likelihood.mean(raw), self.likelihood.variance(raw)
        _, mean, variance = self.missing.given_missing(self._location_scale(), raw)
        return mean, variance

    def draw(self, raw: Tensor, noise: Tensor) -> Tensor:
        """Missing elements given z, drawn from standard normal noise, shape (..., D)."""
        if self.missing is None:
            return self.likelihood.sample(raw, noise)
        return self.missing.sample(self._location_scale(), raw, noise)

    def _location_scale(self) -> LocationScale:
        if not isinstance(self.likelihood, LocationScale):
            raise TypeError(f"a missing process needs a Gaussian, got {type(self.likelihood).__name__}")
        return self.likelihood


class VAE(Autoencoder):
    """Latent-variable model p(x, z) = p(z) p(x | z) of rows with missing elements.

    References
    ----------
    .. [1] Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
       https://arxiv.org/abs/1312.6114
    .. [2] Burda et al., "Importance Weighted Autoencoders", ICLR 2016.
       https://arxiv.org/abs/1509.00519
    .. [3] Mattei & Frellsen, "MIWAE", ICML 2019. https://arxiv.org/abs/1812.02633
    """

    variational = True

    def log_weights(self, x: Tensor, observed: Tensor, noise: Tensor) -> Tensor:
        """Log importance weights log p(x observed, z_k) - log q(z_k | x observed).

        Their mean over k is the ELBO, their log-mean-exp bounds log p(x observed), and their
        softmax weighs imputations: training, scoring and imputation all start here.

        Parameters
        ----------
        x : Tensor, shape (B, D)
            Model space, finite everywhere.
        observed : bool Tensor, shape (B, D)
        noise : Tensor, shape (K, B, L) or (K, 1, L)
            Standard normal; z_k = mean + sigma * noise_k.

        Returns
        -------
        Tensor, shape (K, B)
            In nats.
        """
        posterior = self.encode(x, observed)
        z = reparameterise(posterior, noise)
        return self.log_likelihood(z, x, observed) + log_prior_ratio(posterior, z, noise)


def reparameterise(posterior: Posterior, noise: Tensor) -> Tensor:
    """z_k = mean + sigma * noise_k, shape (K, B, L)."""
    if posterior.log_variance is None:
        return posterior.mean + torch.zeros_like(noise)
    return posterior.mean + torch.exp(0.5 * posterior.log_variance) * noise


def log_prior_ratio(posterior: Posterior, z: Tensor, noise: Tensor) -> Tensor:
    """log p(z_k) - log q(z_k | x), shape (K, B): the constants of both normals cancel."""
    if posterior.log_variance is None:
        raise TypeError("an autoencoder's code has no density")
    return 0.5 * sum_elements(noise**2 + posterior.log_variance - z**2)


def kl_per_latent(posterior: Posterior) -> Tensor:
    """KL(q(z_l | x) || p(z_l)) = (mu^2 + sigma^2 - 1 - log sigma^2) / 2, shape (B, L), nats."""
    if posterior.log_variance is None:
        return torch.zeros_like(posterior.mean)
    log_variance = posterior.log_variance
    return 0.5 * (posterior.mean**2 + torch.exp(log_variance) - 1.0 - log_variance)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """Log of the mean of exp over draws, (K, B) -> (B,)."""
    return torch.logsumexp(log_weights, dim=0) - math.log(log_weights.shape[0])


def make_likelihood(config: ModelConfig, schema: Schema | None = None) -> Likelihood:
    """The likelihood that a configuration names; for a mixed table that of its numbers."""
    kind = LIKELIHOODS.get(config.likelihood, StudentT)
    if issubclass(kind, StudentT):
        likelihood: Likelihood = kind(config.scale, config.output, elements=_numbers(schema))
    else:
        likelihood = kind(config.scale, config.output) if issubclass(kind, LocationScale) else kind()
    if isinstance(schema, TableSchema) and any(family(column) != "number" for column in schema.columns):
        return Mixed(schema.columns, likelihood)
    return likelihood


def _numbers(schema: Schema | None) -> int:
    """Columns of a table that are numbers; 1 for anything else."""
    if not isinstance(schema, TableSchema):
        return 1
    return max(1, sum(family(column) == "number" for column in schema.columns))


def make_model(
    shape: tuple[int, ...],
    config: ModelConfig,
    generator: torch.Generator,
    likelihood: Likelihood | None = None,
) -> Autoencoder:
    """A model for samples of shape (D,) or (C, H, W), its weights drawn from ``generator``."""
    likelihood = likelihood or make_likelihood(config)
    elements = math.prod(shape)
    outputs, features = likelihood.outputs(elements), likelihood.features(elements)
    # Layers draw their first weights from the global generator; fork it, then draw our own.
    with torch.random.fork_rng(devices=[]):
        encoder, decoder = make_networks(shape, outputs, config, features)
    if config.missing != "mar" and not isinstance(likelihood, LocationScale):
        raise ConfigError(
            f"missing = {config.missing!r} is for tables of numbers, and some columns here are categories "
            "or ordered or binary; leave them out or set missing = 'mar'"
        )
    missing = None if config.missing == "mar" else SelfMasking(elements, config.missing)
    kind = VAE if config.kind == "vae" else Autoencoder
    model = kind(encoder, decoder, likelihood, config.latent_size, missing)
    return initialise(model, generator)


def initialise(model: Autoencoder, generator: torch.Generator) -> Autoencoder:
    """The same model as nobody has trained it, its weights drawn from ``generator``."""
    # Convolutional networks are deep: a signal that shrinks in every layer says nothing to the
    # latents of dark images, and they collapse before anything is learned.
    gain = HE if any(isinstance(module, nn.Conv2d) for module in model.modules()) else TORCH
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            _initialise(module, TORCH if ".head" in name else gain, generator)
        elif isinstance(module, LocationScale | SelfMasking | nn.BatchNorm1d | nn.BatchNorm2d):
            module.reset_parameters()
    return model


def _initialise(
    layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, gain: float, generator: torch.Generator
) -> None:
    """Weights of variance gain / fan in, uniform; biases uniform in +-1/sqrt(fan in)."""
    fan_in = layer.weight[0].numel()
    if isinstance(layer, nn.ConvTranspose2d) and gain == HE:
        # What one output sees: every input channel through its share of the kernel.
        fan_in = layer.weight[:, 0].numel() // math.prod(layer.stride)
    bound = 1 / math.sqrt(fan_in)
    reach = bound * math.sqrt(3 * gain)
    with torch.no_grad():
        layer.weight.uniform_(-reach, reach, generator=generator)
        if layer.bias is not None:
            layer.bias.uniform_(-bound, bound, generator=generator)


def parameter_count(module: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
