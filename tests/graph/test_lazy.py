"""A tensor on the meta device with a lazy value answers as the tensor with that value does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import Held, attach, is_lazy, lazy_value, selected, value_of
from fxcompress.graph.parameters import (
    has_values,
    in_place_of,
    names_of,
    read_tensor,
    replace_tensor,
    state_digest,
)

KEPT = (torch.tensor([3, 0]), None, torch.tensor([1]))


def _lazy(value: Tensor) -> Tensor:
    return attach(in_place_of(value, value.to("meta")), Held(value.detach()))


def _pair() -> tuple[nn.Module, nn.Module]:
    """A module, and one on the meta device with the same values."""
    plain = nn.Module()
    plain.weight = nn.Parameter(torch.randn(4, 2, 3))
    plain.tied = plain.weight
    plain.register_buffer("mean", torch.randn(4))
    lazy = nn.Module()
    lazy.weight = lazy.tied = _lazy(plain.weight)
    lazy.register_buffer("mean", _lazy(plain.get_buffer("mean")))
    return plain, lazy


def _assert_equal(lazy: nn.Module, plain: nn.Module) -> None:
    assert is_lazy(lazy)
    assert has_values(lazy)
    assert state_digest(lazy) == state_digest(plain) != ""
    assert names_of(lazy) == names_of(plain)
    for name, value in plain.state_dict().items():
        assert read_tensor(lazy, name).equal(value)
    assert all(tensor.is_meta for tensor in (*lazy.parameters(), *lazy.buffers()))


def test_values_are_read_under_every_name() -> None:
    plain, lazy = _pair()
    _assert_equal(lazy, plain)


def test_a_selection_of_a_selection() -> None:
    value = torch.randn(4, 2, 3)
    once, expected = selected(_lazy(value), KEPT), selected(value, KEPT)
    assert once.shape == expected.shape
    assert value_of(once).equal(expected)
    again = (torch.tensor([1]), torch.tensor([1, 0]), None)
    assert value_of(selected(once, again)).equal(value[[0]][:, [1, 0]][:, :, [1]])


@pytest.mark.parametrize("name", ["weight", "tied", "mean"])
def test_a_new_value_replaces_a_lazy_one_under_every_name(name: str) -> None:
    plain, lazy = _pair()
    new = torch.randn(plain.state_dict()[name].shape, dtype=torch.float64)
    for module in (plain, lazy):
        replace_tensor(module, names_of(module), name, new)
    _assert_equal(lazy, plain)


def test_a_selection_replaces_a_lazy_value() -> None:
    plain, lazy = _pair()
    for module in (plain, lazy):
        small = selected(module.get_parameter("weight"), KEPT)
        replace_tensor(module, names_of(module), "tied", small)
    _assert_equal(lazy, plain)


def test_a_copied_and_converted_module_keeps_its_lazy_values() -> None:
    plain, lazy = _pair()
    captured = CapturedModule(lazy, torch.fx.Graph())
    for name, child in (("inner", lazy), ("weight", lazy.weight), ("mean", lazy.mean)):
        setattr(captured, name, child)
    twin = copy.deepcopy(captured).double()
    _assert_equal(captured.get_submodule("inner"), plain)
    _assert_equal(twin.get_submodule("inner"), plain.double())
    assert twin.get_submodule("inner").weight is twin.weight


def test_without_a_lazy_value_there_is_none() -> None:
    module = nn.Linear(2, 3, device="meta")
    assert not has_values(module)
    assert not is_lazy(module)
    assert state_digest(module) == ""
    assert lazy_value(module.weight) is None
    assert read_tensor(module, "weight").is_meta
    with pytest.raises(fx.FxCompressError, match="'scale'"):
        read_tensor(module, "scale")
