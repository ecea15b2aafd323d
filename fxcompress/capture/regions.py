"""Inline what torch.export wraps in a graph of its own: ``no_grad`` and disabled autocast."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule, aten
from fxcompress.graph.parameters import find_tensor

_GRAD_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled
_AUTOCAST_REGION = torch.ops.higher_order.wrap_with_autocast


def inline_regions(module: CapturedModule) -> None:
    """Replace each region by its nodes, innermost last.

    What a ``no_grad`` region computed from parameters or floating inputs is detached, as it was.
    """
    while regions := [node for node in module.graph.nodes if _is_region(node)]:
        for node in regions:
            _inline(module, node)


def _is_region(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in (_GRAD_REGION, _AUTOCAST_REGION)


def _inline(module: CapturedModule, region: fx.Node) -> None:
    body, operands, detached = _parts(module, region)
    graph = module.graph
    results: dict[fx.Node, fx.Node] = {}
    placeholders = body.graph.find_nodes(op="placeholder")
    results.update(zip(placeholders, operands, strict=True))
    outputs: Sequence[fx.Node] = ()
    with graph.inserting_before(region):
        for node in body.graph.nodes:
            if node.op == "output":
                outputs = [results[value] for value in node.args[0]]
            elif node.op != "placeholder":
                _lift_submodule(module, body, node)
                results[node] = graph.node_copy(node, results.__getitem__)
        if detached:
            outputs = [_detach(module, value) for value in outputs]
    for user in list(region.users):
        if user.target is not operator.getitem:
            raise CaptureError(
                f"node '{user.name}' uses the results of the region '{region.name}' as one tuple; "
                "export the model without torch.no_grad or autocast around that part"
            )
        user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(region)


def _parts(
    module: CapturedModule, region: fx.Node
) -> tuple[fx.GraphModule, Sequence[fx.Node], bool]:
    """The region's graph, its operands, and whether it stops gradients."""
    if region.target is _GRAD_REGION:
        enabled, body, *operands = region.args
        return _body(module, body), operands, not enabled  # type: ignore[return-value]
    device, dtype, enabled, _, body, *operands = region.args
    if enabled:
        raise CaptureError(
            f"the model runs a part under torch.autocast({device!r}, {dtype}), whose casts no "
            "graph shows: remove the autocast and convert the model with model.to(dtype)"
        )
    return _body(module, body), operands, False  # type: ignore[return-value]


def _body(module: nn.Module, node: object) -> fx.GraphModule:
    assert isinstance(node, fx.Node)
    body = module.get_submodule(str(node.target))
    assert isinstance(body, fx.GraphModule)
    return body


def _lift_submodule(module: CapturedModule, body: fx.GraphModule, node: fx.Node) -> None:
    """The graph of a region inside a region becomes a child of the captured module."""
    if node.op != "get_attr":
        return
    name = f"{node.target}_{len(module._modules)}"
    module.add_module(name, body.get_submodule(str(node.target)))
    node.target = name


def _detach(module: CapturedModule, node: fx.Node) -> fx.Node:
    if not carries_gradient(module, node):
        return node
    detached = module.graph.call_function(aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def carries_gradient(module: nn.Module, node: fx.Node) -> bool:
    """Whether a gradient could flow from this node to a parameter or to a floating input."""
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        current = stack.pop()
        if current in seen or not _is_floating(current):
            continue
        seen.add(current)
        if current.op == "placeholder":
            return True
        if current.op == "get_attr" and isinstance(
            find_tensor(module, str(current.target)), nn.Parameter
        ):
            return True
        stack.extend(current.all_input_nodes)
    return False


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point() or value.is_complex()
