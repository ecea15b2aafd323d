"""Nets whose hidden units come in equal pairs, one for each kind of operation that reads units.

Every parameter of a unit is doubled (``twins``), but those that read it are free: a method that
merges units, or gives the part of one back to the others, loses nothing on such a net.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

UNITS = 8


def twins(module: nn.Module, dim: int = 0, run: int = 1) -> nn.Module:
    """Make neighbours, each `run` long, equal along `dim` of every parameter and statistic."""
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.dim() > dim and value.shape[dim] > 1:
                pairs = value.unflatten(dim, (-1, 2, run))
                pairs.copy_(pairs.narrow(dim + 1, 0, 1).clone().expand_as(pairs))
    return module


class Read(nn.Module):
    """Twin units of a linear layer through what reads them."""

    def __init__(self, reader: Callable[[Any, Tensor, Tensor], Tensor], **parts: nn.Module):
        super().__init__()
        self.up, self.gate = nn.Linear(5, UNITS), nn.Linear(5, UNITS)
        self.reader = reader
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.reader(self, self.up(x), self.gate(x))


class Image(nn.Module):
    """Twin channels of a convolution, or twin runs of them, through what reads them."""

    def __init__(self, run: int = 1, **parts: nn.Module):
        super().__init__()
        self.run = run
        self.up = nn.Conv2d(5, UNITS, 3, padding=1)
        self.parts = nn.ModuleDict(parts)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x[..., None].expand(*x.shape, 4).movedim(-2, 1)).relu()
        for part in self.parts.values():
            x = part(x)
        return x


class Heads(nn.Module):
    """Attention whose query and key dims, or value dims, come in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(5, UNITS), nn.Linear(5, UNITS), nn.Linear(5, UNITS)
        self.out = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        out: Tensor = self.out(seen.transpose(1, 2).flatten(2))
        return out


class Table(nn.Module):
    """An embedding with twin columns, read by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Embedding(11, UNITS)
        self.head = nn.Linear(UNITS, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.up(x.abs().mul(5).long().clamp(max=10)[..., 0])))
        return out


class TiedTables(nn.Module):
    """An embedding that reads its own units again."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Embedding(11, UNITS)
        self.mid = nn.Linear(UNITS, UNITS)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x.abs().mul(5).long().clamp(max=10)[..., 0])
        out: Tensor = self.mid(torch.tanh(h)) @ self.up.weight.T
        return out


class Recurrent(nn.Module):
    """Units that a recurrent layer reads, with no bias to put a constant in."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM]) -> None:
        super().__init__()
        self.up, self.rnn = nn.Linear(5, UNITS), kind(UNITS, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(self.up(x).relu())[0])
        return out


def head() -> nn.Module:
    return nn.Linear(UNITS, 3)


def doubled_up(net: nn.Module) -> nn.Module:
    """Twins in every layer that has the units on its first axis."""
    run: Any = getattr(net, "run", 1)
    for name, part in net.named_modules():
        if name.split(".")[-1] in ("up", "gate", "norm", "deep", "q", "k", "v"):
            twins(part, 1 if isinstance(part, nn.Embedding) else 0, run)
    return net


READERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: Read(lambda m, h, g: m.head(torch.tanh(h)), head=head()),
    "norm over": lambda: Read(
        lambda m, h, g: m.head(m.norm(h)), head=head(), norm=nn.LayerNorm(UNITS)
    ),
    "gated": lambda: Read(lambda m, h, g: m.head(functional.silu(g) * h), head=head()),
    "concatenated": lambda: Read(
        lambda m, h, g: m.head(torch.cat([h.relu(), g.sigmoid()], -1)), head=nn.Linear(2 * UNITS, 3)
    ),
    "two readers": lambda: Read(
        lambda m, h, g: m.head(h.relu()) + h.relu().sum(-1, keepdim=True), head=head()
    ),
    "sum": lambda: Read(lambda m, h, g: h.relu().sum(-1)),
    "mean": lambda: Read(lambda m, h, g: h.relu().mean(-1)),
    "largest": lambda: Read(lambda m, h, g: h.amax(-1)),
    "inner product": lambda: Read(lambda m, h, g: (h * g).sum(-1)),
    "product of activations": lambda: Read(lambda m, h, g: h.tanh() @ g.tanh().mT),
    "squared length": lambda: Read(lambda m, h, g: torch.linalg.vector_norm(h, dim=-1)),
    "absolute length": lambda: Read(lambda m, h, g: torch.linalg.vector_norm(h, 1, dim=-1)),
    "distances": lambda: Read(lambda m, h, g: torch.cdist(h, g)),
    "output": lambda: Read(lambda m, h, g: h.relu() + g),
    "softmax": lambda: Read(lambda m, h, g: m.head(h.softmax(-1)), head=head()),
    "attention": Heads,
    "table": Table,
    "conv": lambda: Image(head=nn.Conv2d(UNITS, 3, 3)),
    "batch norm": lambda: Image(norm=nn.BatchNorm2d(UNITS), head=nn.Conv2d(UNITS, 3, 3)),
    "depthwise": lambda: Image(
        deep=nn.Conv2d(UNITS, UNITS, 3, padding=1, groups=UNITS), head=nn.Conv2d(UNITS, 3, 1)
    ),
    "grouped": lambda: Image(
        deep=nn.Conv2d(UNITS, UNITS, 3, groups=2), act=nn.ReLU(), head=nn.Conv2d(UNITS, 3, 1)
    ),
    "groups alike": lambda: Image(
        run=UNITS // 2,
        deep=nn.Conv2d(UNITS, UNITS, 3, groups=2),
        act=nn.ReLU(),
        head=nn.Conv2d(UNITS, 3, 1),
    ),
    "transposed": lambda: Image(head=nn.ConvTranspose2d(UNITS, 3, 3)),
    "flattened": lambda: Image(flat=nn.Flatten(), head=nn.Linear(UNITS * 7 * 4, 3)),
}

OTHERS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: Recurrent(nn.GRU),
    "lstm": lambda: Recurrent(nn.LSTM),
    "tied tables": TiedTables,
}
"""Nets that some methods can take no group of."""
