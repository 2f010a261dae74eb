"""The model card says what the manifest says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from vae_anomaly.card import model_card
from vae_anomaly.manifest import Manifest
from vae_anomaly.runtime import Bundle
from vae_anomaly.schema import Column, ImageSchema, TableSchema

VAE = Manifest(
    kind="vae",
    name="digits",
    schema=ImageSchema(1, 28, 30),
    likelihood={"name": "bernoulli", "scale": "learned"},
    architecture={"network": "conv", "hidden": [32, 64]},
    scores=("neg_elbo", "latent_maha"),
    default_score="neg_elbo",
    draws=8,
    imputation={"draws": 200, "chunk": 50},
    latent_size=16,
    false_alarm_rate=0.05,
    tolerances={},
    provenance={"seed": 3, "rows_calibration": 400, "run_id": "abc"},
    derived_from_rows=(),
    warnings=(),
)

CARD = """\
# digits

A variational autoencoder: anomaly scores with calibrated p-values, and imputation.

| | |
|---|---|
| sample | image 1x28x30, uint8, 0 to 255 |
| network | conv, [32, 64] |
| latent size | 16 |
| likelihood | bernoulli |
| format version | 1 |
| rows calibration | 400 |
| run id | abc |
| seed | 3 |

## Answers

- scores: neg_elbo, latent_maha; `neg_elbo` decides; larger is more anomalous
- false alarm rate 0.05, from 400 calibration rows; change it per request, without refit
- imputation by 200 importance samples
"""


def test_the_card_of_a_vae_word_for_word() -> None:
    assert model_card(VAE) == CARD


def test_an_autoencoder_says_why_it_has_less() -> None:
    card = model_card(
        replace(VAE, kind="autoencoder", imputation={}, scores=("recon",), default_score="recon")
    )
    why = (
        "A plain autoencoder. It has no ELBO, because its code has no distribution whose divergence from "
        "a prior could be measured, and no imputation, because there is nothing to weigh or draw from."
    )
    assert why in card
    assert "importance samples" not in card


def test_warnings_and_what_comes_from_single_rows_are_told() -> None:
    table = TableSchema((Column("a"), Column("b"), Column("c")))
    card = model_card(
        replace(VAE, schema=table, warnings=("column 'a' is constant",), derived_from_rows=("bank",))
    )
    assert card.endswith("\n## Warnings\n\n- column 'a' is constant\n")
    assert "- derived from single training rows: bank\n" in card
    assert "| sample | table row of 3 columns |" in card
    assert "## Warnings" not in model_card(VAE)


@pytest.mark.parametrize("kind", ["table", "autoencoder"])
def test_every_bundle_carries_its_card(kind: str, request: pytest.FixtureRequest) -> None:
    bundle: Bundle = request.getfixturevalue(f"{kind}_bundle")
    text = Path(bundle.path / "README.md").read_text(encoding="utf-8")
    assert text == model_card(bundle.manifest)
    assert f"| rows calibration | {bundle.manifest.provenance['rows_calibration']} |" in text
