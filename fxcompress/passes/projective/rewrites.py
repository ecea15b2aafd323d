"""New values of the parameters that hold a group's units, in their original shapes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Axes, Factor, leaves
from fxcompress.edit.plan import Edit, Offset, Replace
from fxcompress.graph.parameters import read_tensor, tensor_called
from fxcompress.graph.schema import operands_of, packet_of
from fxcompress.layers.weights import Norm, Producer, producers, units_in
from fxcompress.passes.elimination import Elimination
from fxcompress.passes.structured.readers import readers
from fxcompress.program import Program


class Rewrites:
    """Values that change, in float64 until all changes are made."""

    def __init__(self, program: Program, group: ChannelGroup) -> None:
        self.program, self.group = program, group
        self.values: dict[str, Tensor] = {}
        self.offsets: list[Offset] = []

    def value(self, name: str) -> Tensor:
        """What a parameter is by now."""
        if name not in self.values:
            self.values[name] = read_tensor(self.program.module, name).double().clone()
        return self.values[name]

    def multiply(self, name: str, dim: int, line: Tensor) -> None:
        """Multiply one axis of a parameter."""
        value = self.value(name)
        shape = [1] * value.dim()
        shape[dim] = -1
        self.values[name] = value * line.to(value).reshape(shape)

    def index(self, producer: Producer, name: str) -> Tensor:
        """Where the entries of each unit lie in a flat parameter, (cells, units, m)."""
        units = units_in(self.program, self.group, producer, name)
        return units.entries_in(self.value(name)).flatten(2)

    def set(self, name: str, index: Tensor, value: Tensor) -> None:
        """Put entries of units in place."""
        flat = self.value(name).flatten()
        flat[index] = value.to(flat)
        self.values[name] = flat.reshape(self.values[name].shape)

    def scale(self, producer: Producer, name: str, share: Tensor) -> None:
        """Multiply the entries of each unit, by factors of shape (cells, units)."""
        index = self.index(producer, name)
        self.set(name, index, self.value(name).flatten()[index] * share[..., None])

    @property
    def edits(self) -> tuple[Edit, ...]:
        """The changes, in the parameters' own types."""
        found: list[Edit] = []
        for name, value in self.values.items():
            old = tensor_called(self.program.module, name)
            found.append(Replace(name, value.to(old.dtype)))
        return (*found, *self.offsets)


def redistribute(rewrites: Rewrites, alpha: Tensor, beta: Tensor, gamma: Tensor) -> None:
    """Multiply rows, biases and the columns that read the units, by factors (cells, units)."""
    program, group = rewrites.program, rewrites.group
    if not _gated(program, group):
        for producer in producers(program, group):
            if not producer.filters:
                _scale_writer(rewrites, producer, alpha, beta)
    for reader in readers(program, group):
        if not reader.tied:
            flat = rewrites.value(reader.weight).flatten()
            new = flat[reader.index] * gamma[..., None, None].to(flat)
            rewrites.set(reader.weight, reader.index, new)


def _scale_writer(rewrites: Rewrites, producer: Producer, alpha: Tensor, beta: Tensor) -> None:
    norm = producer.norm
    if norm is None:
        rewrites.scale(producer, producer.weight, alpha)
        if producer.bias is not None:
            rewrites.scale(producer, producer.bias, beta)
    elif norm.weight is not None and norm.bias is not None:
        _scale_norm(rewrites, producer, norm, alpha, beta)
    else:
        _scale_under_norm(rewrites, producer, norm, alpha, beta)


def _scale_norm(
    rewrites: Rewrites, producer: Producer, norm: Norm, alpha: Tensor, beta: Tensor
) -> None:
    """Scale what the layer and its norm compute, by the norm alone.

    With scale g, shift b, mean m (less the layer's bias) and deviation s the layer with its norm
    has rows (g/s) w and bias b - g m/s. Scaled by alpha and beta these are those of
    g' = alpha g and b' = beta (b - g m/s) + g' m/s.
    """
    assert norm.weight is not None
    assert norm.bias is not None
    scale, shift, mean, variance = (
        rewrites.value(name).flatten()[rewrites.index(producer, name)]
        for name in (norm.weight, norm.bias, norm.mean, norm.variance)
    )
    centre = (mean - producer.offset) / (variance + norm.eps).sqrt()
    new = alpha[..., None] * scale
    rewrites.set(norm.weight, rewrites.index(producer, norm.weight), new)
    moved = beta[..., None] * (shift - scale * centre) + new * centre
    rewrites.set(norm.bias, rewrites.index(producer, norm.bias), moved)


def _scale_under_norm(
    rewrites: Rewrites, producer: Producer, norm: Norm, alpha: Tensor, beta: Tensor
) -> None:
    """The norm has no scale or shift of its own: the layer's rows, and its running mean instead.

    The norm adds scale (bias - mean) + shift, of which every part is scaled by beta.
    """
    rewrites.scale(producer, producer.weight, alpha)
    if norm.bias is not None:
        rewrites.scale(producer, norm.bias, beta)
    index = rewrites.index(producer, norm.mean)
    mean = rewrites.value(norm.mean).flatten()[index]
    moved = producer.offset - beta[..., None] * (producer.offset - mean)
    rewrites.set(norm.mean, index, moved)


def compensate(
    rewrites: Rewrites, found: Sequence[Elimination], steps: int, shift: bool
) -> list[str]:
    """Let the weights that read the units left make up for those that go: V_j += V_i q_j.

    Args:
        rewrites: Where the new weights go.
        found: The elimination of each cell.
        steps: How many removals count.
        shift: Whether what the biases miss, V_i (b_i - Σ q_j b_j), is a constant of the readers.

    Returns:
        Notes on what could not be compensated.
    """
    program, group = rewrites.program, rewrites.group
    own = producers(program, group)
    if any(each.filters for each in own):
        return [f"group {group.name}: a depthwise layer lies behind it; only selected"]
    matrices = torch.stack([_mixing(each, steps) for each in found])
    linear = not group.nonlinearities and shift
    bias = torch.stack([each.offsets.sum(2) for each in own]).sum(0) if linear else None
    notes = []
    for reader in readers(program, group):
        if reader.tied:
            notes.append(f"{reader.weight} writes group {group.name} too and was not compensated")
            continue
        columns = reader.columns(program)
        mixed = (matrices.mT @ columns.flatten(2)).reshape(columns.shape)
        rewrites.set(reader.weight, reader.index, mixed)
        if bias is not None and bool((bias != 0).any()):
            lost = columns * bias[..., None, None] - _left(found, steps, mixed, bias)
            rewrites.offsets.append(Offset(reader.weight, reader.sums(lost)))
    return notes


def _mixing(found: Elimination, steps: int) -> Tensor:
    """D with V ← V D: all removals, one after another; columns of units that went are zero."""
    matrix = torch.eye(found.units, dtype=torch.float64, device=found.order.device)
    for step in range(steps):
        unit = found.order[step]
        matrix += matrix[:, unit, None] * found.coefficients[step]
        matrix[:, unit] = 0
    return matrix


def _left(found: Sequence[Elimination], steps: int, mixed: Tensor, bias: Tensor) -> Tensor:
    """What the columns of the units left make of their biases."""
    stay = torch.ones_like(bias)
    for cell, each in enumerate(found):
        stay[cell, each.order[:steps]] = 0
    return mixed * (bias * stay)[..., None, None]


def _gated(program: Program, group: ChannelGroup) -> bool:
    """Whether two signals of the group's units are multiplied with each other."""
    axes = program.analysis.coupling.axes
    for node in program.module.graph.nodes:
        if packet_of(node).removesuffix("_") == "aten::mul":
            held = [
                n
                for n in operands_of(node)
                if isinstance(n, fx.Node)
                and n.op != "get_attr"
                and group.factor in _factors(axes.get(n.name, ()))
            ]
            if len(held) > 1:
                return True
    return False


def _factors(axes: Axes) -> set[Factor]:
    return {leaf for expr in axes for leaf in leaves(expr)}
