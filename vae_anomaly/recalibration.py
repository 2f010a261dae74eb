"""A bundle judged by other normal rows: the same model and graphs, new calibration tables.

Imports without torch.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from vae_anomaly import calibration
from vae_anomaly.answers import Answers
from vae_anomaly.batches import with_something
from vae_anomaly.bundle import MANIFEST, SealedBundle, seal
from vae_anomaly.card import model_card
from vae_anomaly.exceptions import BundleError
from vae_anomaly.gaps import calibration_tables
from vae_anomaly.manifest import Manifest
from vae_anomaly.schema import Array, Samples

TABLES, CARD = "calibration.npz", "README.md"
# The table inside score.onnx, which stays as it was exported; the runtime goes by the new one.
IN_GRAPH = "graph_score"


def write_recalibrated(sealed: SealedBundle, answers: Answers, samples: Samples, folder: Path) -> str:
    """Write a bundle that judges by the scores of these rows; returns its digest.

    Parameters
    ----------
    sealed : SealedBundle
        Where graphs and self-test come from, unchanged.
    answers : Answers
        Of that bundle.
    samples : Samples
        Normal rows that the model has not been trained on; rows with nothing observed have no say.
    folder : Path
        Must not exist, or be empty; appears whole or not at all.

    Raises
    ------
    CalibrationError
        If they are too few for the bundle's false alarm rate.
    BundleError
        If the folder is taken.
    """
    samples, rate = with_something(samples), sealed.manifest.false_alarm_rate
    calibration.check_rate(len(samples.values), rate)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BundleError(f"{folder} exists already; write to a new folder")
    names = (*sealed.manifest.scores, "score")
    seed = int(sealed.manifest.provenance.get("seed", 0))
    manifest = _manifest(sealed, samples)
    rate = manifest.false_alarm_rate
    tables = calibration_tables(lambda rows: answers.run("score", rows), samples, names, seed, rate)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        digest = _write(sealed, tables, manifest, temporary)
        temporary.chmod(0o755)
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest


def _write(sealed: SealedBundle, tables: dict[str, Array], manifest: Manifest, folder: Path) -> str:
    for name in sealed.manifest.files:
        if name not in (TABLES, CARD, MANIFEST):
            (folder / name).write_bytes(sealed.read(name))
    old = sealed.arrays("calibration")
    kept = {IN_GRAPH: old.get(IN_GRAPH, old["score_score"])}
    if "noise" in old:
        kept["noise"] = old["noise"]
    np.savez_compressed(folder / TABLES, allow_pickle=False, **kept, **tables)
    (folder / CARD).write_text(model_card(manifest), encoding="utf-8")
    return seal(folder, manifest)


def _manifest(sealed: SealedBundle, samples: Samples) -> Manifest:
    """The old one, with where the new rows came in; the same rows give the same digest."""
    found = sha256(np.ascontiguousarray(samples.values).tobytes())
    found.update(np.packbits(samples.observed).tobytes())
    provenance = sealed.manifest.provenance
    told = {"from_digest": sealed.digest, "rows": len(samples.values), "sha256": found.hexdigest()}
    history = [*provenance.get("recalibrated", []), told]
    changed = {**provenance, "rows_calibration": len(samples.values), "recalibrated": history}
    rate, warnings = sealed.manifest.false_alarm_rate, sealed.manifest.warnings
    if asked := provenance.get("false_alarm_rate_asked"):
        # Raised for want of rows, with a warning of its own.
        _, raised = calibration.attainable(asked, provenance["rows_calibration"])
        rate, still = calibration.attainable(asked, len(samples.values))
        warnings = (*still, *(warning for warning in warnings if warning not in raised))
        if rate == asked:
            del changed["false_alarm_rate_asked"]
    return replace(sealed.manifest, provenance=changed, false_alarm_rate=rate, warnings=warnings)
