"""What every test shares."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Same bits whatever the machine, and no two runs that fight for its cores."""
    torch.set_num_threads(1)
