"""A net, data that stop a run at one of their batches, and a run of passes and a step."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.passes import MagnitudePruning, RandomPruning
from fxcompress.program import Program
from fxcompress.train import Recover, recalibrate
from models import normal, randomize

KILL = "FXCOMPRESS_TEST_KILL"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 6, 3)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.second(torch.relu(self.first(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def fit(output: Tensor, labels: Tensor) -> float:
    """The larger, the nearer the outputs are to those of the dense net."""
    return -float((output - labels).square().mean())


def net() -> nn.Module:
    """With statistics of the data, as after training."""
    model = randomize(Net()).double().eval()
    recalibrate(model, fx.Task(batches(model, range(4))))
    return model


def batches(model: nn.Module, seeds: range) -> list[tuple[Tensor, Tensor]]:
    images = [normal(6, 2, 6, 6, seed=seed).double() for seed in seeds]
    with torch.no_grad():
        return [(each, model.eval()(each)) for each in images]


def interrupt() -> None:
    """What stops a run: a key pressed, or the system's kill."""
    if KILL in os.environ:
        os.kill(os.getpid(), signal.SIGKILL)
    raise KeyboardInterrupt


class Counted:
    """Batches that count how often they are read, and stop the run at one of them."""

    def __init__(self, data: list[Any], stop: int = -1) -> None:
        self.data, self.stop, self.read = data, stop, 0

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            if self.read == self.stop:
                interrupt()
            self.read += 1
            yield batch


PASSES = (MagnitudePruning(ratio=0.5, round_to=1), Recover(), RandomPruning(ratio=0.25, round_to=1))


def compiled(
    stop: int = -1, held_out_stop: int = -1, **options: Any
) -> tuple[Program, Counted, Counted]:
    model = net()
    data = Counted(batches(model, range(4)), stop)
    held_out = Counted(batches(model, range(10, 12)), held_out_stop)
    task = fx.Task(data, metric=fit, validation=held_out)
    options = {"passes": PASSES, **options}
    found = fx.compile(model, (normal(2, 2, 6, 6).double(),), task=task, **options)
    return found, data, held_out
