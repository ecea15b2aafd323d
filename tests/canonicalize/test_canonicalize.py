from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from fxcompress.canonicalize import REWRITES, Rewrite, apply, canonicalize
from fxcompress.canonicalize.constants import fold_constants
from fxcompress.canonicalize.fused import separate_fused_axes
from fxcompress.canonicalize.order import sink_parameters
from fxcompress.canonicalize.ranges import separate_fused_ranges, spell_out_ranges
from fxcompress.canonicalize.spelling import (
    drop_aliases,
    pin_attention_scale,
    spell_out_integer_rsub,
    spell_out_splits,
    spell_out_squeezes,
)
from fxcompress.capture import capture
from fxcompress.errors import FxCompressError
from fxcompress.graph.captured import CapturedModule, aten, clone_graph
from fxcompress.graph.metadata import TensorMeta, shape_of
from models import MODELS, build, rebatch, tensors


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def assert_same(left: object, right: object) -> None:
    assert type(left) is type(right)
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def traced(function: Callable[..., Any] | nn.Module, *args: Tensor) -> CapturedModule:
    model = function if isinstance(function, nn.Module) else Apply(function)
    return capture(model, args).module


def targets(module: CapturedModule) -> Counter[str]:
    calls = (node for node in module.graph.nodes if node.op == "call_function")
    return Counter(getattr(node.target, "__name__", "").split(".")[0] for node in calls)


def check(rewrite: Rewrite, module: CapturedModule, *args: Tensor) -> int:
    """Apply a rewrite to a copy and compare bits, values of new nodes included; give the count."""
    before = clone_graph(module)
    count = apply(rewrite, module)
    for batch in (args[0].shape[0], args[0].shape[0] + 1):
        inputs = rebatch(args, batch)
        assert_same(module(*copy.deepcopy(inputs)), before(*copy.deepcopy(inputs)))
    Shapes(module).run(*args)
    return count


class Shapes(fx.Interpreter):
    """Compares every value with what its node says of it."""

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        if isinstance(result, Tensor):
            value = node.meta["val"]
            assert shape_of(node) == result.shape, node
            assert value.dtype == result.dtype, node
            for dim, stride in enumerate(value.stride()):
                given = stride if isinstance(stride, int) else stride.node.hint
                assert given == result.stride()[dim] or result.shape[dim] == 1, node
        return result


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
