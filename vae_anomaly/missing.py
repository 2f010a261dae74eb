"""Why values are missing: a self-masking process beside the decoder, for data missing not at random.

A cell goes missing with a probability that depends on its own value, so that the mask itself says
something about what is missing. Given z the elements are independent, and what the papers average over
draws x ~ p(x | z) is an integral per element, taken here on fixed nodes: the same weights, means and
draws without their noise.

References
----------
.. [1] Ipsen, Mattei & Frellsen, "not-MIWAE: Deep Generative Modelling with Missing not at Random Data",
   ICLR 2021. https://arxiv.org/abs/2006.12871
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from vae_anomaly.likelihoods import LocationScale, steady_softplus, uniform_of

Missing = Literal["mar", "mnar-self", "mnar-self-high", "mnar-self-low"]
SIGNS = {"mnar-self-high": 1.0, "mnar-self-low": -1.0}
# Nodes of the integrals, in standard deviations of p(x | z), and the first slope of a known direction.
NODES, REACH = 41, 4.0
FIRST_SLOPE = 1.0
# The process has two numbers a column and must not lag behind the networks: steps so much larger.
RATE = 10.0


class Given(NamedTuple):
    """p(x | z, x is missing) of each element.

    Attributes
    ----------
    log_missing : Tensor, shape (..., D)
        log p(missing | z), the integral of p(missing | x) p(x | z).
    mean, variance : Tensor, shape (..., D)
        Of x given z and that it is missing.
    """

    log_missing: Tensor
    mean: Tensor
    variance: Tensor


class SelfMasking(nn.Module):
    """p(missing | x_d) = sigmoid(a_d (x_d - b_d)), column by column, learned with the model.

    Parameters
    ----------
    elements : int
        D.
    missing : {"mnar-self", "mnar-self-high", "mnar-self-low"}
        Whether high values go missing, low ones, or the data decide.
    """

    def __init__(self, elements: int, missing: Missing) -> None:
        super().__init__()
        self.sign = SIGNS.get(missing, 0.0)
        self.raw_slope = nn.Parameter(torch.empty(elements))
        self.raw_threshold = nn.Parameter(torch.empty(elements))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As before any training: a slope of 1 in a known direction, else none; half missing at 0."""
        with torch.no_grad():
            self.raw_slope.fill_(math.log(math.expm1(FIRST_SLOPE)) / RATE if self.sign else 0.0)
            self.raw_threshold.zero_()

    def start(self, skewness: Tensor) -> None:
        """Where the direction is unknown, begin with what the shape of the observed values suggests.

        A tail that goes missing is cut short: observed values with a long lower tail, of negative
        ``skewness``, shape (D,), point to high values missing. Without it a slope of 0 is a saddle.
        """
        if not self.sign:
            with torch.no_grad():
                self.raw_slope.copy_(-torch.sign(skewness) * FIRST_SLOPE / RATE)

    @property
    def slope(self) -> Tensor:
        """a, shape (D,), per standardised unit: of the sign that is known, if one is."""
        slope = RATE * self.raw_slope
        return self.sign * softplus(slope) if self.sign else slope

    @property
    def threshold(self) -> Tensor:
        """b, shape (D,), standardised units: where half of the values are missing."""
        return RATE * self.raw_threshold

    def log_present(self, x: Tensor) -> Tensor:
        """log p(present | x), shape of x."""
        return -steady_softplus(self.slope * (x - self.threshold))

    def given_missing(self, likelihood: LocationScale, raw: Tensor) -> Given:
        """What is known of an element that is missing, for raw decoder output (..., P * D)."""
        location, scale = likelihood.parameters_of(raw)
        places, mass = self._masses(location, scale)
        total, first, second = (
            (mass * power).sum(dim=0) for power in (torch.ones_like(places), places, places**2)
        )
        total = total.clamp_min(1e-30)
        shift = first / total
        return Given(
            torch.log(total),
            location + scale * shift,
            scale**2 * (second / total - shift**2).clamp_min(0.0),
        )

    def sample(self, likelihood: LocationScale, raw: Tensor, noise: Tensor) -> Tensor:
        """A draw x ~ p(x | z, x is missing) from standard normal noise, by its distribution function."""
        location, scale = likelihood.parameters_of(raw)
        places, mass = self._masses(location, scale)
        above = torch.cumsum(mass, dim=0)
        below = torch.cat([torch.zeros_like(above[:1]), above[:-1]])
        wanted = uniform_of(noise) * above[-1]
        inside = (below <= wanted) & (wanted < above)
        width = 2 * REACH / (NODES - 1)
        within = places + width * ((wanted - below) / mass.clamp_min(1e-30) - 0.5)
        return location + scale * torch.where(inside, within, 0.0).sum(dim=0)

    def _masses(self, location: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes, shape (Q, 1, ..., 1), and p(missing | x) p(x | z) at them, shape (Q, ..., D)."""
        shape = (NODES, *[1] * location.dim())
        places, weights = (part.to(location).reshape(shape) for part in _nodes())
        return places, weights * self._missing(location + scale * places)

    def _missing(self, x: Tensor) -> Tensor:
        return torch.exp(-steady_softplus(-self.slope * (x - self.threshold)))


def _nodes() -> tuple[Tensor, Tensor]:
    """Places of the nodes and their probabilities under a standard normal, shape (Q,)."""
    places = torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)
    return places, torch.softmax(-0.5 * places**2, dim=0)
