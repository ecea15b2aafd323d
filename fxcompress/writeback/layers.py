"""The attributes of torch's own layers, which follow from the shapes of their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.schema import arguments, packet_of
from fxcompress.writeback.evidence import module_path
from fxcompress.writeback.transplant import named_tensors

Named = Mapping[str, Any]
"""The arguments of a node by the names of its operator's schema; none where nothing is known."""
Sizes = Mapping[str, Any]

_COUNTS = frozenset(("groups", "num_groups"))
"""Arguments of operators that no shape tells."""


def mend_layer(layer: nn.Module, consumer: Named) -> bool:
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
) -> dict[nn.Module, Named]:
    """For each layer of `result`, the arguments in `small` of the operator its forward calls.

    The weight that the operator reads may be computed, so that no parameter leads to it. Where the
    layers of a graph are is known from `dense`; its nodes have the names of those in `small`.
    """
    twins = {node.name: node for node in small.graph.nodes}
    layers = dict(result.named_modules(remove_duplicate=False))
    found: dict[nn.Module, Named] = {}
    for node in dense.graph.nodes:
        layer, twin = layers.get(module_path(node)), twins.get(node.name)
        named = {} if layer is None or twin is None else _named(twin)
        if layer is not None and not _COUNTS.isdisjoint(named):
            found.setdefault(layer, named)
    return found


def readers_of_tensors(result: nn.Module, small: CapturedModule) -> dict[int, Named]:
    """For each parameter of `result`, by its id, the arguments of a node of `small` that reads it.

    By tensor and not by name: a layer with several names has one of them in the graph.
    """
    places = named_tensors(result)
    found: dict[int, Named] = {}
    for node in small.graph.find_nodes(op="get_attr"):
        for user in node.users if str(node.target) in places else ():
            found.setdefault(id(places[str(node.target)]), _named(user))
    return found


def _named(node: fx.Node) -> Named:
    return arguments(node) if packet_of(node) else {}


def _set(layer: nn.Module, sizes: Sizes) -> None:
    for name, value in sizes.items():
        if hasattr(layer, name):
            setattr(layer, name, value)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


def _linear(layer: nn.Module, _: Named) -> Sizes:
    outputs, inputs = _weight(layer).shape
    return {"in_features": inputs, "out_features": outputs}


def _bilinear(layer: nn.Module, _: Named) -> Sizes:
    outputs, first, second = _weight(layer).shape
    return {"in1_features": first, "in2_features": second, "out_features": outputs}


def _convolution(layer: nn.Module, consumer: Named) -> Sizes:
    assert isinstance(layer, _ConvNd)
    groups = consumer.get("groups", layer.groups)
    if layer.transposed:
        inputs, outputs, *_ = _weight(layer).shape
        return {"in_channels": inputs, "out_channels": outputs * groups, "groups": groups}
    outputs, inputs, *_ = _weight(layer).shape
    return {"in_channels": inputs * groups, "out_channels": outputs, "groups": groups}


def _batch_norm(layer: nn.Module, _: Named) -> Sizes:
    for held in (layer.weight, layer.running_mean):
        if isinstance(held, Tensor):
            return {"num_features": len(held)}
    return {}


def _layer_norm(layer: nn.Module, _: Named) -> Sizes:
    if not isinstance(layer.weight, Tensor):
        return {}
    return {"normalized_shape": tuple(layer.weight.shape)}


def _group_norm(layer: nn.Module, consumer: Named) -> Sizes:
    if not isinstance(layer.weight, Tensor):
        return {}
    groups = consumer.get("num_groups", layer.num_groups)
    return {"num_channels": len(layer.weight), "num_groups": groups}


def _embedding(layer: nn.Module, _: Named) -> Sizes:
    rows, columns = _weight(layer).shape
    return {"num_embeddings": rows, "embedding_dim": columns}


def _prelu(layer: nn.Module, _: Named) -> Sizes:
    return {"num_parameters": _weight(layer).numel()}


_LAYERS: tuple[tuple[type[nn.Module], Callable[[nn.Module, Named], Sizes]], ...] = (
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
