"""Example inputs: which of their axes are free, and inputs that let torch.export see it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection
from torch.utils import _pytree as pytree

from fxcompress.errors import CaptureError
from fxcompress.graph import dynamic_dims, is_tensor

Axes = dict[int, str]
"""The free axes of one input, by name."""
DynamicSpec = Literal["batch", "none"] | Mapping[int | str, Mapping[int, str]] | None

BATCH = "batch"


def widen(
    args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: DynamicSpec
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Repeat a batch of one to two where the batch is free: torch.export takes a size of one for a constant."""
    tensors = _tensors(args, kwargs)
    free = {
        id(tensors[index][1]) for index, axes in _requested(tensors, dynamic).items() if 0 in axes
    }

    def repeated(value: Tensor) -> Tensor:
        return torch.cat([value, value]) if id(value) in free and value.shape[0] == 1 else value

    return (
        pytree.tree_map_only(Tensor, repeated, args),
        pytree.tree_map_only(Tensor, repeated, kwargs),
    )


def axis_requests(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: DynamicSpec
) -> dict[str, Any] | tuple[Any, ...] | list[Any] | None:
    """What torch.export takes as ``dynamic_shapes``.

    The batch is free as far as the model allows; an axis that was asked for by name has to be free.
    """
    tensors = _tensors(args, kwargs)
    requested = _requested(tensors, dynamic)
    if not requested:
        return None
    freedom = Dim.AUTO if dynamic == BATCH else Dim.DYNAMIC
    shapes = ShapesCollection()
    for index, axes in requested.items():
        shapes[tensors[index][1]] = dict.fromkeys(axes, freedom)
    spec: dict[str, Any] | tuple[Any, ...] | list[Any]
    spec = shapes.dynamic_shapes(model, args, kwargs)
    return spec


def dynamic_axes(graph: fx.Graph, names: Mapping[int | str, Mapping[int, str]]) -> tuple[Axes, ...]:
    """The free axes of each tensor input of a captured graph, named as asked, else by what they equal."""
    inputs = [node for node in graph.nodes if node.op == "placeholder" and is_tensor(node)]
    known: dict[str, str] = {}
    result = []
    for index, node in enumerate(inputs):
        asked = names.get(index, names.get(node.name, {}))
        axes: Axes = {}
        for axis in sorted(dynamic_dims(node)):
            symbol = str(node.meta["val"].shape[axis])
            default = BATCH if axis == 0 else f"{node.name}_{axis}"
            axes[axis] = asked.get(axis) or known.setdefault(symbol, default)
            known.setdefault(symbol, axes[axis])
        result.append(axes)
    return tuple(result)


def batch_size(tensors: list[Tensor]) -> int | None:
    """The size that most inputs have on their first axis (of equally frequent ones, the first)."""
    sizes = Counter(tensor.shape[0] for tensor in tensors if tensor.ndim)
    return sizes.most_common(1)[0][0] if sizes else None


def describe(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """The tensors among the inputs, with shape, dtype and device, for messages."""
    return ", ".join(
        f"{name}: {list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
        for name, tensor in _tensors(args, kwargs)
    )


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[tuple[str, Tensor]]:
    leaves = pytree.tree_flatten_with_path((args, kwargs))[0]
    return [(_spell(path), leaf) for path, leaf in leaves if isinstance(leaf, Tensor)]


def _spell(path: tuple[Any, ...]) -> str:
    """``args[0]`` or ``input_ids``, with the path inside a container after it."""
    kind, head, *rest = path
    name = f"args[{head.idx}]" if kind.idx == 0 else str(head.key)
    return name + pytree.keystr(tuple(rest))


def _requested(
    tensors: list[tuple[str, Tensor]], dynamic: DynamicSpec
) -> dict[int, Mapping[int, str]]:
    """The axes that shall be free, by the index of the input among the tensors."""
    if dynamic is None or dynamic == "none":
        return {}
    if dynamic == BATCH:
        batch = batch_size([tensor for _, tensor in tensors])
        return {
            index: {0: BATCH}
            for index, (_, tensor) in enumerate(tensors)
            if tensor.ndim and tensor.shape[0] == batch
        }
    if not isinstance(dynamic, Mapping):
        raise CaptureError(
            f"dynamic={dynamic!r} is none of 'batch', 'none', None and a mapping {{input: {{axis: name}}}}"
        )
    return {_index_of(key, axes, tensors): axes for key, axes in dynamic.items()}


def _index_of(key: int | str, axes: Mapping[int, str], tensors: list[tuple[str, Tensor]]) -> int:
    names = [name for name, _ in tensors]
    index = names.index(key) if key in names else key
    if not isinstance(index, int) or not 0 <= index < len(tensors):
        raise CaptureError(
            f"dynamic names the input {key!r}; the tensor inputs are {', '.join(names)}"
        )
    name, tensor = tensors[index]
    for axis in axes:
        if not 0 <= axis < tensor.ndim:
            raise CaptureError(
                f"dynamic names axis {axis} of {name}, whose shape is {list(tensor.shape)}"
            )
        if tensor.shape[axis] < 2 and axis:
            raise CaptureError(
                f"axis {axis} of {name} shall be dynamic but has size {tensor.shape[axis]} in the example; "
                "torch.export takes sizes 0 and 1 for constants: give an example of size 2 or more"
            )
    return index
