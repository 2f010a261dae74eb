"""Training rows that may be anomalies themselves: which to leave out, without labels.

A model learns what is common before what is rare, so that early in training anomalies stand out by
their loss [1]_. Leaving out the rows with the highest losses from then on keeps the model from
learning them too [2]_.

References
----------
.. [1] Kim et al., "ODIM: Outlier Detection via Likelihood of Under-Fitted Generative Models",
   ICML 2024. https://arxiv.org/abs/2301.04257
.. [2] Cho et al., "ALTBI: Constructing Improved Outlier Detection Models via Optimization of
   Inlier-Memorization Effect", AAAI 2025. https://arxiv.org/abs/2408.09791
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from vae_anomaly.choices import is_number
from vae_anomaly.encoding import Encoded
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.likelihoods import sum_elements
from vae_anomaly.vae import Autoencoder, kl_per_latent

AUTO = "auto"
# What "auto" leaves out at least and at most. On the development sets a tenth costs next to nothing where
# there is no anomaly, and what shows in the losses is seldom all there is.
LEAST, MOST = 0.1, 0.2
# Share of the epochs before any row is left out.
WARMUP = 0.1
# Standard deviations of a difference of two counts beyond which chance does not explain it.
CHANCE = 2.0


def check_trim(trim: float | str) -> None:
    """Raise `ConfigError` unless trim is "auto" or a share from 0 up to, but not, 0.5."""
    if (isinstance(trim, str) and trim == AUTO) or (is_number(trim) and 0 <= float(trim) < 0.5):
        return
    raise ConfigError(f"trim is {trim!r}; choose 'auto', or a share of the rows of at least 0 and below 0.5")


def row_losses(model: Autoencoder, batches: Iterable[Encoded]) -> Tensor:
    """Negative ELBO of each row at z = E[z | x], shape (n,), nats per row without gaps.

    The likelihood is scaled by D / number observed, so that rows with gaps compare with whole ones.
    """
    found = []
    with torch.no_grad():
        for x, observed, _ in batches:
            posterior = model.encode(x, observed)
            present = sum_elements(observed.to(x.dtype)).clamp_min(1.0)
            likelihood = model.log_likelihood(posterior.mean, x, observed) * (observed.shape[-1] / present)
            found.append(sum_elements(kl_per_latent(posterior)) - likelihood)
    return torch.cat(found)


def kept_rows(losses: Tensor, share: float) -> Tensor:
    """Indices, ascending, of the rows to go on with: all but the share with the highest losses, shape (n,).

    Examples
    --------
    >>> kept_rows(torch.tensor([1.0, 9.0, 2.0, 3.0]), 0.25).tolist()
    [0, 2, 3]
    """
    keep = max(1, len(losses) - math.floor(share * len(losses)))
    # A stable order: rows that tie are kept as they come, on every device.
    return losses.argsort(stable=True)[:keep].sort().values


def excess_share(losses: Tensor) -> float:
    r"""Share of the rows by which the upper tail of the losses outweighs the lower one.

    The cube root makes losses of clean rows, sums of squares for the most part, all but symmetric [3]_.
    With k(t) the rows more than t above the median and j(t) those more than t below it, k - j is taken
    where it exceeds two standard deviations, sqrt(k + j) each, by most; the share is 0 where it never does,
    and never above `MOST`.

    References
    ----------
    .. [3] Wilson & Hilferty, "The distribution of chi-square", PNAS 1931.
       https://doi.org/10.1073/pnas.17.12.684
    """
    shape = (losses.double() - losses.double().min()).pow(1 / 3)
    distances = (shape - shape.median()).cpu()
    above = distances[distances > 0].sort().values
    below = -distances[distances < 0]
    ends = torch.cat([below, above.new_zeros(1)]).sort().values
    more = len(above) - torch.searchsorted(above, ends, right=True)
    fewer = len(below) - torch.searchsorted(below.sort().values, ends, right=True)
    beyond_chance = (more - fewer) - CHANCE * (more + fewer).double().sqrt()
    best = int(beyond_chance.argmax())
    share = float((more - fewer)[best]) / len(losses)
    return min(share, MOST) if beyond_chance[best] > 0 else 0.0
