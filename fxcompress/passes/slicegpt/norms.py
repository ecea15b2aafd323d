"""Norms on a stream of units, and whether the rest of the graph may see the stream rotated.

A rotation of the stream is undone by every linear map that reads it, made by every map that writes
it, and not seen by Σ x². A mean over units is not seen either, where the rotation takes equal units
to equal units. Nothing else may look at single units.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from torch import fx

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.graph.metadata import is_tensor, parameter_of, shape_of
from fxcompress.graph.moves import is_copy, moves
from fxcompress.graph.norms import InputNorm, input_norms
from fxcompress.graph.schema import arguments, dims, packet_of
from fxcompress.layers.weights import consumers
from fxcompress.passes.structured.method import DeclinedError
from fxcompress.program import Program
from fxcompress.rules.pointwise import is_elementwise


@dataclass(frozen=True)
class StreamNorm:
    """One RMS norm or LayerNorm: output = gain * x / √(mean(x²) + ε) + shift, with x the source, or
    the source less its mean.

    Attributes:
        source: The node it reads.
        output: The node that holds the result.
        gain: The name of its scale, if it has one.
        nodes: All nodes it is made of.
        shift: The name of what it adds, if it adds something.
        centred: Whether it takes the mean out first, as LayerNorm does.
    """

    source: fx.Node
    output: fx.Node
    gain: str | None
    nodes: frozenset[fx.Node]
    shift: str | None = None
    centred: bool = False


def stream_norms(program: Program, group: ChannelGroup) -> tuple[StreamNorm, ...]:
    """The norms over the units of `group`, in the graph's order: RMS norms fused or spelled out,
    and LayerNorms.
    """
    found: list[StreamNorm] = []
    fused = {norm.node: norm for norm in input_norms(program.module) if is_tensor(norm.node)}
    for node in program.module.graph.nodes:
        norm = _fused(fused[node]) if node in fused else None
        norm = _spelled_out(node) if packet_of(node) == "aten::rsqrt" else norm
        axes = program.analysis.coupling.axes
        if norm is not None and axes.get(norm.source.name, ())[-1:] == (group.factor,):
            found.append(norm)
    return tuple(found)


def handed_on_by(node: fx.Node) -> fx.Node:
    """The node whose units `node` only hands on: itself, or what stands before moves and casts."""
    while moves(node):
        node = node.all_input_nodes[0]
    return node


def check_rotates(program: Program, group: ChannelGroup, norms: Iterable[StreamNorm]) -> None:
    """Refuse a stream of which something looks at single units.

    Raises:
        PlanError: Naming the node, and what to do.
    """
    norms = tuple(norms)
    own = {node for norm in norms for node in norm.nodes}
    if group.cells > 1 or group.span > 1:
        raise DeclinedError(group, "it is no stream of single units")
    linear = _linear(program, group)
    for node in program.module.graph.nodes:
        if node.op != "call_function" or node in own:
            continue
        if not _rotates(program, group, node, linear):
            raise DeclinedError(
                group,
                f"it cannot be rotated: node '{node.name}' ({node.target}) looks at its units one "
                "by one; only norms over them, sums and linear maps may touch a stream that is "
                "sliced",
            )
    readers = {one.node for one in consumers(program, group)}
    for norm in norms:
        _check_read(group, norm, readers)


def _linear(program: Program, group: ChannelGroup) -> frozenset[str]:
    """The names of nodes that undo or make a rotation in their weights: linear maps of single
    positions, and tables that are looked up.
    """
    maps = {one.node for one in program.maps if one.plain and one.groups == 1 and not one.window}
    tables = {site.parameter for site in group.sites if site.role == "table"}
    reads = program.module.graph.find_nodes(op="get_attr")
    looked_up = {user.name for node in reads if node.target in tables for user in node.users}
    return frozenset(maps | looked_up)


def _check_read(group: ChannelGroup, norm: StreamNorm, readers: Collection[str]) -> None:
    """Its gain goes into what reads it, so that must be linear maps with weights of their own."""
    pending = [norm.output]
    while pending:
        for user in pending.pop().users:
            if moves(user):
                pending.append(user)
            elif user.name not in readers:
                raise DeclinedError(
                    group,
                    f"it cannot be rotated: node '{user.name}' ({user.target}) reads what norm "
                    f"'{norm.output.name}' gives, and only a linear map can take up its gain (so "
                    "norms stand before blocks, not after)",
                )


def _rotates(program: Program, group: ChannelGroup, node: fx.Node, linear: Collection[str]) -> bool:
    """Whether a node treats a rotated stream as it does the stream."""
    factor, coupling = group.factor, program.analysis.coupling
    operands = [n for n in node.all_input_nodes if _holds(program, n, factor)]
    if not operands and not _holds(program, node, factor):
        return True
    axes = coupling.axes.get(node.name, ())
    if any(factor in leaves(expr) and expr is not factor for expr in axes):
        return False  # cut into parts
    if node.name in linear or moves(node):
        return True
    return is_elementwise(node) and node.name not in coupling.acting.get(factor, ())


def _holds(program: Program, node: fx.Node, factor: Factor) -> bool:
    coupling = program.analysis.coupling
    tensors = (coupling.axes.get(node.name, ()), *coupling.outputs.get(node.name, ()))
    return any(factor in leaves(expr) for axes in tensors for expr in axes)


# ---- recognition


def _fused(norm: InputNorm) -> StreamNorm | None:
    named = arguments(norm.node)
    given = [named.get(name) for name in ("weight", "bias")]
    computed = [one is not None and parameter_of(one) is None for one in given]
    if norm.last != 1 or any(computed):
        return None
    nodes = frozenset((norm.node,))
    return StreamNorm(norm.value, norm.node, norm.scale, nodes, norm.shift, norm.centred)


def _spelled_out(root: fx.Node) -> StreamNorm | None:
    """``x * rsqrt(mean(x * x) + eps)`` and what it is scaled by; casts may stand anywhere."""
    source = _squared(root)
    product = _times(root, lambda other: other is source)
    if source is None or product is None:
        return None
    scaled = _times(product, lambda other: parameter_of(other) is not None)
    if scaled is None:
        return StreamNorm(source, product, None, _between(source, product))
    gain = next(filter(None, (parameter_of(_uncast(n)) for n in scaled.all_input_nodes)))
    return StreamNorm(source, scaled, gain, _between(source, scaled))


def _squared(root: fx.Node) -> fx.Node | None:
    """The x of ``rsqrt(mean(x * x) + eps)``, with the mean over the last axis alone."""
    steps = [root]
    while len(steps) < 5 and (operand := _operand(steps[-1])) is not None:
        steps.append(operand)
    if len(steps) < 5:
        return None
    _, shifted, average, square, source = steps
    if packet_of(shifted) != "aten::add" or packet_of(average) != "aten::mean":
        return None
    rank = len(shape_of(square))
    named = arguments(average)
    last = bool(named.get("keepdim")) and dims(named.get("dim"), rank) == (rank - 1,)
    return source if last and _squares(square) else None


def _operand(node: fx.Node) -> fx.Node | None:
    """The one node that a node is computed from, casts aside."""
    operands = node.all_input_nodes
    return _uncast(operands[0]) if len(operands) == 1 else None


def _squares(node: fx.Node) -> bool:
    """Whether a node gives x² of each entry of its one operand, whichever operator it is."""
    sample = torch.tensor((-3.0, 0.5, 2.0), dtype=torch.float64)
    if not is_elementwise(node):
        return False
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda _: sample)
    return torch.equal(node.target(*args, **kwargs), sample * sample)  # type: ignore[operator]


def _times(node: fx.Node, fits: Callable[[fx.Node], bool]) -> fx.Node | None:
    """The product of `node` and another operand that fits; casts aside."""
    pending = [node]
    while pending:
        for user in pending.pop().users:
            others = [n for n in map(_uncast, user.all_input_nodes) if n is not node]
            if is_copy(user):
                pending.append(user)
            elif packet_of(user) == "aten::mul" and len(others) == 1 and fits(others[0]):
                return user
    return None


def _uncast(node: fx.Node) -> fx.Node:
    while is_copy(node):
        node = node.all_input_nodes[0]
    return node


def _between(source: fx.Node, output: fx.Node) -> frozenset[fx.Node]:
    """All nodes on the way from `source` to `output`."""
    found: set[fx.Node] = set()
    pending = [output]
    while pending:
        node = pending.pop()
        if node is not source and node not in found and node.op == "call_function":
            found.add(node)
            pending += node.all_input_nodes
    return frozenset(found)
