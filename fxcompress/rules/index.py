"""Rules of ops that read by index: embedding, indexing, gather; and of ops that make tensors from sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcompress.axes import Axes, Expr
from fxcompress.graph import example_shape
from fxcompress.rules.context import Context, Output, arguments
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.registry import RULES, axis_rule

RULES["aten::embedding"] = NotationRule(
    "v c, *b -> *b c", frozen={"v": "vocabulary: rows are read by index"}, roles={0: "table"}
)


@axis_rule("aten::index", "aten::_unsafe_index")
def _index(ctx: Context, node: fx.Node) -> Axes:
    """Indexed axes are read by index; the others stay, and the index's axes come in."""
    axes = ctx.of(node.args[0])
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    if any(
        index is not None and index.meta["val"].dtype in (torch.bool, torch.uint8)
        for index in indices
    ):
        for index in (axes, *(ctx.of(i) for i in indices if i is not None)):
            ctx.freeze(index, node, "masked indexing")
        return ctx.opaque(node, "masked indexing")
    indices += [None] * (len(axes) - len(indices))
    places = [dim for dim, index in enumerate(indices) if index is not None]
    ctx.freeze((axes[dim] for dim in places), node, "read by index")
    read = ctx.broadcast([ctx.of(indices[dim]) for dim in places], node)
    adjacent = places == list(range(places[0], places[-1] + 1))
    out: list[Expr] = [axes[dim] for dim in range(len(axes)) if dim not in places]
    at = places[0] if adjacent else 0
    return tuple(out[:at]) + read + tuple(out[at:])


@axis_rule("aten::index_select")
def _index_select(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = ctx.of(named["self"])
    dim = named["dim"] % len(axes)
    ctx.freeze(axes[dim], node, "read by index")
    return (*axes[:dim], *ctx.of(named["index"]), *axes[dim + 1 :])


@axis_rule("aten::gather", "aten::take_along_dim")
def _gather(ctx: Context, node: fx.Node) -> Axes:
    """Every axis but the read one lines up with the index tensor's where the sizes agree."""
    named = arguments(node)
    axes = ctx.of(named["self"])
    index = ctx.of(named["index" if "index" in named else "indices"])
    dim = named["dim"] % len(axes)
    ctx.freeze(axes[dim], node, "read by index")
    for place, (own, other) in enumerate(zip(axes, index, strict=True)):
        if place == dim:
            continue
        if own.size == other.size:
            ctx.unify(own, other, node)
        else:
            ctx.entangle(node, own, other)
    return tuple(ctx.space.resolve(expr) for expr in index)


@axis_rule(
    "aten::arange", "aten::zeros", "aten::ones", "aten::full", "aten::empty", "aten::eye", "aten::rand", "aten::randn", "aten::linspace",
    "aten::scalar_tensor", "aten::tril_indices", "aten::triu_indices",
)  # fmt: skip
def _create(ctx: Context, node: fx.Node) -> Axes:
    """Made from sizes alone."""
    return ctx.opaque(node, f"made by {node.name} from fixed sizes")


@axis_rule("aten::new_zeros", "aten::new_ones", "aten::new_full", "aten::new_empty")
def _new(ctx: Context, node: fx.Node) -> Axes:
    return ctx.opaque(node, f"made by {node.name} from fixed sizes")


@axis_rule(
    "aten::zeros_like", "aten::ones_like", "aten::full_like", "aten::empty_like", "aten::rand_like", "aten::randn_like",
    "aten::tril", "aten::triu",
)  # fmt: skip
def _like(ctx: Context, node: fx.Node) -> Axes:
    """The axes of the operand; a triangle is cut by index."""
    axes = ctx.of(node.args[0])
    if "tri" in str(node.target):
        ctx.freeze(axes[-2:], node, "a triangle is cut by index")
    return axes


def unknown(ctx: Context, node: fx.Node) -> Output:
    """An op without a rule: nothing that touches it may shrink."""
    words = f"no axis rule for {node.target}"
    for operand in node.all_input_nodes:
        for axes in _tensors(ctx, operand):
            ctx.freeze(axes, node, words)
    return tensors(ctx, node, words)


def tensors(ctx: Context, node: fx.Node, words: str) -> Output:
    """Fixed axes for whatever `node` yields."""
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        shapes = [example_shape(item) if hasattr(item, "shape") else () for item in value]
        return tuple(tuple(ctx.fixed(size, node, words) for size in shape) for shape in shapes)
    return ctx.opaque(node, words) if hasattr(value, "shape") else ()


def _tensors(ctx: Context, node: fx.Node) -> list[Axes]:
    axes = ctx.axes.get(node)
    if axes is None:
        return []
    return list(axes) if ctx.many(node) else [ctx.of(node)]  # type: ignore[arg-type]
