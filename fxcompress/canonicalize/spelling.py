"""Small rewrites: one spelling for what torch lets one write in several ways."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxcompress.capture.regions import carries_gradient
from fxcompress.graph.aliasing import alias_classes, mutated_inputs
from fxcompress.graph.captured import CapturedModule, aten
from fxcompress.graph.emit import emit
from fxcompress.graph.metadata import dtype_of, dynamic_dims, is_free, is_tensor, shape_of

_SPLITS = {
    aten.chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
}
_SPLIT_DIM = 2
_OPEN = 2**63 - 1
"""How torch writes the end of a slice that has none."""
_ALIASES = {aten.alias.default, aten.lift_fresh.default}
_COPIES = {aten.lift_fresh_copy.default, aten._to_copy.default}
_CONVERSIONS = {
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
    aten.to.other,
    aten.type_as.default,
}


def drop_aliases(module: CapturedModule) -> int:
    """Drop nodes that hand on their input: aliases, slices of everything, idle conversions, copies
    nobody writes to.

    Before: ``mul(to(x, float32), w)`` with x in float32. After: ``mul(x, w)``.
    """
    graph = module.graph
    classes = alias_classes(graph)
    written = {classes[value] for node in graph.nodes for value in mutated_inputs(node)}
    dropped = 0
    for node in list(graph.nodes):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        source = node.args[0]
        private = classes[node] not in written and classes[source] not in written
        if _hands_on(module, node, source, private):
            node.replace_all_uses_with(source)
            graph.erase_node(node)
            dropped += 1
    return dropped


def _hands_on(module: CapturedModule, node: fx.Node, source: fx.Node, private: bool) -> bool:
    if node.target in _ALIASES or _slices_everything(node):
        return True
    if node.target is aten.detach.default:
        return not carries_gradient(module, source)
    if node.target in _CONVERSIONS:
        return _same_kind(node, source) and (private or not _argument(node, "copy"))
    return node.target in _COPIES and private and _same_kind(node, source)


def _slices_everything(node: fx.Node) -> bool:
    """Whether a node is ``x[:]``."""
    if node.target is not aten.slice.Tensor:
        return False
    start, end, step = (_argument(node, name) for name in ("start", "end", "step"))
    return start in (None, 0) and end in (None, _OPEN) and step == 1


def _same_kind(node: fx.Node, source: fx.Node) -> bool:
    """Whether a conversion changes neither dtype, device nor memory layout."""
    if not (is_tensor(node) and is_tensor(source)):
        return False
    before, after = source.meta["val"], node.meta["val"]
    if (before.dtype, before.device, before.layout) != (after.dtype, after.device, after.layout):
        return False
    return _argument(node, "memory_format") in (None, torch.preserve_format)


def _argument(node: fx.Node, name: str) -> Any:
    """An argument by its name in the schema, given by position, by keyword or not at all."""
    for index, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            if index < len(node.args):
                return node.args[index]
            return node.kwargs.get(name, argument.default_value)
    return None


def spell_out_splits(module: CapturedModule) -> int:
    """Give every split its explicit sizes.

    Before: ``chunk(x, 2, 1)`` of 10 channels. After: ``split_with_sizes(x, [5, 5], 1)``.
    """
    rewritten = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function" or node.target not in _SPLITS:
            continue
        dim = node.args[_SPLIT_DIM] if len(node.args) > _SPLIT_DIM else 0
        sizes = [part.shape[dim] for part in node.meta["val"]]
        if any(is_free(size) for size in sizes):
            continue
        with module.graph.inserting_before(node):
            args = (node.args[0], [int(size) for size in sizes], dim)
            split = emit(module.graph, aten.split_with_sizes.default, args, node)
        node.replace_all_uses_with(split)
        module.graph.erase_node(node)
        rewritten += 1
    return rewritten


def spell_out_squeezes(module: CapturedModule) -> int:
    """Name the axes that a squeeze drops, so that it drops no other one that shrinks to size 1.

    Before: ``squeeze(x)`` of shape (2, 5, 1). After: ``squeeze(x, [2])``.
    """
    rewritten = 0
    for target in (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims):
        for node in module.graph.find_nodes(op="call_function", target=target):
            source, *given = node.args
            sizes = source.meta["val"].shape
            asked = _dims(given[0], len(sizes)) if given else range(len(sizes))
            unit = [dim for dim in asked if not is_free(sizes[dim]) and int(sizes[dim]) == 1]
            if target is not aten.squeeze.default and len(unit) == len(asked):
                continue
            with module.graph.inserting_before(node):
                named = emit(module.graph, aten.squeeze.dims, (source, unit), node)
            node.replace_all_uses_with(named)
            module.graph.erase_node(node)
            rewritten += 1
    return rewritten


def _dims(dims: int | list[int], rank: int) -> list[int]:
    return [dim % max(rank, 1) for dim in ([dims] if isinstance(dims, int) else dims)]


def spell_out_integer_rsub(module: CapturedModule) -> int:
    """Write a number minus an integer tensor as conversion, negation and addition.

    torch 2.13 cannot export ``rsub`` of an integer tensor to ONNX (pytorch#194381).
    Before: ``rsub(mask, 1.0)``. After: ``add(neg(to(mask, float32)), 1.0)``.
    """
    rewritten = 0
    for node in module.graph.find_nodes(op="call_function", target=aten.rsub.Scalar):
        source, other, *alpha = node.args
        if dtype_of(source).is_floating_point or dtype_of(source).is_complex:
            continue
        graph = module.graph
        with graph.inserting_before(node):
            if dtype_of(node) != dtype_of(source):
                source = emit(graph, aten.to.dtype, (source, dtype_of(node)), node)
            if alpha and alpha[0] != 1:
                source = emit(graph, aten.mul.Tensor, (source, alpha[0]), node)
            source = emit(graph, aten.neg.default, (source,), node)
            source = emit(graph, aten.add.Tensor, (source, other), node)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
        rewritten += 1
    return rewritten


def pin_attention_scale(module: CapturedModule) -> int:
    """Write down the scale of attention, which otherwise follows the width of the queries.

    Before: ``scaled_dot_product_attention(q, k, v)``. After, for queries 64 wide: ``scale=0.125``.
    """
    pinned = 0
    target = aten.scaled_dot_product_attention.default
    for node in module.graph.find_nodes(op="call_function", target=target):
        query = node.args[0]
        last = len(shape_of(query)) - 1
        if node.kwargs.get("scale") is None and last not in dynamic_dims(query):
            node.update_kwarg("scale", 1 / math.sqrt(shape_of(query)[last]))
            pinned += 1
    return pinned
