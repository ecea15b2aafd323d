"""Rules of ops that make tensors from sizes or like another, and of ops that are not understood."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from fxcompress.axes.expressions import Axes, Expr
from fxcompress.graph.metadata import dynamic_dims, example_shape
from fxcompress.graph.schema import arguments, packet_of, position
from fxcompress.rules.context import Context, Output
from fxcompress.rules.registry import axis_rule, name_of
from fxcompress.rules.responses import response

CONSIDERED = {
    "aten::_grouped_mm": "its kernels want rows of whole 16 bytes",
    "aten::bincount": "counts values",
    "aten::bucketize": "compares with every boundary",
    "aten::histc": "counts values",
    "aten::masked_select": "reads by a mask",
    "aten::multinomial": "draws indices",
    "aten::nonzero": "yields indices",
    "aten::searchsorted": "compares with every boundary",
}
"""Ops whose result depends on where or how often values stand: they freeze what they read."""


@axis_rule(
    "aten::arange", "aten::eye", "aten::linspace", "aten::logspace", "aten::rand", "aten::randint",
    "aten::randn", "aten::randperm", "aten::scalar_tensor", "aten::tril_indices",
    "aten::triu_indices",
)  # fmt: skip
def _numbered(ctx: Context, node: fx.Node) -> Axes:
    """Every index has a value of its own."""
    return ctx.opaque(node, f"made by {node.name} from fixed sizes")


@axis_rule(
    "aten::empty", "aten::full", "aten::new_empty", "aten::new_full", "aten::new_ones",
    "aten::new_zeros", "aten::ones", "aten::zeros",
)  # fmt: skip
def _uniform(ctx: Context, node: fx.Node) -> Axes:
    """One value everywhere: each axis may shrink, and the size it was asked for with it."""
    sizes = arguments(node)["size"]
    dynamic = dynamic_dims(node)
    out: list[Expr] = []
    for number, (asked, size) in enumerate(zip(sizes, ctx.shape(node), strict=True)):
        if isinstance(asked, int) and number not in dynamic:
            out.append(ctx.space.fresh(size, f"{node.name}.{number}"))
            ctx.bind(node, (position(node, "size"), number), out[-1])
        else:
            out.append(ctx.fixed(size, node, "a size that follows the inputs"))
    _filled(ctx, node, out)
    return tuple(out)


def _filled(ctx: Context, node: fx.Node, axes: Iterable[Expr]) -> None:
    """Anything but zeros is a constant to add: no linear map, and not zero where masked."""
    if response(ctx, node, frozenset()) != "zero":
        ctx.nonlinearity(axes, node, packet_of(node))
        ctx.set_nonzero(node, axes)
    else:
        ctx.set_nonzero(node, ())


@axis_rule(
    "aten::empty_like", "aten::full_like", "aten::ones_like", "aten::rand_like",
    "aten::randn_like", "aten::zeros_like",
)  # fmt: skip
def _like(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    _filled(ctx, node, axes)
    return axes


@axis_rule("aten::tril", "aten::triu")
def _triangle(ctx: Context, node: fx.Node) -> Axes:
    """Cut by index."""
    axes = ctx.of(node.args[0])
    ctx.freeze(axes[-2:], node, "a triangle is cut by index")
    return axes


@axis_rule("aten::broadcast_tensors", "aten::meshgrid")
def _grids(ctx: Context, node: fx.Node) -> Output:
    """All outputs have the same axes: those of all operands, one after the other or broadcast."""
    named = arguments(node)
    operands = [ctx.of(operand) for operand in named["tensors"]]
    if "meshgrid" not in str(node.target):
        out = ctx.broadcast(operands, node)
        ctx.nonlinearity(out, node, "copies")
        ctx.set_nonzero(node, out)
        return (out,) * len(operands)
    axes = [axes[0] if axes else ctx.fixed(1, node, "a point") for axes in operands]
    if named.get("indexing", "ij") == "xy":
        axes[:2] = axes[1::-1]
    ctx.nonlinearity(axes, node, "copies")
    ctx.set_nonzero(node, axes)
    return (tuple(axes),) * len(operands)


@axis_rule(*CONSIDERED)
def _considered(ctx: Context, node: fx.Node) -> Output:
    return frozen(ctx, node, CONSIDERED[str(node.target._schema.name)])  # type: ignore[union-attr]


def unknown(ctx: Context, node: fx.Node) -> Output:
    """An op without a rule: nothing that touches it may shrink, and the report names it."""
    ctx.unknown[name_of(node.target)].append(node.name)
    return frozen(ctx, node, f"no axis rule for {node.target}")


def frozen(ctx: Context, node: fx.Node, words: str) -> Output:
    """Freeze the operands; fixed axes for whatever `node` yields."""
    for operand in node.all_input_nodes:
        for axes in ctx.each(operand) if operand in ctx.axes else ():
            ctx.freeze(axes, node, words)
    value = node.meta.get("val")
    if isinstance(value, (tuple, list)):
        return tuple(_fixed(ctx, node, item, words) for item in value)
    return _fixed(ctx, node, value, words)


def _fixed(ctx: Context, node: fx.Node, value: Any, words: str) -> Axes:
    shape = example_shape(value) if hasattr(value, "shape") else ()
    return tuple(ctx.fixed(size, node, words) for size in shape)
