"""Splits, squeezes and fused axes are spelled out by sizes, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from canonical_forms import Apply, check, targets, traced
from fxcompress.canonicalize import apply, canonicalize
from fxcompress.canonicalize.fused import separate_fused_axes
from fxcompress.canonicalize.spelling import (
    spell_out_splits,
    spell_out_squeezes,
)
from fxcompress.capture import capture
from fxcompress.graph.captured import aten
from models import tensors


@pytest.mark.parametrize(
    "split",
    [
        lambda x: x.chunk(3, 1),
        lambda x: x.split(4, 1),
        lambda x: torch.tensor_split(x, 3, -1),
        lambda x: torch.tensor_split(x, (2, 5), 1),
        lambda x: x.split([1, 2, 7], 1),
    ],
)
def test_splits_have_explicit_sizes(split: Callable[[Tensor], tuple[Tensor, ...]]) -> None:
    x = torch.randn(3, 10)
    module = traced(lambda x: [part * 2 for part in split(x)], x)
    check(spell_out_splits, module, x)
    assert targets(module).keys() == {"split_with_sizes", "getitem", "mul"}
    (node,) = module.graph.find_nodes(op="call_function", target=aten.split_with_sizes.default)
    assert node.args[1] == [part.shape[1] for part in split(x)]


def test_a_split_of_a_free_axis_is_left_alone() -> None:
    x = torch.randn(4, 10)
    module = capture(Apply(lambda x: x.split(2, 1)[1]), (x,), dynamic={0: {1: "n"}}).module
    assert apply(spell_out_splits, module) == 0


@pytest.mark.parametrize(
    ("squeeze", "dims"),
    [
        (lambda x: x.squeeze(), [[1, 3]]),
        (lambda x: x.squeeze(2), [[]]),
        (lambda x: x.squeeze((1, 2)), [[1]]),
        (lambda x: x.squeeze(-1), []),
    ],
)
def test_squeezes_name_what_they_drop(
    squeeze: Callable[[Tensor], Tensor], dims: list[list[int]]
) -> None:
    x = torch.randn(3, 1, 5, 1)
    module = traced(lambda x: squeeze(x * 2), x)
    assert check(spell_out_squeezes, module, x) == len(dims)
    canonical = canonicalize(module)
    named = canonical.graph.find_nodes(op="call_function", target=aten.squeeze.dims)
    assert [node.args[1] for node in named] == dims


HEADS, WIDTH = 5, 4


def _entries(x: Tensor) -> list[Tensor]:
    return [x[2], x[0]]


FUSED: dict[str, Callable[[Tensor], Any]] = {
    "timm": lambda x: x.reshape(x.shape[0], 7, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4).unbind(0),
    "select": lambda x: _entries(x.view(-1, 7, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)),
    "multi-head": lambda x: list(
        x.unflatten(-1, (3, HEADS * WIDTH)).unsqueeze(0).transpose(0, -2).squeeze(-2).contiguous()
    ),
    "interleaved": lambda x: x.view(-1, 7, HEADS, 3, WIDTH).transpose(1, 2).unbind(-2),
    "interleaved flat": lambda x: x.view(-1, 7, HEADS * WIDTH, 3).unbind(-1),
    "direct": lambda x: x.view(x.shape[0], 7, 3, -1).unbind(2),
    "merged": lambda x: x.reshape(-1, 3, HEADS, WIDTH).unbind(1),
    "new axis": lambda x: (
        x.view(-1, 7, 3, HEADS * WIDTH).unsqueeze(1).permute(3, 0, 1, 2, 4).unbind(0)
    ),
    "pair": lambda x: x.view(-1, 7, 2, 30).select(2, -1),
}


@pytest.mark.parametrize("spelling", FUSED)
def test_fused_axes_are_separated(spelling: str) -> None:
    model = Apply(lambda x: FUSED[spelling](x * 2))
    x = torch.randn(2, 7, 3 * HEADS * WIDTH)
    module = traced(model, x)
    assert check(separate_fused_axes, module, x) == 1
    after = targets(module)
    assert after["split_with_sizes"] == 1
    assert not after.keys() & {"unbind", "select", "unflatten"}
    for mine, theirs in zip(tensors(module(x)), tensors(model(x)), strict=True):
        assert mine.stride() == theirs.stride()


UNFUSED: dict[str, Callable[[Tensor], Any]] = {
    "tokens": lambda x: x.view(-1, 7, 3, 20)[:, 0],
    "also read whole": lambda x: [y := x.view(-1, 7, 3, 20), y.unbind(2)],
    "many entries": lambda x: x.view(-1, 7, 12, 5).unbind(2),
    "other axes of one view": lambda x: [y := x.view(-1, 7, 3, 4, 5), y[:, :, 0], y[:, :, :, 1]][
        1:
    ],
    "computed between": lambda x: (x.view(-1, 7, 3, 20) + 1).unbind(2),
    "other memory": lambda x: x.transpose(0, 1).reshape(-1, 3, 20).unbind(1),
    "a scalar": lambda x: x.sum().view(1).unbind(0),
}


@pytest.mark.parametrize("spelling", UNFUSED)
def test_what_only_looks_fused_is_left_alone(spelling: str) -> None:
    x = torch.randn(2, 7, 60)
    module = traced(lambda x: UNFUSED[spelling](x * 2), x)
    assert check(separate_fused_axes, module, x) == 0
    assert "split_with_sizes" not in targets(module)


@given(
    heads=st.integers(1, 4),
    width=st.integers(1, 4),
    entries=st.integers(2, 5),
    place=st.integers(0, 2),
    order=st.permutations(range(4)),
)
def test_separation_is_right_for_any_order_of_axes(
    heads: int, width: int, entries: int, place: int, order: list[int]
) -> None:
    sizes = [heads, width]
    sizes.insert(place, entries)
    moved = [dim for dim in order if dim != 3]
    moved.insert(order.index(3), 3)

    def fused(x: Tensor) -> tuple[Tensor, ...]:
        y = (x * 2).view(-1, *sizes).permute(moved)
        return y.unbind(moved.index(1 + place))

    x = torch.randn(3, heads * width * entries)
    check(separate_fused_axes, traced(fused, x), x)
