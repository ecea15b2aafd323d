"""A program's graph run node by node, so that values can be seen or replaced on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.interpret import Interpreter, flat_inputs
from fxcompress.graph.state import copies, isolated


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors of an output."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def runner(
    source: CapturedModule,
    visit: Callable[[fx.Node, Any], Any] = lambda _n, _value: None,
) -> CapturedModule:
    """A module to call as the task says, which shows the value of every node to `visit`.

    It shares the tensors of `source`, but for copies of those that the graph writes to, and is in
    evaluation mode. Where `visit` returns something,
    that takes the value's place.
    """
    module = isolated(clone_graph(source).eval())

    def forward(*args: Any, **kwargs: Any) -> Any:
        flat = flat_inputs(module, copies(args), copies(kwargs))
        out = _Visitor(module, visit).run(*flat, enable_io_processing=False)
        return module.graph.process_outputs(out)

    module.forward = forward
    return module


class _Visitor(Interpreter):
    """Runs a graph, freeing each value after its last use, and shows every one."""

    def __init__(self, module: CapturedModule, visit: Callable[[fx.Node, Any], Any]) -> None:
        super().__init__(module)
        self.visit = visit

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        instead = self.visit(n, value)
        return value if instead is None else instead
