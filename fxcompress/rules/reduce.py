"""Rules of reductions, pooling and resampling."""

from __future__ import annotations

from torch import fx

from fxcompress.axes import UNIT, Axes
from fxcompress.graph import example_shape
from fxcompress.rules.context import Context, Output, arguments, dims
from fxcompress.rules.norm import reduced
from fxcompress.rules.registry import axis_rule


def _keep(axes: Axes, over: tuple[int, ...], keepdim: bool) -> Axes:
    if keepdim:
        return tuple(UNIT if dim in over else expr for dim, expr in enumerate(axes))
    return tuple(expr for dim, expr in enumerate(axes) if dim not in over)


@axis_rule("aten::mean", "aten::var", "aten::std", "aten::amax", "aten::amin", "aten::linalg_vector_norm", "aten::norm",
           "aten::logsumexp", "aten::prod", "aten::any", "aten::all", "aten::frobenius_norm")  # fmt: skip
def _mean(ctx: Context, node: fx.Node) -> Axes:
    """A statistic over axes: a masked unit would count in it, a cut one does not."""
    named = arguments(node)
    axes = ctx.of(node.args[0])
    over = reduced(named, axes, node)
    gone = [axes[dim] for dim in over]
    ctx.over(gone, node, f"{node.name} runs over it")
    ctx.barrier(axes, node, str(node.target))
    return _keep(axes, over, bool(named.get("keepdim", False)))


@axis_rule("aten::sum")
def _sum(ctx: Context, node: fx.Node) -> Axes:
    """A sum of zeros is zero: exact unless masked units are not zero here."""
    named = arguments(node)
    axes = ctx.of(node.args[0])
    over = reduced(named, axes, node)
    if node.args[0] in ctx.nonzero:
        ctx.over(
            [axes[dim] for dim in over],
            node,
            f"{node.name} sums values that masking does not make zero",
        )
    return _keep(axes, over, bool(named.get("keepdim", False)))


@axis_rule(
    "aten::max",
    "aten::min",
    "aten::median",
    "aten::mode",
    "aten::std_mean",
    "aten::var_mean",
    "aten::kthvalue",
)
def _max(ctx: Context, node: fx.Node) -> Output:
    """Two outputs over one dim; one over everything; or element-wise with two operands."""
    named = arguments(node)
    if "other" in named:
        return ctx.broadcast([ctx.of(node.args[0]), ctx.of(named["other"])], node)
    axes = _mean(ctx, node)
    return (axes, axes) if isinstance(node.meta["val"], (tuple, list)) else axes


@axis_rule("aten::argmax", "aten::argmin")
def _argmax(ctx: Context, node: fx.Node) -> Axes:
    """Yields indices of the axis, so the axis must keep them."""
    named = arguments(node)
    axes = ctx.of(node.args[0])
    over = reduced(named, axes, node)
    ctx.freeze((axes[dim] for dim in over), node, "its indices are values")
    return _keep(axes, over, bool(named.get("keepdim", False)))


@axis_rule("aten::topk", "aten::sort", "aten::argsort")
def _topk(ctx: Context, node: fx.Node) -> Output:
    named = arguments(node)
    axes = list(ctx.of(node.args[0]))
    (dim,) = dims(node, named["dim"], len(axes))
    ctx.freeze(axes[dim], node, "sorted by value")
    value = node.meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    axes[dim] = ctx.fixed(example_shape(first)[dim], node, "sorted by value")
    return (tuple(axes), tuple(axes)) if isinstance(value, (tuple, list)) else tuple(axes)


@axis_rule("aten::cumsum", "aten::cumprod", "aten::logcumsumexp", "aten::diff")
def _cumsum(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = list(ctx.of(node.args[0]))
    (dim,) = dims(node, named["dim"], len(axes))
    ctx.freeze(axes[dim], node, "cumulative along it")
    size = ctx.shape(node)[dim]
    if size != axes[dim].size:
        axes[dim] = ctx.fixed(size, node, "cumulative along it")
    return tuple(axes)


POOLS = [f"aten::{kind}{n}d" for n in (1, 2, 3) for kind in (
    "avg_pool", "max_pool", "adaptive_avg_pool", "adaptive_max_pool", "lp_pool", "max_pool_with_indices", "_adaptive_avg_pool",
)]  # fmt: skip
POOLS += [f"aten::max_pool{n}d_with_indices" for n in (1, 2, 3)]
RESAMPLE = [f"aten::{kind}" for kind in (
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d", "upsample_bicubic2d",
    "upsample_linear1d", "upsample_trilinear3d", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact2d",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d",
    "grid_sampler",
)]  # fmt: skip


@axis_rule(*POOLS, *RESAMPLE)
def _pool(ctx: Context, node: fx.Node) -> Output:
    """Each channel alone, over windows of the positions; batch and channel are the leading axes."""
    value = node.meta["val"]
    many = isinstance(value, (tuple, list))
    shape = example_shape(value[0]) if many else ctx.shape(node)
    count = (
        next(int(c) for c in str(node.target) if c.isdigit())
        if "grid" not in str(node.target)
        else 2
    )
    axes = ctx.of(node.args[0])
    lead = axes[: len(axes) - count]
    ctx.freeze(axes[len(lead) :], node, "pooled or resampled positions")
    ctx.barrier(lead, node, str(node.target))
    out = (*lead, *(ctx.fixed(size, node, "positions") for size in shape[len(lead) :]))
    return (out, out) if many else out
