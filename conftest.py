"""What tests and doctests share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Same bits whatever the machine, and no two runs that fight for its cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def unseen_export() -> Iterator[None]:
    """Coverage looks away while torch makes a graph: to follow all of its calls takes twice as long."""
    export = torch.onnx.export

    def unseen(*args: Any, **kwargs: Any) -> Any:
        trace = sys.gettrace()
        sys.settrace(None)
        try:
            return export(*args, **kwargs)
        finally:
            sys.settrace(trace)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", unseen)
        yield
