"""Tiny nets that change their own state, or draw random numbers, when they are called."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from models import Example, normal, randomize


class _Trunk(nn.Module):
    """A layer, what a subclass does to its outputs, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.middle(self.first(x))))
        return out

    def middle(self, h: Tensor) -> Tensor:
        raise NotImplementedError


class MovingAverage(_Trunk):
    """Subtracts a moving mean of its features, which every call moves."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((8,), 0.25))

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return h - self.mean


class CallCounter(_Trunk):
    """Counts its calls, and scales by the count."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def middle(self, h: Tensor) -> Tensor:
        self.calls += 1
        return h * (1 + self.calls)


class ViewedBuffer(_Trunk):
    """Writes to a piece of a buffer through a view of it."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("memory", torch.linspace(0.0, 1.0, 16).reshape(2, 8))

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.memory.reshape(2, 8)[1].copy_(h.mean(0))
        return h + self.memory.sum(0)


class BoundedTable(nn.Module):
    """A table whose rows are shortened when they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8, max_norm=0.5)
        self.mix = nn.Linear(8, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.mix(self.table(tokens))))
        return out


class BatchStatistics(_Trunk):
    """Normalises by its batch whatever its mode, and moves the running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)

    def middle(self, h: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(
            h, norm.running_mean, norm.running_var, norm.weight, norm.bias, training=True
        )


class PowerIteration(_Trunk):
    """Divides a weight by its spectral norm, which every call estimates better."""

    left: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(8, 8))
        self.register_buffer("left", F.normalize(torch.ones(8), dim=0))

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            right = F.normalize(self.mix.mT @ self.left, dim=0)
            self.left.copy_(F.normalize(self.mix @ right, dim=0))
        return F.linear(h, self.mix / torch.dot(self.left.clone(), self.mix @ right))


class ForcedDropout(_Trunk):
    """Drops features whatever its mode."""

    def middle(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, training=True)


class RandomNoise(_Trunk):
    """Adds noise of the shape of its features."""

    def middle(self, h: Tensor) -> Tensor:
        return h + 0.1 * torch.rand_like(h)


class RandomGate(_Trunk):
    """Draws once for each sample."""

    def middle(self, h: Tensor) -> Tensor:
        return h * torch.rand(h.shape[0], 1, dtype=h.dtype)


class RandomFill(_Trunk):
    """Draws into memory that it has taken, and through a view of it."""

    def middle(self, h: Tensor) -> Tensor:
        noise = torch.zeros_like(h)
        noise.mT.bernoulli_(0.5)
        return h * noise


class RandomSwitches(_Trunk):
    """Draws flags with the chances that its features give."""

    def middle(self, h: Tensor) -> Tensor:
        return h * torch.bernoulli(torch.sigmoid(h))


def _tokens() -> Example:
    tokens = torch.randint(11, (2, 4), generator=torch.Generator().manual_seed(1))
    return randomize(BoundedTable()), (tokens,), {}


def _entry(net: type[nn.Module]) -> Callable[[], Example]:
    return lambda: (randomize(net()), (normal(2, 5),), {})


WRITING: dict[str, Callable[[], Example]] = {
    "moving_average": _entry(MovingAverage),
    "call_counter": _entry(CallCounter),
    "viewed_buffer": _entry(ViewedBuffer),
    "bounded_table": _tokens,
    "batch_statistics": _entry(BatchStatistics),
    "power_iteration": _entry(PowerIteration),
}
DRAWING: dict[str, Callable[[], Example]] = {
    "forced_dropout": _entry(ForcedDropout),
    "random_noise": _entry(RandomNoise),
    "random_gate": _entry(RandomGate),
    "random_fill": _entry(RandomFill),
    "random_switches": _entry(RandomSwitches),
}
STATEFUL = WRITING | DRAWING


class Shifting(nn.Module):
    """It writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x.add_(1))  # type: ignore[no-any-return]
