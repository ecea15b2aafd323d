"""The attributes of torch's own layers, which follow from the shapes of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.schema import packet_of
from fxcompress.writeback.evidence import module_path
from fxcompress.writeback.transplant import named_tensors

Arguments = Mapping[str, tuple[Any, ...]]
"""For each parameter, the arguments of the node that consumes it."""
Sizes = Mapping[str, Any]

_OPERATORS = frozenset(
    f"aten::{name}"
    for name in (
        *(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)),
        "group_norm",
    )
)
"""Operators with an argument that no shape tells."""
_CONV_GROUPS = -1
_NORM_GROUPS = 1


def mend_layer(layer: nn.Module, consumer: tuple[Any, ...]) -> bool:
    """Set the attributes of one of torch's layers to what its parameters say.

    Args:
        layer: Holds its new parameters already.
        consumer: The arguments of the graph's node that reads its weight; empty if none does.

    Returns:
        Whether this is a layer of a known class.
    """
    for cls, sizes in _LAYERS:
        if isinstance(layer, cls):
            _set(layer, sizes(layer, consumer))
            return True
    # transformers' Conv1D is a Linear with its weight transposed; named here so as not to import
    # it.
    if type(layer).__name__ == "Conv1D" and isinstance(getattr(layer, "nf", None), int):
        inputs, outputs = _weight(layer).shape
        _set(layer, {"nx": inputs, "nf": outputs})
        return True
    return False


def calls_of_layers(
    result: nn.Module, dense: CapturedModule, small: CapturedModule
) -> dict[nn.Module, tuple[Any, ...]]:
    """For each layer of `result`, the arguments in `small` of the operator its forward calls.

    The weight that the operator reads may be computed, so that no parameter leads to it. Where the
    layers of a graph are is known from `dense`; its nodes have the names of those in `small`.
    """
    twins = {node.name: node for node in small.graph.nodes}
    layers = dict(result.named_modules(remove_duplicate=False))
    found: dict[nn.Module, tuple[Any, ...]] = {}
    for node in dense.graph.nodes:
        layer, twin = layers.get(module_path(node)), twins.get(node.name)
        if layer is not None and twin is not None and packet_of(twin) in _OPERATORS:
            found.setdefault(layer, tuple(twin.args))
    return found


def readers_of_tensors(result: nn.Module, small: CapturedModule) -> dict[int, tuple[Any, ...]]:
    """For each parameter of `result`, by its id, the arguments of a node of `small` that reads it.

    By tensor and not by name: a layer with several names has one of them in the graph.
    """
    places = named_tensors(result)
    found: dict[int, tuple[Any, ...]] = {}
    for node in small.graph.find_nodes(op="get_attr"):
        for user in node.users if str(node.target) in places else ():
            found.setdefault(id(places[str(node.target)]), tuple(user.args))
    return found


def _set(layer: nn.Module, sizes: Sizes) -> None:
    for name, value in sizes.items():
        if hasattr(layer, name):
            setattr(layer, name, value)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _linear(layer: nn.Module, _: tuple[Any, ...]) -> Sizes:
    outputs, inputs = _weight(layer).shape
    return {"in_features": inputs, "out_features": outputs}


def _bilinear(layer: nn.Module, _: tuple[Any, ...]) -> Sizes:
    outputs, first, second = _weight(layer).shape
    return {"in1_features": first, "in2_features": second, "out_features": outputs}


def _convolution(layer: nn.Module, consumer: tuple[Any, ...]) -> Sizes:
    assert isinstance(layer, _ConvNd)
    groups = consumer[_CONV_GROUPS] if len(consumer) > 6 else layer.groups
    if layer.transposed:
        # conv_transpose(input, weight, bias, stride, padding, output_padding, groups, dilation)
        groups = consumer[6] if len(consumer) > 6 else 1 if consumer else layer.groups
        inputs, outputs, *_ = _weight(layer).shape
        return {"in_channels": inputs, "out_channels": outputs * groups, "groups": groups}
    if consumer and len(consumer) <= 6:
        groups = 1
    outputs, inputs, *_ = _weight(layer).shape
    return {"in_channels": inputs * groups, "out_channels": outputs, "groups": groups}


def _batch_norm(layer: nn.Module, _: tuple[Any, ...]) -> Sizes:
    for held in (layer.weight, layer.running_mean):
        if isinstance(held, Tensor):
            return {"num_features": len(held)}
    return {}


def _layer_norm(layer: nn.Module, _: tuple[Any, ...]) -> Sizes:
    if not isinstance(layer.weight, Tensor):
        return {}
    return {"normalized_shape": tuple(layer.weight.shape)}


def _group_norm(layer: nn.Module, consumer: tuple[Any, ...]) -> Sizes:
    if not isinstance(layer.weight, Tensor):
        return {}
    groups = consumer[_NORM_GROUPS] if consumer else layer.num_groups
    return {"num_channels": len(layer.weight), "num_groups": groups}


def _embedding(layer: nn.Module, _: tuple[Any, ...]) -> Sizes:
    rows, columns = _weight(layer).shape
    return {"num_embeddings": rows, "embedding_dim": columns}


def _prelu(layer: nn.Module, _: tuple[Any, ...]) -> Sizes:
    return {"num_parameters": _weight(layer).numel()}


_LAYERS: tuple[tuple[type[nn.Module], Callable[[nn.Module, tuple[Any, ...]], Sizes]], ...] = (
    (nn.Linear, _linear),
    (nn.Bilinear, _bilinear),
    (_ConvNd, _convolution),
    (_NormBase, _batch_norm),
    (nn.LayerNorm, _layer_norm),
    (nn.RMSNorm, _layer_norm),
    (nn.GroupNorm, _group_norm),
    (nn.Embedding, _embedding),
    (nn.EmbeddingBag, _embedding),
    (nn.PReLU, _prelu),
)
