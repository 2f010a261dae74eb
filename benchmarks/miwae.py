"""MIWAE and not-MIWAE as their papers have them: peers of the benchmark, no part of the product.

References
----------
.. [1] Mattei & Frellsen, "MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets",
   ICML 2019. https://arxiv.org/abs/1812.02633
.. [2] Ipsen, Mattei & Frellsen, "not-MIWAE: Deep Generative Modelling with Missing not at Random Data",
   ICLR 2021. https://arxiv.org/abs/2006.12871
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, StudentT
from torch.nn.functional import softplus

Rows = npt.NDArray[np.float64]


class MIWAEConfig(NamedTuple):
    """The papers' settings for tables.

    Attributes
    ----------
    hidden, latent : int
        Width of two hidden layers each way, and of the code.
    samples : int
        K of the bound.
    steps, batch : int
        Of Adam at 1e-3.
    images : bool
        A Bernoulli decoder on pixels in [0, 1] in place of Student's t.
    self_masking : bool
        not-MIWAE: Gaussian decoder and a logistic missing process per column, its sign known.
    """

    hidden: int = 128
    latent: int = 10
    samples: int = 20
    steps: int = 16_000
    batch: int = 64
    images: bool = False
    self_masking: bool = False


class MIWAE(nn.Module):
    """Encoder of x with zeros in the gaps, decoder to a distribution of every element."""

    def __init__(self, elements: int, config: MIWAEConfig) -> None:
        super().__init__()
        self.config, self.elements = config, elements
        outputs = 1 if config.images else 2 if config.self_masking else 3
        self.encoder = _network(elements, config.hidden, 2 * config.latent)
        self.decoder = _network(config.latent, config.hidden, outputs * elements)
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight)
        self.slope = nn.Parameter(torch.zeros(elements))
        self.threshold = nn.Parameter(torch.zeros(elements))

    def weighted(self, x: Tensor, observed: Tensor, draws: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (K, B), expected elements (K, B, D) and drawn ones of K draws."""
        mean, raw = self.encoder(x).chunk(2, dim=-1)
        q = Normal(mean, softplus(raw) + 1e-6)
        z = q.rsample(torch.Size([draws]))
        p = self.distribution(self.decoder(z))
        weights = (p.log_prob(x) * observed).sum(-1)
        weights = weights + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
        drawn = p.rsample() if p.has_rsample else p.sample()
        if not self.config.self_masking:
            return weights, p.mean, drawn
        mixed = torch.where(observed, x, drawn)
        present = Bernoulli(logits=-softplus(self.slope) * (mixed - self.threshold))
        return weights + present.log_prob(observed.to(x.dtype)).sum(-1), drawn, drawn

    def distribution(self, raw: Tensor) -> torch.distributions.Distribution:
        """What the decoder says about the elements."""
        if self.config.images:
            return Bernoulli(logits=raw, validate_args=False)
        if self.config.self_masking:
            mean, scale = raw.chunk(2, dim=-1)
            return Normal(mean, softplus(scale) + 1e-3)
        mean, scale, freedom = raw.chunk(3, dim=-1)
        return StudentT(softplus(freedom) + 3, mean, softplus(scale) + 1e-3)


def fit(rows: Rows, config: MIWAEConfig, seed: int) -> MIWAE:
    """Train on rows with NaN where nothing was observed."""
    torch.manual_seed(seed)
    observed = torch.from_numpy(~np.isnan(rows))
    x = torch.from_numpy(np.nan_to_num(rows)).float()
    model = MIWAE(x.shape[1], config)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    done = 0
    while done < config.steps:
        for index in torch.randperm(len(x)).split(config.batch)[: config.steps - done]:
            weights, _, _ = model.weighted(x[index], observed[index], config.samples)
            optimizer.zero_grad()
            (-torch.logsumexp(weights, 0).mean()).backward()
            optimizer.step()
            done += 1
    return model


@torch.no_grad()
def impute(model: MIWAE, rows: Rows, k: int, draws: int = 0) -> tuple[Rows, Rows | None]:
    """Self-normalised means of K draws per gap, and sampling importance resampling."""
    observed = torch.from_numpy(~np.isnan(rows))
    x = torch.from_numpy(np.nan_to_num(rows)).float()
    means, drawn = [], []
    at_once = max(1, 20_000_000 // (k * x.shape[1]))
    for index in torch.arange(len(x)).split(at_once):
        weights, expected, sampled = model.weighted(x[index], observed[index], k)
        share = torch.softmax(weights, dim=0)
        means.append(torch.einsum("kb,kbd->bd", share, expected))
        if draws:
            picked = torch.multinomial(share.T, draws, replacement=True).T
            drawn.append(torch.gather(sampled, 0, picked[:, :, None].expand(-1, -1, x.shape[1])))
    filled = _complete(rows, torch.cat(means))
    return filled, np.stack([_complete(rows, part) for part in torch.cat(drawn, 1)]) if draws else None


def _complete(rows: Rows, imputed: Tensor) -> Rows:
    return np.where(np.isnan(rows), imputed.double().numpy(), rows)


def _network(before: int, hidden: int, after: int) -> nn.Sequential:
    layers = (nn.Linear(before, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(hidden, after))
