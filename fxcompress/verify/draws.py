"""Models that draw random numbers: where two programs cannot draw the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from fxcompress.errors import VerificationError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.interpret import Interpreter, flat_inputs
from fxcompress.graph.metadata import is_tensor, shape_of
from fxcompress.graph.state import copies, device_of, forked, generator_states, isolated


def refuse_unequal_draws(
    old: CapturedModule, new: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Say so where outputs differ because the two programs draw different random numbers.

    Raises:
        VerificationError: A node draws, and its shape is another one in the new program.
    """
    unequal = unequal_draws(old, new, args, kwargs)
    if unequal:
        which = ", ".join(f"'{node.name}' ({node.target})" for node in unequal)
        raise VerificationError(
            f"the model draws random numbers whose shapes change with its widths, at {which}, so "
            "its outputs cannot be compared; take the randomness out of the model, pin what it "
            "draws for with pin=, or compile with verify=False"
        )


def unequal_draws(
    old: CapturedModule, new: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[fx.Node]:
    """The nodes of `old` that draw random numbers and have another shape in `new`, or none."""
    twins = {node.name: node for node in new.graph.nodes}
    return [
        node
        for node in drawing_nodes(old, args, kwargs)
        if is_tensor(node)
        and (node.name not in twins or shape_of(twins[node.name]) != shape_of(node))
    ]


def drawing_nodes(
    module: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[fx.Node, ...]:
    """The nodes that draw random numbers in a call, found by watching the generators."""
    with forked(module), torch.no_grad():
        runner = _Watching(module)
        runner.run(*flat_inputs(module, copies(args), copies(dict(kwargs))))
    return tuple(node for node in module.graph.nodes if node.name in runner.drew)


class _Watching(Interpreter):
    """Notes the nodes that move a generator."""

    def __init__(self, module: CapturedModule) -> None:
        super().__init__(isolated(module))
        self.device = device_of(module)
        self.drew: set[str] = set()

    def run(self, *args: Any) -> Any:  # type: ignore[override]
        return super().run(*args, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        before = generator_states(self.device)
        value = super().run_node(n)
        if not all(map(torch.equal, before, generator_states(self.device))):
            self.drew.add(n.name)
        return value
