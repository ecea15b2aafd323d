"""Rules of ops that act on each element alone: the broadcast axes are the same axes.

What such an op does to zeros and to linear maps along an axis depends on its kind:

=========  ==============================  ============================================
kind       zero on masked units where      a linear map along an axis commutes where
=========  ==============================  ============================================
copies     the operand is                  always
sums       every operand is                every operand has the axis
products   some operand is                 one operand has the axis
quotients  the numerator is                only the numerator has the axis
choices    every choice is                 every choice has the axis and the mask has not
odd        the operand is                  never
other      never                           never
=========  ==============================  ============================================
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx

from fxcompress.axes import Axes, Factor
from fxcompress.rules.context import Context, Output
from fxcompress.rules.create import unknown
from fxcompress.rules.registry import axis_rule, name_of
from fxcompress.rules.schema import arguments, operands_of, packet_of


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COPIES = _names("""
    _conj _to_copy alias alpha_dropout bernoulli clone conj contiguous detach dropout
    feature_alpha_dropout feature_dropout lift_fresh lift_fresh_copy neg positive real
    resolve_conj resolve_neg to type_as
""")
CONVERSIONS = ("aten::to", "aten::type_as")
"""Copies whose second operand only tells the type."""
SUMS = _names("add rsub sub")
PRODUCTS = _names("inner mul multiply")
QUOTIENTS = _names("div divide true_divide")
CHOICES = _names("masked_fill where")
ODD = _names("""
    abs arcsin arcsinh arctan asin asinh atan ceil celu deg2rad elu erf expm1 floor gelu hardshrink
    hardswish hardtanh leaky_relu log1p mish relu relu6 round selu sgn sign silu sin sinh softshrink
    sqrt square tan tanh trunc
""")
"""Functions with f(0) = 0, odd or not."""
POLES = _names("digamma lgamma log log10 log2 logit reciprocal rsqrt")
"""Functions that are not finite at 0."""
UNTAGGED = _names("""
    __and__ __or__ __xor__ copy fill floor_divide hardsigmoid hardswish log_sigmoid zero
""")
"""Element-wise too, though torch does not say so (of every overload)."""
Factors = frozenset[Factor]


@axis_rule(*(f"aten::{name}" for name in (*COPIES, *CHOICES, *UNTAGGED)))
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
    for operand in _divisors(node, operands):
        zero = ctx.factors(ctx.of(operand)) - ctx.loudness(operand)
        ctx.over(zero, node, f"{node.name} divides by it or takes its logarithm")
    barrier, loud = _nature(ctx, node, operands, ctx.factors(out))
    ctx.barrier(barrier, node, name_of(node.target))
    ctx.mark(node, loud)
    return out


def _divisors(node: fx.Node, operands: list[fx.Node]) -> list[fx.Node]:
    """The operands that must not be zero."""
    base = packet_of(node).removeprefix("aten::").removesuffix("_")
    if base in (*QUOTIENTS, "floor_divide", "fmod", "remainder"):
        return [operand for operand in operands if operand is not node.args[0]]
    power = arguments(node).get("exponent", 1) if base == "pow" else 1
    return operands if base in POLES or (isinstance(power, (int, float)) and power < 0) else []


def _shape(ctx: Context, node: fx.Node) -> tuple[int, ...] | None:
    return None if isinstance(node.meta["val"], (tuple, list)) else ctx.shape(node)


def _nature(
    ctx: Context, node: fx.Node, operands: list[fx.Node], every: Factors
) -> tuple[Factors, Factors]:
    """(factors it acts on unit by unit, factors whose masked units may not be zero)."""
    name = packet_of(node).removeprefix("aten::")
    base = name.removesuffix("_")
    own = [ctx.factors(ctx.of(operand)) for operand in operands]
    zero = [held - ctx.loudness(op) for op, held in zip(operands, own, strict=True)]
    if base in COPIES:
        return frozenset(), every - zero[0]
    if base in SUMS:
        shifted = every if _number(node, "other") else frozenset()
        return shifted | (every - _all(own, every)), shifted | (every - _all(zero, every))
    if base == "copy":
        return every - own[-1], every - zero[-1]
    if base == "zero" or (base == "fill" and arguments(node)["value"] == 0):
        return frozenset(), frozenset()
    if base in PRODUCTS:
        return _shared(own), every - _any(zero)
    if base in QUOTIENTS and operands and operands[0] is node.args[0]:
        rounded = every if arguments(node).get("rounding_mode") else frozenset()
        return rounded | _any(own[1:]) | (every - own[0]), every - zero[0]
    if base in CHOICES:
        return _chosen(node, (own, zero), every)
    if base in ODD or (base == "pow" and _positive_power(node)):
        return every, every - _all(zero, every)
    return every, every


def _all(sets: Iterable[Factors], every: Factors) -> Factors:
    return every.intersection(*sets)


def _any(sets: Iterable[Factors]) -> Factors:
    return frozenset().union(*sets)


def _shared(sets: list[Factors]) -> Factors:
    """The factors in two of the sets or more."""
    return _any(a & b for number, a in enumerate(sets) for b in sets[:number])


def _number(node: fx.Node, name: str) -> bool:
    """Whether an argument is a number other than zero."""
    value: Any = arguments(node).get(name)
    return value is not None and not isinstance(value, fx.Node) and value != 0


def _positive_power(node: fx.Node) -> bool:
    exponent = arguments(node).get("exponent")
    return isinstance(exponent, (int, float)) and exponent > 0


def _chosen(
    node: fx.Node, sets: tuple[list[Factors], list[Factors]], every: Factors
) -> tuple[Factors, Factors]:
    """A mask and what it chooses from: tensors, or numbers."""
    named = arguments(node)
    where = "condition" in named
    mask = 0 if where else 1
    own, zero = (list(each) for each in sets)
    masked = own.pop(mask)
    zero.pop(mask)
    numbers = [named[name] for name in ("self", "other", "value") if name in named]
    shifted = every if any(not isinstance(v, fx.Node) and v != 0 for v in numbers) else frozenset()
    barrier = masked | shifted | (every - _all(own, every))
    return barrier, shifted | (every - _all(zero, every))


@axis_rule("aten::prelu")
def _prelu(ctx: Context, node: fx.Node) -> Axes:
    """One slope for each channel (the second axis), or one for all."""
    operand, weight = node.all_input_nodes[0], node.args[1]
    axes, slope = ctx.of(operand), ctx.of(weight)
    if slope and slope[0].size > 1:
        channel = axes[min(1, len(axes) - 1)]
        ctx.unify(channel, slope[0], node)
        ctx.role(channel, weight, "affine", 0)
    ctx.barrier(axes, node, "aten::prelu")
    ctx.mark(node, ctx.loudness(operand))
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
    ctx.barrier(axes, node, "aten::glu")
    return tuple(map(ctx.space.resolve, axes))
