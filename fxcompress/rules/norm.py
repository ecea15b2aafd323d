"""Rules of normalisation: over a factor (then zero-masking is not cutting), or along it."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxcompress.axes.expressions import UNIT, Axes, product
from fxcompress.graph.metadata import example_shape
from fxcompress.graph.schema import arguments, dims, position
from fxcompress.rules.context import Context, Output
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.registry import axis_rule
from fxcompress.rules.responses import masked_factors

STATISTICS = NotationRule(
    "b c *s, c, c, c, c -> b c *s",
    roles={3: "statistic", 4: "statistic"},
    plus=(2, 3),
    beside=(4,),
    channelwise="c",
)


@axis_rule("aten::batch_norm")
def _batch_norm(ctx: Context, node: fx.Node) -> Axes:
    """Each channel, by its running statistics, or over the batch and the positions."""
    named = arguments(node)
    out = STATISTICS(ctx, node)
    ctx.nonlinearity((out[0], *out[2:]), node, "aten::batch_norm")
    ctx.set_nonzero(node, masked_factors(ctx, node, ctx.factors(out))[0])
    if named.get("training", False) or named["running_mean"] is None:
        _normed(ctx, node, (out[0], *out[2:]))
    return out


@axis_rule("aten::_native_batch_norm_legit_no_training", "aten::native_batch_norm")
def _native_batch_norm(ctx: Context, node: fx.Node) -> Output:
    """The normed tensor, then statistics of the batch, which have no entries in evaluation."""
    _batch_norm(ctx, node)
    out = ctx.of(arguments(node)["input"])
    sizes = [example_shape(value) for value in node.meta["val"][1:]]
    return (out, *(out[1:2] if size == (out[1].size,) else _empty(ctx, size) for size in sizes))


def _empty(ctx: Context, shape: tuple[int, ...]) -> Axes:
    return tuple(ctx.space.fresh(size, "nothing") for size in shape)


@axis_rule("aten::instance_norm")
def _instance_norm(ctx: Context, node: fx.Node) -> Axes:
    """Each channel of each sample over its positions."""
    out = STATISTICS(ctx, node)
    ctx.freeze(out[2:], node, "instance norm over the positions")
    ctx.nonlinearity(out[:2], node, "aten::instance_norm")
    ctx.set_nonzero(node, masked_factors(ctx, node, ctx.factors(out))[0])
    if arguments(node)["running_mean"] is not None:
        ctx.over(out[0], node, "running statistics are those of the whole batch")
    return out


@axis_rule("aten::layer_norm", "aten::rms_norm")
def _layer_norm(ctx: Context, node: fx.Node) -> Axes:
    """Over the last axes, whose sizes are an argument."""
    named = arguments(node)
    axes = ctx.of(named["input"])
    count = len(named["normalized_shape"])
    for name in ("weight", "bias"):
        _scaled(ctx, node, named.get(name), axes[-count:])
    place = position(node, "normalized_shape")
    for number, expr in enumerate(axes[-count:]):
        ctx.bind(node, (place, number), expr)
    _normed(ctx, node, axes[-count:])
    ctx.nonlinearity(axes, node, "normalisation")
    shifted = named.get("bias") is not None
    ctx.set_nonzero(node, axes if shifted else ctx.nonzero_factors(named["input"]))
    return tuple(ctx.space.resolve(expr) for expr in axes)


@axis_rule("aten::native_layer_norm")
def _native_layer_norm(ctx: Context, node: fx.Node) -> Output:
    """The normed tensor, then the mean and the scale, with axes of size 1 where the norm ran."""
    _layer_norm(ctx, node)
    named = arguments(node)
    axes = ctx.of(named["input"])
    count = len(named["normalized_shape"])
    statistics = axes[:-count] + (UNIT,) * count
    return axes, statistics, statistics


@axis_rule("aten::group_norm")
def _group_norm(ctx: Context, node: fx.Node) -> Axes:
    """Channels (groups units): each group may lose units, in equal number, or leave whole."""
    named = arguments(node)
    batch, channel, *rest = ctx.of(named["input"])
    groups = named["num_groups"]
    outer, inner = ctx.split(channel, (groups, channel.size // groups), node)
    ctx.bind(node, (position(node, "num_groups"),), outer)
    for name in ("weight", "bias"):
        _scaled(ctx, node, named[name], (product((outer, inner)),))
    _normed(ctx, node, (inner, *rest))
    ctx.nonlinearity((batch, outer), node, "aten::group_norm")
    out = (batch, product((outer, inner)), *rest)
    scaled = named["weight"] is not None
    ctx.set_nonzero(node, (batch, *rest) if scaled else ctx.nonzero_factors(named["input"]))
    return tuple(ctx.space.resolve(expr) for expr in out)


def _scaled(ctx: Context, node: fx.Node, operand: Any, axes: Axes) -> None:
    """A weight or bias with an entry for each index of `axes`."""
    if operand is not None:
        for dim, (own, expr) in enumerate(zip(ctx.of(operand), axes, strict=True)):
            ctx.unify(own, expr, node)
            ctx.role(expr, operand, "affine", dim)


def _normed(ctx: Context, node: fx.Node, exprs: Axes) -> None:
    ctx.over(exprs, node, f"{node.name} normalises over it")
    ctx.nonlinearity(exprs, node, "normalisation")


@axis_rule("aten::_log_softmax", "aten::_softmax", "aten::log_softmax", "aten::softmax")
def _softmax(ctx: Context, node: fx.Node) -> Axes:
    """Never zero: a masked row becomes a uniform one."""
    named = arguments(node)
    axes = ctx.of(named["self"])
    _normed(ctx, node, tuple(axes[dim] for dim in dims(named["dim"], len(axes))))
    ctx.nonlinearity(axes, node, "softmax")
    ctx.set_nonzero(node, axes)
    return axes


@axis_rule("aten::_weight_norm")
def _weight_norm(ctx: Context, node: fx.Node) -> Axes:
    """Weight = v · g / ‖v‖ over every axis but one; zeros add nothing to a length other than 0."""
    named = arguments(node)
    axes, gain = ctx.of(named["v"]), ctx.of(named["g"])
    dim = named["dim"] % len(axes)
    out = ctx.broadcast([axes, gain], node)
    ctx.role(out[dim], named["g"], "affine", dim)
    ctx.over(out[dim], node, "a masked row has no length to divide by")
    ctx.nonlinearity(out, node, "aten::_weight_norm")
    ctx.sums(node, (*out[:dim], *out[dim + 1 :]), (named["v"],))
    return out
