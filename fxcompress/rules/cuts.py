"""Rules of ops that cut axes: split, slice, select, unbind, narrow."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from torch import fx

from fxcompress.axes.expressions import UNIT, Axes, Expr, concat
from fxcompress.graph.metadata import example_shape
from fxcompress.graph.schema import arguments, position
from fxcompress.rules.context import Context, Output
from fxcompress.rules.registry import axis_rule


@axis_rule("aten::split_with_sizes", "aten::split_with_sizes_copy", "aten::split.sizes")
def _split_with_sizes(ctx: Context, node: fx.Node) -> Output:
    """Every piece is a part of a concatenation with a size of its own."""
    axes, dim = _along(ctx, node)
    parts = ctx.cut(axes[dim], _sizes(node, dim), node)
    name = "split_sizes" if "split_sizes" in arguments(node) else "split_size"
    for number, part in enumerate(parts):
        ctx.bind(node, (position(node, name), number), part)
    return _pieces(ctx, axes, dim, parts)


@axis_rule("aten::chunk", "aten::split", "aten::tensor_split.sections", "aten::unsafe_chunk")
def _split(ctx: Context, node: fx.Node) -> Output:
    """Equal pieces by one size or count: the pieces must stay equal."""
    axes, dim = _along(ctx, node)
    parts = ctx.cut(axes[dim], _sizes(node, dim), node)
    if "split_size" in arguments(node):
        ctx.bind(node, (position(node, "split_size"),), parts[0])
    for part in parts[1:]:
        if part.size == parts[0].size:
            ctx.unify(parts[0], part, node)
        else:
            ctx.entangle(node, parts[0], part)
    return _pieces(ctx, axes, dim, parts)


@axis_rule("aten::tensor_split.indices")
def _tensor_split(ctx: Context, node: fx.Node) -> Output:
    """Every piece ends where an index says."""
    axes, dim = _along(ctx, node)
    bounds = [0, *arguments(node)["indices"], axes[dim].size]
    if any(after < before for before, after in pairwise(bounds)):
        ctx.freeze(axes[dim], node, "split at indices that are not in order")
        parts = tuple(ctx.fixed(size, node, "split") for size in _sizes(node, dim))
        return _pieces(ctx, axes, dim, parts)
    parts = ctx.cut(axes[dim], _sizes(node, dim), node)
    for number in range(len(parts) - 1):
        ctx.bind(node, (position(node, "indices"), number), concat(parts[: number + 1]))
    return _pieces(ctx, axes, dim, parts)


def _along(ctx: Context, node: fx.Node) -> tuple[Axes, int]:
    named = arguments(node)
    axes = ctx.of(named["self"])
    return axes, named["dim"] % max(len(axes), 1)


def _sizes(node: fx.Node, dim: int) -> list[int]:
    return [example_shape(value)[dim] for value in node.meta["val"]]


def _pieces(ctx: Context, axes: Axes, dim: int, parts: Axes) -> Output:
    return tuple((*axes[:dim], ctx.space.resolve(part), *axes[dim + 1 :]) for part in parts)


@axis_rule("aten::unbind")
def _unbind(ctx: Context, node: fx.Node) -> Output:
    axes, dim = _along(ctx, node)
    ctx.freeze(axes[dim], node, "unbound into single tensors")
    return tuple(axes[:dim] + axes[dim + 1 :] for _ in range(axes[dim].size))


@axis_rule("aten::select")
def _select(ctx: Context, node: fx.Node) -> Axes:
    axes, dim = _along(ctx, node)
    ctx.freeze(axes[dim], node, "one index of it is selected")
    return axes[:dim] + axes[dim + 1 :]


@axis_rule("aten::slice")
def _slice(ctx: Context, node: fx.Node) -> Axes:
    """A contiguous piece is a part of a concatenation; every n-th index the outer of (outer n)."""
    axes, dim = _along(ctx, node)
    piece = _piece(ctx, node, axes[dim], ctx.shape(node)[dim])
    return (*axes[:dim], piece, *axes[dim + 1 :])


def _piece(ctx: Context, node: fx.Node, expr: Expr, size: int) -> Expr:
    named = arguments(node)
    start, end = (_bound(named[name], expr.size) for name in ("start", "end"))
    start = 0 if named["start"] is None else start
    end = expr.size if named["end"] is None else end
    if start is None or end is None:
        ctx.freeze(expr, node, "sliced at a computed index")
        return ctx.fixed(size, node, "a slice at a computed index")
    if named["step"] != 1:
        return _strided(ctx, node, expr, (start, end, named["step"]))
    if size == expr.size:
        return expr
    if size == 0:
        ctx.freeze(expr, node, "an empty slice")
        return ctx.fixed(0, node, "an empty slice")
    left, middle, right = ctx.cut(expr, (start, size, expr.size - start - size), node)
    _bind_bound(ctx, node, "start", left, concat((middle, right)))
    _bind_bound(ctx, node, "end", concat((left, middle)), right)
    return middle


def _bind_bound(ctx: Context, node: fx.Node, name: str, before: Expr, after: Expr) -> None:
    """A bound counts the indices before it; a negative one those after it."""
    value = arguments(node)[name]
    if value is not None and value < 0:
        ctx.bind(node, (position(node, name),), after, sign=-1)
    elif value is not None:
        ctx.bind(node, (position(node, name),), before)


def _bound(value: Any, size: int) -> int | None:
    """A bound of a slice as an index in the axis; None where it is computed."""
    if not isinstance(value, int):
        return None
    return max(0, min(size, value + size if value < 0 else value))


def _strided(ctx: Context, node: fx.Node, expr: Expr, window: tuple[int, int, int]) -> Expr:
    """Every n-th index of the whole axis (outer n) takes one of n; any other stride is an index."""
    start, end, step = window
    size = len(range(start, end, step))
    if end != expr.size or start >= step or expr.size % step:
        ctx.freeze(expr, node, "strided slice")
        return ctx.fixed(size, node, "strided slice")
    outer, inner = ctx.split(expr, (size, step), node)
    ctx.freeze(inner, node, "one of it is taken by a strided slice")
    _bind_bound(ctx, node, "end", expr, UNIT)
    return outer


@axis_rule("aten::narrow")
def _narrow(ctx: Context, node: fx.Node) -> Axes:
    axes, dim = _along(ctx, node)
    named = arguments(node)
    start, length = _bound(named["start"], axes[dim].size), named["length"]
    if start is None or not isinstance(length, int):
        ctx.freeze(axes[dim], node, "narrowed at a computed index")
        piece = ctx.fixed(ctx.shape(node)[dim], node, "narrowed at a computed index")
        return (*axes[:dim], piece, *axes[dim + 1 :])
    rest = axes[dim].size - start - length
    left, middle, right = ctx.cut(axes[dim], (start, length, rest), node)
    _bind_bound(ctx, node, "start", left, concat((middle, right)))
    ctx.bind(node, (position(node, "length"),), middle)
    return (*axes[:dim], middle, *axes[dim + 1 :])
