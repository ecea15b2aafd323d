"""What is measured of a pruned CIFAR-10 ResNet: the points, the images, and the stages after."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

from cifar10 import SIDE, Images, load_cifar10, load_resnet, normalised
from evidence import shared
from methods import METHODS

import fxcompress as fx
from fxcompress.train import Trainer, evaluate, recalibrate

SHORTCUTS = ("conv1.weight:out", "*.conv2.weight:out")
"""What writes into the residual stream."""
CALIBRATION, RECALIBRATION, TUNING = 512, 2000, 5000
"""Training images that methods look at, that renew BatchNorm's statistics, and to tune on."""
BATCH, RATE, EPOCHS, BORDER, SEED = 100, 0.02, 1, 4, 0


class Varied(Images):
    """Training batches as the networks saw them: mirrored, and moved over a black border."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for places in torch.randperm(len(self.images), generator=self._random).split(self.batch):
            padded = nn.functional.pad(self.images[places], (BORDER,) * 4)
            images = torch.stack([self._crop(image) for image in padded])
            yield normalised(images), self.labels[places]

    def _crop(self, image: Tensor) -> Tensor:
        row, column = torch.randint(2 * BORDER + 1, (2,), generator=self._random).tolist()
        piece = image[:, row : row + SIDE, column : column + SIDE]
        return piece.flip(2) if torch.rand((), generator=self._random) < 0.5 else piece


def _budget(share: float, allocation: str) -> dict[str, Any]:
    return {"budget": fx.Budget(flops=share, allocation=allocation)}  # type: ignore[arg-type]


POINTS: dict[str, dict[str, Any]] = {
    **{f"{10 * tenth}%": {"ratio": tenth / 10} for tenth in range(1, 8)},
    "2x": _budget(1 / 2, "global"),
    "3x": _budget(1 / 3, "global"),
    "2x exact": _budget(1 / 2, "exact"),
    "3x exact": _budget(1 / 3, "exact"),
}


@dataclass(frozen=True)
class Bench:
    """One network with its images.

    Attributes:
        name: ``resnet20`` or ``resnet56``.
        count: Test images.
    """

    name: str
    count: int

    @cached_property
    def model(self) -> nn.Module:
        """The network as it was trained."""
        file = f"cifar10_{self.name}_optA.safetensors"
        return load_resnet(shared("data") / "checkpoints" / file)

    @cached_property
    def test(self) -> Images:
        """What accuracy is measured on, and nothing else."""
        return Images(*load_cifar10(shared("data") / "cifar10", "test", self.count), batch=25)

    def train(self, count: int, kind: type[Images] = Varied) -> Images:
        """The first training images; their classes take turns."""
        return kind(*load_cifar10(shared("data") / "cifar10", "train", count), batch=BATCH)

    @cached_property
    def program(self) -> fx.Program:
        """The network with what methods may look at."""
        task = fx.Task(self.train(CALIBRATION, Images), loss=nn.functional.cross_entropy)
        example = next(iter(self.test))[0][:1]
        return fx.compile(self.model, (example,), task=task)

    def accuracy(self, module: nn.Module) -> float:
        """Top-1 in percent."""
        return 100 * evaluate(module, fx.Task(self.test, metric=share_right))

    def pruned(self, method: str, point: str) -> fx.Program:
        """The network after one method."""
        if method == "dense":
            return self.program
        extra = {"seed": SEED} if method == "random" else {}
        one = METHODS[method](**POINTS[point], **extra, exclude=SHORTCUTS, round_to=1)
        return fx.apply(self.program, one)


def share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


class Run:
    """One method at one point, stage after stage; every stage goes on from the one before."""

    def __init__(self, bench: Bench, method: str, point: str) -> None:
        self.bench, self.which = bench, (method, point)

    @cached_property
    def program(self) -> fx.Program:
        """The pruned network."""
        return self.bench.pruned(*self.which)

    @cached_property
    def renewed(self) -> nn.Module:
        """Its module with new statistics."""
        module = copy.deepcopy(self.program.module)
        recalibrate(module, fx.Task(self.bench.train(RECALIBRATION)))
        return module

    @cached_property
    def tuned(self) -> nn.Module:
        """That module after a short training."""
        module = copy.deepcopy(self.renewed)
        task = fx.Task(self.bench.train(TUNING), loss=nn.functional.cross_entropy)
        Trainer(epochs=EPOCHS, lr=RATE).fit(module, task)
        return module

    def figures(self, stage: str) -> dict[str, Any]:
        """Accuracy, and what is left of the network."""
        module = {
            "none": lambda: self.program.module,
            "bn": lambda: self.renewed,
            "tuned": lambda: self.tuned,
        }[stage]()
        report = self.program.report
        return {
            "accuracy": self.bench.accuracy(module),
            "flops": report.flops.ratio,
            "params": report.params.ratio,
        }
