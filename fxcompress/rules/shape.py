"""Rules of ops that only give elements other indices: views, permutations, expansion, shuffles."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx

from fxcompress.axes.expressions import UNIT, Axes, Expr, product
from fxcompress.graph.metadata import dtype_of, dynamic_dims, example_shape
from fxcompress.graph.schema import arguments, dims, packet_of, position
from fxcompress.rules.context import Context, Output
from fxcompress.rules.create import unknown
from fxcompress.rules.registry import axis_rule


def reshaped(ctx: Context, node: fx.Node, axes: Axes, shape: Sequence[int]) -> Axes:
    """The axes of a row-major reshape.

    The axes are taken in the smallest blocks, from the right, that have as many elements as a block
    of the new sizes: (b 6 4) viewed as (b 8 3) entangles 6 and 4 but not b.
    """
    if 0 in shape:
        ctx.freeze(axes, node, "nothing in it")
        return ctx.opaque(node, "nothing in it")
    rows, sizes = list(axes), list(shape)
    out: list[Expr] = []
    while rows or sizes:
        block, wanted = [rows.pop()] if rows else [], [sizes.pop()] if sizes else []
        have, want = product(block).size, wanted[0] if wanted else 1
        while have != want and (rows if have < want else sizes):
            if have < want:
                block.insert(0, rows.pop())
                have *= block[0].size
            else:
                wanted.insert(0, sizes.pop())
                want *= wanted[0]
        out[:0] = ctx.split(product(block), wanted, node) if wanted else ()
    return tuple(map(ctx.space.resolve, out))


def bind_list(ctx: Context, node: fx.Node, argument: str, axes: Sequence[Expr]) -> None:
    """Every entry of a list argument follows the size of its axis."""
    place = position(node, argument)
    for number, expr in enumerate(axes):
        ctx.bind(node, (place, number), expr)


@axis_rule("aten::_unsafe_view", "aten::reshape", "aten::unflatten", "aten::view")
def _view(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = ctx.of(named["self"])
    out = reshaped(ctx, node, axes, ctx.shape(node))
    name = next(name for name in ("size", "shape", "sizes") if name in named)
    dim = named["dim"] % len(axes) if name == "sizes" else 0
    bind_list(ctx, node, name, out[dim : dim + len(named[name])])
    return out


@axis_rule("aten::view.dtype")
def _view_dtype(ctx: Context, node: fx.Node) -> Output:
    """Bits read as another type of the same width."""
    source = node.all_input_nodes[0]
    if dtype_of(source).itemsize != dtype_of(node).itemsize:
        return unknown(ctx, node)
    axes = ctx.of(source)
    ctx.nonlinearity(axes, node, "aten::view.dtype")
    return axes


@axis_rule(
    "aten::atleast_1d", "aten::atleast_2d", "aten::atleast_3d", "aten::flatten", "aten::ravel",
    "aten::reshape_as", "aten::squeeze", "aten::unsqueeze", "aten::view_as",
)  # fmt: skip
def _flatten(ctx: Context, node: fx.Node) -> Output:
    """Merges and unit axes; no argument holds a size.

    An axis that a squeeze leaves because of its size must keep it.
    """
    if isinstance(node.args[0], (list, tuple)):
        pairs = zip(node.args[0], node.meta["val"], strict=True)
        return tuple(reshaped(ctx, node, ctx.of(n), example_shape(value)) for n, value in pairs)
    if packet_of(node) == "aten::squeeze":
        axes, asked = ctx.of(node.args[0]), arguments(node).get("dim")
        named = () if asked == [] else dims(asked, len(axes))
        ctx.freeze((axes[dim] for dim in named), node, "a squeeze leaves it for its size")
    out = reshaped(ctx, node, ctx.of(node.args[0]), ctx.shape(node))
    if packet_of(node) in ("aten::reshape_as", "aten::view_as"):
        ctx.set_nonzero(node, ctx.nonzero_factors(node.args[0]))
        return ctx.broadcast([out, ctx.of(node.args[1])], node)
    return out


@axis_rule("aten::view_as_real")
def _view_as_real(ctx: Context, node: fx.Node) -> Axes:
    return (*ctx.of(node.args[0]), ctx.fixed(2, node, "real and imaginary part"))


@axis_rule("aten::view_as_complex")
def _view_as_complex(ctx: Context, node: fx.Node) -> Axes:
    *axes, parts = ctx.of(node.args[0])
    ctx.freeze(parts, node, "real and imaginary part")
    return tuple(axes)


@axis_rule("aten::permute")
def _permute(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    order = arguments(node)["dims"]
    return tuple(axes[dim] for dim in dims(order, len(axes))) if order else axes


@axis_rule("aten::swapaxes", "aten::swapdims", "aten::transpose")
def _transpose(ctx: Context, node: fx.Node) -> Axes:
    axes = list(ctx.of(node.args[0]))
    if axes:
        first, second = dims(node.args[1:3], len(axes))
        axes[first], axes[second] = axes[second], axes[first]
    return tuple(axes)


@axis_rule("aten::moveaxis", "aten::movedim")
def _movedim(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    if not axes:
        return axes
    source, target = (dims(value, len(axes)) if value != [] else () for value in node.args[1:3])
    order = [dim for dim in range(len(axes)) if dim not in source]
    for place, dim in sorted(zip(target, source, strict=True)):
        order.insert(place, dim)
    return tuple(axes[dim] for dim in order)


@axis_rule("aten::adjoint", "aten::mH", "aten::mT", "aten::numpy_T", "aten::t")
def _t(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    return axes[::-1] if packet_of(node) == "aten::numpy_T" else (*axes[:-2], *axes[-2:][::-1])


@axis_rule("aten::broadcast_to", "aten::expand", "aten::expand_as")
def _expand(ctx: Context, node: fx.Node) -> Axes:
    """New copies are a factor of their own, whose number may shrink."""
    axes, shape = ctx.of(node.args[0]), ctx.shape(node)
    own = (UNIT,) * (len(shape) - len(axes)) + axes
    if packet_of(node) == "aten::expand_as":
        out = ctx.broadcast([own, ctx.of(node.args[1])], node)
    else:
        fresh = ctx.free(node, "expanded to a size of the input")
        out = tuple(
            new if old.size == 1 and size != 1 else old
            for old, new, size in zip(own, fresh, shape, strict=True)
        )
        bind_list(ctx, node, "size", out)
    copies = [new for old, new in zip(own, out, strict=True) if old.size == 1]
    ctx.nonlinearity(copies, node, "copies")
    ctx.set_nonzero(node, (*ctx.nonzero_factors(node.args[0]), *copies))
    return out


@axis_rule("aten::repeat", "aten::tile")
def _repeat(ctx: Context, node: fx.Node) -> Axes:
    """(copies axis): the copies are a factor whose number may shrink."""
    axes, shape = ctx.of(node.args[0]), ctx.shape(node)
    own = (UNIT,) * (len(shape) - len(axes)) + axes
    name = "repeats" if "repeats" in arguments(node) else "dims"
    skipped = len(shape) - len(arguments(node)[name])
    dynamic = dynamic_dims(node)
    copies = [
        UNIT if dim < skipped else _copies(ctx, node, shape[dim] // max(expr.size, 1), dim, dynamic)
        for dim, expr in enumerate(own)
    ]
    bind_list(ctx, node, name, copies[skipped:])
    ctx.nonlinearity(copies, node, "copies")
    ctx.set_nonzero(node, (*ctx.nonzero_factors(node.args[0]), *copies))
    return tuple(product(pair) for pair in zip(copies, own, strict=True))


def _copies(ctx: Context, node: fx.Node, count: int, dim: int, dynamic: Collection[int]) -> Expr:
    if dim in dynamic or count == 0:
        return ctx.fixed(count, node, "copies")
    return ctx.space.fresh(count, f"{node.name}.{dim}")


@axis_rule("aten::repeat_interleave.self_int")
def _repeat_interleave(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = list(ctx.of(named["self"]))
    if named["dim"] is None:
        axes, dim = [product(axes)], 0
    else:
        dim = named["dim"] % len(axes)
    count = ctx.shape(node)[dim] // max(axes[dim].size, 1)
    copies = _copies(ctx, node, count, dim, dynamic_dims(node))
    ctx.bind(node, (position(node, "repeats"),), copies)
    axes[dim] = product((axes[dim], copies))
    if named["output_size"] is not None:
        ctx.bind(node, (position(node, "output_size"),), axes[dim])
    ctx.nonlinearity(copies, node, "copies")
    ctx.set_nonzero(node, (*ctx.nonzero_factors(named["self"]), copies))
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
    ctx.freeze((down, right), node, "position inside a pixel")
    return (*lead, product((channel, down, right)), tall, wide)


@axis_rule("aten::channel_shuffle", "aten::native_channel_shuffle")
def _channel_shuffle(ctx: Context, node: fx.Node) -> Axes:
    """(groups units) becomes (units groups)."""
    batch, channel, *rest = ctx.of(node.args[0])
    groups = int(node.args[1])  # type: ignore[arg-type]
    outer, inner = ctx.split(channel, (groups, channel.size // groups), node)
    ctx.bind(node, (1,), outer)
    return (batch, product((inner, outer)), *rest)


@axis_rule("aten::flip", "aten::roll")
def _flip(ctx: Context, node: fx.Node) -> Axes:
    """A reordered axis keeps no index where it was."""
    axes = ctx.of(node.args[0])
    moved = dims(arguments(node)["dims"], len(axes))
    ctx.freeze((axes[dim] for dim in moved if axes), node, "reordered by index")
    return axes
