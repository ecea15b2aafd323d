"""Constant indices that cut one stretch become slices; ranges of channels are cut from them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from canonical_forms import check, targets, traced
from fxcompress.canonicalize import apply
from fxcompress.canonicalize.constants import fold_constants
from fxcompress.canonicalize.ranges import separate_fused_ranges, spell_out_ranges
from fxcompress.canonicalize.spelling import (
    drop_aliases,
)
from fxcompress.graph.captured import CapturedModule
from models import tensors


def prepared(function: Callable[..., Any], x: Tensor) -> CapturedModule:
    """A function without aliases, and with its constants folded."""
    module = traced(function, x)
    apply(drop_aliases, module)
    apply(fold_constants, module)
    return module


STRETCHES: dict[str, Callable[[Tensor], Tensor]] = {
    "one": lambda x: x[..., [2], :],
    "from the back": lambda x: x[:, :, [-2, -1]],
    "the last axis": lambda x: x[..., [0, 1, 2]],
    "all": lambda x: x[:, [0, 1, 2, 3]],
    "computed": lambda x: x[:, torch.arange(1, 3)],
    "selected": lambda x: x.index_select(-2, torch.tensor([3, 4])),
}


@pytest.mark.parametrize("name", STRETCHES)
def test_a_constant_index_of_one_stretch_is_a_slice(name: str) -> None:
    x = torch.randn(2, 4, 5, 3)
    module = prepared(lambda x: STRETCHES[name](x * 2) + 0, x)
    assert check(spell_out_ranges, module, x) == 1
    assert not targets(module).keys() & {"index", "index_select"}
    assert torch.equal(module(x), STRETCHES[name](x * 2))


def test_what_is_read_by_a_constant_index_is_a_copy() -> None:
    x = torch.randn(2, 4, 5)
    module = prepared(lambda x: [y := x * 2, y[:, [1, 2]].add_(1)], x)
    assert check(spell_out_ranges, module, x) == 1


SCATTERED: dict[str, Callable[[Tensor], Tensor]] = {
    "gaps": lambda x: x[:, [0, 2]],
    "backwards": lambda x: x[:, [2, 1]],
    "around the end": lambda x: x[:, [-1, 0]],
    "two axes": lambda x: x[:, [1, 2], [1, 2]],
    "a table": lambda x: x[:, [[0, 1], [2, 3]]],
    "no index": lambda x: x[:, torch.zeros(0, dtype=torch.int64)],
    "a free axis": lambda x: x[[0, 1]],
    "an input": lambda x: x[:, x[0, 0, :2].long().clamp(0, 3)],
}


@pytest.mark.parametrize("name", SCATTERED)
def test_any_other_index_stays(name: str) -> None:
    x = torch.randn(2, 4, 5)
    module = prepared(lambda x: SCATTERED[name](x) * 2, x)
    assert check(spell_out_ranges, module, x) == 0


def test_an_index_that_a_model_keeps_as_a_buffer_stays() -> None:
    class Buffered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.tensor([1, 2]))

        def forward(self, x: Tensor) -> Tensor:
            return x.index_select(1, self.get_buffer("places")) * 2

    x = torch.randn(2, 4)
    assert check(spell_out_ranges, traced(Buffered(), x), x) == 0


RANGES: dict[str, Callable[[Tensor], Any]] = {
    "multi-query": lambda x: [y := x.view(-1, 7, 5, 12), [y[:, :, :-2], y[:, :, -2:-1]]][1],
    "grouped": lambda x: [
        y := x.reshape(-1, 7, 2, 5, 6),
        [y[..., :3, :], y[..., 3:4, :], y[..., 4:, :]],
    ][1],
    "read twice": lambda x: [y := x.unflatten(-1, (5, 12)), [y[:, :, 2:], y[:, :, 2:] + 1]][1],
}


@pytest.mark.parametrize("name", RANGES)
def test_ranges_are_cut_from_the_channels(name: str) -> None:
    x = torch.randn(2, 7, 60)
    module = prepared(lambda x: RANGES[name](x * 2), x)
    assert check(separate_fused_ranges, module, x) == 1
    assert targets(module)["split_with_sizes"] == 1
    assert "slice" not in targets(module)
    for mine, theirs in zip(tensors(module(x)), tensors(RANGES[name](x * 2)), strict=True):
        assert mine.stride() == theirs.stride()


NO_RANGES: dict[str, Callable[[Tensor], Any]] = {
    "also read whole": lambda x: [y := x.view(-1, 7, 5, 12), y[:, :, 2:]],
    "overlapping": lambda x: [y := x.view(-1, 7, 5, 12), [y[:, :, 2:], y[:, :, :4]]][1],
    "the last axis": lambda x: [y := x.view(-1, 7, 5, 12), [y[..., 6:], y[..., :6]]][1],
    "strided": lambda x: [y := x.view(-1, 7, 6, 10), [y[:, :, ::2], y[:, :, 1::2]]][1],
    "tokens": lambda x: [y := x.view(-1, 7, 60), [y[:, 1:], y[:, :1]]][1],
    "all of it": lambda x: x.view(-1, 7, 5, 12)[:, :, 0:9],
}


@pytest.mark.parametrize("name", NO_RANGES)
def test_what_only_looks_like_ranges_is_left_alone(name: str) -> None:
    x = torch.randn(2, 7, 60)
    module = prepared(lambda x: NO_RANGES[name](x * 2), x)
    assert check(separate_fused_ranges, module, x) == 0
