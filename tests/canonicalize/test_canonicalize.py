"""All rewrites together: the same bits, and a module that trains, copies and exports."""

from __future__ import annotations

import copy

import pytest
import torch

from canonical_forms import Shapes, targets, traced
from comparisons import assert_same
from fxcompress.canonicalize import REWRITES, Rewrite, apply, canonicalize
from fxcompress.canonicalize.order import sink_parameters
from fxcompress.capture import capture
from fxcompress.errors import FxCompressError
from fxcompress.graph.captured import aten
from fxcompress.graph.metadata import TensorMeta
from models import MODELS, build, rebatch, tensors


@pytest.mark.parametrize("name", MODELS)
def test_canonical_forms_have_the_same_bits(name: str) -> None:
    model, args, kwargs = build(name, torch.float32)
    module = capture(model, args, kwargs).module
    result = canonicalize(module)
    for batch in (1, 2, 3):
        more, named = rebatch((args, kwargs), batch)
        assert_same(result(*more, **named), model(*more, **named))
    assert list(result.state_dict()) == list(model.state_dict())
    assert not targets(result).keys() & {"chunk", "split", "unbind"}
    Shapes(result).run(*tensors((args, kwargs)))


@pytest.mark.parametrize("name", ["fused_attention", "chunked_attention", "padded_residual"])
def test_canonical_forms_train_copy_and_export(name: str) -> None:
    model, args, kwargs = build(name)
    result = canonicalize(capture(model, args, kwargs).module)
    twin = copy.deepcopy(result)
    assert_same(twin(*args, **kwargs), model(*args, **kwargs))
    again = torch.export.export(twin, args, kwargs, strict=False).module()
    assert_same(again(*args, **kwargs), model(*args, **kwargs))
    sum(output.sum() for output in tensors(result.train()(*args, **kwargs))).backward()  # type: ignore[union-attr]
    assert all(parameter.grad is not None for parameter in result.parameters())


@pytest.mark.parametrize("rewrite", REWRITES)
def test_applying_a_rewrite_again_changes_nothing(rewrite: Rewrite) -> None:
    for name in ("fused_attention", "rotary_grouped_attention", "interleaved_attention"):
        model, args, kwargs = build(name)
        module = capture(model, args, kwargs).module
        apply(rewrite, module)
        code = module.code
        apply(rewrite, module)
        assert module.code == code


def test_the_module_given_is_not_changed() -> None:
    model, args, kwargs = build("fused_attention")
    module = capture(model, args, kwargs).module
    code = module.code
    result = canonicalize(module)
    assert module.code == code != result.code
    assert result.get_parameter("qkv.weight") is module.get_parameter("qkv.weight")


def test_a_module_changed_by_a_pass_is_refused() -> None:
    x = torch.randn(2, 4)
    module = traced(lambda x: (x * 2).chunk(2, 1), x)
    for node in module.graph.find_nodes(op="call_function", target=aten.mul.Tensor):
        node.meta["val"] = TensorMeta((2, 4), torch.float32)
    with pytest.raises(FxCompressError, match="before any pass"):
        canonicalize(module)


def test_parameters_are_read_where_they_are_used() -> None:
    model, args, kwargs = build("mlp")
    module = capture(model, args, kwargs).module
    sunk = canonicalize(module)
    order = [node.op for node in sunk.graph.nodes if node.op in ("get_attr", "call_function")]
    assert order[: order.index("call_function")] == ["get_attr"] * 2
    assert sink_parameters(sunk) == 0
    assert torch.equal(sunk(*args), module(*args))
