"""What depends on no input becomes a buffer, where it is the same in every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from canonical_forms import Apply, Shapes, check, targets, traced
from comparisons import assert_same
from fxcompress.canonicalize import apply
from fxcompress.canonicalize.constants import fold_constants
from fxcompress.capture import capture
from fxcompress.graph.captured import clone_graph


def _window_mask(x: Tensor) -> Tensor:
    mask = x.new_zeros(4, 6)
    mask[:2, :3] = 1
    mask[2:, 3:] = 2
    mask = mask.view(1, 24)
    return x + (mask - mask.transpose(0, 1)).masked_fill(mask != 0, -100.0)


FOLDABLE: dict[str, Callable[[Tensor], Any]] = {
    "arange": lambda x: x + torch.arange(24).unsqueeze(0) / 2,
    "eye": lambda x: x @ torch.eye(24) + torch.zeros(24),
    "mask": _window_mask,
    "literal": lambda x: x * torch.tensor([1.0, 2.0]).sum(),
    "causal": lambda x: x @ torch.ones(24, 24, dtype=torch.bool).tril().to(x.dtype),
    "halves": lambda x: x * torch.arange(48.0).chunk(2)[1],
    "written": lambda x: x + torch.zeros(24).add_(3).mul_(2),
    "created alike": lambda x: x + torch.full_like(x[0].detach(), 3.0) + x.new_ones(24),
}


@pytest.mark.parametrize("name", FOLDABLE)
def test_what_depends_on_no_input_becomes_a_buffer(name: str) -> None:
    x = torch.randn(24, 24)
    module = capture(Apply(FOLDABLE[name]), (x,), dynamic=None).module
    before = clone_graph(module)
    assert apply(fold_constants, module) >= 1
    assert_same(module(x), before(x))
    Shapes(module).run(x)
    assert module.get_buffer("_const_0") is not None
    assert not module.state_dict()
    creators = {"arange", "eye", "zeros", "ones", "new_zeros", "new_ones", "full_like", "fill_"}
    assert not creators & targets(module).keys()
    assert_same(module(x), before(x))  # and calling it has changed no buffer


def test_an_expanded_constant_is_kept_small() -> None:
    x = torch.randn(2, 3, 100)
    module = capture(Apply(lambda x: x + torch.arange(100.0).expand(2, 3, 100)), (x,), dynamic=None)
    apply(fold_constants, module.module)
    assert module.module.get_buffer("_const_0").numel() == 100
    assert_same(module.module(x), x + torch.arange(100.0))


def _read_between_writes(x: Tensor) -> Tensor:
    table = torch.zeros(4)
    y = x + table
    table.add_(1)
    return y * table


UNFOLDABLE: dict[str, Callable[[Tensor], Any]] = {
    "random": lambda x: x + torch.rand(4) * 0,
    "free size": lambda x: x + torch.ones(x.shape[0], 4),
    "filled from the input": lambda x: torch.zeros(2, 4).add_(x.sum()),
    "filled through a view": lambda x: [t := torch.zeros(2, 4), t[0].add_(x.sum()), t][2] + 1,
    "returned": lambda x: [x, torch.ones(3)],
    # Reads what memory happens to hold, and gives x whatever that is.
    "undefined": lambda x: torch.where(torch.empty(4) > 0, x, x),
    "of the input": lambda x: x + x.mean(),
}


@pytest.mark.parametrize("name", UNFOLDABLE)
def test_what_may_differ_between_calls_is_not_folded(name: str) -> None:
    x = torch.randn(2, 4)
    module = traced(UNFOLDABLE[name], x)
    assert check(fold_constants, module, x) == 0
    assert not list(module.buffers())


def test_a_constant_is_folded_as_it_was_when_read() -> None:
    x = torch.randn(2, 4)
    module = traced(_read_between_writes, x)
    assert check(fold_constants, module, x) == 2
    assert module.get_buffer("_const_0").sum() == 0
    assert module.get_buffer("_const_1").sum() == 4


def test_a_large_constant_is_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxcompress.canonicalize.constants._LARGEST", 100)
    x = torch.randn(2, 40)
    assert check(fold_constants, traced(lambda x: x + torch.ones(40), x), x) == 0


def test_constants_are_numbered_on() -> None:
    x = torch.randn(2, 4)
    module = traced(lambda x: x + torch.ones(4), x)
    module.register_buffer("_const_0", torch.ones(1))
    apply(fold_constants, module)
    assert module.get_buffer("_const_1").shape == (4,)
