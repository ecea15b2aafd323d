"""The numeric gate: a model of the user's class against the graph.

Both run on the example inputs and, where an axis is free, on inputs of another size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxcompress.ambient import EXCLUSIVE
from fxcompress.capture import tracing
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.metadata import dynamic_dims, is_tensor
from fxcompress.graph.precision import FAULT, in_double, inputs_in_double, tolerance_of
from fxcompress.graph.state import forked, isolated, preserved
from fxcompress.verify import distance
from fxcompress.writeback.transplant import named_tensors

Inputs = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    Attributes:
        error: The largest relative difference; infinite where shapes differ or the model does not
            run.
        tolerance: What passes.
        failure: What the model raised, if it did.
        calls: How many functions of torch it called before.
    """

    error: float
    tolerance: float
    failure: Exception | None = None
    calls: int = 0

    @property
    def ok(self) -> bool:
        """Whether the model computes what the graph does."""
        return self.failure is None and self.error <= self.tolerance

    @property
    def near(self) -> bool:
        """Whether at least every output has its shape."""
        return self.failure is None and self.error < float("inf")


class Gate:
    """Holds what the graph gives, so that several candidates can be measured against it."""

    def __init__(
        self, graph: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.graph = clone_graph(graph).eval()
        self.graph.recompile()
        self.inputs = [(args, dict(kwargs)), *_other_sizes(graph, args, dict(kwargs))]
        self.references = [_run(self.graph, given) for given in self.inputs]
        self.dtype = _dtype(graph)
        self.tolerance = tolerance_of(self.dtype)

    def measure(self, model: nn.Module) -> Verdict:
        """Compare `model`, in evaluation mode, with the graph."""
        worst = 0.0
        for given, reference in zip(self.inputs, self.references, strict=True):
            counter = _Counter()
            try:
                with counter:
                    found = _run(model, given)
                error, finite = distance(found, reference)
            except Exception as failure:  # a class that cannot hold the sizes fails in its own way
                return Verdict(float("inf"), self.tolerance, failure, counter.calls)
            worst = max(worst, error if finite else float("inf"))
        if self.tolerance < worst < FAULT and self.dtype == torch.float32:
            return self._measure_in_double(model)
        return Verdict(worst, self.tolerance)

    def _measure_in_double(self, model: nn.Module) -> Verdict:
        """Deep nets can be at the end of single precision; double tells rounding from a fault."""
        graph, twin = in_double(self.graph), in_double(model)
        worst = 0.0
        for given in self.inputs:
            exact = inputs_in_double(given)
            try:
                error, finite = distance(_run(twin, exact), _run(graph, exact))
            except Exception as failure:  # a class may insist on its own dtype
                return Verdict(float("inf"), self.tolerance, failure)
            worst = max(worst, error if finite else float("inf"))
        return Verdict(worst, self.tolerance)


class _Counter(TorchFunctionMode):
    """Counts the functions of torch that are called, to tell how far a model came."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, without calling the `train` of the user's class.

    One thread at a time: a class may ask torch whether it is being exported.
    """
    with EXCLUSIVE, tracing.evaluating(model):
        yield


def beside(given: Inputs, model: nn.Module) -> Inputs:
    """Copies of the inputs on the device of `model`, which may write to what it is given."""
    device = next((tensor.device for tensor in named_tensors(model).values()), None)
    moved: Inputs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone().to(device), given)
    return moved


def _run(model: nn.Module, given: Inputs) -> Any:
    args, kwargs = beside(given, model)
    with torch.no_grad(), forked(model):
        if isinstance(model, CapturedModule):
            found = isolated(model)(*args, **kwargs)
        else:
            with evaluating(model), preserved(model):
                found = model(*args, **kwargs)
    return pytree.tree_map_only(Tensor, Tensor.cpu, found)


def _dtype(module: nn.Module) -> torch.dtype:
    floating = (t.dtype for t in module.parameters() if t.is_floating_point())
    return next(floating, torch.float32)


def _other_sizes(
    graph: CapturedModule, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Iterator[Inputs]:
    """The inputs with one index more on every free axis."""
    nodes = (node for node in graph.graph.nodes if node.op == "placeholder")
    free = iter([dynamic_dims(node) for node in nodes if is_tensor(node)])

    def larger(value: Tensor) -> Tensor:
        for dim in next(free):
            index = torch.arange(value.shape[dim] + 1, device=value.device) % value.shape[dim]
            value = value.index_select(dim, index)
        return value

    if any(
        dynamic_dims(node)
        for node in graph.graph.nodes
        if node.op == "placeholder" and is_tensor(node)
    ):
        yield pytree.tree_map_only(Tensor, larger, (args, kwargs))
