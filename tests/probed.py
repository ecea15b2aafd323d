"""Operators that nobody wrote a rule for, and a net that calls one of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from models import cast

CALLED: list[int] = []


def custom(name: str, **options: Any) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Make the decorated function an operator whose result has the shape of the first operand."""

    def wrap(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        made = torch.library.custom_op(f"probetest::{name}", function, mutates_args=(), **options)
        made.register_fake(lambda x, *others: torch.empty_like(x))
        return made

    return wrap


@custom("cube")
def cube(x: Tensor) -> Tensor:
    return x**3 - x


@custom("shifted")
def shifted(x: Tensor) -> Tensor:
    return x.cos()


@custom("gated")
def gated(x: Tensor, scale: Tensor) -> Tensor:
    return x.tanh() * scale[None, :, None, None]


@custom("blurred")
def blurred(x: Tensor) -> Tensor:
    """Each channel alone, positions mixed."""
    return torch.fft.fft2(x).abs()  # type: ignore[no-any-return]


@custom("mixed")
def mixed(x: Tensor) -> Tensor:
    return x - 1e-3 * x.mean(1, keepdim=True)


@custom("noisy")
def noisy(x: Tensor) -> Tensor:
    return x + torch.rand_like(x)


@custom("tagged", tags=torch.Tag.nondeterministic_seeded)
def tagged(x: Tensor) -> Tensor:
    return x + 0


@custom("divided")
def divided(x: Tensor) -> Tensor:
    return x / x.shape[1]


@custom("blocked")
def blocked(x: Tensor) -> Tensor:
    """Each channel alone unless there are few of them."""
    return x * 2 if x.shape[1] > 5 else x * 3


@custom("flipped")
def flipped(x: Tensor) -> Tensor:
    return x.flip(1)


@custom("numbered")
def numbered(x: Tensor) -> Tensor:
    return x * torch.arange(x.shape[1])[:, None, None]


@custom("constant")
def constant(x: Tensor) -> Tensor:
    return torch.ones_like(x)


@custom("broken")
def broken(x: Tensor) -> Tensor:
    if x.device.type == "cpu" and bool((x < 0).any()):
        raise ValueError("only positive values")
    return x.sqrt()


@torch.library.custom_op("probetest::counted", mutates_args=("count",))
def counted(x: Tensor, count: Tensor) -> Tensor:
    count += 1
    CALLED.append(1)
    return x + 0


@counted.register_fake
def _(x: Tensor, count: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("probetest::halves", mutates_args=())
def halves(x: Tensor) -> list[Tensor]:
    return [x.sin(), x.amax((2, 3))]


@halves.register_fake
def _halves(x: Tensor) -> list[Tensor]:
    return [torch.empty_like(x), x.new_empty(x.shape[:2])]


@torch.library.custom_op("probetest::dense", mutates_args=())
def dense(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight.T


@dense.register_fake
def _dense(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


class Net(nn.Module):
    """Two convolutions with an operator between them."""

    count: Tensor

    def __init__(self, between: Callable[..., Tensor], *, scaled: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 9, 3)
        self.scale = nn.Parameter(torch.randn(12)) if scaled else None
        self.register_buffer("count", torch.zeros(1))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        others: list[Tensor] = [] if self.scale is None else [self.scale]
        others += [self.count] if self.between is counted else []
        x = self.between(self.first(x), *others)
        return self.second(x).mean((2, 3))  # type: ignore[no-any-return]


def hidden(program: fx.Program, name: str = "first") -> ChannelGroup:
    return next(group for group in program.groups if group.name == name)


def compiled(model: nn.Module, *, probe: bool = True) -> fx.Program:
    args = cast((torch.randn(2, 3, 8, 8),), torch.float64)
    return fx.compile(model.double(), args, probe=probe)
