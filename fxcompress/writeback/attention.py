"""Put into the weights what a class computes from a width that changed: the scale of attention.

The graph keeps the scale the model was trained with. A class that takes it from the width of its
queries now uses another one, and nothing in it can be set. Multiplying the queries' own weights by
the ratio of the two gives the same product.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.interpret import flat_inputs
from fxcompress.graph.metadata import is_tensor, shape_of
from fxcompress.graph.parameters import find_tensor
from fxcompress.graph.schema import arguments
from fxcompress.writeback.evidence import integers

_ATTENTION = "scaled_dot_product_attention"
_PRODUCTS = {"bmm", "matmul", "mm"}
_FACTORS = {"div": -1, "mul": 1}
_THROUGH = frozenset(
    """
    add amax amin cat clone contiguous dropout expand flatten getitem index_select mean movedim neg
    permute relu reshape select slice split_with_sizes squeeze sub sum to transpose unbind unflatten
    unsqueeze view
    """.split()  # noqa: SIM905
)
"""Operators by which a positive multiple of their input stays one."""
_ROWS = ((1, 0), (2, 0))
_ANCHORS: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "addmm": (-1, ((2, 1), (0, 0))),
    "batch_norm": (1, _ROWS),
    "conv1d": (1, _ROWS),
    "conv2d": (1, _ROWS),
    "conv3d": (1, _ROWS),
    "layer_norm": (-1, ((2, 0), (3, 0))),
    "linear": (-1, _ROWS),
    "rms_norm": (-1, ((2, 0),)),
}
"""Where queries can be scaled: the axis of features of the value, and the arguments that hold
parameters, each with its own axis of features.
"""


@dataclass(frozen=True)
class _Site:
    """A value of the class's graph that must be multiplied by `ratio` for the class to be right."""

    value: fx.Node
    ratio: float


def rescale_queries(
    model: nn.Module, found: CapturedModule, wanted: CapturedModule, args: Any, kwargs: Any
) -> bool:
    """Multiply the weights of queries where `found` scales attention otherwise than `wanted`.

    Args:
        model: The candidate; its parameters are changed if that can make it right.
        found: The canonical graph of `model`.
        wanted: The smaller graph. Only the scales may differ.
        args: Inputs by position, for finding which features are queries.
        kwargs: Inputs by name.

    Returns:
        Whether anything was changed.
    """
    sites = _sites(found, wanted)
    if not sites:
        return False
    anchors = {site: _anchor(site.value) for site in sites}
    if None in anchors.values():
        return False
    masks = _features(found, anchors, args, kwargs)  # type: ignore[arg-type]
    if masks is None:
        return False
    done: dict[tuple[str, int], float] = {}
    for site, anchor in anchors.items():
        assert anchor is not None
        for position, axis in _scalable(anchor)[1]:
            _scale(model, anchor, position, axis, masks[site], site.ratio, done)
    return True


def _sites(found: CapturedModule, wanted: CapturedModule) -> list[_Site]:
    """Where a number differs, all else being equal; empty if anything else does."""
    twins = {node.name: node for node in wanted.graph.nodes}
    sites: list[_Site] = []
    for node in found.graph.nodes:
        if node.op != "call_function":
            continue
        twin = twins.get(node.name)
        if twin is None or twin.target != node.target or _integers(node) != _integers(twin):
            return []
        if _operator(node) == _ATTENTION:
            ratio = twin.kwargs["scale"] / node.kwargs["scale"]
        elif _operator(node) in _FACTORS and isinstance(node.args[1], float):
            ratio = (twin.args[1] / node.args[1]) ** _FACTORS[_operator(node)]
        else:
            continue
        if abs(ratio - 1) > 1e-12:
            sites.append(_Site(node.args[0], ratio))
    return sites


def _scalable(node: fx.Node) -> tuple[int, tuple[tuple[int, int], ...]]:
    """The entry of `_ANCHORS`, or that of a product with a vector of parameters."""
    if _operator(node) == "mul":
        vectors = (
            (position, 0)
            for position, operand in enumerate(node.args)
            if isinstance(operand, fx.Node)
            and operand.op == "get_attr"
            and len(shape_of(operand)) == 1
        )
        return -1, tuple(vectors)
    return _ANCHORS.get(_operator(node), (-1, ()))


def _operator(node: fx.Node) -> str:
    """The operator's name: ``view`` for ``aten.view.default``; empty for what is no operator."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.partition("::")[2]
    return "getitem" if node.target is operator.getitem else ""


def _integers(node: fx.Node) -> list[Any]:
    """The integers a node is called with; one left to its default is none other."""
    if isinstance(node.target, OpOverload):
        return list(integers(arguments(node)))
    return list(integers((node.args, node.kwargs)))


def _anchor(value: fx.Node) -> fx.Node | None:
    """The one layer whose output `value` is a multiple of, in every element."""
    anchors: set[fx.Node] = set()
    stack, seen = [value], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if _scalable(node)[1]:
            anchors.add(node)
        elif _operator(node) in _PRODUCTS:
            stack.append(node.args[0])  # type: ignore[arg-type]
        elif _operator(node) in _FACTORS:
            operands = [operand for operand in node.all_input_nodes if _depends_on_layer(operand)]
            if len(operands) != 1:
                return None
            stack += operands
        elif _operator(node) in _THROUGH:
            stack += [operand for operand in node.all_input_nodes if _is_data(operand)]
        else:
            return None
    return anchors.pop() if len(anchors) == 1 else None


def _is_data(node: fx.Node) -> bool:
    """Whether the node yields tensors, and not the size of one."""
    return is_tensor(node) or isinstance(node.meta.get("val"), list | tuple)


def _depends_on_layer(node: fx.Node) -> bool:
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if _scalable(current)[1]:
            return True
        if current not in seen:
            seen.add(current)
            stack += current.all_input_nodes
    return False


def _features(
    found: CapturedModule, anchors: dict[_Site, fx.Node], args: Any, kwargs: Any
) -> dict[_Site, Tensor] | None:
    """For each site the features of its layer that reach it; None if one reaches anything else."""
    runner = _Watching(found, set(anchors.values()), {site.value for site in anchors})
    with torch.enable_grad():
        flat = flat_inputs(found, args, kwargs)
        outputs = runner.run(*flat, enable_io_processing=False)
        masks = {
            site: _reached(runner.values[site.value], runner.layers[anchor], _features_of(anchor))
            for site, anchor in anchors.items()
        }
        leaves = [out for out in outputs if isinstance(out, Tensor) and out.requires_grad]
        for site, anchor in anchors.items():
            for out in leaves:
                reached = _reached(out, runner.layers[anchor], _features_of(anchor))
                if bool((reached & masks[site]).any()):
                    return None
    return masks


class _Watching(fx.Interpreter):
    """Runs a graph with a gradient from its layers, and cuts that gradient behind the sites."""

    def __init__(self, module: CapturedModule, layers: set[fx.Node], sites: set[fx.Node]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.watched = layers
        self.sites = sites
        self.layers: dict[fx.Node, Tensor] = {}
        self.values: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n in self.watched:
            value = self.layers[n] = value.detach().requires_grad_()
        if n in self.sites:
            self.values[n] = value
            value = value.detach()
        return value


def _features_of(anchor: fx.Node) -> int:
    return _scalable(anchor)[0]


def _reached(value: Tensor, layer: Tensor, axis: int) -> Tensor:
    """The features (along `axis`) of `layer` on which `value` depends."""
    weights = torch.rand_like(value) + 0.5
    (grad,) = torch.autograd.grad(
        (value * weights).sum(), layer, retain_graph=True, allow_unused=True
    )
    if grad is None:
        return torch.zeros(layer.shape[axis], dtype=torch.bool, device=layer.device)
    return grad.movedim(axis, -1).flatten(0, -2).ne(0).any(0)


def _scale(
    model: nn.Module,
    anchor: fx.Node,
    position: int,
    axis: int,
    mask: Tensor,
    ratio: float,
    done: dict[tuple[str, int], float],
) -> None:
    """Multiply the masked features of a parameter, once, however many sites ask for it."""
    node = anchor.args[position] if position < len(anchor.args) else None
    tensor = find_tensor(model, str(node.target)) if isinstance(node, fx.Node) else None
    if not isinstance(node, fx.Node) or tensor is None:
        return  # no bias, or a constant of the graph alone: the gate will tell
    with torch.no_grad():
        rows = tensor.movedim(axis, 0)
        for index in mask.nonzero().flatten().tolist():
            if (str(node.target), index) not in done:
                rows[index] *= ratio
                done[str(node.target), index] = ratio
