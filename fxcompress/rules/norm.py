"""Rules of normalisation: over a factor (then zero-masking is not cutting), or along it."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxcompress.axes import Axes, Expr, product
from fxcompress.rules.context import Context, arguments, dims, position
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.registry import RULES, axis_rule

STATISTICS = NotationRule(
    "b c *s, c, c, c, c -> b c *s",
    roles={3: "statistic", 4: "statistic"},
    channelwise="c",
)
RULES["aten::batch_norm"] = STATISTICS
RULES["aten::native_batch_norm"] = STATISTICS


@axis_rule("aten::instance_norm")
def _instance_norm(ctx: Context, node: fx.Node) -> Axes:
    """Each channel of each sample over its positions."""
    out = NotationRule("b c *s, c, c, c, c -> b c *s", roles=STATISTICS.roles, channelwise="c")(
        ctx, node
    )
    ctx.freeze(out[2:], node, "instance norm over the positions")
    return out


@axis_rule("aten::layer_norm", "aten::rms_norm")
def _layer_norm(ctx: Context, node: fx.Node) -> Axes:
    """Over the last axes, whose sizes are an argument."""
    named = arguments(node)
    axes = ctx.of(named["input"])
    count = len(named["normalized_shape"])
    normed = axes[-count:]
    for name in ("weight", "bias"):
        if named.get(name) is not None:
            for dim, (own, expr) in enumerate(zip(ctx.of(named[name]), normed, strict=True)):
                ctx.unify(own, expr, node)
                ctx.role(expr, named[name], "affine", dim)
    place = position(node, "normalized_shape")
    for number, expr in enumerate(normed):
        ctx.bind(node, (place, number), expr)
    _normed(ctx, node, normed)
    return tuple(ctx.space.resolve(expr) for expr in axes)


@axis_rule("aten::group_norm")
def _group_norm(ctx: Context, node: fx.Node) -> Axes:
    """Channels (groups units): each group may lose units, in equal number, or leave whole."""
    named = arguments(node)
    batch, channel, *rest = ctx.of(named["input"])
    groups = named["num_groups"]
    outer, inner = ctx.split(channel, (groups, channel.size // groups), node)
    ctx.bind(node, (position(node, "num_groups"),), outer)
    for name in ("weight", "bias"):
        if named[name] is not None:
            own = ctx.of(named[name])[0]
            ctx.unify(own, channel, node)
            ctx.role(channel, named[name], "affine", 0)
    _normed(ctx, node, (inner,))
    ctx.barrier(outer, node, "aten::group_norm")
    return tuple(ctx.space.resolve(expr) for expr in (batch, product((outer, inner)), *rest))


def _normed(ctx: Context, node: fx.Node, exprs: Axes | tuple[Expr, ...]) -> None:
    ctx.over(exprs, node, f"{node.name} normalises over it")
    ctx.barrier(exprs, node, "normalisation")


@axis_rule(
    "aten::softmax", "aten::log_softmax", "aten::_softmax", "aten::_log_softmax", "aten::softmin"
)
def _softmax(ctx: Context, node: fx.Node) -> Axes:
    named = arguments(node)
    axes = ctx.of(named["self"])
    (dim,) = dims(node, named["dim"], len(axes))
    _normed(ctx, node, (axes[dim],))
    return axes


@axis_rule("aten::normalize", "aten::renorm", "aten::cosine_similarity")
def _whole(ctx: Context, node: fx.Node) -> Axes:
    axes = ctx.of(node.args[0])
    _normed(ctx, node, axes)
    return axes if len(axes) == len(ctx.shape(node)) else ctx.opaque(node, "normalised")


@axis_rule("aten::_weight_norm")
def _weight_norm(ctx: Context, node: fx.Node) -> Axes:
    """Weight = v · g / ‖v‖ over every axis but one: cutting along that one is exact."""
    named = arguments(node)
    axes, gain = ctx.of(named["v"]), ctx.of(named["g"])
    dim = named["dim"] % len(axes)
    out = ctx.broadcast([axes, gain], node)
    ctx.over((*axes[:dim], *axes[dim + 1 :]), node, "weight norm runs over it")
    ctx.role(out[dim], named["g"], "affine", dim)
    return out


def reduced(named: dict[str, Any], axes: Axes, node: fx.Node) -> tuple[int, ...]:
    """The dims a reduction runs over."""
    return dims(node, named.get("dim"), len(axes))
