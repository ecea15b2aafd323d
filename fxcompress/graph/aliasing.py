"""Which nodes of a graph share memory, and which of them are written to."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx
from torch._ops import OpOverload

from fxcompress.graph.undeclared import handed_on


def alias_classes(graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """Map each node to a representative of the nodes that may share its memory.

    Views, in-place operators and the elements of a multiple result share; the schemas say so, and
    composite operators are asked where theirs are silent.
    """
    parent: dict[fx.Node, fx.Node] = {node: node for node in graph.nodes}

    def root(node: fx.Node) -> fx.Node:
        while parent[node] is not node:
            node = parent[node]
        return node

    for node in graph.nodes:
        for source in _sharing_inputs(node):
            parent[root(node)] = root(source)
    return {node: root(node) for node in graph.nodes}


def mutated_inputs(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes whose memory this node writes to, by the operator's schema."""
    for value, writes in _aliased_arguments(node):
        if writes:
            yield value


def _sharing_inputs(node: fx.Node) -> Iterator[fx.Node]:
    if node.op != "call_function":
        return
    if not isinstance(node.target, OpOverload):
        # operator.getitem takes a tuple apart; others may return what they were given.
        yield from node.all_input_nodes
        return
    yield from (value for value, _ in _aliased_arguments(node))
    yield from handed_on(node)


def _aliased_arguments(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Inputs that the schema marks as shared with the result, and whether they are written."""
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return
    for index, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is None:
            continue
        given = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
        for value in given if isinstance(given, list | tuple) else (given,):
            if isinstance(value, fx.Node):
                yield value, argument.alias_info.is_write
