"""Makes the digits bundle that ships inside the package: ``python -m pipelines.embedded``.

It is the recipe `digits` with a narrower network, so that all graphs together stay below a megabyte; a model
to play with, not one to be judged by.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pipelines.recipe import Recipe, load_recipe
from pipelines.train import train
from serving.embedded import BUNDLE
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.runtime import load_bundle

NARROWER = ("model.hidden=[16]", "model.dense=64")
MOST_BYTES = 1_000_000


def recipe(*more: str) -> Recipe:
    """The recipe of the shipped bundle, with further ``section.key=value`` where a test wants it quick."""
    return load_recipe("digits", [*NARROWER, *more])


def make(folder: Path, chosen: Recipe) -> str:
    """Train, and put the bundle at ``folder``, in place of what is there.

    Returns
    -------
    str
        Its digest.

    Raises
    ------
    ConfigError
        If it is larger than a package should carry.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = train(chosen, out=Path(scratch) / "run", device="cpu", track=False)
        size = sum(path.stat().st_size for path in run.bundle.iterdir())
        if size > MOST_BYTES:
            raise ConfigError(f"the bundle has {size} bytes, at most {MOST_BYTES} ship; narrow the network")
        load_bundle(run.bundle, device="cpu")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(run.bundle, folder)
    return run.digest


def main(arguments: Sequence[str]) -> None:
    """Remake the bundle, at the place given or where it ships."""
    folder = Path(arguments[0]) if arguments else BUNDLE
    sys.stdout.write(f"{make(folder, recipe())}  {folder}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
