"""The model card of a bundle, its README.md, generated from the manifest."""

from __future__ import annotations

from vae_anomaly.manifest import Manifest
from vae_anomaly.schema import ImageSchema


def model_card(manifest: Manifest) -> str:
    """Markdown: what the model is, what it was made from, what it can and cannot answer."""
    lines = [
        f"# {manifest.name}",
        "",
        _kind(manifest),
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in _facts(manifest)),
        "",
        "## Answers",
        "",
        *_answers(manifest),
    ]
    if manifest.warnings:
        lines += ["", "## Warnings", "", *(f"- {warning}" for warning in manifest.warnings)]
    return "\n".join(lines) + "\n"


def _kind(manifest: Manifest) -> str:
    if manifest.kind == "vae":
        return "A variational autoencoder: anomaly scores with calibrated p-values, and imputation."
    return (
        "A plain autoencoder. It has no ELBO, because its code has no distribution whose divergence from "
        "a prior could be measured, and no imputation, because there is nothing to weigh or draw from."
    )


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    schema = manifest.schema
    if isinstance(schema, ImageSchema):
        size = f"{schema.channels}x{schema.height}x{schema.width}"
        sample = f"image {size}, {schema.dtype}, {schema.low:g} to {schema.high:g}"
    else:
        sample = f"table row of {schema.elements} columns"
    facts = [
        ("sample", sample),
        ("network", f"{manifest.architecture.get('network')}, {manifest.architecture.get('hidden')}"),
        ("latent size", str(manifest.latent_size)),
        ("likelihood", str(manifest.likelihood.get("name"))),
        ("format version", str(manifest.format_version)),
    ]
    return facts + [(key.replace("_", " "), str(value)) for key, value in sorted(manifest.provenance.items())]


def _answers(manifest: Manifest) -> list[str]:
    names, rows = ", ".join(manifest.scores), manifest.provenance.get("rows_calibration", "?")
    lines = [
        f"- scores: {names}; `{manifest.default_score}` decides; larger is more anomalous",
        f"- false alarm rate {manifest.false_alarm_rate:g}, from {rows} calibration rows; "
        "change it per request, without refit",
    ]
    if manifest.imputation:
        lines.append(f"- imputation by {manifest.imputation.get('draws')} importance samples")
    if manifest.derived_from_rows:
        lines.append(f"- derived from single training rows: {', '.join(manifest.derived_from_rows)}")
    return lines
