"""The other side of the training benchmark: a loop such as public notebooks on MNIST have it.

Written from its description: 784-400-20 with ReLU, binary cross-entropy plus KL summed over the
batch, Adam at 1e-3, batches of 128 from a shuffling `DataLoader` over torchvision's MNIST with
`ToTensor`, no worker processes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks.harness import Stopwatch

BATCH = 128


class NotebookVAE(nn.Module):
    """Two layers to the latent normal, two layers back to pixel probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(784, 400)
        self.mean = nn.Linear(400, 20)
        self.log_variance = nn.Linear(400, 20)
        self.widen = nn.Linear(20, 400)
        self.pixels = nn.Linear(400, 784)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixel probabilities of one draw, mean and log-variance."""
        h = functional.relu(self.hidden(x))
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        p = torch.sigmoid(self.pixels(functional.relu(self.widen(z))))
        return p, mean, log_variance


def negative_elbo(model: NotebookVAE, x: Tensor) -> Tensor:
    """Summed over the batch, one draw per row, nats."""
    p, mean, log_variance = model(x)
    error = functional.binary_cross_entropy(p, x, reduction="sum")
    kl = -0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())
    return error + kl


def train(data_root: Path, seed: int, epochs: int, limit: int | None, test: Tensor) -> dict[str, Any]:
    """Losses per row, and seconds from reading the files to the last step."""
    torch.manual_seed(seed)
    watch = Stopwatch()
    images: Any = datasets.MNIST(str(data_root), train=True, download=False, transform=transforms.ToTensor())
    if limit is not None:
        images = Subset(images, range(limit))
    loader = DataLoader(images, batch_size=BATCH, shuffle=True)
    model = NotebookVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    train_loss = 0.0
    for _ in range(epochs):
        train_loss = 0.0
        for x, _ in loader:
            optimizer.zero_grad()
            loss = negative_elbo(model, x.view(-1, 784))
            loss.backward()
            train_loss += loss.item()
            optimizer.step()
    seconds = watch.seconds
    return {
        "train_loss": train_loss / len(images),
        "test_loss": test_loss(model, test, seed),
        "seconds": seconds,
    }


@torch.no_grad()
def test_loss(model: NotebookVAE, test: Tensor, seed: int) -> float:
    """Negative ELBO, one draw per row, mean over test images of shape (n, 784) in [0, 1]."""
    torch.manual_seed(seed)
    total = sum(float(negative_elbo(model, x)) for x in test.split(1000))
    return total / len(test)
