"""A model without a network: latents look up what they decode to."""

import torch
from torch import Tensor, nn

from vae_anomaly.networks import Posterior


class Choice(nn.Module):
    """A decoder that looks up prepared outputs: z = k decodes to row k."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = table

    def forward(self, z: Tensor) -> Tensor:
        return self.table[z[..., 0].long()]


class Prior(nn.Module):
    """q(z | x) = p(z)."""

    def forward(self, x: Tensor, observed: Tensor) -> Posterior:
        return Posterior(torch.zeros(len(x), 1, dtype=x.dtype), torch.zeros(len(x), 1, dtype=x.dtype))
