"""The service with a leak planted in it, for the soak test to find: every answer is kept for ever."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.cli import main
from serving.service.engine import Engine

KEPT: list[Any] = []
LEAKED_BYTES = 4096


def plant() -> None:
    """Make `Engine.run` keep a little of every request."""
    run = Engine.run

    async def leaking(self: Engine, *arguments: Any, **named: Any) -> Any:
        KEPT.append(np.ones(LEAKED_BYTES, np.uint8))
        return await run(self, *arguments, **named)

    Engine.run = leaking  # type: ignore[method-assign]


if __name__ == "__main__":
    plant()
    main()
