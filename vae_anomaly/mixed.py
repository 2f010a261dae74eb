"""Likelihoods of table columns that are no real numbers, and of tables that mix kinds of columns.

A categorical or ordinal column is C numbers in model space, one of them 1; its expected value is C
probabilities. So is what is averaged over draws, and the most probable class is taken last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from vae_anomaly.columns import Column, feature_starts, group_columns
from vae_anomaly.likelihoods import Bernoulli, Likelihood, steady_softplus, sum_elements, uniform_of


class Classes(Likelihood):
    """Columns of C classes each.

    Parameters
    ----------
    columns : int
        n, how many columns.
    classes : int
        C.
    """

    def __init__(self, columns: int, classes: int) -> None:
        super().__init__()
        self.columns, self.classes = columns, classes

    def log_probabilities(self, raw: Tensor) -> Tensor:
        """log p of every class, shape (..., n, C)."""
        raise NotImplementedError

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """log p of the class that is 1 in x, shape (..., n), for x of shape (..., n C)."""
        chosen: Tensor = self.log_probabilities(raw) * self._split(x)
        return sum_elements(chosen)

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """0: the class could have been certain."""
        best: Tensor = torch.zeros_like(self._split(x)[..., 0])
        return best

    def mean(self, raw: Tensor) -> Tensor:
        """Probabilities, shape (..., n C)."""
        return torch.exp(self.log_probabilities(raw)).flatten(-2)

    def variance(self, raw: Tensor) -> Tensor:
        """p (1 - p) of every class, shape (..., n C)."""
        p = self.mean(raw)
        return p * (1.0 - p)

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """1 for the class drawn from noise of shape (..., n), 0 for the others; shape (..., n C)."""
        p = torch.exp(self.log_probabilities(raw))
        up_to = torch.triu(torch.ones(self.classes, self.classes, dtype=p.dtype, device=p.device))
        # How many classes end below the point drawn; rounding may leave the last end below 1.
        passed = (p @ up_to) < uniform_of(noise)[..., None]
        place = passed.to(p.dtype).sum(dim=-1, keepdim=True).clamp_max(self.classes - 1)
        return (place == torch.arange(self.classes, device=p.device)).to(p.dtype).flatten(-2)

    def _split(self, values: Tensor) -> Tensor:
        split: Tensor = values.unflatten(-1, (self.columns, self.classes))
        return split


class Categorical(Classes):
    """Classes without an order.

    .. math:: \\log p(x = c \\mid z) = l_c - \\log \\sum_j \\exp l_j
    """

    def outputs(self, elements: int) -> int:
        """One logit per class."""
        return elements * self.classes

    def log_probabilities(self, raw: Tensor) -> Tensor:
        """Log-softmax, its sum a product with ones."""
        logits = self._split(raw)
        shifted = logits - logits.amax(dim=-1, keepdim=True)
        return shifted - torch.log(sum_elements(torch.exp(shifted)))[..., None]


class Ordinal(Classes):
    """Classes in an order: where a logistic variable around the decoder's location falls among cuts.

    .. math:: p(x \\le c \\mid z) = \\sigma\\bigl(\\theta_c - \\mu(z)\\bigr), \\quad
        \\theta_1 < \\dots < \\theta_{C-1}

    References
    ----------
    .. [1] McCullagh, "Regression Models for Ordinal Data", JRSS B 1980.
       https://doi.org/10.1111/j.2517-6161.1980.tb01109.x
    """

    def __init__(self, columns: int, classes: int) -> None:
        super().__init__(columns, classes)
        # As if all classes were equally probable at location 0.
        share = torch.arange(1, max(classes, 2)) / max(classes, 2)
        cuts = torch.logit(share).expand(columns, -1)
        self.first = nn.Parameter(cuts[:, :1].clone())
        self.steps = nn.Parameter(torch.log(torch.expm1(cuts.diff(dim=1))))

    def outputs(self, elements: int) -> int:
        """One location per column."""
        return elements

    def cuts(self) -> Tensor:
        """theta, strictly increasing, shape (n, C - 1)."""
        count = self.steps.shape[1]
        up_to = torch.triu(torch.ones(count, count, dtype=self.steps.dtype, device=self.steps.device))
        return torch.cat([self.first, self.first + steady_softplus(self.steps) @ up_to], dim=1)

    def log_probabilities(self, raw: Tensor) -> Tensor:
        """log of the logistic mass between neighbouring cuts."""
        if self.classes == 1:
            return torch.zeros_like(raw)[..., None]
        cuts = self.cuts()
        place = cuts - raw[..., None]
        first, last = -steady_softplus(-place[..., :1]), -steady_softplus(place[..., -1:])
        width = cuts.diff(dim=1)
        middle = log_mass(width) - steady_softplus(-place[..., 1:]) - steady_softplus(place[..., :-1])
        return torch.cat([first, middle, last], dim=-1)


class Mixed(Likelihood):
    """Every column by the likelihood of its kind.

    Parameters
    ----------
    columns : sequence of Column
        Of the table, in model order.
    numbers : Likelihood
        Of the columns that are numbers.
    """

    def __init__(self, columns: Sequence[Column], numbers: Likelihood) -> None:
        super().__init__()
        self.elements = len(columns)
        groups = group_columns(columns)
        self.parts = nn.ModuleList(_part(kind, classes, len(g), numbers) for (kind, classes), g in groups)
        self.sizes = [part.outputs(len(g)) for part, (_, g) in zip(self.parts, groups, strict=True)]  # type: ignore[operator]
        starts = feature_starts(columns)
        features = [
            [starts[i] + j for i in members for j in range(columns[i].features)] for _, members in groups
        ]
        self._places: dict[str, list[str]] = {"columns": [], "features": []}
        for number, ((_, members), own) in enumerate(zip(groups, features, strict=True)):
            self._keep("columns", number, members)
            self._keep("features", number, own)
        self.column_order: Tensor
        self.feature_order: Tensor
        self.owner: Tensor
        self.register_buffer("column_order", _inverse([i for _, g in groups for i in g]), persistent=False)
        self.register_buffer("feature_order", _inverse([i for g in features for i in g]), persistent=False)
        owner = [i for i, column in enumerate(columns) for _ in range(column.features)]
        self.register_buffer("owner", torch.tensor(owner), persistent=False)

    def _keep(self, what: str, number: int, places: list[int]) -> None:
        self._places[what].append(name := f"{what}_{number}")
        self.register_buffer(name, torch.tensor(places), persistent=False)

    def outputs(self, elements: int) -> int:
        """Raw numbers of all columns together."""
        return sum(self.sizes)

    def features(self, elements: int) -> int:
        """F, numbers of a row in model space."""
        return len(self.owner)

    def widened(self, observed: Tensor) -> Tensor:
        """A column's mask for each of its features, (..., D) to (..., F)."""
        return observed.index_select(-1, self.owner)

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Log-density or log-probability per column, shape (..., D), for x of shape (..., F)."""
        return self._columns(part.log_prob(own, v) for part, own, v in self._with(raw, x))

    def best_log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Likewise; ``raw`` and ``x`` of as many rows."""
        return self._columns(part.best_log_prob(own, v) for part, own, v in self._with(raw, x))

    def surprise(self, raw: Tensor, x: Tensor) -> Tensor:
        """As each kind has it, shape (..., D)."""
        return self._columns(part.surprise(own, v) for part, own, v in self._with(raw, x))

    def mean(self, raw: Tensor) -> Tensor:
        """Expected numbers and probabilities, shape (..., F)."""
        return self._features(part.mean(own) for part, own in self._split(raw))

    def variance(self, raw: Tensor) -> Tensor:
        """Their variances, shape (..., F)."""
        return self._features(part.variance(own) for part, own in self._split(raw))

    def sample(self, raw: Tensor, noise: Tensor) -> Tensor:
        """A draw in model space, shape (..., F), from noise of shape (..., D)."""
        noises = [noise.index_select(-1, place) for place in self._kept("columns")]
        parts = zip(self._split(raw), noises, strict=True)
        return self._features(part.sample(own, own_noise) for (part, own), own_noise in parts)

    def _split(self, raw: Tensor) -> Iterator[tuple[Likelihood, Tensor]]:
        kinds = cast(Iterable[Likelihood], self.parts)
        return zip(kinds, raw.split(self.sizes, dim=-1), strict=True)

    def _with(self, raw: Tensor, x: Tensor) -> Iterator[tuple[Likelihood, Tensor, Tensor]]:
        for (part, own), places in zip(self._split(raw), self._kept("features"), strict=True):
            yield part, own, x.index_select(-1, places)

    def _kept(self, what: str) -> list[Tensor]:
        return [getattr(self, name) for name in self._places[what]]

    def _columns(self, found: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(found), dim=-1).index_select(-1, self.column_order)

    def _features(self, found: Iterable[Tensor]) -> Tensor:
        return torch.cat(list(found), dim=-1).index_select(-1, self.feature_order)


def log_mass(width: Tensor) -> Tensor:
    """log(1 - exp(-w)) for w > 0, where the difference would lose its digits."""
    small = width < 0.01
    safe = torch.where(small, 1.0, width)
    series = torch.log(width.clamp_min(1e-30)) - width / 2 + width**2 / 24
    return torch.where(small, series, torch.log(1 - torch.exp(-safe)))


def _part(kind: str, classes: int, count: int, numbers: Likelihood) -> Likelihood:
    if kind == "categorical":
        return Categorical(count, classes)
    if kind == "ordinal":
        return Ordinal(count, classes)
    return Bernoulli() if kind == "binary" else numbers


def _inverse(places: list[int]) -> Tensor:
    """Where each entry stands after a permutation."""
    return torch.argsort(torch.tensor(places))
