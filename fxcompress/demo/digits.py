"""Scikit-learn's handwritten digits: 1797 real images of 8 x 8 pixels, in the package itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from fxcompress.task import Task

SIZE = 8
_LEVELS = 16  # a pixel is a count of dark dots, 0 to 16
_TEST_SHARE = 0.25
_SMOOTHING = 0.1


@dataclass(frozen=True)
class Digits:
    """The images in two parts that never mix: one to train on, one to be judged by."""

    train: Task
    test: Task

    @property
    def test_images(self) -> Tensor:
        """All images that are held out, as one batch."""
        return torch.cat([images for images, _ in self.test.data])

    @property
    def test_labels(self) -> Tensor:
        """Their labels."""
        return torch.cat([labels for _, labels in self.test.data])


@dataclass
class Shuffled:
    """Batches in a new order at every iteration, each shifted by up to a pixel."""

    images: Tensor
    labels: Tensor
    batch: int
    blank: float
    seed: int
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self._generator)
        for chosen in order.split(self.batch):
            yield self._shifted(self.images[chosen]), self.labels[chosen]

    def _shifted(self, images: Tensor) -> Tensor:
        wide = F.pad(images, (1, 1, 1, 1), value=self.blank)
        top, left = torch.randint(3, (2,), generator=self._generator).tolist()
        return wide[:, :, top : top + SIZE, left : left + SIZE]


def digits(seed: int = 0, batch: int = 64) -> Digits:
    """Split the images, the same way for a seed, and scale them by what the training part says."""
    pixels, targets = load_digits(return_X_y=True)
    parts = train_test_split(
        torch.tensor(pixels, dtype=torch.float32).view(-1, 1, SIZE, SIZE) / _LEVELS,
        torch.tensor(targets),
        test_size=_TEST_SHARE,
        random_state=seed,
        stratify=targets,
    )
    train, test, train_labels, test_labels = (torch.as_tensor(part) for part in parts)
    mean, deviation = train.mean(), train.std()
    train, test = (train - mean) / deviation, (test - mean) / deviation
    shuffled = Shuffled(train, train_labels, batch, float(-mean / deviation), seed)
    return Digits(
        train=Task(shuffled, loss, accuracy),
        test=Task([(test, test_labels)], loss, accuracy),
    )


def loss(output: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy with a little smoothing."""
    return F.cross_entropy(output, labels, label_smoothing=_SMOOTHING)


def accuracy(output: Tensor, labels: Tensor) -> float:
    """The share of images whose largest output is at their label."""
    return (output.argmax(1) == labels).double().mean().item()
