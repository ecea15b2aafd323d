"""One operation has one spelling, and what hands on its input goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from canonical_forms import Apply, check, targets, traced
from comparisons import assert_same
from fxcompress.canonicalize import apply
from fxcompress.canonicalize.spelling import (
    drop_aliases,
    pin_attention_scale,
    spell_out_integer_rsub,
)
from fxcompress.graph.captured import aten


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("number", [1.0, 3, 0.1])
@pytest.mark.parametrize("alpha", [1, 2])
def test_a_number_minus_integers_is_spelled_out(
    dtype: torch.dtype, number: float, alpha: int
) -> None:
    x = torch.randint(0, 100, (2, 50), dtype=dtype)
    module = traced(lambda x: torch.rsub(x, number, alpha=alpha), x)
    assert check(spell_out_integer_rsub, module, x) == 1
    assert "rsub" not in targets(module)


def test_a_number_minus_floats_is_left_alone() -> None:
    x = torch.randn(2, 4)
    assert check(spell_out_integer_rsub, traced(lambda x: 1 - x, x), x) == 0


@pytest.mark.parametrize("width", [1, 3, 16, 20])
def test_the_scale_of_attention_is_written_down(width: int) -> None:
    x = torch.randn(2, 3, 6, width)
    module = traced(lambda x: F.scaled_dot_product_attention(x, x + 1, x - 1), x)
    assert check(pin_attention_scale, module, x) == 1
    (node,) = module.graph.find_nodes(
        op="call_function", target=aten.scaled_dot_product_attention.default
    )
    assert node.kwargs["scale"] == 1 / math.sqrt(width)
    assert apply(pin_attention_scale, module) == 0


IDLE: dict[str, Callable[[Tensor], Any]] = {
    "to the same dtype": lambda x: x.to(torch.float32) + 1,
    "float": lambda x: x.float() + 1,
    "to the same device": lambda x: x.to("cpu") + 1,
    "as another": lambda x: x.type_as(x * 2) + 1,
    "detached integers": lambda x: x + x.long().detach(),
    "a copy": lambda x: x.to(torch.float32, copy=True) + 1,
    "a slice of everything": lambda x: x[:, 1:] + 1,
}


@pytest.mark.parametrize("name", IDLE)
def test_nodes_that_hand_on_their_input_go(name: str) -> None:
    x = torch.randn(3, 2)
    module = traced(IDLE[name], x)
    before = len(module.graph.nodes)
    assert check(drop_aliases, module, x) >= 1
    assert len(module.graph.nodes) < before


BUSY: dict[str, Callable[[Tensor], Any]] = {
    "another dtype": lambda x: x.to(torch.float64) + 1,
    "another memory format": lambda x: x[:, None, None].to(memory_format=torch.channels_last),
    "stops the gradient": lambda x: x + x.detach(),
    "a copy that is written": lambda x: x.to(torch.float32, copy=True).add_(1) + x,
    "a literal that is written": lambda x: x + torch.tensor([1.0, 2.0]).add_(1),
    "of what is written": lambda x: [y := x * 2, z := y.to(torch.float32, copy=True), y.add_(1), z],
}


@pytest.mark.parametrize("name", BUSY)
def test_conversions_copies_and_detaching_stay_where_they_matter(name: str) -> None:
    x = torch.randn(3, 2)
    module = traced(BUSY[name], x)
    names = targets(module)
    check(drop_aliases, module, x)
    kept = {"to", "detach", "_to_copy", "lift_fresh_copy"}
    assert {n: k for n, k in targets(module).items() if n in kept} == {
        n: k for n, k in names.items() if n in kept
    }
    module(x)
    assert_same(module(x), Apply(BUSY[name])(x))
