"""Several scores as one, by their places among validation rows."""

import math

import pytest
import torch
from linear_gaussian import D, linear_gaussian
from score_evidence import encoded, evidence, normal

from vae_anomaly.scores import SCORES, Combined, Evidence, Score, fit_scores
from vae_anomaly.scores.quantiles import NormalScore


def rows(count: int, seed: int, spread: float = 1.0) -> Evidence:
    return evidence(linear_gaussian(), rows=encoded(spread * normal(count, D, seed=seed).float()))


def fitted(names: tuple[str, ...] = ("combined",)) -> dict[str, Score]:
    return fit_scores(names, lambda score: lambda: iter([rows(200, 1) if score.held_out else rows(400, 0)]))


def test_the_soft_maximum_of_the_components_normal_scores_among_validation_rows() -> None:
    score, asked = fitted()["combined"], rows(30, 2, spread=2.0)
    validation = rows(200, 1)
    parts = []
    for name in Combined.reads:
        part = SCORES[name]()
        part.fit(lambda: iter([rows(400, 0)]))
        parts.append(NormalScore(part(validation).double())(part(asked).double()))
    torch.testing.assert_close(score(asked), torch.stack(parts).exp().mean(dim=0).log())


def test_validation_rows_are_near_zero_and_strong_anomalies_do_not_tie() -> None:
    score = fitted()["combined"]
    assert score(rows(200, 1)).mean().item() == pytest.approx(0.3, abs=0.2)
    far = encoded(torch.full((3, D), 1.0) * torch.tensor([[10.0], [30.0], [90.0]]))
    values = score(evidence(linear_gaussian(), rows=far))
    assert values[0] > score(rows(200, 1)).max()
    assert values.diff().min() > 1


def test_one_component_that_is_sure_is_enough() -> None:
    score = fitted()["combined"]
    normal_scores = torch.tensor([[-3.0, 8.0, -3.0], [0.0, 0.0, 0.0]])
    assert isinstance(score, Combined)
    score.normal_scores = torch.nn.ModuleDict({name: torch.nn.Identity() for name in Combined.reads})
    score._values = lambda evidence: normal_scores.T  # type: ignore[method-assign]
    torch.testing.assert_close(score(rows(1, 0)), torch.tensor([8 - math.log(3), 0.0]), rtol=0, atol=1e-4)


def test_components_are_shared_with_the_scores_exported_beside() -> None:
    scores = fitted(("neg_elbo", "combined"))
    combined = scores["combined"]
    assert isinstance(combined, Combined)
    assert combined.components["neg_elbo"] is scores["neg_elbo"]
    assert list(scores) == ["neg_elbo", "combined"]
    found = rows(5, 3)
    assert found.answer(scores["neg_elbo"]) is found.answer(scores["neg_elbo"])


def test_the_bound_enters_as_if_the_row_were_whole() -> None:
    """A raw sum over what is observed would make a row more normal by each of its gaps."""
    found, score = evidence(linear_gaussian()), SCORES["neg_elbo"]()
    seen = found.encoded.observed.sum(dim=1)
    surprise = -found.log_likelihood.mean(dim=0)
    expected = found.kl + surprise * D / seen.clamp_min(1)
    torch.testing.assert_close(score.comparable(found), expected)
    assert torch.equal(score.comparable(found)[seen == D], score(found)[seen == D])
    assert not torch.allclose(score.comparable(found), score(found))
