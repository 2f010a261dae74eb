"""A likelihood for columns whose extremes are ordinary."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn

from vae_anomaly.likelihoods import LocationScale

# Below 3 the spread of a draw is all tail, and its closed form too coarse.
LEAST_DF = 3.0
FIRST_LOG_DF = math.log(5.0)


class StudentT(LocationScale):
    """Real-valued elements with heavy tails.

    .. math:: p(x \\mid z) \\propto \\frac{1}{s} \\Bigl(1 + \\frac{t^2}{\\nu}\\Bigr)^{-(\\nu + 1)/2},
        \\quad t = \\frac{x - \\mu(z)}{s}

    The degrees of freedom are learned per element and do not depend on z: their constant, which needs
    a function that no graph has, is stored whenever training ends.

    Parameters
    ----------
    scale, output, floor
        As `LocationScale` takes them.
    elements : int
        D; 1 for one number of degrees of freedom in common.

    References
    ----------
    .. [1] Lange, Little & Taylor, "Robust Statistical Modeling Using the t Distribution", JASA 1989.
       https://doi.org/10.1080/01621459.1989.10478852
    .. [2] Wallace, "Bounds on Normal Approximations to Student's and the Chi-Square Distributions",
       Annals of Mathematical Statistics 1959, for draws. https://doi.org/10.1214/aoms/1177706095
    """

    def __init__(
        self,
        scale: float | str = "learned",
        output: str = "identity",
        floor: float | None = None,
        elements: int = 1,
    ) -> None:
        super().__init__(scale, output, floor)
        self.log_df = nn.Parameter(torch.full((elements,), FIRST_LOG_DF))
        self.constant: Tensor
        self.register_buffer("constant", self._constant().detach())

    def df(self) -> Tensor:
        """Degrees of freedom, shape (D,) or (1,)."""
        return LEAST_DF + torch.exp(self.log_df)

    def train(self, mode: bool = True) -> Self:
        """Store the constant when training ends."""
        with torch.no_grad():
            self.constant.copy_(self._constant())
        return super().train(mode)

    def _constant(self) -> Tensor:
        df = self.df().double()
        found = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * math.pi)
        return found.to(self.log_df.dtype)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """c(df) - log s - (df + 1) / 2 log(1 + t^2 / df)."""
        return self.best_log_prob(raw, x) - self._below_best(raw, x)

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """c(df) - log s."""
        _, scale = self.parameters_of(raw)
        constant = self._constant() if self.training else self.constant
        return constant - torch.log(scale) + torch.zeros_like(x)

    def _below_best(self, raw: Tensor, x: Tensor) -> Tensor:
        location, scale = self.parameters_of(raw)
        df = self.df()
        return 0.5 * (df + 1) * torch.log(1 + ((x - location) / scale) ** 2 / df)

    def variance(self, raw: Tensor) -> Tensor:
        """s^2 df / (df - 2)."""
        location, scale = self.parameters_of(raw)
        df = self.df()
        return scale**2 * df / (df - 2) + torch.zeros_like(location)

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """mu + s t, t the quantile of the noise's place in a normal by Wallace's closed form."""
        location, scale = self.parameters_of(raw)
        df = self.df()
        power = (noise * (8 * df + 3) / (8 * df + 1)) ** 2 / df
        return location + scale * torch.sign(noise) * torch.sqrt(df * (torch.exp(power) - 1))
