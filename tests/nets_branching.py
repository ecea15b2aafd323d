"""Small nets that decide by what torch.export does not see again: sizes, flags, values, dtypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models import randomize


class Branching(nn.Module):
    """A layer, and a forward that takes another way by a property of its inputs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 6)
        self.head = nn.Linear(6, width)
        randomize(self)

    def through(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).relu())  # type: ignore[no-any-return]


class OnBatch(Branching):
    def __init__(self, kind: str, edge: int) -> None:
        super().__init__()
        self.kind, self.edge = kind, edge

    def forward(self, x: Tensor) -> Tensor:
        size, edge, y = x.shape[0], self.edge, self.through(x)
        chosen = {
            "from": size >= edge,
            "multiple": size % edge == 0,
            "exactly": size == edge,
            "quotient": size // edge == 1,
            "square": size * size > edge * edge,
        }[self.kind]
        return y * 2 if chosen else -y


class OnLength(Branching):
    def __init__(self, edge: int) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        y = self.through(x)
        return y.sum(1) if x.shape[1] < self.edge else y.mean(1)


class OnBoth(Branching):
    """The number of rows decides."""

    def __init__(self, edge: int) -> None:
        super().__init__()
        self.edge = edge

    def forward(self, x: Tensor) -> Tensor:
        y = self.through(x)
        return y * 2 if x.shape[0] * x.shape[1] > self.edge else y


class OnValue(Branching):
    def forward(self, x: Tensor, choice: Any = None) -> Tensor:
        y = self.through(x)
        if choice is None:
            return y
        if isinstance(choice, str):
            return y * len(choice)
        return y + choice if choice is not True else -y


class OnDtype(Branching):
    def forward(self, x: Tensor) -> Tensor:
        y = self.through(x.to(self.head.weight.dtype))
        return y if x.is_floating_point() else -y


class OnOne(Branching):
    """A batch of one is another matter."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.through(x)
        if self.kind == "squeeze":
            return y.squeeze()
        if self.kind == "branch":
            return y * 2 if x.shape[0] > 1 else y
        if self.kind == "softmax":
            return y.squeeze(0).softmax(-1)
        return y


class Related(Branching):
    """One input is twice as long as the other, and its halves are added."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.through(x).repeat(2, 1) + y


class Structured(Branching):
    def forward(self, parts: dict[str, Any]) -> Tensor:
        y = self.through(parts["x"])
        for more in parts.get("more", ()):
            y = y + more
        return y * parts["scale"] if "scale" in parts else y


ONES = ("squeeze", "branch", "softmax", "plain")
KINDS = ("from", "multiple", "exactly", "quotient", "square")
VALUES: tuple[Any, ...] = (None, True, False, 0, 1, 3, 2.5, float("nan"), "a", "ab")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.int64, torch.int32)


class Bounded(Branching):
    """Gives as many rows as its input says, up to a limit that it states."""

    def forward(self, x: Tensor) -> Tensor:
        count = x.abs().sum().int().item()
        torch._check(count >= 0)
        torch._check(count <= 3)
        torch._check(count <= x.shape[0])
        return self.through(x)[:count]


class Masked(Branching):
    """A mask of one row goes with any batch, but torch.export sees one that is as long."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0])
        return self.through(x) * mask[rows]
