"""A graph that can be stopped before any node and taken up there again.

What is kept between two nodes are the values that a later node needs. Parameters are none of them:
they are read when they are needed, so that a graph may go on with the parameters of another one
that differs only in what comes later.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.graph.aliasing import alias_classes, mutated_inputs
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.interpret import Interpreter
from fxcompress.graph.lazy import value_of
from fxcompress.graph.parameters import find_tensor, names_of, replace_tensor, tensor_called
from fxcompress.graph.state import isolated, written_tensors

See = Callable[[str, Any], None]
"""What to do with the value of a node, by the node's name."""


@dataclass(frozen=True)
class State:
    """What is known of one batch before a node.

    Attributes:
        values: Of nodes before it, by name.
        written: The tensors that calls of the module write to: this batch's own.
    """

    values: dict[str, Any]
    written: dict[str, Tensor] = field(default_factory=dict)


class Stages:
    """A module in evaluation mode, to be run from one node to another.

    Attributes:
        nodes: Those needed for the values that are asked for, and those that write to memory.
        numbers: Their numbers, by name.
        last: By name the number of the last node that needs a value.
    """

    def __init__(self, source: CapturedModule, wanted: Collection[str]) -> None:
        """Nodes that no value in `wanted` needs are never run."""
        # A clone, for isolation puts copies of what is written to in the place of the module's own.
        self.module = isolated(clone_graph(source).eval())
        self.nodes = _needed(self.module.graph, wanted)
        self.numbers = {node.name: number for number, node in enumerate(self.nodes)}
        self.last = {
            source.name: number
            for number, node in enumerate(self.nodes)
            for source in node.all_input_nodes
        }
        self.names = names_of(self.module)
        self.stored = {name: self._tensor(name) for name in written_tensors(self.module)}
        self.parameters = [node for node in self.nodes if node.op == "get_attr"]
        self.overwritten = _overwritten(self.nodes)

    def begin(self, inputs: list[Any]) -> State:
        """Before the first node, from the values of the graph's placeholders."""
        names = [node.name for node in self.module.graph.find_nodes(op="placeholder")]
        values = dict(zip(names, inputs, strict=True))
        return self.apart(State(values, self.stored), 0)

    def readers(self, name: str) -> list[int]:
        """The numbers of the nodes that need a value."""
        node = self.nodes[self.numbers[name]]
        return sorted(self.numbers[user.name] for user in node.users if user.name in self.numbers)

    def kept(self, state: State, name: str, start: int) -> bool:
        """Whether a state before the node `start` has a value as it was when it was made."""
        made = self.numbers[name]
        changed = any(made < number < start for number in self.overwritten.get(name, ()))
        return name in state.values and not changed

    def apart(self, state: State, start: int) -> State:
        """The same state, whose values no node from `start` on writes to in the other."""
        own = {
            name: value
            for name, value in state.values.items()
            if any(number >= start for number in self.overwritten.get(name, ()))
        }
        # One copy of all together: views of the same memory stay such.
        own, written = copy.deepcopy((own, state.written))
        return State({**state.values, **own}, written)

    def continues(self, other: Stages, name: str) -> bool:
        """Whether the nodes before one give the same in another version of the module."""
        if name not in self.numbers or name not in other.numbers:
            return False
        end = self.numbers[name]
        return all(self._same(other, node, end) for node in self.nodes[:end])

    def _same(self, other: Stages, node: fx.Node, end: int) -> bool:
        twin = other.nodes[other.numbers[node.name]] if node.name in other.numbers else None
        if node.op == "get_attr":
            early = any(self.numbers.get(user.name, end) < end for user in node.users)
            return not early or (twin is not None and _same_tensors(self, other, node, twin))
        return twin is not None and _said(node) == _said(twin)

    def run(self, state: State, start: int, halt: int, stop: int, see: See) -> State:
        """Run the nodes from `start` up to `stop`, and give the state before `halt`.

        The state is used up: nodes may write to its values.
        """
        for name, value in state.written.items():
            replace_tensor(self.module, self.names, name, value)
        runner = Interpreter(self.module, garbage_collect_values=False)
        runner.env = {self.nodes[self.numbers[name]]: v for name, v in state.values.items()}
        state.values.clear()
        early = [n for n in self.parameters if self._read_between(n, start, stop)]
        runner.env.update({node: runner.run_node(node) for node in early})
        found: State | None = None
        for number in range(start, stop):
            if number == halt:
                found = self.apart(self._state(runner.env, halt), halt)
            node = self.nodes[number]
            if node.op != "placeholder":
                runner.env[node] = runner.run_node(node)
            see(node.name, runner.env[node])
            self._free(runner.env, number)
        return self._state(runner.env, halt) if found is None else found

    def _read_between(self, node: fx.Node, start: int, stop: int) -> bool:
        """Whether a parameter that comes before `start` is needed before `stop`."""
        users = (self.numbers.get(user.name, -1) for user in node.users)
        return self.numbers[node.name] < start and any(start <= user < stop for user in users)

    def _state(self, env: dict[fx.Node, Any], halt: int) -> State:
        """What nodes from `halt` on need."""
        values = {
            node.name: value
            for node, value in env.items()
            if node.op != "get_attr" and self.last.get(node.name, -1) >= halt
        }
        return State(values, {name: self._tensor(name) for name in self.stored})

    def _free(self, env: dict[fx.Node, Any], number: int) -> None:
        node = self.nodes[number]
        for each in (*node.all_input_nodes, node):
            if self.last.get(each.name, -1) <= number:
                env.pop(each, None)

    def _tensor(self, name: str) -> Tensor:
        value = tensor_called(self.module, name)
        return value.detach()


def _needed(graph: fx.Graph, wanted: Collection[str]) -> list[fx.Node]:
    """The nodes that values depend on, in order, and all placeholders.

    A node that writes to memory is needed where something in that memory is read later.
    """
    classes = alias_classes(graph)
    found: set[fx.Node] = set()
    memory: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        writes = any(classes[source] in memory for source in mutated_inputs(node))
        if node.name in wanted or node in found or node.op == "placeholder" or writes:
            found.update((node, *node.all_input_nodes))
            memory.update(classes[each] for each in (node, *node.all_input_nodes))
    return [node for node in graph.nodes if node in found]


def _overwritten(nodes: list[fx.Node]) -> dict[str, list[int]]:
    """By name the numbers of the nodes that write to the memory of a value."""
    classes = alias_classes(nodes[0].graph) if nodes else {}
    writers: dict[fx.Node, list[int]] = {}
    for number, node in enumerate(nodes):
        for source in mutated_inputs(node):
            writers.setdefault(classes[source], []).append(number)
    return {node.name: writers[classes[node]] for node in nodes if classes[node] in writers}


def _said(node: fx.Node) -> tuple[Any, ...]:
    """What a node does to which others."""
    given = fx.node.map_arg((node.args, node.kwargs), lambda each: _Name(each.name))
    return node.op, node.target, given


class _Name(str):
    """A node's name among its arguments; no text that an operator may be given."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Name) and str(self) == str(other)

    __hash__ = str.__hash__


def _same_tensors(one: Stages, other: Stages, node: fx.Node, twin: fx.Node) -> bool:
    first, second = (
        find_tensor(stages.module, str(each.target))
        for stages, each in ((one, node), (other, twin))
    )
    if first is None or second is None:
        return first is second and node.target == twin.target  # a graph inside the graph
    if first is second or (node.target == twin.target and str(node.target) in one.stored):
        return True
    return torch.equal(value_of(first), value_of(second))
