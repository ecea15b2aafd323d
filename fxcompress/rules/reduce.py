"""Rules of reductions, sorting and running sums."""

from __future__ import annotations

from torch import fx

from fxcompress.axes.expressions import UNIT, Axes
from fxcompress.graph.metadata import example_shape
from fxcompress.graph.schema import arguments, dims, packet_of
from fxcompress.rules.context import Context, Output
from fxcompress.rules.registry import axis_rule
from fxcompress.rules.responses import response


def _reduced(ctx: Context, node: fx.Node) -> tuple[Axes, Axes]:
    """(the axes that a reduction runs over, the axes of its output)."""
    named = arguments(node)
    axes = ctx.of(node.args[0])
    over = dims(named.get("dim"), len(axes))
    gone = tuple(axes[dim] for dim in over)
    if named.get("keepdim", False):
        return gone, tuple(UNIT if dim in over else expr for dim, expr in enumerate(axes))
    return gone, tuple(expr for dim, expr in enumerate(axes) if dim not in over)


@axis_rule("aten::mean")
def _mean(ctx: Context, node: fx.Node) -> Axes:
    """A masked unit would count in it, a cut one does not; linear along the other axes."""
    gone, out = _reduced(ctx, node)
    ctx.over(gone, node, f"{node.name} runs over it")
    ctx.nonlinearity(gone, node, "aten::mean")
    return out


@axis_rule(
    "aten::all", "aten::amax", "aten::amin", "aten::logsumexp", "aten::prod", "aten::std",
    "aten::std_mean", "aten::var", "aten::var_mean",
)  # fmt: skip
def _statistic(ctx: Context, node: fx.Node) -> Output:
    """As a mean, but not linear along any axis."""
    gone, out = _reduced(ctx, node)
    ctx.over(gone, node, f"{node.name} runs over it")
    ctx.nonlinearity(ctx.of(node.args[0]), node, str(node.target))
    _mark_unless_zero(ctx, node, out)
    return (out, out) if isinstance(node.meta["val"], (tuple, list)) else out


def _mark_unless_zero(ctx: Context, node: fx.Node, axes: Axes) -> None:
    """Masked units are zero in the result only where the op makes zeros of zeros."""
    if response(ctx, node, frozenset(node.all_input_nodes)) != "zero":
        ctx.set_nonzero(node, axes)


@axis_rule("aten::any", "aten::sum")
def _sum(ctx: Context, node: fx.Node) -> Axes:
    """A sum of zeros is zero."""
    gone, out = _reduced(ctx, node)
    ctx.nonlinearity(gone, node, str(node.target))
    ctx.sums(node, gone, node.args[:1])
    return out


@axis_rule("aten::frobenius_norm", "aten::linalg_vector_norm", "aten::norm")
def _length(ctx: Context, node: fx.Node) -> Axes:
    """Zeros add nothing to a length, unless its order counts them or takes the smallest."""
    gone, out = _reduced(ctx, node)
    named = arguments(node)
    order = named.get("ord", named.get("p", 2))
    if order is None or (isinstance(order, (int, float)) and order > 0):
        ctx.sums(node, gone, node.args[:1])
    else:
        ctx.over(gone, node, f"{node.name} runs over it")
    ctx.nonlinearity(ctx.of(node.args[0]), node, str(node.target))
    return out


@axis_rule("aten::kthvalue", "aten::max", "aten::median", "aten::min", "aten::mode")
def _extreme(ctx: Context, node: fx.Node) -> Output:
    """Values and their indices over one dim; or one value over everything."""
    gone, out = _reduced(ctx, node)
    ctx.over(gone, node, f"{node.name} runs over it")
    ctx.nonlinearity(ctx.of(node.args[0]), node, str(node.target))
    if not isinstance(node.meta["val"], (tuple, list)):
        return out
    indices = [user for user in node.users if user.args[1:] == (1,)]
    ranked = not str(node.target).startswith(("aten.max", "aten.min"))
    if ranked or any(user.users for user in indices):
        ctx.freeze(gone, node, "its indices are values")
        ctx.set_nonzero(node, out)
    return out, out


@axis_rule("aten::argmax", "aten::argmin")
def _argmax(ctx: Context, node: fx.Node) -> Axes:
    """Yields indices of the axis, so the axis must keep them."""
    gone, out = _reduced(ctx, node)
    ctx.freeze(gone, node, "its indices are values")
    ctx.set_nonzero(node, out)
    return out


@axis_rule("aten::argsort", "aten::msort", "aten::sort", "aten::topk")
def _sorted(ctx: Context, node: fx.Node) -> Output:
    axes = list(ctx.of(node.args[0]))
    value = node.meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    if axes:
        dim = arguments(node).get("dim", 0) % len(axes)
        ctx.freeze(axes[dim], node, "sorted by value")
        axes[dim] = ctx.fixed(example_shape(first)[dim], node, "sorted by value")
    ctx.nonlinearity(axes, node, "sorting")
    ctx.set_nonzero(node, axes)
    return (tuple(axes), tuple(axes)) if isinstance(value, (tuple, list)) else tuple(axes)


@axis_rule(
    "aten::cummax", "aten::cummin", "aten::cumprod", "aten::cumsum", "aten::diff",
    "aten::logcumsumexp",
)  # fmt: skip
def _running(ctx: Context, node: fx.Node) -> Output:
    axes = list(ctx.of(node.args[0]))
    named = arguments(node)
    others = [named[name] for name in ("prepend", "append") if named.get(name) is not None]
    if axes:
        dim = named["dim"] % len(axes)
        for operand in (*map(ctx.of, others), axes):
            ctx.freeze(operand[dim], node, "cumulative along it")
        for operand in map(ctx.of, others):
            rest = [tuple(own[:dim] + own[dim + 1 :]) for own in (operand, tuple(axes))]
            ctx.broadcast(rest, node)
        value = node.meta["val"]
        first = value[0] if isinstance(value, (tuple, list)) else value
        axes[dim] = ctx.fixed(example_shape(first)[dim], node, "cumulative along it")
    out = tuple(map(ctx.space.resolve, axes))
    if packet_of(node) not in ("aten::cumsum", "aten::diff"):
        ctx.nonlinearity(out, node, packet_of(node))
    _mark_unless_zero(ctx, node, out)
    return (out, out) if isinstance(node.meta["val"], (tuple, list)) else out
