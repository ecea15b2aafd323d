"""Gradients of a task's loss, for parameters and at chosen nodes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.arguments import Count, checked
from fxcompress.errors import PlanError
from fxcompress.graph.aliasing import alias_classes, mutated_inputs
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import READ_LAZILY, is_lazy
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import find_tensor
from fxcompress.graph.state import forked
from fxcompress.program import Program
from fxcompress.stats.data import parts_of, require_data, samples_of
from fxcompress.stats.gradient_sums import GradientSums
from fxcompress.stats.observe import check_nodes, check_repeats
from fxcompress.stats.running import runner
from fxcompress.task import Task
from fxcompress.train.batches import call
from fxcompress.train.quality import depends, differentiate, loss_of

Tap = Callable[[Tensor, Tensor], None]
Place = str | tuple[str, str]
"""A node's name; or two, for the value of the first with the gradient at the second."""


@dataclass(frozen=True)
class Gradients:
    """Means over samples, by parameter name.

    Attributes:
        mean: The gradient of the mean loss.
        samples: How many samples the means are over.
        square: The mean of the squared gradients of single samples (the diagonal of the empirical
            Fisher information), where asked for.
    """

    mean: Mapping[str, Tensor]
    samples: int
    square: Mapping[str, Tensor] = field(default_factory=dict)


@checked(PlanError)
def gradients(
    program: Program,
    parameters: Collection[str] | None = None,
    taps: Mapping[Place, Tap] | None = None,
    *,
    squares: bool = False,
    who: str = "a gradient method",
    samples: Count | None = None,
) -> Gradients:
    """Accumulate gradients of the task's loss over its data.

    The loss is a mean over each batch; batches are weighted by their sizes, so that the result does
    not depend on how the data are cut into batches. Sums are in float32, of float64 parameters in
    float64. Neither the parameters nor their ``grad`` and ``requires_grad`` are touched.

    Args:
        program: Run in evaluation mode on its task's data; it is not changed.
        parameters: Names of parameters; None for all that the graph reads.
        taps: What to do with the value of a node and the gradient there, both of one batch. Each
            sample's part of the gradient is that of its own loss (of the batch's mean loss times
            the batch's size). Called in the backward pass; only these values are kept until then.
        squares: Also squares of the gradients of single samples; samples are then run one by one.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Raises:
        PlanError: There are no data, labels or loss, squares are asked for of a program that runs
            whole batches only, the loss is not a finite scalar that depends
            on the parameters, or the program gives another output for the same batch.
    """
    task = require_data(program, who, labels=True)
    if parameters is not None and not parameters and not taps:
        raise PlanError(f"{who}: parameters is empty; name some, or None for all")
    recorder = _Recorder(program, parameters, dict(taps or {}), squares, who)
    seen = 0
    with forked(program.module):
        for inputs, labels, size in samples_of(program, who, labels=True, limit=samples):
            if not seen:
                with torch.no_grad():
                    check_repeats(program, inputs, who)
            step = 1 if squares else size
            for part, wanted in parts_of(program, who, inputs, labels, size, step):
                recorder.add(task, part, wanted, step)
            seen += size
    recorder.sums.count = seen
    return Gradients(recorder.sums.means("mean"), seen, recorder.sums.means("square"))


class _Recorder:
    """Runs batches on leaves of its own, which share the parameters' memory, and sums gradients."""

    def __init__(
        self,
        program: Program,
        parameters: Collection[str] | None,
        taps: Mapping[Place, Tap],
        squares: bool,
        who: str,
    ) -> None:
        self.who, self.program = who, program
        self.module = runner(program.module, self._visit)
        self.leaves = _leaves(self.module, parameters, who)
        self.places = [(*_pair(place), tap) for place, tap in taps.items()]
        check_nodes(program, (name for pair in self.places for name in pair[:2]), who)
        self.watched = {name for pair in self.places for name in pair[:2]}
        self.written = _written(program.module.graph)
        self.values: dict[str, Tensor] = {}
        self.sums = GradientSums(self.leaves, squares)

    def add(self, task: Task, inputs: Any, labels: Any, size: int) -> None:
        """Run one batch forward and back."""
        for leaf in self.leaves.values():
            leaf.grad = None
        self.values.clear()
        with torch.enable_grad():
            loss = self._loss(task, inputs, labels)
            self.values.clear()
            differentiate(loss * size, self.who)
        found = {name: leaf.grad for name, leaf in self.leaves.items()}
        self.sums.update({name: grad for name, grad in found.items() if grad is not None})

    def _loss(self, task: Task, inputs: Any, labels: Any) -> Tensor:
        loss = loss_of(task, call(self.module, task, inputs), labels, self.who)
        if not bool(torch.isfinite(loss)):
            raise PlanError(
                f"{self.who}: the loss is {loss.item()} on a batch; look at the data, the loss and "
                "the checkpoint: nothing can be learnt from it"
            )
        return depends(loss, self.who)

    def _visit(self, node: fx.Node, value: Any) -> Any:
        if (name := parameter_of(node)) is not None:
            return self.leaves.get(name, value.detach())
        if node.name not in self.watched:
            return None
        if not value.requires_grad:
            value = value.detach().requires_grad_()
        kept = value.detach().clone() if node.name in self.written else value
        self.values[node.name] = kept
        for first, second, tap in self.places:
            if second == node.name:
                value.register_hook(_hook(self._value(first, second), tap))
        return value.clone() if node.name in self.written else value

    def _value(self, first: str, second: str) -> Tensor:
        if first not in self.values:
            raise PlanError(
                f"{self.who} asks for the value of {first} with the gradient at {second}, "
                "which is computed before it"
            )
        return self.values[first].detach()


def _hook(value: Tensor, tap: Tap) -> Callable[[Tensor], None]:
    def hook(grad: Tensor) -> None:
        with torch.no_grad():
            tap(value, grad)

    return hook


def _pair(place: Place) -> tuple[str, str]:
    return (place, place) if isinstance(place, str) else place


def _written(graph: fx.Graph) -> set[str]:
    """The names of the nodes whose memory a later one writes to."""
    classes = alias_classes(graph)
    roots = {classes[source] for node in graph.nodes for source in mutated_inputs(node)}
    return {node.name for node in graph.nodes if classes[node] in roots}


def _leaves(
    module: CapturedModule, parameters: Collection[str] | None, who: str
) -> dict[str, Tensor]:
    """A leaf for each parameter that shares its memory and requires a gradient; tied ones share
    one, so that each name has the whole gradient.
    """
    if is_lazy(module):
        raise PlanError(f"{who} needs gradients, and the values of parameters {READ_LAZILY}")
    read = (parameter_of(node) for node in module.graph.nodes)
    known = {name for name in read if name and isinstance(find_tensor(module, name), nn.Parameter)}
    wanted = sorted(known) if parameters is None else parameters
    found = {name: find_tensor(module, name) for name in wanted}
    if bad := sorted(name for name, value in found.items() if value is None):
        raise PlanError(f"{who}: parameters names {', '.join(bad)}: no parameter is called so")
    leaves: dict[int, Tensor] = {}
    own = {n: v for n, v in found.items() if v is not None and v.is_floating_point()}
    for value in own.values():
        leaves.setdefault(id(value), value.detach().requires_grad_())
    return {name: leaves[id(value)] for name, value in own.items()}
