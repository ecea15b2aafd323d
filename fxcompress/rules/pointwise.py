"""Rules of ops that act on each element alone: the broadcast axes are the same axes.

What such an op does to masked units, and whether a linear map along an axis commutes with it, is
found by running it; see `fxcompress.rules.responses`.
"""

from __future__ import annotations

from torch import fx
from torch.nn.modules import activation

from fxcompress.axes.expressions import Axes
from fxcompress.graph.schema import arguments, operands_of, packet_of
from fxcompress.rules.context import Context, Output
from fxcompress.rules.create import unknown
from fxcompress.rules.registry import axis_rule, is_pointwise, name_of, rule_for
from fxcompress.rules.responses import masked_factors, nonlinear_factors


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


UNTAGGED = _names("""
    __and__ __or__ __xor__ _conj _to_copy alias alpha_dropout bernoulli clone conj contiguous copy
    detach dropout feature_alpha_dropout feature_dropout fill floor_divide hardsigmoid hardswish
    lift_fresh lift_fresh_copy log_sigmoid masked_fill neg positive real resolve_conj resolve_neg to
    type_as where zero
""")
"""Element-wise ops, though torch does not say so (of every overload)."""
ACTIVATIONS = frozenset(name.lower() for name in activation.__all__)
"""The layers that torch.nn counts as activations, in lower case."""
CONVERSIONS = ("aten::to", "aten::type_as")
"""Ops whose second operand only tells the type."""


@axis_rule(*(f"aten::{name}" for name in UNTAGGED), "aten::max.other", "aten::min.other")
def pointwise(ctx: Context, node: fx.Node) -> Output:
    """The rule of every op that is tagged pointwise."""
    operands = [operand for operand in operands_of(node) if ctx.tensor(operand)]
    if packet_of(node) in CONVERSIONS:
        operands = operands[:1]
    axes = [ctx.of(operand) for operand in operands]
    out = ctx.broadcast(axes, node)
    if tuple(expr.size for expr in out) != _shape(ctx, node):
        return unknown(ctx, node)
    for operand, own in zip(operands, axes, strict=True):
        for dim, expr in enumerate(own):
            ctx.role(expr, operand, "affine", dim)
    out = tuple(map(ctx.space.resolve, out))
    every = ctx.factors(out)
    nonzero, singular = masked_factors(ctx, node, every)
    ctx.over(singular, node, f"{node.name} is not finite where it is zero")
    ctx.nonlinearity(nonlinear_factors(ctx, node, every), node, name_of(node.target))
    ctx.set_nonzero(node, nonzero)
    return out


def is_elementwise(node: fx.Node) -> bool:
    """Whether what a node calls acts on each element alone: torch or this module says so."""
    rule = rule_for(node)
    return rule is pointwise or (rule is None and is_pointwise(node))


def is_activation(node: fx.Node) -> bool:
    """Whether a node is an activation of each element alone, which softmax and GLU are not."""
    name = packet_of(node).removeprefix("aten::").replace("_", "")
    return name in ACTIVATIONS and (is_elementwise(node) or rule_for(node) is _prelu)


def _shape(ctx: Context, node: fx.Node) -> tuple[int, ...] | None:
    return None if isinstance(node.meta["val"], (tuple, list)) else ctx.shape(node)


@axis_rule("aten::prelu")
def _prelu(ctx: Context, node: fx.Node) -> Axes:
    """One slope for each channel (the second axis), or one for all."""
    operand, weight = node.all_input_nodes[0], node.args[1]
    axes, slope = ctx.of(operand), ctx.of(weight)
    if slope and slope[0].size > 1:
        channel = axes[min(1, len(axes) - 1)]
        ctx.unify(channel, slope[0], node)
        ctx.role(channel, weight, "affine", 0)
    ctx.nonlinearity(axes, node, "aten::prelu")
    ctx.set_nonzero(node, ctx.nonzero_factors(operand))
    return tuple(ctx.space.resolve(expr) for expr in axes)


@axis_rule("aten::glu")
def _glu(ctx: Context, node: fx.Node) -> Axes:
    """The two halves of an axis gate each other."""
    named = arguments(node)
    axes = list(ctx.of(named["self"]))
    dim = named["dim"] % len(axes)
    left, right = ctx.cut(axes[dim], (axes[dim].size // 2, axes[dim].size // 2), node)
    ctx.unify(left, right, node)
    axes[dim] = left
    ctx.nonlinearity(axes, node, "aten::glu")
    return tuple(map(ctx.space.resolve, axes))
