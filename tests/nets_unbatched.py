"""Nets that take one thing without an axis of samples: a graph, an image, a sequence.

All of them also take a batch of it, one axis more on the left, so that both can be compared.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class GraphAttention(nn.Module):
    """Nodes that attend to their neighbours; (nodes, features) and (nodes, nodes)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 3)
        self.source, self.target = nn.Linear(8, 1), nn.Linear(8, 1)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        scores = F.leaky_relu(self.source(x) + self.target(x).mT, 0.2)
        share = scores.masked_fill(adjacency == 0, -1e9).softmax(-1)
        return self.head(F.relu(self.second(share @ x)))  # type: ignore[no-any-return]


class GraphSum(nn.Module):
    """Nodes that add up what the edges bring; (nodes, features) and (2, edges)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        brought = x.index_select(-2, edges.reshape(2, -1)[0])
        x = x + torch.zeros_like(x).index_add(-2, edges.reshape(2, -1)[1], brought)
        return self.head(F.relu(self.second(x)))  # type: ignore[no-any-return]


class Image(nn.Module):
    """Convolutions of one image, (channels, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(x.mean((-2, -1)))  # type: ignore[no-any-return]


class Sequence(nn.Module):
    """A recurrent layer over one sequence, (steps, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(5, 8, batch_first=True)
        self.hidden, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.hidden(self.recurrent(x)[0])))  # type: ignore[no-any-return]


class Stream(nn.Module):
    """A residual stream under RMSNorm with attention over the steps of one sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(3))
        self.qkv, self.proj = nn.Linear(8, 18), nn.Linear(6, 8)
        self.up, self.down = nn.Linear(8, 10), nn.Linear(10, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        x = x + self.proj((q @ k.mT / 6**0.5).softmax(-1) @ v)
        x = x + self.down(F.relu(self.up(self.norms[1](x))))
        return self.head(self.norms[2](x))  # type: ignore[no-any-return]
