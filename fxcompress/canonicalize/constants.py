"""Compute once what depends on no input, parameter or buffer."""

from __future__ import annotations

import math
import operator
import re
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from fxcompress.graph.aliasing import alias_classes, mutated_inputs
from fxcompress.graph.captured import MODE_FLAGS, CapturedModule, aten
from fxcompress.graph.emit import emit
from fxcompress.graph.lazy import Held, attach, device_of_values, value_of
from fxcompress.graph.metadata import is_free, is_tensor
from fxcompress.graph.parameters import set_tensor, tensor_of

_LARGEST = 64 * 2**20
"""Bytes. A larger constant is cheaper to compute again than to keep and to save."""

_LIKE = {aten.zeros_like.default, aten.ones_like.default, aten.full_like.default}
_NEW = {aten.new_zeros.default, aten.new_ones.default, aten.new_full.default}
"""Operators to which the values of their first argument do not matter, only its kind."""

_UNDEFINED = {
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}

_LITERAL = re.compile(r"(.+\.)?lifted_tensor_\d+")
"""How torch.export names the tensors that a forward writes out as numbers."""

_FOLDED = re.compile(r"_const_\d+")
"""What `fold_constants` calls its buffers."""

Snapshot = tuple[fx.Node, int]
"""A node and how often its memory had been written to when it was read."""


def fold_constants(module: CapturedModule) -> int:
    """Replace what is the same in every call by buffers ``_const_0``, …, which are not persistent.

    Before: ``add(x, unsqueeze(arange(16), 0))``. After: ``add(x, _const_0)``.
    """
    graph = module.graph
    foldable = _foldable(graph)
    values, readers = _evaluate(module, foldable)
    for index, (snapshot, users) in enumerate(readers.items(), _free_index(module)):
        constant = _register(module, f"_const_{index}", snapshot[0], values[snapshot])
        for user in users:
            user.replace_input_with(snapshot[0], constant)
    _erase(module, foldable)
    return len(readers)


def _foldable(graph: fx.Graph) -> dict[fx.Node, None]:
    """The nodes that can be computed beforehand, in order."""
    classes = alias_classes(graph)
    written: set[fx.Node] = set()
    while True:
        foldable: dict[fx.Node, None] = {}
        for node in graph.nodes:
            if classes[node] not in written and _is_constant(node, foldable):
                foldable[node] = None
        # What the rest writes to differs from call to call, with all that shares its memory.
        later = {
            classes[value]
            for node in graph.nodes
            if node not in foldable
            for value in mutated_inputs(node)
        }
        if later <= written:
            return foldable
        written |= later


def _is_constant(node: fx.Node, constants: dict[fx.Node, None]) -> bool:
    if not _has_fixed_size(node.meta.get("val")):
        return False
    if node.op == "get_attr":
        # On the meta device torch writes numbers down without their values.
        return _LITERAL.fullmatch(str(node.target)) is not None and not node.meta["val"].is_meta
    if node.target is operator.getitem:
        return node.args[0] in constants
    if not isinstance(node.target, OpOverload) or node.target.namespace not in ("aten", "prims"):
        return False
    if node.target in MODE_FLAGS or node.target in _UNDEFINED:
        return False
    if torch.Tag.nondeterministic_seeded in node.target.tags:
        return False
    ignored = node.args[:1] if node.target in _LIKE | _NEW else ()
    return all(value in constants or value in ignored for value in node.all_input_nodes)


def _has_fixed_size(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_has_fixed_size(part) for part in value)
    if not isinstance(value, Tensor) or any(is_free(size) for size in value.shape):
        return False
    return math.prod(map(int, value.shape)) * value.element_size() <= _LARGEST


def _evaluate(
    module: CapturedModule, foldable: dict[fx.Node, None]
) -> tuple[dict[Snapshot, Tensor], dict[Snapshot, list[fx.Node]]]:
    """Run the foldable nodes in order; give what the other nodes read of them, and who reads it.

    Those of a module on the meta device run on the CPU.
    """
    values: dict[fx.Node, Any] = {}
    snapshots: dict[Snapshot, Tensor] = {}
    readers: defaultdict[Snapshot, list[fx.Node]] = defaultdict(list)
    with torch.no_grad():
        for node in module.graph.nodes:
            if node in foldable:
                values[node] = _run(module, node, values)
                continue
            for source in node.all_input_nodes:
                value = values.get(source)
                # An output keeps its node: a caller who writes to it must not write to a buffer.
                if isinstance(value, Tensor) and node.op != "output" and source.op != "get_attr":
                    snapshot = (source, value._version)
                    readers[snapshot].append(node)
                    if snapshot not in snapshots:
                        snapshots[snapshot] = _narrow(value).clone()
    return snapshots, readers


def _run(module: CapturedModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        return tensor_of(module, node).clone()

    def known(source: fx.Node) -> Any:
        return values[source] if source in values else _stand_in(node, source)

    given = fx.node.map_arg((node.args, node.kwargs), known)
    args, kwargs = fx.node.map_aggregate(given, device_of_values)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _stand_in(node: fx.Node, source: fx.Node) -> Tensor:
    """A tensor of the same kind as one whose values are not looked at."""
    like: Tensor = source.meta["val"]
    device = device_of_values(like.device)
    if node.target in _NEW:
        return torch.empty(0, dtype=like.dtype, device=device)
    return torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)


def constant_of(module: CapturedModule, node: object) -> Tensor | None:
    """The tensor that `node` reads if it is the same in every call and has values, else None.

    Buffers of the model are not: loading a state may change them.
    """
    if not isinstance(node, fx.Node) or node.op != "get_attr" or not is_tensor(node):
        return None
    if not is_constant(str(node.target)):
        return None
    value = value_of(tensor_of(module, node))
    return None if value.is_meta else value


def is_constant(name: str) -> bool:
    """Whether a tensor of this name is a number of the graph, and no state of the model."""
    return bool(_LITERAL.fullmatch(name) or _FOLDED.fullmatch(name))


def _narrow(value: Tensor) -> Tensor:
    """One entry of every axis along which the tensor was only expanded."""
    for dim, stride in enumerate(value.stride()):
        if stride == 0 and value.shape[dim] > 1:
            value = value.narrow(dim, 0, 1)
    return value


def _register(module: CapturedModule, name: str, source: fx.Node, value: Tensor) -> fx.Node:
    """A buffer with this value and a node that reads it, expanded to the size of `source`."""
    if source.meta["val"].is_meta:
        value = attach(value.to("meta"), Held(value))
    set_tensor(module, name, value, persistent=False)
    graph = module.graph
    with graph.inserting_before(next(iter(graph.nodes))):
        node = graph.get_attr(name)
    node.meta["val"] = source.meta["val"].fake_mode.from_tensor(value)
    shape = [int(size) for size in source.meta["val"].shape]
    if list(value.shape) == shape:
        return node
    with graph.inserting_after(source):
        return emit(graph, aten.expand.default, (node, shape), source)


def _erase(module: CapturedModule, foldable: dict[fx.Node, None]) -> None:
    """Erase what was folded, writes included, but for what an output still needs."""
    classes = alias_classes(module.graph)
    needed = {
        classes[node] for node in foldable if any(user not in foldable for user in node.users)
    }
    for node in reversed(foldable):
        writes = any(True for _ in mutated_inputs(node))
        if node.users or (writes and classes[node] in needed):
            needed.update(classes[value] for value in node.all_input_nodes)
            continue
        module.graph.erase_node(node)
        if node.op == "get_attr" and not _is_read(module, node.target):
            owner, _, leaf = str(node.target).rpartition(".")
            delattr(module.get_submodule(owner), leaf)


def _is_read(module: CapturedModule, name: object) -> bool:
    return any(node.target == name for node in module.graph.find_nodes(op="get_attr"))


def _free_index(module: CapturedModule) -> int:
    index = 0
    while hasattr(module, f"_const_{index}"):
        index += 1
    return index
