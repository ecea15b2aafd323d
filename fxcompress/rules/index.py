"""Rules of ops that read or write by index: embedding, indexing, gather, scatter."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from fxcompress.axes.expressions import UNIT, Axes, Expr
from fxcompress.graph.metadata import dtype_of
from fxcompress.graph.schema import arguments, packet_of
from fxcompress.rules.context import Context
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.registry import RULES, axis_rule

RULES["aten::embedding"] = NotationRule(
    "v c, *b -> *b c",
    frozen={"v": "vocabulary: rows are read by index"},
    roles={0: "table"},
    beside=(1,),
)


def _places(ctx: Context, node: fx.Node) -> tuple[list[int], Axes, int] | None:
    """(the indexed dims, the axes that stand for them, where); None for a mask."""
    axes = ctx.of(node.args[0])
    indices: list[Any] = list(node.args[1])  # type: ignore[arg-type]
    given = [index for index in indices if index is not None]
    if any(dtype_of(index) in (torch.bool, torch.uint8) for index in given):
        for own in (axes, *map(ctx.of, given)):
            ctx.freeze(own, node, "masked indexing")
        return None
    places = [dim for dim, index in enumerate(indices) if index is not None]
    ctx.freeze((axes[dim] for dim in places), node, "read by index")
    read = ctx.broadcast([ctx.of(index) for index in given], node)
    adjacent = places == list(range(places[0], places[-1] + 1)) if places else True
    return places, read, places[0] if places and adjacent else 0


def _indexed(axes: Axes, found: tuple[list[int], Axes, int]) -> Axes:
    """The axes of what is read: those that stay, and the index's own in place of the others."""
    places, read, at = found
    rest = tuple(expr for dim, expr in enumerate(axes) if dim not in places)
    return rest[:at] + read + rest[at:]


def _masked(ctx: Context, node: fx.Node) -> Axes | None:
    """The axes of what a single mask reads: an axis of its own in place of those it covers."""
    axes, indices = ctx.of(node.args[0]), list(node.args[1])  # type: ignore[arg-type]
    given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(given) != 1 or dtype_of(given[0][1]) != torch.bool:
        return None
    ((dim, mask),) = given
    covered = ctx.of(mask)
    ctx.freeze((*axes[dim : dim + len(covered)], *covered), node, "read by a mask")
    found = ctx.fixed(ctx.shape(node)[dim], node, "as many as a mask finds")
    return (*axes[:dim], found, *axes[dim + len(covered) :])


@axis_rule("aten::_unsafe_index", "aten::index")
def _index(ctx: Context, node: fx.Node) -> Axes:
    """Indexed axes are read by index; the others stay, and the index's axes come in."""
    masked = _masked(ctx, node)
    if masked is not None:
        return masked
    found = _places(ctx, node)
    if found is None:
        return ctx.opaque(node, "masked indexing")
    ctx.set_nonzero(node, (*ctx.nonzero_factors(node.args[0]), *found[1]))
    return _indexed(ctx.of(node.args[0]), found)


@axis_rule("aten::index_put", "aten::_unsafe_index_put")
def _index_put(ctx: Context, node: fx.Node) -> Axes:
    """The values have the axes that reading would give, or broadcast to them."""
    axes, values = ctx.of(node.args[0]), ctx.of(node.args[2])
    found = _places(ctx, node)
    if found is None:
        ctx.freeze(values, node, "masked indexing")
    else:
        ctx.freeze(found[1], node, "written by index")
        ctx.broadcast([_indexed(axes, found), values], node)
        ctx.set_nonzero(
            node, (*ctx.nonzero_factors(node.args[0]), *_unlike(ctx, axes, node.args[2]))
        )
    return tuple(map(ctx.space.resolve, axes))


def _unlike(ctx: Context, axes: Axes, value: Any) -> frozenset[Any]:
    """The factors of `axes` along which `value`, once written there, may not be zero."""
    return ctx.factors(axes) - (ctx.factors(ctx.of(value)) - ctx.nonzero_factors(value))


@axis_rule("aten::index_select")
def _index_select(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = ctx.of(named["self"])
    if not axes:
        return axes
    dim = named["dim"] % len(axes)
    ctx.freeze(axes[dim], node, "read by index")
    index = ctx.of(named["index"]) or (UNIT,)
    ctx.set_nonzero(node, (*ctx.nonzero_factors(named["self"]), *index))
    return (*axes[:dim], *index, *axes[dim + 1 :])


@axis_rule("aten::gather", "aten::take_along_dim")
def _gather(ctx: Context, node: fx.Node) -> Axes:
    """Every axis but the read one lines up with the index tensor's where the sizes agree."""
    named = arguments(node)
    axes = ctx.of(named["self"])
    index = ctx.of(named["index" if "index" in named else "indices"])
    if named["dim"] is None or len(axes) != len(index):
        ctx.freeze((*axes, *index), node, "read by index")
        return ctx.opaque(node, "read by index")
    dim = named["dim"] % max(len(axes), 1)
    broadcasts = "indices" in named
    out = list(_lined_up(ctx, node, (axes, index), dim, broadcasts))
    if axes:
        ctx.freeze(axes[dim], node, "read by index")
        out[dim] = index[dim]
    ctx.set_nonzero(node, (*ctx.nonzero_factors(named["self"]), *out[dim : dim + 1]))
    return tuple(map(ctx.space.resolve, out))


def _lined_up(
    ctx: Context, node: fx.Node, pair: tuple[Axes, Axes], dim: int, broadcasts: bool = False
) -> Axes:
    """Tie the axes of a tensor and of its index but for one; the result has the index's sizes."""
    out: list[Expr] = []
    for place, (own, other) in enumerate(zip(*pair, strict=True)):
        if place == dim:
            out.append(other)
        elif own.size == other.size or (broadcasts and 1 in (own.size, other.size)):
            out.extend(ctx.broadcast([(own,), (other,)], node))
        else:
            ctx.entangle(node, own, other)
            out.append(other)
    return tuple(out)


@axis_rule("aten::scatter", "aten::scatter_add", "aten::scatter_reduce")
def _scatter(ctx: Context, node: fx.Node) -> Axes:
    """Written by index along one axis; the index and the source line up along the others."""
    named = arguments(node)
    axes = ctx.of(named["self"])
    operands = [named["index"], *(named[n] for n in ("src",) if ctx.tensor(named.get(n)))]
    dim = named["dim"] % max(len(axes), 1)
    for operand in operands:
        own = ctx.of(operand)
        if len(own) == len(axes) > 0:
            _lined_up(ctx, node, (axes, own), dim)
            ctx.freeze((axes[dim], own[dim]), node, "written by index")
    if len(operands) == 1 or packet_of(node) == "aten::scatter_reduce":
        ctx.nonlinearity(axes, node, packet_of(node))
    ctx.set_nonzero(node, axes)
    return tuple(map(ctx.space.resolve, axes))


@axis_rule("aten::index_add", "aten::index_copy", "aten::index_fill", "aten::index_reduce")
def _index_add(ctx: Context, node: fx.Node) -> Axes:
    """Slices along one axis are written by index; the source has them along the same axis."""
    named = arguments(node)
    axes = ctx.of(named["self"])
    if axes:
        dim = named["dim"] % len(axes)
        ctx.freeze((axes[dim], *ctx.of(named["index"])), node, "written by index")
        if "source" in named and ctx.of(named["source"]):
            source = ctx.of(named["source"])
            ctx.freeze(source[dim], node, "written by index")
            _lined_up(ctx, node, (axes, source), dim)
    if packet_of(node) in ("aten::index_fill", "aten::index_reduce"):
        ctx.nonlinearity(axes, node, packet_of(node))
    ctx.set_nonzero(node, axes)
    return tuple(map(ctx.space.resolve, axes))


@axis_rule("aten::select_scatter", "aten::slice_scatter")
def _piece_scatter(ctx: Context, node: fx.Node) -> Axes:
    """A source in the place of one index, or of a contiguous piece, of an axis."""
    named = arguments(node)
    axes, source = ctx.of(named["self"]), ctx.of(named["src"])
    dim = named["dim"] % len(axes)
    rest = axes[:dim] + axes[dim + 1 :]
    ctx.freeze(axes[dim], node, "written by index")
    if "index" in named:
        ctx.broadcast([rest, source], node)
    else:
        ctx.freeze(source[dim], node, "written by index")
        ctx.broadcast([rest, source[:dim] + source[dim + 1 :]], node)
    ctx.set_nonzero(node, (*ctx.nonzero_factors(named["self"]), *_unlike(ctx, rest, named["src"])))
    return tuple(map(ctx.space.resolve, axes))


@axis_rule("aten::one_hot")
def _one_hot(ctx: Context, node: fx.Node) -> Axes:
    """The classes are values."""
    axes = ctx.of(node.args[0])
    out = (*axes, ctx.fixed(ctx.shape(node)[-1], node, "classes"))
    ctx.set_nonzero(node, out)
    return out
