"""Small modules in a graph: what a parameter is read through, or what it is kept in.

A module node with an argument takes a parameter and gives what is read in its place. A module node
without one stands where the parameter stood, under its name, and gives its value from tensors of
its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import value_of
from fxcompress.graph.metadata import parameter_of, shape_of
from fxcompress.graph.parameters import find_tensor


def keeps(node: fx.Node) -> bool:
    """Whether a node is a module that keeps a parameter in tensors of its own."""
    return node.op == "call_module" and not node.all_input_nodes


def through(node: fx.Node) -> fx.Node:
    """The parameter that a module node is given; any other node itself."""
    return node.all_input_nodes[0] if node.op == "call_module" and not keeps(node) else node


def module_calls(module: CapturedModule) -> dict[str, list[fx.Node]]:
    """For each parameter that is read through a module or kept in one, the calls of it."""
    found: dict[str, list[fx.Node]] = {}
    for node in module.graph.find_nodes(op="call_module"):
        name = str(node.target) if keeps(node) else parameter_of(node.args[0])
        if name is not None:
            found.setdefault(name, []).append(node)
    return found


def modules_read(module: CapturedModule) -> dict[str, nn.Module]:
    """The small module through which each such parameter is read, or in which it is kept."""
    return {
        name: module.get_submodule(str(calls[-1].target))
        for name, calls in module_calls(module).items()
    }


def read_value(module: CapturedModule, name: str) -> Tensor | None:
    """What the graph reads as the parameter or buffer of this name; None if there is none.

    Modules are called in the mode they are in.
    """
    tensor, through = find_tensor(module, name), modules_read(module).get(name)
    value = None if tensor is None else value_of(tensor)
    if through is None:
        return value
    with torch.no_grad():
        read: Tensor = through() if value is None else through(value)
    return read


def read_shape(module: CapturedModule, name: str) -> tuple[int, ...] | None:
    """The shape of what `read_value` gives; nothing is computed."""
    value, calls = find_tensor(module, name), module_calls(module).get(name)
    if calls is not None:
        return shape_of(calls[0])
    return None if value is None else tuple(value.shape)


def same_tensors(module: nn.Module, other: nn.Module) -> bool:
    """Whether two small modules have the very same tensors: a tied parameter is kept once."""
    return module is other or [*map(id, module.buffers())] == [*map(id, other.buffers())] != []
