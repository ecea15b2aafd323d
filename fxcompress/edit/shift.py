"""Constants that consumers see beside the units they read: they go into the consumers' biases."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.axes.transforms import Choice, transform
from fxcompress.edit.plan import Project
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import TensorMeta, example_shape
from fxcompress.graph.parameters import Names, find_tensor, replace_tensor, set_tensor

aten = torch.ops.aten
CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_BIAS = 2


@dataclass(frozen=True)
class _Reader:
    """A linear map that sums over the units: the call, and the name of its weight."""

    node: fx.Node
    weight: str


def shift_consumers(
    module: CapturedModule, names: Names, coupling: Coupling, edit: Project
) -> None:
    """Add V·shift to the bias of every linear map V that consumes the units of `edit`.

    Raises:
        PlanError: Something reads the units that has no bias to take the constant, or would take
            it differently at the border of an image.
    """
    assert edit.shift is not None
    done: set[str] = set()
    for reader in _readers(module, coupling, edit):
        old = find_tensor(module, reader.weight)
        assert old is not None
        axes = coupling.parameters[reader.weight]
        row = {edit.group.factor: Choice(edit.shift.reshape(1, -1))}
        choices = [row if dim == 1 else {} for dim in range(len(axes))]
        moved = transform(old.detach(), axes, choices).flatten(1).sum(1)
        _add_bias(module, names, reader, moved, done)


def _readers(module: CapturedModule, coupling: Coupling, edit: Project) -> list[_Reader]:
    factor = edit.group.factor
    found = []
    for node in module.graph.nodes:
        operands = [n for n in node.all_input_nodes if _holds(coupling, n, factor)]
        values = [n for n in operands if n.op != "get_attr"]
        if not values or _holds(coupling, node, factor) or node.op == "output":
            continue
        found.append(_reader(node, edit))
    return found


def _holds(coupling: Coupling, node: fx.Node, factor: Factor) -> bool:
    several = coupling.outputs.get(node.name, ())
    tensors = (coupling.axes.get(node.name, ()), *several)
    return any(factor in leaves(expr) for axes in tensors for expr in axes)


def _reader(node: fx.Node, edit: Project) -> _Reader:
    weight = node.args[1] if len(node.args) > 1 else None
    linear = node.target == aten.linear.default or node.target in CONVOLUTIONS
    if not linear or not isinstance(weight, fx.Node) or weight.op != "get_attr":
        raise PlanError(
            f"group {edit.group.name}: node '{node.name}' ({node.target}) reads the units and has "
            "no bias that could take a shift; give the projection without one"
        )
    padding = node.args[4] if node.target in CONVOLUTIONS and len(node.args) > 4 else 0
    if padding != 0 and any(padding):  # type: ignore[arg-type]
        raise PlanError(
            f"group {edit.group.name}: '{node.name}' pads with zeros by {padding}, so a shift "
            "would be wrong at the border; give the projection without one"
        )
    return _Reader(node, str(weight.target))


def _add_bias(
    module: CapturedModule, names: Names, reader: _Reader, value: Tensor, done: set[str]
) -> None:
    """Add to the bias once, however often its layer is called; make one where there is none."""
    node = reader.node
    bias = node.args[_BIAS] if len(node.args) > _BIAS else None
    if isinstance(bias, fx.Node):
        name = str(bias.target)
        old = find_tensor(module, name)
        if bias.op != "get_attr" or old is None:
            raise PlanError(f"the bias of '{node.name}' is computed; a shift cannot be added to it")
        if name not in done:
            replace_tensor(module, names, name, old.detach() + value)
        done.add(name)
        return
    name = ".".join((*reader.weight.split(".")[:-1], "bias"))
    if name not in done:
        if find_tensor(module, name) is not None:
            raise PlanError(f"'{node.name}' has no bias, and the name {name} is taken")
        set_tensor(module, name, nn.Parameter(value))
    done.add(name)
    with module.graph.inserting_before(node):
        made = module.graph.get_attr(name)
    made.meta["val"] = TensorMeta(example_shape(value), value.dtype)
    node.args = (*node.args[:_BIAS], made, *node.args[_BIAS + 1 :])
