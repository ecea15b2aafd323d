"""Tiny nets that train in ways of their own: norms, dropout, orders and kinds of parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Norms(nn.Module):
    """A convolution and a norm that is called twice, with the batches' mean kept as `momentum`."""

    def __init__(self, momentum: float | None, **options: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=momentum, **options)
        self.again = nn.Conv2d(4, 4, 1)
        self.last = nn.BatchNorm1d(4, momentum=momentum)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.norm(self.again(x)))
        return self.head(self.last(x.mean((2, 3))))  # type: ignore[no-any-return]


class FrozenNorm(nn.Module):
    """A norm in evaluation mode on purpose, one that keeps what it knows, and instance norms."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.kept = nn.BatchNorm2d(4, momentum=0.0)
        self.tracking = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
        self.plain = nn.InstanceNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.tracking(self.kept(self.conv(x))))
        return self.head((x * x.sigmoid()).mean((2, 3)))  # type: ignore[no-any-return]


class OwnNorm(nn.BatchNorm2d):
    """A norm whose forward is the user's: it counts by itself."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.2
        )


class UncountedNorm(nn.BatchNorm2d):
    """A norm that never counts."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.3
        )


class Halving(nn.BatchNorm1d):
    """A norm that forgets half of what it knew before each batch."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.running_mean is not None:
            self.running_mean.mul_(0.5)
        return super().forward(x)


class OwnNorms(nn.Module):
    """Norms of classes of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.own, self.uncounted = OwnNorm(4), UncountedNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.uncounted(torch.relu(self.own(self.conv(x)))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Dropouts(nn.Module):
    """Every kind of dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop2d, self.alpha = nn.Dropout2d(0.3), nn.AlphaDropout(0.2)
        self.inplace, self.slope = nn.Dropout(0.4, inplace=True), nn.RReLU()
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.drop2d(self.norm(self.conv(x)))).mean((2, 3))
        x = F.dropout(self.alpha(x), 0.1, self.training)
        return self.head(self.inplace(torch.selu(x)))  # type: ignore[no-any-return]


class DroppedAttention(nn.Module):
    """Attention with dropout inside it and recurrent layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 4)
        self.rnn = nn.LSTM(4, 4, num_layers=2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        dropout = 0.3 if self.training else 0.0
        x = self.out(F.scaled_dot_product_attention(q, k, v, dropout_p=dropout))
        return self.rnn(x)[0].mean(1)  # type: ignore[no-any-return]


class Special(nn.Parameter):
    """A parameter of the user's own kind."""


class OddOrder(nn.Module):
    """Children, buffers and parameters in an order of their own; one not read, one frozen."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head, self.second = nn.Linear(4, 3), nn.Linear(4, 4)
        self.register_buffer("scale", torch.full((4,), 1.5), persistent=False)
        self.unread = nn.Parameter(torch.ones(3))
        self.first = nn.Conv2d(3, 4, 3)
        self.register_buffer("shift", torch.full((4,), 0.5))
        self.gain = Special(torch.ones(4))
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.second.weight
        self.first.bias.requires_grad_(False)  # type: ignore[union-attr]
        self.first.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.gain.no_weight_decay = True  # type: ignore[attr-defined]
        self.first.weight.group = "early"  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x)).mean((2, 3)) * self.scale * self.gain
        x = self.tied(torch.relu(self.second(x + self.shift)))
        return self.head(torch.relu(x))  # type: ignore[no-any-return]


class StraightThrough(torch.autograd.Function):
    """Rounds forward and lets gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


straight_through = StraightThrough.apply


class Rounds(nn.Module):
    """Calls a function with a backward of its own, by the name that it was imported under."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(straight_through(self.first(x) * 4))  # type: ignore[no-any-return, no-untyped-call]
