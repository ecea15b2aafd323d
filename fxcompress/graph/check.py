"""What a graph is after each stage: rules that are checked between stages.

A stage that leaves what the next one does not expect is told by node and rule, instead of failing
further on or changing a result. Checking goes over the nodes once and runs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor

from fxcompress.errors import GraphError
from fxcompress.graph.captured import CapturedModule, aten
from fxcompress.graph.metadata import dynamic_dims, is_free, is_tensor, shape_of

Stage = Literal["captured", "canonical", "edited"]
"""After capture, after canonicalize, and after a plan has been carried out."""
Broken = Callable[["_Graph", fx.Node], str]
"""How a node breaks a rule, in words; empty if it does not."""

_ATTENTION = aten.scaled_dot_product_attention.default
_SPLITS = {
    aten.chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
}
_SPELLED_OUT = {aten.alias.default, aten.lift_fresh.default, aten.squeeze.default}
"""Operators that canonicalize writes in another way wherever they stand."""


@dataclass(frozen=True)
class _Graph:
    """What rules know of a graph: the place of each node, and the module's tensors by name."""

    places: Mapping[fx.Node, int]
    tensors: Mapping[str, Tensor]

    @classmethod
    def of(cls, module: CapturedModule) -> _Graph:
        """What rules know of this module."""
        parameters = module.named_parameters(remove_duplicate=False)
        tensors = dict(parameters) | dict(module.named_buffers(remove_duplicate=False))
        return cls({node: place for place, node in enumerate(module.graph.nodes)}, tensors)


def check(module: CapturedModule, stage: Stage) -> None:
    """Check a module against the rules of a stage.

    Args:
        module: Not changed; it need not be recompiled.
        stage: What has been done to it.

    Raises:
        GraphError: A node breaks a rule; the message names both. That is a fault in this package.
    """
    graph, rules = _Graph.of(module), rules_of(stage)
    for node in graph.places:
        for name, broken in rules:
            words = broken(graph, node)
            if words:
                raise GraphError(
                    f"the {stage} graph breaks the rule '{name}': node '{node.name}' "
                    f"({node.op} of {node.target}) {words}; this is a fault in fxcompress, and "
                    "nothing was changed: please report it with the model"
                )


def rules_of(stage: Stage) -> tuple[tuple[str, Broken], ...]:
    """The rules that a stage's graph keeps, by name."""
    return tuple((name, broken) for name, (broken, stages) in RULES.items() if stage in stages)


def _unordered(graph: _Graph, node: fx.Node) -> str:
    place = graph.places[node]
    late = [one.name for one in node.all_input_nodes if graph.places.get(one, place) >= place]
    return f"reads {', '.join(late)}, which is not before it in the graph" if late else ""


def _unowned(graph: _Graph, node: fx.Node) -> str:
    gone = [user.name for user in node.users if user not in graph.places]
    return f"is read by {', '.join(gone)}, which is not in the graph" if gone else ""


def _misplaced(graph: _Graph, node: fx.Node) -> str:
    last = graph.places[node] == len(graph.places) - 1
    if last != (node.op == "output"):
        return "ends the graph" if last else "is an output before the end of the graph"
    return ""


def _unknown_kind(graph: _Graph, node: fx.Node) -> str:
    if node.op == "call_method":
        return "calls a method; operators alone say what they do"
    if isinstance(node.target, OpOverloadPacket):
        return "calls an operator without saying which of its overloads"
    return ""


def _calls_a_module(graph: _Graph, node: fx.Node) -> str:
    return "calls a module, whose operators no stage sees" if node.op == "call_module" else ""


def _without_value(graph: _Graph, node: fx.Node) -> str:
    if "val" in node.meta or node.op == "output" or _gives_nothing(graph, node):
        return ""
    return "does not know its shape: there is no meta['val']"


def _gives_nothing(graph: _Graph, node: fx.Node) -> bool:
    """Whether a node gives no value that anybody asks about: a graph inside, or no result."""
    if node.op == "get_attr":
        return str(node.target) not in graph.tensors
    return isinstance(node.target, OpOverload) and not node.target._schema.returns


def _not_fake(graph: _Graph, node: fx.Node) -> str:
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else (value,)
    if not is_tensor(node) or all(isinstance(part, FakeTensor) for part in parts):
        return ""
    return f"holds a {type(value).__name__}; before any edit it holds a fake tensor"


def _unlike_its_tensor(graph: _Graph, node: fx.Node) -> str:
    if node.op != "get_attr" or not is_tensor(node):
        return ""
    tensor = graph.tensors.get(str(node.target))
    if tensor is None:
        return "reads a parameter or buffer that the module does not have"
    shape = tuple(tensor.shape)  # the dtype may be another: modules are converted
    return "" if shape == shape_of(node) else f"has shape {shape_of(node)}, the module's {shape}"


def _unspelled(graph: _Graph, node: fx.Node) -> str:
    if node.target in _SPELLED_OUT:
        return "stands for what other operators say"
    if node.target in _SPLITS and not any(map(is_free, _split_sizes(node))):
        return "splits without saying the sizes"
    if node.target is _ATTENTION and node.kwargs.get("scale") is None:
        query = node.args[0]
        if isinstance(query, fx.Node) and len(shape_of(query)) - 1 not in dynamic_dims(query):
            return "has a scale that follows the width of the queries"
    return ""


def _split_sizes(node: fx.Node) -> list[int]:
    dim = node.args[2] if len(node.args) > 2 else 0
    return [part.shape[dim] for part in node.meta["val"]]


def _unused(graph: _Graph, node: fx.Node) -> str:
    if node.users or node.op in ("placeholder", "output") or node.is_impure():
        return ""
    return "is read by nobody"


def _read_early(graph: _Graph, node: fx.Node) -> str:
    if node.op != "get_attr" or not node.users:
        return ""
    first = min(node.users, key=graph.places.__getitem__)
    between = node.next
    while between.op == "get_attr":
        between = between.next
    return "" if between is first else f"is read long before '{first.name}' needs it"


_ALWAYS: tuple[Stage, ...] = ("captured", "canonical", "edited")
RULES: Mapping[str, tuple[Broken, tuple[Stage, ...]]] = {
    "users are in the graph": (_unowned, _ALWAYS),
    "values are made before they are read": (_unordered, _ALWAYS),
    "one output, at the end": (_misplaced, _ALWAYS),
    "nodes call operators": (_unknown_kind, _ALWAYS),
    "nothing calls modules": (_calls_a_module, ("captured", "canonical")),
    "every node knows its value": (_without_value, _ALWAYS),
    "values are fake tensors": (_not_fake, ("captured", "canonical")),
    "parameters are as the graph says": (_unlike_its_tensor, _ALWAYS),
    "one spelling": (_unspelled, ("canonical",)),
    "no dead nodes": (_unused, ("canonical",)),
    "parameters are read where they are used": (_read_early, ("canonical",)),
}
"""Each rule by name, and the stages whose graphs keep it."""
