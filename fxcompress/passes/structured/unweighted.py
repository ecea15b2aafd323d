"""Units that are read without a weight: by a sum, an inner product, a length, a distance.

A merged unit counts there once, however many units it stands for, because a matrix D can only be
put into a weight. A product of two linear signals of the units (queries and keys) is right when the
rows of one or both are scaled; everything else is left whole.
"""

from __future__ import annotations

import operator
from itertools import chain

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import leaves
from fxcompress.graph.metadata import dtype_of, is_tensor, parameter_of, shape_of
from fxcompress.layers.weights import consumers, producers
from fxcompress.program import Program

ROUNDING = 1e-9  # float64, one operation


def bare_readers(program: Program, group: ChannelGroup) -> tuple[fx.Node, ...]:
    """The nodes that sum over the units, or measure them, without a weight of their own.

    There a merged unit counts once, however many units it stands for: a matrix D can only be put
    into a weight. Norms and means over the units are told by ``group.inexact``.
    """
    weighted = {one.node for one in consumers(program, group)}
    over = program.analysis.coupling.over
    found = []
    for node in program.module.graph.nodes:
        inside = any(group.factor in leaves(expr) for expr in over.get(node.name, ()))
        if node.op != "call_function" or node.name in weighted or inside or _is_view(node):
            continue
        if (
            _gives_tensors(node)
            and not _holds(program, node, group)
            and carried(program, node, group)
        ):
            found.append(node)
    return tuple(found)


def carried(program: Program, node: fx.Node, group: ChannelGroup) -> list[fx.Node]:
    """The values, parameters aside, that bring the units to a node."""
    return [
        operand
        for operand in node.all_input_nodes
        if parameter_of(operand) is None and _holds(program, operand, group)
    ]


def _is_view(node: fx.Node) -> bool:
    """Whether a node picks entries and computes nothing, as a part of a split does."""
    if isinstance(node.target, OpOverload):
        return any(one.alias_info is not None for one in node.target._schema.returns)
    return node.target is operator.getitem


def _gives_tensors(node: fx.Node) -> bool:
    return is_tensor(node) or isinstance(node.meta.get("val"), (tuple, list))


def _holds(program: Program, node: fx.Node, group: ChannelGroup) -> bool:
    coupling = program.analysis.coupling
    tensors = (coupling.axes.get(node.name, ()), *coupling.outputs.get(node.name, ()))
    return any(group.factor in leaves(expr) for axes in tensors for expr in axes)


def scores_pairs(program: Program, group: ChannelGroup) -> bool:
    """Whether all that reads the units are products of two signals of them, as of queries and keys,
    that are twice as large when the rows of their layers are: then a factor on the rows is one on
    the product.
    """
    bare = bare_readers(program, group)
    if group.kind != "qk" or consumers(program, group):
        return False
    sides = [carried(program, node, group) for node in bare]
    return all(len(own) > 1 for own in sides) and _scales(program, group, [*chain(*sides)])


def _scales(program: Program, group: ChannelGroup, ends: list[fx.Node]) -> bool:
    """Whether doubling the rows of the layers that write the units doubles these values."""
    written = {name for one in producers(program, group) for name in one.nodes}
    moving: set[fx.Node] = set()
    for node in program.module.graph.nodes:
        if node.name in written or not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    pending, seen = list(ends), set(ends)
    while pending:
        node = pending.pop()
        if node.name in written:
            continue
        if node not in moving or not (_is_view(node) or _doubles(node, moving)):
            return False
        before = moving.intersection(node.all_input_nodes) - seen
        pending += before
        seen |= before
    return True


def _doubles(node: fx.Node, moving: set[fx.Node]) -> bool:
    """Whether an operation gives twice as much for twice its moving operands, on random values."""
    draw = torch.Generator().manual_seed(0)
    values: dict[fx.Node, Tensor] = {}
    for operand in node.all_input_nodes:
        if not is_tensor(operand):
            return False
        value = torch.rand(shape_of(operand), generator=draw, dtype=torch.float64) + 0.5
        values[operand] = (
            value if dtype_of(operand).is_floating_point else value.to(dtype_of(operand))
        )

    def run(factor: float) -> Tensor:
        own = {n: v * factor if n in moving else v for n, v in values.items()}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), own.__getitem__)
        result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
        return result

    try:
        once, twice = run(1), run(2)
    except (RuntimeError, TypeError):
        return False  # what does not run alone is not known to
    return isinstance(once, Tensor) and torch.allclose(twice, 2 * once, rtol=ROUNDING, atol=0)


def unweighted(program: Program, group: ChannelGroup) -> str | None:
    """Why units that were merged, or given back to others, would count wrongly; None if not."""
    bare = bare_readers(program, group)
    if not bare or scores_pairs(program, group):
        return None
    names = ", ".join(f"'{node.name}' ({node.target})" for node in bare[:3])
    return f"{names} reads the units without a weight that could make up for those that go"
