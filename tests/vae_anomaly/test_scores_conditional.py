"""Each part of a sample given the others, by closed forms."""

import math

import pytest
import torch
from linear_gaussian import ALL_MASKS, LOADINGS, NOISE, OFFSET, D, linear_gaussian
from sample_models import IMAGE_MODEL, fit, grey_images
from score_evidence import ROWS, Fixed, Raw, encoded, evidence, normal
from torch import Tensor

from vae_anomaly.likelihoods import Bernoulli
from vae_anomaly.scores import Conditional, Evidence, Recon, check_scores, possible_scores
from vae_anomaly.scores.conditional import FOLDS, folds
from vae_anomaly.vae import VAE


def fitted(found: Evidence) -> Conditional:
    score = Conditional()
    score.fit(lambda: iter([found]))
    return score


def by_hand(x: Tensor, observed: Tensor) -> float:
    """One row, element by element: latent l belongs to the elements that load on it alone."""
    total = 0.0
    for hidden in folds((D,)):
        visible = observed & ~hidden
        weights = torch.where(visible[:, None], LOADINGS, 0.0)
        precision = 1 + weights.square().sum(dim=0) / NOISE**2
        z = (weights * (x - OFFSET)[:, None]).sum(dim=0) / NOISE**2 / precision
        residual = (x - LOADINGS @ z - OFFSET) / NOISE
        cost = residual**2 / 2 + math.log(NOISE) + math.log(2 * math.pi) / 2
        total += cost[observed & hidden].sum().item()
    return total * D / max(1, int(observed.sum())) / FOLDS


def test_conditional_is_the_cost_of_hidden_elements_given_visible_ones() -> None:
    got = fitted(evidence(linear_gaussian()))(evidence(linear_gaussian()))
    expected = [by_hand(x, seen) for x, seen in zip(ROWS.x, ALL_MASKS, strict=True)]
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert got[0] == 0


def test_elements_that_agree_with_each_other_cost_less() -> None:
    """The first three columns share a latent: a row that breaks their relation is strange."""
    z = normal(50, 2)
    whole = z @ LOADINGS.T + OFFSET
    broken = whole.clone()
    broken[:, 0] = 2 * OFFSET[0] - broken[:, 0]
    score = fitted(evidence(linear_gaussian()))
    good, bad = (score(evidence(linear_gaussian(), rows=encoded(rows))) for rows in (whole, broken))
    assert (bad > good)[z[:, 0].abs() > 0.5].all()


def test_what_is_visible_says_nothing_where_the_decoder_does_not_listen() -> None:
    """Every element is hidden once: the mean over folds is a share of `recon`."""
    x = torch.rand(32, D, generator=torch.Generator().manual_seed(0))
    rows = encoded(x, ALL_MASKS)
    model = VAE(Fixed(torch.zeros(32, 1), torch.zeros(32, 1)), Raw(torch.linspace(-2, 3, D)), Bernoulli(), 1)
    found = Evidence(model, rows, torch.zeros(1, 1))
    torch.testing.assert_close(fitted(found)(found), Recon()(found) / FOLDS)


@pytest.mark.parametrize("shape", [(1,), (3,), (5,), (40,), (1, 8, 9), (3, 28, 30)], ids=str)
def test_folds_hide_every_element_once(shape: tuple[int, ...]) -> None:
    hidden = folds(shape)
    size = math.prod(shape)
    assert hidden.shape == (min(FOLDS, shape[0]) if len(shape) == 1 else FOLDS, size)
    assert torch.equal(hidden.sum(dim=0), torch.ones(size, dtype=torch.int64))
    assert hidden.any(dim=1).all()
    assert torch.equal(hidden, folds(shape))
    if len(shape) == 1:
        assert hidden.sum(dim=1).max() - hidden.sum(dim=1).min() <= 1


def test_blocks_of_an_image_hide_together_with_all_channels() -> None:
    hidden = folds((3, 28, 28)).unflatten(1, (3, 28, 28))
    assert torch.equal(hidden, hidden[:, :1].expand(-1, 3, -1, -1))
    blocks = hidden[:, 0].unflatten(1, (4, 7)).unflatten(3, (4, 7))
    assert torch.equal(blocks, blocks[:, :, :1, :, :1].expand_as(blocks))
    # Four of the 16 blocks each.
    assert blocks[:, :, 0, :, 0].sum(dim=(1, 2)).tolist() == [4] * 4


def test_images_are_hidden_by_blocks_in_a_fitted_model() -> None:
    score = fit(grey_images(60), IMAGE_MODEL, 1, scores=("conditional",)).score_graph.scores["conditional"]
    assert isinstance(score, Conditional)
    assert torch.equal(score.hidden, folds((1, 8, 9)))


def test_possible_scores_are_those_that_pass() -> None:
    for variational in (True, False):
        for mask_input in (True, False):
            names = possible_scores(variational, mask_input)
            check_scores(names, variational, mask_input)
            assert ("conditional" in names) is mask_input
            assert ("lpath" in names) is variational
