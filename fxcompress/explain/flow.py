"""The way of one group's units through the graph, as layers and the ops that tie them.

`explain` tells it in words, `drawing` shows it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import networkx as nx
from torch import fx

from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import is_tensor, parameter_of
from fxcompress.rules import name_of

Flow = dict[str, tuple[str, ...]]
"""Where units come from: vertices, with the ops passed since."""

WORDS = {
    "produce": "writes",
    "table": "looks up",
    "contract": "reads",
    "affine": "scales",
    "statistic": "scales",
}
SILENT = frozenset(
    ("alias", "clone", "contiguous", "detach", "dropout", "getitem", "reshape", "to", "view")
)
"""Ops not worth a word beside an arrow."""
_PASSED = 2


def flow(
    module: CapturedModule, coupling: Coupling, group: ChannelGroup, marked: Collection[str] = ()
) -> nx.DiGraph[str]:
    """The layers that hold the units, and the ops where they meet or end.

    Vertices have ``lines`` (their text), ``kind`` (a role, or ``op``), ``node`` (which calls them)
    and ``marked``; edges a ``label`` (the ops passed on the way).
    """
    return _Walk(coupling, group, marked).walk(module.graph)


class _Walk:
    """One walk over the nodes, in order."""

    def __init__(self, coupling: Coupling, group: ChannelGroup, marked: Collection[str]) -> None:
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        self.coupling = coupling
        self.factor: Factor = group.factor
        self.marked = frozenset(marked)
        self.roles: dict[str, list[str]] = {}
        for site in group.sites:
            self.roles.setdefault(site.parameter, []).append(site.role)
        self.parameters: dict[fx.Node, tuple[str, ...]] = {}
        self.flows: dict[fx.Node, Flow] = {}

    def walk(self, graph: fx.Graph) -> nx.DiGraph[str]:
        for node in graph.nodes:
            own = _computed_from(node, self.parameters)
            if own is not None:
                self.parameters[node] = own
            else:
                self.flows[node] = self._step(node)
        return self.graph

    def _step(self, node: fx.Node) -> Flow:
        """What flows out of a node, having drawn the node where there is something to see."""
        reads = [
            name
            for operand in node.all_input_nodes
            for name in self.parameters.get(operand, ())
            if name in self.roles
        ]
        arriving = self._arriving(node)
        leaves_here = self._holds(node)
        ends = bool(arriving) and not leaves_here and (is_tensor(node) or node.op == "output")
        if reads:
            vertex = self._layer(node, reads)
        elif ends or len(arriving) > 1 or (leaves_here and node.op == "placeholder"):
            vertex = self._op(node)
        else:
            return _passed(arriving, node) if leaves_here else {}
        for source, passed in arriving.items():
            if source != vertex:
                self.graph.add_edge(source, vertex, label=", ".join(passed[-_PASSED:]))
        return {vertex: ()} if leaves_here else {}

    def _arriving(self, node: fx.Node) -> Flow:
        found: Flow = {}
        for operand in node.all_input_nodes:
            for vertex, passed in self.flows.get(operand, {}).items():
                found.setdefault(vertex, passed)
        return found

    def _holds(self, node: fx.Node) -> bool:
        single = self.coupling.axes.get(node.name, ())
        several = self.coupling.outputs.get(node.name, ())
        exprs = (*single, *(expr for axes in several for expr in axes))
        return any(self.factor in leaves(expr) for expr in exprs)

    def _layer(self, node: fx.Node, reads: Iterable[str]) -> str:
        names = list(dict.fromkeys(reads))
        layer = layer_of(names[0])
        roles = list(dict.fromkeys(role for name in names for role in self.roles[name]))
        if layer in self.graph:
            known = self.graph.nodes[layer]
            roles = list(dict.fromkeys((*known["roles"], *roles)))
            names = list(dict.fromkeys((*known["reads"], *names)))
        kind = next(role for role in WORDS if role in roles)
        words = " and ".join(dict.fromkeys(WORDS[role] for role in roles))
        self.graph.add_node(
            layer,
            lines=(layer, f"{short(node)}, {words}"),
            kind=kind,
            node=node.name,
            roles=roles,
            reads=names,
            marked=not self.marked.isdisjoint(names),
        )
        return layer

    def _op(self, node: fx.Node) -> str:
        ends = {"output": "output of the model", "placeholder": f"input {node.name}"}
        text = ends.get(node.op, short(node))
        self.graph.add_node(
            f"({node.name})", lines=(text,), kind="op", node=node.name, reads=[], marked=False
        )
        return f"({node.name})"


def layer_of(parameter: str) -> str:
    """The layer that a parameter belongs to; the parameter itself where it stands alone."""
    layer, _, leaf = parameter.rpartition(".")
    return layer if layer and leaf.startswith(("weight", "bias", "running_")) else parameter


def short(node: fx.Node) -> str:
    """The name of what a node calls, without namespace and overload."""
    return name_of(node.target).rpartition("::")[2].partition(".")[0].removesuffix("_")


def _computed_from(
    node: fx.Node, parameters: Mapping[fx.Node, tuple[str, ...]]
) -> tuple[str, ...] | None:
    """The parameters that `node` is computed from, and from nothing else; None for an activation.

    Constants of the graph belong to no activation either.
    """
    if node.op == "get_attr":
        name = parameter_of(node)
        return () if name is None else (name,)
    if node.op in ("placeholder", "output") or not is_tensor(node):
        return None
    if not all(operand in parameters for operand in node.all_input_nodes):
        return None
    return tuple(dict.fromkeys(n for o in node.all_input_nodes for n in parameters[o]))


def _passed(arriving: Flow, node: fx.Node) -> Flow:
    name = short(node)
    more = () if name in SILENT else (name,)
    return {vertex: (*passed, *more) for vertex, passed in arriving.items()}
