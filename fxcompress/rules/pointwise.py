"""Rules of ops that act on each element alone: the broadcast axes are the same axes."""

from __future__ import annotations

import torch
from torch import fx
from torch._ops import OpOverload

from fxcompress.axes import Axes
from fxcompress.rules.context import Context, arguments
from fxcompress.rules.notation import operands_of
from fxcompress.rules.registry import axis_rule, name_of

#: Commute with any linear map along the channels.
LINEAR = frozenset(
    f"aten::{name}"
    for name in ["add", "sub", "rsub", "neg", "dropout", "alpha_dropout", "feature_dropout", "to", "_to_copy", "type_as", "clone", "contiguous", "alias", "detach", "detach_", "lift_fresh_copy", "lift_fresh", "native_dropout", "copy", "copy_", "positive", "add_", "sub_", "dropout_", "neg_", "zero_", "float", "half", "double"]
)
#: Choose between elements: linear too, but what they fill in need not be zero.
SELECTING = frozenset(("aten::masked_fill", "aten::masked_fill_", "aten::where"))
#: Give zero where every operand is zero.
KEEP_ZERO = LINEAR | frozenset(
    f"aten::{name}"
    for name in ["relu", "relu6", "gelu", "silu", "mish", "tanh", "hardswish", "hardtanh", "leaky_relu", "elu", "selu", "celu", "abs", "sqrt", "sin", "tan", "asin", "atan", "sinh", "asinh", "erf", "sign", "square", "softsign", "hardshrink", "softshrink", "tanhshrink", "prelu", "round", "floor", "ceil", "trunc", "expm1", "log1p", "relu_", "relu6_", "gelu_", "silu_", "mish_", "tanh_", "hardswish_", "hardtanh_", "leaky_relu_", "elu_", "sqrt_", "threshold"]
)
#: Give zero where one operand is zero.
PRODUCTS = frozenset(
    ("aten::mul", "aten::mul_", "aten::bmm", "aten::matmul", "aten::mm", "aten::einsum")
)
#: Give zero where the first operand is zero.
QUOTIENTS = frozenset(("aten::div", "aten::div_", "aten::pow", "aten::pow_"))
#: Add a number, so zero does not stay zero.
SHIFTS = frozenset(("aten::add", "aten::add_", "aten::sub", "aten::sub_", "aten::rsub"))
#: Sum over parameters that are masked themselves.
RESET = frozenset(
    f"aten::{name}"
    for name in ["linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm", "embedding", "addmm"]
)


@axis_rule("pointwise")
def pointwise(ctx: Context, node: fx.Node) -> Axes:
    """The rule of every op tagged pointwise."""
    operands = [operand for operand in operands_of(node) if ctx.tensor(operand)]
    axes = [ctx.of(operand) for operand in operands]
    out = ctx.broadcast(axes, node)
    for operand, own in zip(operands, axes, strict=True):
        for dim, expr in enumerate(own):
            ctx.role(expr, operand, "affine", dim)
    name = name_of(node.target).partition(".")[0]
    if name not in LINEAR | SELECTING and not (name in QUOTIENTS | PRODUCTS and len(operands) == 1):
        ctx.barrier(out, node, name)
    return tuple(ctx.space.resolve(expr) for expr in out)


axis_rule(
    *(
        f"aten::{name}"
        for name in ["dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "contiguous", "alias", "detach", "detach_", "clone", "lift_fresh_copy", "lift_fresh", "type_as", "bernoulli", "rrelu", "gumbel_softmax", "fill_", "zero_", "masked_fill", "masked_fill_", "where", "copy", "copy_", "addcmul", "addcdiv", "lerp", "to", "_to_copy", "float", "half", "double", "nan_to_num", "fmod", "remainder", "elu", "celu", "selu", "mish", "glu_jvp", "threshold", "hardtanh", "relu6", "hardswish", "hardsigmoid", "softplus", "log_sigmoid", "logsigmoid", "clamp", "clamp_min", "clamp_max", "square", "float_power", "isfinite", "isnan", "isinf", "logical_and", "logical_or", "logical_not", "__and__", "__or__", "__xor__", "bitwise_and", "bitwise_or", "bitwise_not", "floor_divide", "rsub", "tanhshrink", "softsign"]
    )
)(pointwise)


@axis_rule("aten::prelu")
def _prelu(ctx: Context, node: fx.Node) -> Axes:
    """One slope for each channel (the second axis), or one for all."""
    operand, weight = node.args[:2]
    axes, slope = ctx.of(operand), ctx.of(weight)
    if slope and slope[0].size > 1:
        ctx.unify(axes[1], slope[0], node)
        ctx.role(axes[1], weight, "affine", 0)
    ctx.barrier(axes, node, "aten::prelu")
    return tuple(ctx.space.resolve(expr) for expr in axes)


@axis_rule("aten::glu")
def _glu(ctx: Context, node: fx.Node) -> Axes:
    """The two halves of an axis gate each other."""
    named = arguments(node)
    axes = list(ctx.of(named["self"]))
    dim = named["dim"] % len(axes)
    left, right = ctx.cut(axes[dim], (axes[dim].size // 2, axes[dim].size // 2), node)
    ctx.unify(left, right, node)
    ctx.barrier(left, node, "aten::glu")
    axes[dim] = ctx.space.resolve(left)
    return tuple(axes)


def may_be_nonzero(ctx: Context, node: fx.Node) -> bool:
    """Whether units that are masked with zeros before `node` may be non-zero after it."""
    if not isinstance(node.target, OpOverload):
        return any(arg in ctx.nonzero for arg in node.all_input_nodes)
    inputs = [arg for arg in node.all_input_nodes if arg in ctx.axes]
    loud = [arg for arg in inputs if arg in ctx.nonzero]
    name = node.target._schema.name
    if name in RESET:
        return False
    if name in PRODUCTS:
        return bool(inputs) and len(loud) == len(inputs)
    if name in QUOTIENTS:
        return bool(inputs) and inputs[0] in ctx.nonzero
    if name in SHIFTS and len(inputs) == 1:
        return True
    if torch.Tag.pointwise in node.target.tags and name not in KEEP_ZERO:
        return True
    return bool(loud)
