"""How long the commands of the README take, from a checkout whose environment is there.

``python -m benchmarks.commands`` runs `make demo`, `make quick` and `make test` in the working tree, one
after the other.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from benchmarks.harness import parser, show, write

ROOT = Path(__file__).parents[1]
COMMANDS = ("demo", "quick", "test")


def main() -> None:
    """Time the commands asked for and write commands.json."""
    made = parser(__doc__, data=False)
    made.add_argument("--only", choices=COMMANDS, action="append", help="repeatable; all where left out")
    options = made.parse_args()
    subprocess.run(["make", ".venv/ready"], cwd=ROOT, check=True)
    for name in options.only or (COMMANDS[:1] if options.quick else COMMANDS):
        found = timed(name)
        show(f"make {name}", [found])
        write("commands", {name: found}, options)


def timed(name: str) -> dict[str, float]:
    """Seconds of one command.

    Raises
    ------
    SystemExit
        If it fails: its time would say nothing.
    """
    started = time.perf_counter()
    done = subprocess.run(["make", name], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"make {name} failed:\n{done.stdout[-3000:]}{done.stderr[-1000:]}")
    return {"seconds": seconds}


if __name__ == "__main__":
    main()
