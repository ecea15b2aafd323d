"""Rules of ops that join and cut axes: cat, stack, split, slice, select, unbind, pad."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from fxcompress.axes import Axes, Expr, concat
from fxcompress.graph import dynamic_dims, example_shape
from fxcompress.rules.context import Context, Output, arguments, position
from fxcompress.rules.registry import axis_rule


@axis_rule("aten::cat", "aten::concat", "aten::concatenate")
def _cat(ctx: Context, node: fx.Node) -> Axes:
    """The joined axis is a concatenation, every other axis is the same axis in all operands."""
    named = arguments(node)
    operands = [
        ctx.of(operand)
        for operand in named["tensors"]
        if ctx.of(operand) and 0 not in ctx.shape(operand)
    ]
    dim = named["dim"] % len(operands[0])
    others = [axes[:dim] + axes[dim + 1 :] for axes in operands]
    out = list(ctx.broadcast(others, node))
    out.insert(dim, concat(axes[dim] for axes in operands))
    for operand, axes in zip(named["tensors"], operands, strict=False):
        for place, expr in enumerate(axes):
            ctx.role(expr, operand, "affine", place)
    return tuple(out)


@axis_rule("aten::stack")
def _stack(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    out = list(ctx.broadcast([ctx.of(operand) for operand in named["tensors"]], node))
    dim = named["dim"] % (len(out) + 1)
    out.insert(dim, ctx.fixed(len(named["tensors"]), node, "stacked tensors"))
    return tuple(out)


@axis_rule("aten::split_with_sizes", "aten::split_with_sizes_copy")
def _split_with_sizes(ctx: Context, node: fx.Node) -> Output:
    named = arguments(node)
    axes = ctx.of(named["self"])
    dim = named["dim"] % len(axes)
    parts = ctx.cut(axes[dim], named["split_sizes"], node)
    place = position(node, "split_sizes")
    for number, part in enumerate(parts):
        ctx.bind(node, (place, number), part)
    return tuple((*axes[:dim], part, *axes[dim + 1 :]) for part in parts)


@axis_rule("aten::split", "aten::chunk", "aten::tensor_split")
def _split(ctx: Context, node: fx.Node) -> Output:
    """Equal pieces by one size or count: the pieces must stay equal."""
    named = arguments(node)
    axes = ctx.of(named["self"])
    dim = named["dim"] % len(axes)
    sizes = [example_shape(value)[dim] for value in node.meta["val"]]
    parts = ctx.cut(axes[dim], sizes, node)
    if isinstance(named.get("split_size"), int):
        ctx.bind(node, (position(node, "split_size"),), parts[0])
    for part in parts[1:]:
        if part.size == parts[0].size:
            ctx.unify(parts[0], part, node)
        else:
            ctx.entangle(node, parts[0], part)
    return tuple((*axes[:dim], ctx.space.resolve(part), *axes[dim + 1 :]) for part in parts)


@axis_rule("aten::unbind")
def _unbind(ctx: Context, node: fx.Node) -> Output:
    named = arguments(node)
    axes = ctx.of(named["self"])
    dim = named["dim"] % len(axes)
    ctx.freeze(axes[dim], node, "unbound into single tensors")
    return tuple(axes[:dim] + axes[dim + 1 :] for _ in range(axes[dim].size))


@axis_rule("aten::select")
def _select(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = ctx.of(named["self"])
    dim = named["dim"] % len(axes)
    ctx.freeze(axes[dim], node, "one index of it is selected")
    return axes[:dim] + axes[dim + 1 :]


@axis_rule("aten::slice")
def _slice(ctx: Context, node: fx.Node) -> Axes:
    """A contiguous piece of an axis is a part of a concatenation; a strided one is an index."""
    named = arguments(node)
    axes = ctx.of(named["self"])
    dim = named["dim"] % len(axes)
    expr, size = axes[dim], ctx.shape(node)[dim]
    if named["step"] != 1:
        return (*axes[:dim], _strided(ctx, node, expr, named, size), *axes[dim + 1 :])
    if size == expr.size:
        return axes
    start, end = _bounds(named, expr.size)
    if start is None or end is None:
        ctx.freeze(expr, node, "sliced at a computed index")
        return (*axes[:dim], ctx.fixed(size, node, "a slice at a computed index"), *axes[dim + 1 :])
    left, middle, _ = ctx.cut(expr, (start, end - start, expr.size - end), node)
    _bind_bound(ctx, node, "start", named["start"], left)
    _bind_bound(ctx, node, "end", named["end"], concat((left, middle)))
    return (*axes[:dim], middle, *axes[dim + 1 :])


def _strided(ctx: Context, node: fx.Node, expr: Expr, named: dict[str, Any], size: int) -> Expr:
    """Every n-th index: with n dividing the size, the axis is (size n) and one of n is taken."""
    ctx.freeze(expr, node, "strided slice")
    return ctx.fixed(size, node, "strided slice")


def _bounds(named: dict[str, Any], size: int) -> tuple[int | None, int | None]:
    ends: list[int | None] = []
    for value, default in ((named["start"], 0), (named["end"], size)):
        value = default if value is None else value
        if not isinstance(value, int):
            ends.append(None)
        else:
            ends.append(max(0, min(size, value + size if value < 0 else value)))
    return ends[0], ends[1]


def _bind_bound(ctx: Context, node: fx.Node, name: str, value: Any, expr: Expr) -> None:
    if value is not None:
        ctx.bind(node, (position(node, name),), expr)


@axis_rule("aten::narrow")
def _narrow(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = ctx.of(named["self"])
    dim, start, length = named["dim"] % len(axes), named["start"], named["length"]
    left, middle, _ = ctx.cut(axes[dim], (start, length, axes[dim].size - start - length), node)
    ctx.bind(node, (position(node, "start"),), left)
    ctx.bind(node, (position(node, "length"),), middle)
    return (*axes[:dim], middle, *axes[dim + 1 :])


@axis_rule(
    "aten::pad",
    "aten::constant_pad_nd",
    "aten::reflection_pad1d",
    "aten::reflection_pad2d",
    "aten::replication_pad2d",
)
def _pad(ctx: Context, node: fx.Node) -> Axes:
    """A padded channel axis is [zeros | axis | zeros]: the padding is channels too, and may shrink."""
    named = arguments(node)
    axes, amounts = list(ctx.of(named["self"])), named["pad" if "pad" in named else "padding"]
    place = position(node, "pad" if "pad" in named else "padding")
    zero = named.get("mode", "constant") == "constant" and "_pad_" not in str(node.target).replace(
        "constant_pad", ""
    )
    zero = zero and not named.get("value")
    dynamic = dynamic_dims(node)
    for number in range(len(amounts) // 2):
        dim = len(axes) - 1 - number
        before, after = amounts[2 * number : 2 * number + 2]
        if before == 0 and after == 0:
            continue
        if zero and dim not in dynamic and _whole(before, after):
            axes[dim] = _padded(ctx, node, axes[dim], (before, after), place, number)
        else:
            ctx.freeze(axes[dim], node, "padded")
            axes[dim] = ctx.fixed(ctx.shape(node)[dim], node, "padded")
    return tuple(axes)


def _whole(before: Any, after: Any) -> bool:
    return all(isinstance(amount, int) and amount >= 0 for amount in (before, after))


def _padded(
    ctx: Context, node: fx.Node, expr: Expr, amounts: Sequence[int], place: int | str, number: int
) -> Expr:
    zeros = []
    for side, amount in enumerate(amounts):
        part = ctx.space.fresh(amount, f"{node.name}.{side}") if amount else concat(())
        ctx.bind(node, (place, 2 * number + side), part)
        ctx.follow(part, expr, node)
        zeros.append(part)
    return concat((zeros[0], expr, zeros[1]))


@axis_rule(operator.getitem)
def _getitem(ctx: Context, node: fx.Node) -> Axes:
    source, number = node.args[:2]
    return ctx.axes[source][number]  # type: ignore[index, return-value]
