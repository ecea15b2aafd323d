"""The table of op rules, and how the rule of a node is found.

Rules are kept by the name of the op: ``"aten::relu"`` serves every overload and the twin in place
``aten::relu_``; ``"aten::sum.dim_IntList"`` serves one overload and goes first. Python functions in
the graph are kept by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxcompress.arguments import Holds, checked
from fxcompress.errors import PlanError
from fxcompress.rules.context import Rule

RULES: dict[Any, Rule] = {}
OpName = Annotated[str, Holds("such as 'mylib::my_op'", lambda name: "::" in name)]


@checked(PlanError)
def axis_rule(*ops: OpName | Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of `ops`.

    A rule takes the `Context` and the node and returns the axes of the output: a tuple with one
    expression for each dim, or a tuple of such tuples for an op with several outputs.

    Args:
        ops: Op names such as ``"aten::linear"`` or ``"mylib::my_op"``, with or without an
            overload, or Python functions.

    Raises:
        PlanError: An op is neither, or what is decorated is no function.

    Example:
        >>> from fxcompress.rules import axis_rule
        >>> @axis_rule("mylib::scale")
        ... def _scale(ctx, node):
        ...     return ctx.of(node.args[0])
        >>> _ = RULES.pop("mylib::scale")
    """

    @checked(PlanError)
    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(ops, rule))
        return rule

    return register


def name_of(target: Any) -> str:
    """The name of what a node calls, for people and for the table."""
    if isinstance(target, OpOverload):
        return str(target.name())
    return str(getattr(target, "__name__", target))


def rule_for(node: fx.Node) -> Rule | None:
    """The rule of what `node` calls, or None."""
    target = node.target
    if not isinstance(target, OpOverload):
        return RULES.get(target)
    packet = target._schema.name
    names = (target.name(), packet, packet.removesuffix("_"))
    return next((RULES[name] for name in names if name in RULES), None)


def is_pointwise(node: fx.Node) -> bool:
    """Whether torch says that what `node` calls, or its twin out of place, is element-wise."""
    if not isinstance(node.target, OpOverload):
        return False
    twin = getattr(torch.ops.aten, node.target._opname.removesuffix("_"), None)
    twins = (node.target, getattr(twin, node.target._overloadname, None))
    return any(torch.Tag.pointwise in op.tags for op in twins if isinstance(op, OpOverload))
