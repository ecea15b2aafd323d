"""The zero-masked forward pass: what a model computes when some units are zero everywhere."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes, leaves
from fxcompress.axes.masks import clear, kept_shape, put, stays, take
from fxcompress.axes.transforms import Choices
from fxcompress.graph.aliasing import mutated_inputs
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.interpret import Interpreter, flat_inputs
from fxcompress.graph.state import (
    copies,
    device_of,
    forked,
    generator_states,
    isolated,
    set_generator_states,
    written_tensors,
)
from fxcompress.graph.through import through

Addition = Callable[[fx.Node, Mapping[fx.Node, Any]], Tensor]
"""What is added to a node's value, from the node and the values of its operands."""


def masked_forward(
    old: CapturedModule,
    new: CapturedModule | None,
    coupling: Coupling,
    choices: Choices,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    values: Mapping[str, Tensor] | None = None,
    added: Mapping[str, Sequence[Addition]] | None = None,
) -> Any:
    """The outputs of `old` with all units zero that `choices` do not keep.

    Nothing is changed: what the graph writes to is copied, and random numbers are drawn as in any
    other run of `state.run_alone`.

    Args:
        old: The dense module.
        new: The rewritten module: where an operation mixes along a changed factor, its arguments
            there (a normalised shape, say) are used on the kept units.
        coupling: The analysis of `old`.
        choices: The kept indices of the factors that change.
        args: Inputs.
        kwargs: Inputs by keyword.
        values: What parameters and buffers are read as, instead of what they hold.
        added: By the name of a node, what is added to its value.
    """
    with forked(old):
        runner = _Masked(old, new, coupling, choices)
        runner.added = added or {}
        runner.values = {
            name: value.clone() if name in runner.written else value
            for name, value in (values or {}).items()
        }
        flat = flat_inputs(old, copies(args), copies(dict(kwargs)))
        return old.graph.process_outputs(runner.run(*flat, enable_io_processing=False))


class _Masked(Interpreter):
    """Runs a graph, masking every value on the axes that change."""

    def __init__(
        self, old: CapturedModule, new: CapturedModule | None, coupling: Coupling, choices: Choices
    ) -> None:
        self.written = written_tensors(old)
        super().__init__(isolated(old, self.written))
        self.device = device_of(old)
        self.coupling = coupling
        self.choices = choices
        self.twins = {node.name: node for node in new.graph.nodes} if new is not None else {}
        self.lines: dict[Axes, list[Tensor]] = {}
        self.values: Mapping[str, Tensor] = {}
        self.added: Mapping[str, Sequence[Addition]] = {}

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = self.values.get(target)
        return super().get_attr(target, args, kwargs) if value is None else value

    def run_node(self, n: fx.Node) -> Any:
        if any(
            leaf in self.choices
            for expr in self.coupling.over.get(n.name, ())
            for leaf in leaves(expr)
        ):
            return self._over_kept(n)
        value = self._drawn(n)
        for addition in self.added.get(n.name, ()):
            value = value + addition(n, self.env)
        if n.op in ("placeholder", "output"):
            return value
        if isinstance(value, (tuple, list)) and n.name in self.coupling.outputs:
            many = self.coupling.outputs[n.name]
            return type(value)(self._masked(v, axes) for v, axes in zip(value, many, strict=True))
        # The module's own tensors are never written to, but for copies of those that the graph
        # writes to: all that share their memory have to see the mask.
        owned = n.op != "get_attr" or n.target in self.written
        return self._masked(value, self.coupling.axes.get(n.name, ()), owned)

    def _drawn(self, n: fx.Node) -> Any:
        """Run a node; one that draws random numbers draws those of the kept units alone, which are
        all that the rewritten module draws.
        """
        if n.op != "call_function" or not self._changes(n) or n.name not in self.twins:
            return super().run_node(n)
        before = generator_states(self.device)
        value = super().run_node(n)
        if all(map(torch.equal, before, generator_states(self.device))):
            return value
        set_generator_states(self.device, before)
        return self._over_kept(n)

    def _changes(self, n: fx.Node) -> bool:
        axes = self.coupling.axes.get(n.name, ())
        return any(leaf in self.choices for expr in axes for leaf in leaves(expr))

    def _masks(self, axes: Axes, device: torch.device) -> list[Tensor]:
        """The masks of a value. Lines along one axis are kept: the same axes come again."""
        if axes in self.lines:
            return self.lines[axes]
        masks = [mask.to(device) for mask in stays(axes, self.choices)]
        if all(mask.numel() == max(mask.shape) for mask in masks):
            self.lines[axes] = masks
        return masks

    def _masked(self, value: Any, axes: Axes, owned: bool = True) -> Any:
        if not isinstance(value, Tensor) or not axes:
            return value
        masks = self._masks(axes, value.device)
        return clear(value, masks, in_place=owned and _writable(value)) if masks else value

    def _over_kept(self, n: fx.Node) -> Any:
        """Run the node on the kept units alone and put the result back among zeros."""
        twin = self.twins[n.name]
        operands = {node.name: self.env[node] for node in n.all_input_nodes}
        cut = {name: self._cut(value, name) for name, value in operands.items()}

        def fetch(node: fx.Node) -> Any:
            node = through(node)  # the dense graph reads what it is read as
            return cut.get(node.name, self.env.get(node))

        small_args = fx.node.map_arg(twin.args, fetch)
        small_kwargs = fx.node.map_arg(twin.kwargs, fetch)
        small = n.target(*small_args, **small_kwargs)  # type: ignore[operator]
        if isinstance(small, (tuple, list)):
            many = self.coupling.outputs[n.name]
            return type(small)(self._spread(v, axes) for v, axes in zip(small, many, strict=True))
        full = self._spread(small, self.coupling.axes[n.name])
        for written in mutated_inputs(n):  # what it would have written to, with all its views
            return self.env[written].copy_(full)
        return full

    def _cut(self, value: Any, name: str) -> Any:
        axes = self.coupling.axes.get(name, ())
        masks = self._masks(axes, value.device) if isinstance(value, Tensor) else ()
        if not masks:
            return value
        small = take(value, masks, kept_shape(axes, self.choices, value.shape))
        return _laid_out_as(small, value)

    def _spread(self, value: Tensor, axes: Axes) -> Tensor:
        masks = self._masks(axes, value.device)
        shape = [
            expr.size if set(leaves(expr)) & self.choices.keys() else size
            for expr, size in zip(axes, value.shape, strict=True)
        ]
        return put(value, masks, shape) if masks else value


def _laid_out_as(small: Tensor, value: Tensor) -> Tensor:
    """The same, its axes in memory in the order of those of `value`: random numbers are drawn in
    that order.
    """
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    back = sorted(range(value.dim()), key=order.__getitem__)
    return small.permute(order).contiguous().permute(back)


def _writable(value: Tensor) -> bool:
    """Whether each element has memory of its own, so that it can be masked in place (which views
    of it then see).
    """
    return all(
        stride > 0 or size <= 1 for stride, size in zip(value.stride(), value.shape, strict=True)
    )
