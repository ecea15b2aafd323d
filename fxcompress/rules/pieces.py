"""Rules of ops that join axes: cat, stack, pad, scatter into a piece."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torch import fx

from fxcompress.axes.expressions import Axes, Expr, concat
from fxcompress.graph.metadata import dynamic_dims
from fxcompress.graph.schema import arguments, position
from fxcompress.rules.context import Context, Output
from fxcompress.rules.create import frozen
from fxcompress.rules.registry import axis_rule


@axis_rule("aten::cat", "aten::concat", "aten::concatenate")
def _cat(ctx: Context, node: fx.Node) -> Axes:
    """The joined axis is a concatenation, every other axis is the same axis in all operands."""
    named = arguments(node)
    tensors = [operand for operand in named["tensors"] if ctx.shape(operand) != (0,)]
    operands = [ctx.of(operand) for operand in tensors]
    if not operands:
        return ctx.opaque(node, "nothing is joined")
    dim = named["dim"] % len(operands[0])
    others = [axes[:dim] + axes[dim + 1 :] for axes in operands]
    out = list(ctx.broadcast(others, node))
    out.insert(dim, concat(ctx.space.resolve(axes[dim]) for axes in operands))
    for operand, axes in zip(tensors, operands, strict=True):
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


@axis_rule("aten::constant_pad_nd", "aten::pad")
def _pad(ctx: Context, node: fx.Node) -> Axes:
    """A padded channel axis is [zeros | axis | zeros]: the padding is channels too, and may shrink.

    Padding with anything but zeros keeps the axis as it is.
    """
    named = arguments(node)
    axes, amounts = list(ctx.of(named["self"])), named["pad"]
    place = position(node, "pad")
    zeros = named.get("mode", "constant") == "constant" and not named.get("value")
    dynamic = dynamic_dims(node)
    for number in range(len(amounts) // 2):
        dim = len(axes) - 1 - number
        before, after = amounts[2 * number : 2 * number + 2]
        if before == 0 and after == 0:
            continue
        if zeros and dim not in dynamic and _whole(before, after):
            axes[dim] = _padded(ctx, node, axes[dim], (before, after), (place, 2 * number))
        else:
            ctx.freeze(axes[dim], node, "padded")
            axes[dim] = ctx.fixed(ctx.shape(node)[dim], node, "padded")
    if not zeros:
        ctx.nonlinearity(axes, node, "padding with a number")
        ctx.set_nonzero(node, axes)
    return tuple(axes)


def _whole(*amounts: Any) -> bool:
    return all(isinstance(amount, int) and amount >= 0 for amount in amounts)


def _padded(
    ctx: Context, node: fx.Node, expr: Expr, amounts: Sequence[int], path: tuple[int | str, int]
) -> Expr:
    zeros = []
    for side, amount in enumerate(amounts):
        part = ctx.space.fresh(amount, f"{node.name}.{side}") if amount else concat(())
        ctx.bind(node, (path[0], path[1] + side), part)
        ctx.follow(part, expr, node)
        zeros.append(part)
    return concat((zeros[0], expr, zeros[1]))


@axis_rule(operator.getitem)
def _getitem(ctx: Context, node: fx.Node) -> Output:
    """One of several results; no rule yields results within results."""
    if isinstance(node.meta.get("val"), (tuple, list)):
        return frozen(ctx, node, "several results within a result")
    source, number = node.args[:2]
    return ctx.axes[source][number]  # type: ignore[index, return-value]
