"""Rules of ops that only move elements: views, permutations, expansion, repetition, pixel shuffles."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxcompress.axes import UNIT, Axes, Expr, product
from fxcompress.graph import dynamic_dims
from fxcompress.rules.context import Context, arguments, dims, position
from fxcompress.rules.registry import axis_rule


def reshaped(ctx: Context, node: fx.Node, axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes of a row-major reshape: the product of all axes, split from the right."""
    whole = product(axes)
    return tuple(ctx.space.resolve(expr) for expr in ctx.split(whole, shape, node)) if shape else ()


def bind_list(ctx: Context, node: fx.Node, argument: str, axes: Sequence[Expr]) -> None:
    """Every entry of a list argument follows the size of its axis."""
    place = position(node, argument)
    for number, expr in enumerate(axes):
        ctx.bind(node, (place, number), expr)


@axis_rule("aten::view", "aten::reshape", "aten::_unsafe_view", "aten::unflatten")
def _view(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    out = reshaped(ctx, node, ctx.of(named["self"]), ctx.shape(node))
    name = "size" if "size" in named else "shape" if "shape" in named else "sizes"
    dim = named.get("dim", 0) % len(ctx.of(named["self"])) if name == "sizes" else 0
    bind_list(ctx, node, name, out[dim : dim + len(named[name])])
    return out


@axis_rule(
    "aten::flatten", "aten::squeeze", "aten::unsqueeze", "aten::ravel", "aten::squeeze_", "aten::unsqueeze_", "aten::view_as",
    "aten::reshape_as", "aten::atleast_1d",
)  # fmt: skip
def _flatten(ctx: Context, node: fx.Node) -> Axes:
    """Merges and unit axes; no argument holds a size."""
    out = reshaped(ctx, node, ctx.of(node.args[0]), ctx.shape(node))
    if len(node.all_input_nodes) == 2:
        return ctx.broadcast([out, ctx.of(node.args[1])], node)
    return out


@axis_rule("aten::permute")
def _permute(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    return tuple(axes[dim] for dim in dims(node, arguments(node)["dims"], len(axes)))


@axis_rule("aten::transpose", "aten::swapaxes", "aten::swapdims")
def _transpose(ctx: Context, node: fx.Node) -> Axes:
    axes = list(ctx.of(node.args[0]))
    first, second = dims(node, tuple(node.args[1:3]), len(axes))
    axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@axis_rule("aten::movedim")
def _movedim(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    source, target = (dims(node, value, len(axes)) for value in node.args[1:3])
    order = [dim for dim in range(len(axes)) if dim not in source]
    for place, dim in sorted(zip(target, source, strict=True)):
        order.insert(place, dim)
    return tuple(axes[dim] for dim in order)


@axis_rule("aten::t", "aten::numpy_T", "aten::mT", "aten::adjoint")
def _t(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    return axes[::-1] if "numpy_T" in str(node.target) else (*axes[:-2], *axes[-2:][::-1])


@axis_rule("aten::expand", "aten::expand_as")
def _expand(ctx: Context, node: fx.Node) -> Axes:
    """New copies are a factor of their own, whose number may shrink."""
    axes, shape = ctx.of(node.args[0]), ctx.shape(node)
    own = (UNIT,) * (len(shape) - len(axes)) + axes
    if str(node.target).startswith("aten.expand_as"):
        return ctx.broadcast([own, ctx.of(node.args[1])], node)
    fresh = ctx.free(node, "expanded to a size of the input")
    out = tuple(
        new if old.size == 1 and size > 1 else old
        for old, new, size in zip(own, fresh, shape, strict=True)
    )
    bind_list(ctx, node, "size", out)
    return out


@axis_rule("aten::repeat", "aten::tile")
def _repeat(ctx: Context, node: fx.Node) -> Axes:
    """(copies axis): the copies are a factor whose number may shrink."""
    axes, shape = ctx.of(node.args[0]), ctx.shape(node)
    own = (UNIT,) * (len(shape) - len(axes)) + axes
    dynamic = dynamic_dims(node)
    name = "repeats" if "repeats" in arguments(node) else "dims"
    out: list[Expr] = []
    for dim, (expr, size) in enumerate(zip(own, shape, strict=True)):
        count = size // expr.size
        copies = (
            ctx.fixed(count, node, "copies")
            if dim in dynamic
            else ctx.space.fresh(count, f"{node.name}.{dim}")
        )
        ctx.bind(node, (position(node, name), dim), copies)
        out.append(product((copies, expr)))
    return tuple(out)


@axis_rule("aten::repeat_interleave.self_int")
def _repeat_interleave(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = list(ctx.of(named["self"]))
    if named["dim"] is None:
        axes, dim = [product(axes)], 0
    else:
        dim = named["dim"] % len(axes)
    copies = ctx.space.fresh(ctx.shape(node)[dim] // axes[dim].size, node.name)
    ctx.bind(node, (position(node, "repeats"),), copies)
    axes[dim] = product((axes[dim], copies))
    return tuple(axes)


@axis_rule("aten::pixel_shuffle")
def _pixel_shuffle(ctx: Context, node: fx.Node) -> Axes:
    *lead, channel, height, width = ctx.of(node.args[0])
    factor = int(node.args[1])  # type: ignore[arg-type]
    units, down, right = ctx.split(channel, (channel.size // factor**2, factor, factor), node)
    ctx.freeze((down, right), node, "position inside an upscaled pixel")
    return (*lead, units, product((height, down)), product((width, right)))


@axis_rule("aten::pixel_unshuffle")
def _pixel_unshuffle(ctx: Context, node: fx.Node) -> Axes:
    *lead, channel, height, width = ctx.of(node.args[0])
    factor = int(node.args[1])  # type: ignore[arg-type]
    tall, down = ctx.split(height, (height.size // factor, factor), node)
    wide, right = ctx.split(width, (width.size // factor, factor), node)
    return (*lead, product((channel, down, right)), tall, wide)


@axis_rule("aten::channel_shuffle", "aten::native_channel_shuffle")
def _channel_shuffle(ctx: Context, node: fx.Node) -> Axes:
    batch, channel, *rest = ctx.of(node.args[0])
    groups = int(node.args[1])  # type: ignore[arg-type]
    outer, inner = ctx.split(channel, (groups, channel.size // groups), node)
    ctx.freeze(outer, node, "groups of a channel shuffle")
    return (batch, product((inner, outer)), *rest)


@axis_rule("aten::flip", "aten::roll", "aten::rot90")
def _flip(ctx: Context, node: fx.Node) -> Axes:
    """A reordered axis keeps no index where it was."""
    axes = ctx.of(node.args[0])
    moved = dims(node, arguments(node)["dims"], len(axes))
    ctx.freeze((axes[dim] for dim in moved), node, "reordered by index")
    return axes
