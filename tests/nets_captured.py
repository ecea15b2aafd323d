"""Nets with what torch.export treats specially: regions, casts, assertions, classes, modes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass
class Pair:
    left: Tensor
    right: Tensor


torch.export.register_dataclass(Pair)


class Nested(nn.Module):
    """Lists, dicts and a dataclass, in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, pair: Pair, *, parts: dict[str, list[Tensor]]) -> dict[str, Any]:
        y = self.linear(pair.left) + pair.right + parts["a"][0]
        return {"pair": Pair(y, -y), "list": [y, (parts["a"][1],)]}


class Frozen(nn.Module):
    """A part runs without gradients, and inside it a part with them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
            with torch.enable_grad():
                h = h * 2
        return self.head(h)  # type: ignore[no-any-return]


class Casting(nn.Module):
    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.linear, self.enabled = nn.Linear(4, 4), enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return self.linear(x)  # type: ignore[no-any-return]


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert_async((x > -1e9).all())
        return x.to(torch.float32) + torch.tensor([1.0, 2.0])


class Holder(nn.Module):
    """Names that no forward needs, buffers of both kinds, a constant, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.unused = nn.Linear(7, 7)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.register_buffer("shift", torch.ones(3))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.plain = torch.full((3,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) + self.get_buffer("shift")
        return x * self.get_buffer("scratch") * self.plain


class FixedBatch(nn.Module):
    """Accepts the batch it was written for, in one of two ways that torch.export tells apart."""

    def __init__(self, batch: int, by_view: bool) -> None:
        super().__init__()
        self.linear, self.batch, self.by_view = nn.Linear(4, 4), batch, by_view

    def forward(self, x: Tensor) -> Tensor:
        if self.by_view:
            return self.linear(x.view(self.batch, 4))  # type: ignore[no-any-return]
        return self.linear(x) * float(x.shape[0] == self.batch)  # type: ignore[no-any-return]


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Overriding(nn.Module):
    """A user's own train(), which keeps a part frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> Overriding:
        super().train(mode)
        self.frozen.train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.norm(x))  # type: ignore[no-any-return]


class Spread(nn.Module):
    """One sample alone has no spread: not a number, where the same without a branch gives zeros."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(0)
        return centred if x.shape[0] > 1 else centred * torch.nan
