"""A capture computes what its model does, with the same state, types and modes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comparisons import assert_same
from fxcompress.capture import capture
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import aten
from fxcompress.graph.parameters import find_tensor
from models import MODELS, build, rebatch, tensors
from nets_captured import Asserting, Casting, Frozen, Holder, Nested, Overriding, Pair


@pytest.mark.parametrize("name", MODELS)
def test_captures_compute_what_the_model_computes(name: str) -> None:
    model, args, kwargs = build(name)
    module = capture(model, args, kwargs).module
    assert_same(module(*args, **kwargs), model(*args, **kwargs))
    for batch in (1, 3):
        more, named = rebatch((args, kwargs), batch)
        assert_same(module(*more, **named), model(*more, **named))


@pytest.mark.parametrize("name", MODELS)
def test_state_and_model_stay_as_they_are(name: str) -> None:
    model, args, kwargs = build(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    module = capture(model, args, kwargs).module
    assert all(part.training for part in model.modules())
    assert list(module.state_dict()) == list(before)
    for name, value in module.state_dict(keep_vars=True).items():
        mine = find_tensor(model, name)
        assert mine is not None
        assert value.data_ptr() != mine.data_ptr()
        assert isinstance(value, nn.Parameter) is isinstance(mine, nn.Parameter)
    module.train()(*args, **kwargs)
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("name", MODELS)
def test_captures_train_and_export_again(name: str) -> None:
    model, args, kwargs = build(name)
    module = capture(model, args, kwargs).module.train()
    sum(output.square().sum() for output in tensors(module(*args, **kwargs))).backward()  # type: ignore[union-attr]
    used = {node.target for node in module.graph.find_nodes(op="get_attr")}
    missing = [n for n, p in module.named_parameters() if p.grad is None and n in used]
    assert not missing
    module.eval()
    again = torch.export.export(module, args, kwargs, strict=False).module()
    assert_same(again(*args, **kwargs), module(*args, **kwargs))


def test_nested_inputs_and_outputs_keep_their_types() -> None:
    model = Nested()

    def example(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(4, batch, 4)
        return (Pair(x[0], x[1]),), {"parts": {"a": [x[2], x[3]]}}

    args, kwargs = example(1)
    captured = capture(model, args, kwargs)
    assert captured.dynamic == ({0: "batch"},) * 4
    args, kwargs = example(5)
    expected, got = model(*args, **kwargs), captured.module(*args, **kwargs)
    assert isinstance(got["pair"], Pair)
    assert_same(got["pair"].left, expected["pair"].left)
    assert_same(got["list"], expected["list"])


def test_arguments_that_are_no_tensors_are_kept() -> None:
    class Choosing(nn.Module):
        def forward(self, x: Tensor, twice: bool, note: str | None = None) -> Tensor:
            return x * 2 if twice else x

    captured = capture(Choosing(), (torch.ones(2), True), {"note": None})
    assert captured.module(torch.ones(3), True, note=None).sum() == 6
    assert len(captured.dynamic) == 1


def test_tied_unused_and_constant_tensors() -> None:
    model = Holder()
    module = capture(model, (torch.randn(2, 3),)).module
    assert list(module.state_dict()) == list(model.state_dict())
    assert module.get_parameter("first.weight") is module.get_parameter("second.weight")
    assert not module.get_parameter("second.bias").requires_grad
    assert dict(module.named_buffers()).keys() == {"shift", "scratch", "plain"}
    x = torch.randn(4, 3)
    assert_same(module(x), model(x))


def test_names_that_share_memory_but_no_object_are_tied_as_well() -> None:
    model = Holder()
    model.second.weight = nn.Parameter(model.first.weight.detach())
    module = capture(model, (torch.randn(2, 3),)).module
    assert module.get_parameter("first.weight") is module.get_parameter("second.weight")


def test_assertions_and_regions_are_gone() -> None:
    for model, x in ((Asserting(), torch.randn(2, 2)), (Frozen(), torch.randn(2, 4))):
        module = capture(model, (x,)).module
        targets = {str(node.target) for node in module.graph.nodes}
        assert not any("assert" in target or "wrap_with" in target for target in targets)
        assert not list(module.graph.find_nodes(op="call_module"))
        assert_same(module(x), model(x))


def test_a_region_without_gradients_still_has_none() -> None:
    model, x = Frozen(), torch.randn(3, 4)
    module = capture(model, (x,)).module
    for part in (model, module):
        part(x).sum().backward()
    mine = {name: p.grad is not None for name, p in module.named_parameters()}
    assert mine == {name: p.grad is not None for name, p in model.named_parameters()}
    assert mine == {"body.weight": False, "body.bias": False} | {
        "head.weight": True,
        "head.bias": True,
    }


def test_autocast_is_inlined_when_off_and_refused_when_on() -> None:
    x = torch.randn(2, 4)
    model = Casting(False)
    assert_same(capture(model, (x,)).module(x), model(x))
    with pytest.raises(CaptureError, match=r"autocast.*model\.to"):
        capture(Casting(True), (x,))


def test_writes_in_place_survive() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y[:, 0].zero_()
            return y.relu_()

    x = torch.randn(3, 4)
    module = capture(Writing(), (x,)).module
    assert_same(module(x), Writing()(x))
    assert any(node.target is aten.relu_.default for node in module.graph.nodes)


def test_the_modes_of_the_modules_are_restored_one_by_one() -> None:
    model = Overriding().train()
    model.frozen.eval()
    modes = [part.training for part in model.modules()]
    capture(model, (torch.randn(2, 4),))
    assert [part.training for part in model.modules()] == modes


def test_attention_is_captured_in_parts_also_where_torch_would_fuse_it() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    before = torch.backends.mha.get_fastpath_enabled()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        module = capture(model, (x,)).module
    assert torch.backends.mha.get_fastpath_enabled() is before
    assert not any("_transformer_encoder" in str(node.target) for node in module.graph.nodes)
    assert any(node.target is aten.layer_norm.default for node in module.graph.nodes)
