"""Axes through what only hands entries on, by running it on a tensor that counts along an axis."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from fxcompress.capture import capture
from fxcompress.graph.moves import axis_before

SHAPE = (2, 3, 4)
ORDERS: list[Callable[[Tensor], Tensor]] = [
    lambda v: v.transpose(0, 2),
    lambda v: v.permute(2, 0, 1),
    lambda v: v.mT,
    lambda v: v.movedim(0, 1),
    lambda v: v.clone(),
    lambda v: v.to(torch.float64),
]
OTHERS: list[Callable[[Tensor], Tensor]] = [
    lambda v: v.reshape(3, 2, 4),
    lambda v: v.flatten(),
    lambda v: v[:, :2],
    lambda v: v * 2,
    lambda v: v.unsqueeze(0),
]


class Reading(nn.Module):
    def __init__(self, read: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.read = nn.Parameter(torch.randn(SHAPE)), read

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, self.read(self.weight)


def reader(read: Callable[[Tensor], Tensor]) -> fx.Node:
    """The only node that reads the weight."""
    graph = capture(Reading(read), (torch.randn(5, 2),)).module.graph
    ((weight,),) = (list(graph.find_nodes(op="get_attr")),)
    user: fx.Node
    (user,) = weight.users
    return user


@pytest.mark.parametrize("read", ORDERS)
def test_the_axis_before_counts_alike(read: Callable[[Tensor], Tensor]) -> None:
    node = reader(read)
    for dim, before in ((d, axis_before(node, d)) for d in range(len(SHAPE))):
        assert before is not None
        shape = [-1 if each == before else 1 for each in range(len(SHAPE))]
        counts = read(torch.arange(float(SHAPE[before])).reshape(shape).expand(SHAPE))
        assert torch.equal(counts.select(dim, 1), torch.ones_like(counts.select(dim, 1)))


@pytest.mark.parametrize("read", OTHERS)
def test_what_is_no_order_of_axes_says_none(read: Callable[[Tensor], Tensor]) -> None:
    node = reader(read)
    assert axis_before(node, node.meta["val"].dim() - 1) is None
