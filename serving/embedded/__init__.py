"""A model to play with: handwritten digits, made by ``python -m pipelines.embedded``."""

from __future__ import annotations

from pathlib import Path

BUNDLE = Path(__file__).parent / "digits"
