"""Example inputs: which of their axes are free, and inputs that let torch.export see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph.metadata import dynamic_dims, is_tensor
from fxcompress.interface import Interface

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""
Axes = dict[int, str]
"""The free axes of one input, by name."""
Freed = Mapping[int, str]
DynamicSpec = (
    Literal["batch", "none"]
    | Mapping[str, Freed]
    | Mapping[int, Freed]
    | Mapping[int | str, Freed]  # a Mapping is invariant in its key: each kind has to be named
    | None
)
AxisNames = Mapping[int | str, Mapping[int, str]]
"""Names for free axes, by index or name of the tensor."""
ShapeSpec = dict[str, Any] | tuple[Any, ...] | list[Any] | None

BATCH = "batch"
UNDECIDED = 2
"""torch.export takes 0 and 1 for constants: what it says of a free size holds from 2 on."""


def named_tensors(inputs: Inputs) -> list[tuple[str, Tensor]]:
    """The tensors among the flattened inputs: ``args[0]``, ``input_ids``, ``states['left']``."""
    leaves = pytree.tree_flatten_with_path(inputs)[0]
    return [(spell_path(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


def widen(inputs: Inputs, dynamic: DynamicSpec) -> Inputs:
    """Repeat a batch of one where it shall be free: torch.export takes one for a constant."""
    tensors = named_tensors(inputs)
    requested = _requested(tensors, dynamic)
    free = {id(tensors[index][1]) for index, axes in requested.items() if 0 in axes}

    def repeated(value: Tensor) -> Tensor:
        return torch.cat([value, value]) if id(value) in free and value.shape[0] == 1 else value

    wide: Inputs = pytree.tree_map_only(Tensor, repeated, inputs)
    return wide


def axis_requests(model: nn.Module, inputs: Inputs, dynamic: DynamicSpec) -> ShapeSpec:
    """What torch.export takes as ``dynamic_shapes``.

    The batch is free as far as the model allows; an axis that was asked for by name has to be.
    """
    tensors = named_tensors(inputs)
    requested = _requested(tensors, dynamic)
    if not requested:
        return None
    freedom = Dim.AUTO if dynamic == BATCH else Dim.DYNAMIC
    shapes = ShapesCollection()
    for index, axes in requested.items():
        shapes[tensors[index][1]] = dict.fromkeys(axes, freedom)
    spec: ShapeSpec = shapes.dynamic_shapes(model, *inputs)
    return spec


def lost_batches(program: ExportedProgram, inputs: Inputs) -> bool:
    """Whether a batch of one came out fixed, at the size that it was repeated to."""
    tensors = [tensor for _, tensor in named_tensors(inputs)]
    batch = _batch_size(tensors)
    given = set(program.graph_signature.user_inputs)
    placeholders = [node for node in _tensor_inputs(program.graph) if node.name in given]
    return batch == 1 and any(
        tensor.ndim and tensor.shape[0] == 1 and 0 not in dynamic_dims(node)
        for tensor, node in zip(tensors, placeholders, strict=True)
    )


def labelled(interface: Interface, inputs: Inputs, asked: bool) -> tuple[Axes, ...]:
    """The free axes of each tensor, by the names that people and files see.

    Batches are called so, also two that the model does not relate, as long as no other name was
    asked for and the example has them of one size.
    """
    tensors = [tensor for _, tensor in named_tensors(inputs)]
    batches = [
        tensor.shape[0]
        for axes, tensor in zip(interface.free_axes(), tensors, strict=True)
        if axes.get(0) == BATCH
    ]

    def label(axis: int, name: str, tensor: Tensor) -> str:
        other = (
            axis
            or asked
            or interface.sizes[name].equals not in ("", BATCH)
            or [tensor.shape[0]] != batches[:1]
        )
        return name if other else BATCH

    return tuple(
        {axis: label(axis, name, tensor) for axis, name in axes.items()}
        for axes, tensor in zip(interface.free_axes(), tensors, strict=True)
    )


def describe(inputs: Inputs) -> str:
    """The tensors among the inputs, with shape, dtype and device, for messages."""
    return ", ".join(
        f"{name}: {list(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
        for name, value in named_tensors(inputs)
    )


def _tensor_inputs(graph: fx.Graph) -> list[fx.Node]:
    return [node for node in graph.nodes if node.op == "placeholder" and is_tensor(node)]


def spell_path(path: tuple[Any, ...]) -> str:
    """``args[0]``, ``input_ids``, ``states['left']``: the name of one of the flattened inputs."""
    kind, head, *rest = path
    name = f"args[{head.idx}]" if kind.idx == 0 else str(head.key)
    return name + pytree.keystr(tuple(rest))


def _batch_size(tensors: list[Tensor]) -> int | None:
    """The size that most inputs have on their first axis; of equally frequent ones, the first."""
    sizes = Counter(tensor.shape[0] for tensor in tensors if tensor.ndim)
    return sizes.most_common(1)[0][0] if sizes else None


def _requested(
    tensors: list[tuple[str, Tensor]], dynamic: DynamicSpec
) -> dict[int, Mapping[int, str]]:
    """The axes that shall be free, by the index of the input among the tensors."""
    if dynamic is None or dynamic == "none":
        return {}
    if isinstance(dynamic, Mapping):
        return {_index_of(key, axes, tensors): axes for key, axes in dynamic.items()}
    if dynamic != BATCH:
        raise CaptureError(
            f"dynamic={dynamic!r} means nothing; it is 'batch', 'none', None "
            "or a mapping {input index or name: {axis: name}}"
        )
    batch = _batch_size([tensor for _, tensor in tensors])
    return {
        index: {0: BATCH}
        for index, (_, tensor) in enumerate(tensors)
        if tensor.ndim and tensor.shape[0] == batch
    }


def _index_of(key: int | str, axes: Mapping[int, str], tensors: list[tuple[str, Tensor]]) -> int:
    names = [name for name, _ in tensors]
    index = names.index(key) if key in names else key
    if not isinstance(index, int) or not 0 <= index < len(tensors):
        raise CaptureError(
            f"dynamic names the input {key!r}; the tensor inputs are {', '.join(names)}, "
            f"or 0 to {len(names) - 1}"
        )
    name, tensor = tensors[index]
    for axis in axes:
        if not 0 <= axis < tensor.ndim:
            raise CaptureError(
                f"dynamic names axis {axis} of {name}, whose shape is {list(tensor.shape)}; "
                f"its axes are 0 to {tensor.ndim - 1}"
            )
        if axis and tensor.shape[axis] < 2:
            raise CaptureError(
                f"axis {axis} of {name} shall be dynamic but has size {tensor.shape[axis]}; "
                "torch.export takes 0 and 1 for constants: give an example of size 2 or more"
            )
    return index
