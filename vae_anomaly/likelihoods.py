"""What the decoder believes about an element: raw network output -> distribution.

Every likelihood reads raw decoder output of shape (..., P * D), P blocks of D, and speaks of D
independent elements in model space. Noise is passed in, never drawn inside. All densities are
written so that the exported graph keeps them at logits of +-200: softplus(l) - x l, never the log
of a sigmoid, which onnxruntime rounds to 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from vae_anomaly.exceptions import ConfigError

# A learned scale starts near .3: from 1 the first epochs ignore z.
FIRST_LOG_SCALE = -1.2
# Added to a learned scale, in model space: for pixels, and for standardised columns, where a column
# known to a hundredth makes importance weights and float32 sums hang on its last digits.
PIXEL_FLOOR, COLUMN_FLOOR = 0.01, 0.1
# Terms summed in float32 before a sum goes on in float64.
RUN = 64
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
OUTPUTS = {"identity": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class Likelihood(nn.Module):
    """p(x | z) of D independent elements.

    Attributes
    ----------
    outputs_per_element : int
        P, raw decoder outputs per element.
    output_range : tuple of float
        The range of model space for images.
    """

    outputs_per_element = 1
    output_range = (0.0, 1.0)

    def outputs(self, elements: int) -> int:
        """Raw decoder outputs for D elements."""
        return self.outputs_per_element * elements

    def features(self, elements: int) -> int:
        """F, the numbers in model space of D elements: D unless some are classes."""
        return elements

    def widened(self, observed: Tensor) -> Tensor:
        """The mask of every number in model space, (..., D) to (..., F)."""
        return observed

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Log-density per element in nats, shape (..., B, D)."""
        raise NotImplementedError

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """The largest log-density that any location could give to x, at the same scale."""
        raise NotImplementedError

    def surprise(self, raw: Tensor, x: Tensor) -> Tensor:
        """How much less probable x is than the most probable value, in nats, shape (..., B, D)."""
        return (self.best_log_prob(raw, x) - self.log_prob(raw, x)).clamp_min(0.0)

    def mean(self, raw: Tensor) -> Tensor:
        """E[x | z] in model space, shape (..., D)."""
        raise NotImplementedError

    def variance(self, raw: Tensor) -> Tensor:
        """Var[x | z] in model space, shape (..., D)."""
        raise NotImplementedError

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """A draw x ~ p(x | z) from standard normal noise of shape (..., D)."""
        raise NotImplementedError


class Bernoulli(Likelihood):
    """Binary elements; grey ones in [0, 1] by convention.

    .. math:: \\log p(x \\mid z) = x l - \\mathrm{softplus}(l)

    References
    ----------
    .. [1] Kingma & Welling, "Auto-Encoding Variational Bayes", ICLR 2014.
       https://arxiv.org/abs/1312.6114
    """

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """x l - softplus(l)."""
        return x * raw - softplus(raw)

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """x log x + (1 - x) log(1 - x), 0 at both ends."""
        inside = x.clamp(0.0, 1.0)
        return _x_log_x(inside) + _x_log_x(1.0 - inside)

    def mean(self, raw: Tensor) -> Tensor:
        """sigmoid(l)."""
        return torch.sigmoid(raw)

    def variance(self, raw: Tensor) -> Tensor:
        """p (1 - p)."""
        p = torch.sigmoid(raw)
        return p * (1.0 - p)

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """1 with probability p, else 0."""
        return (uniform_of(noise) < torch.sigmoid(raw)).to(raw.dtype)


class ContinuousBernoulli(Likelihood):
    """Grey elements in [0, 1]: the Bernoulli's form with its missing normaliser.

    .. math:: \\log p(x \\mid z) = x l - \\mathrm{softplus}(l) + \\log|l| - \\log\\tanh(|l|/2)

    Logits are clipped to +-`LIMIT`, or elements of exactly 0 and 1 would have no best density.

    References
    ----------
    .. [1] Loaiza-Ganem & Cunningham, "The continuous Bernoulli: fixing a pervasive error in
       variational autoencoders", NeurIPS 2019. https://arxiv.org/abs/1907.06845
    """

    LIMIT = 20.0
    # 8-bit levels lie on the grid exactly; between grid points the chord of a convex function is
    # above it, so that `recon` stays >= 0.
    GRID = 255 * 8

    def __init__(self) -> None:
        super().__init__()
        self.best: Tensor
        self.register_buffer("best", _best_continuous_bernoulli(self.GRID, self.LIMIT), persistent=False)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """The Bernoulli's term plus the log normaliser, from clipped logits."""
        logit = raw.clamp(-self.LIMIT, self.LIMIT)
        return x * logit - softplus(logit) + log_normaliser(logit)

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """max over logits of the log-density at x, from a table."""
        place = x.clamp(0.0, 1.0) * self.GRID
        left = place.floor().clamp(max=self.GRID - 1)
        index = left.long()
        low, high = self.best[index], self.best[index + 1]
        return low + (place - left) * (high - low)

    def mean(self, raw: Tensor) -> Tensor:
        """1 / (1 - exp(-l)) - 1 / l; a series near l = 0."""
        logit = raw.clamp(-self.LIMIT, self.LIMIT)
        small = logit.abs() < 0.5
        safe = torch.where(small, 1.0, logit)
        series = 0.5 + logit / 12 - logit**3 / 720 + logit**5 / 30240
        return torch.where(small, series, 1 / (1 - torch.exp(-safe)) - 1 / safe)

    def variance(self, raw: Tensor) -> Tensor:
        """1 / l^2 - exp(-|l|) / (1 - exp(-|l|))^2; a series near l = 0."""
        size = raw.clamp(-self.LIMIT, self.LIMIT).abs()
        small = size < 0.5
        safe = torch.where(small, 1.0, size)
        series = 1 / 12 - size**2 / 240 + size**4 / 6048
        decay = torch.exp(-safe)
        return torch.where(small, series, 1 / safe**2 - decay / (1 - decay) ** 2)

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """Inverse distribution function log(1 + u (exp(l) - 1)) / l, for -|l|, mirrored."""
        logit = raw.clamp(-self.LIMIT, self.LIMIT)
        size = logit.abs().clamp_min(1e-3)
        u = uniform_of(noise)
        # For -size: log(1 - u (1 - exp(-size))) / -size concentrates at 0; mirror it for l > 0.
        low = -torch.log(1 - u * (1 - torch.exp(-size))) / size
        return torch.where(logit > 0, 1 - low, low).clamp(0.0, 1.0)


class LocationScale(Likelihood):
    """A location per element, and one scale (learned or fixed) or one per element."""

    def __init__(
        self, scale: float | str = "learned", output: str = "identity", floor: float | None = None
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ConfigError(f"unknown output {output!r}; choose one of {', '.join(OUTPUTS)}")
        if isinstance(scale, str) and scale not in ("learned", "element"):
            raise ConfigError(f"unknown scale {scale!r}; choose learned, element or a number")
        if not isinstance(scale, str) and not 0 < scale < math.inf:
            raise ConfigError(f"a fixed scale must be a positive number, got {scale}")
        self.output = OUTPUTS[output]()
        self.output_range = (-1.0, 1.0) if output == "tanh" else (0.0, 1.0)
        self.floor = (COLUMN_FLOOR if output == "identity" else PIXEL_FLOOR) if floor is None else floor
        self.outputs_per_element = 2 if scale == "element" else 1
        self.log_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE)) if scale == "learned" else None
        self.fixed = 1.0 if isinstance(scale, str) else float(scale)

    def reset_parameters(self) -> None:
        """The learned scale as it was before training."""
        if self.log_scale is not None:
            nn.init.constant_(self.log_scale, FIRST_LOG_SCALE)

    def parameters_of(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale, each broadcastable to (..., D)."""
        if self.outputs_per_element == 2:
            location, raw_scale = raw.chunk(2, dim=-1)
            return self.output(location), self.floor + steady_softplus(raw_scale)
        location = self.output(raw)
        if self.log_scale is not None:
            return location, self.floor + self.log_scale.exp()
        return location, torch.full((), self.fixed, dtype=raw.dtype, device=raw.device)

    def surprise(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p: the best density depends on the scale alone, whose own log stays in."""
        return -self.log_prob(raw, x)

    def mean(self, raw: Tensor) -> Tensor:
        """The location."""
        return self.parameters_of(raw)[0]


class Gaussian(LocationScale):
    """Real-valued elements.

    .. math:: p(x \\mid z) = \\mathcal{N}(x;\\, \\mu(z),\\, \\sigma^2)

    Parameters
    ----------
    scale : float or {"learned", "element"}
        One fixed sigma (sqrt(1/2) is MSE + KL), one learned, or one per element.
    output : {"identity", "sigmoid", "tanh"}
        What bounds the location.
    floor : float, optional
        Added to a learned sigma: .1 for an unbounded location (standardised columns), else .01.
        Without one the density of a constant column has no upper bound, and training chases it [1]_.

    References
    ----------
    .. [1] Mattei & Frellsen, "Leveraging the exact likelihood of deep latent variable models",
       NeurIPS 2018. https://arxiv.org/abs/1802.04826
    """

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """-(x - mu)^2 / 2 sigma^2 - log sigma - log sqrt(2 pi)."""
        location, scale = self.parameters_of(raw)
        return -0.5 * ((x - location) / scale) ** 2 - torch.log(scale) - LOG_SQRT_2PI

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log sigma - log sqrt(2 pi)."""
        _, scale = self.parameters_of(raw)
        return -torch.log(scale) - LOG_SQRT_2PI + torch.zeros_like(x)

    def variance(self, raw: Tensor) -> Tensor:
        """sigma^2."""
        location, scale = self.parameters_of(raw)
        return scale**2 + torch.zeros_like(location)

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """mu + sigma noise."""
        location, scale = self.parameters_of(raw)
        return location + scale * noise


class Laplace(LocationScale):
    """Real-valued elements under an L1 loss.

    .. math:: p(x \\mid z) = \\exp(-|x - \\mu(z)| / b) / 2b
    """

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """-|x - mu| / b - log 2b."""
        location, scale = self.parameters_of(raw)
        return -(x - location).abs() / scale - torch.log(2 * scale)

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log 2b."""
        _, scale = self.parameters_of(raw)
        return -torch.log(2 * scale) + torch.zeros_like(x)

    def variance(self, raw: Tensor) -> Tensor:
        """2 b^2."""
        location, scale = self.parameters_of(raw)
        return 2 * scale**2 + torch.zeros_like(location)

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """mu - b sign(u - 1/2) log(1 - 2 |u - 1/2|)."""
        location, scale = self.parameters_of(raw)
        centred = uniform_of(noise) - 0.5
        return location - scale * torch.sign(centred) * torch.log(1 - 2 * centred.abs())


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "continuous-bernoulli": ContinuousBernoulli,
    "gaussian": Gaussian,
    "laplace": Laplace,
}


def log_normaliser(logit: Tensor) -> Tensor:
    """Log C of the continuous Bernoulli: log|l| - log tanh(|l|/2), a series for |l| < .01."""
    size = logit.abs()
    small = size < 0.01
    # The branch not taken must not be 0/0, or the gradient at 0 is NaN.
    safe = torch.where(small, 1.0, size)
    series = math.log(2) + size**2 / 12 - 7 * size**4 / 1440
    return torch.where(small, series, torch.log(safe) - torch.log(torch.tanh(safe / 2)))


def sum_elements(values: Tensor) -> Tensor:
    """Sum over the last axis, accumulated in float64, in the precision of the values.

    A float32 sum of ten thousand terms of one size loses a nat, each runtime another one.
    """
    return sum_elements_exactly(values).to(values.dtype)


def sum_elements_exactly(values: Tensor) -> Tensor:
    """The same in float64: short runs are summed first, then widened.

    Importance weights are differences of such sums, hundreds of nats each: in float32 the
    differences would keep three digits. Sums are products with ones: onnxruntime's ReduceSum changes
    low bits with a row's alignment in memory, its matrix product does not, and a row's score must
    not depend on its place in the batch.
    """
    size = values.shape[-1]
    run = next(length for length in range(min(RUN, size), 0, -1) if size % length == 0)
    sums = values if run == 1 else _times_ones(values.unflatten(-1, (-1, run)))
    return sums.double().squeeze(-1) if size == run else _times_ones(sums.double())


def _times_ones(values: Tensor) -> Tensor:
    ones = torch.ones(values.shape[-1], 1, dtype=values.dtype, device=values.device)
    return (values @ ones).squeeze(-1)


def observed_log_prob(
    likelihood: Likelihood, raw: Tensor, x: Tensor, observed: Tensor, *, exactly: bool = False
) -> Tensor:
    """Log-density of the observed elements only, in nats.

    Parameters
    ----------
    likelihood : Likelihood
    raw : Tensor, shape (..., B, P * D)
    x : Tensor, shape (B, D)
        Finite everywhere; its value where not observed has no say.
    observed : bool Tensor, shape (B, D)
    exactly : bool
        Sum in float64, see `sum_elements_exactly`.

    Returns
    -------
    Tensor, shape (..., B)
        0 for a row with nothing observed.
    """
    terms = torch.where(observed, likelihood.log_prob(raw, x), 0.0)
    return sum_elements_exactly(terms) if exactly else sum_elements(terms)


def steady_softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), the same bits wherever in a batch x stands: torch's differs at the end of a vector."""
    return x.clamp_min(0.0) + torch.log(1.0 + torch.exp(-x.abs()))


def _x_log_x(x: Tensor) -> Tensor:
    return x * torch.log(x.clamp_min(1e-30))


def uniform_of(noise: Tensor) -> Tensor:
    """Standard normal noise to (0, 1), kept off both ends."""
    return (0.5 + 0.5 * torch.erf(noise / math.sqrt(2))).clamp(1e-6, 1 - 1e-6)


def _best_continuous_bernoulli(grid: int, limit: float) -> Tensor:
    """max_l x l - A(l) for x = 0, 1/grid, ..., 1, by bisection on the mean (A is convex)."""
    x = torch.linspace(0, 1, grid + 1, dtype=torch.float64)
    low, high = torch.full_like(x, -limit), torch.full_like(x, limit)
    for _ in range(60):
        middle = (low + high) / 2
        safe = torch.where(middle.abs() < 1e-4, 1.0, middle)
        mean = torch.where(middle.abs() < 1e-4, 0.5 + middle / 12, 1 / -torch.expm1(-safe) - 1 / safe)
        low, high = torch.where(mean < x, middle, low), torch.where(mean < x, high, middle)
    logit = (low + high) / 2
    return (x * logit - softplus(logit) + log_normaliser(logit)).float()
