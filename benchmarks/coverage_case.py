"""One model of the zoo, what the compiler makes of it, and how long each stage takes."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxcompress as fx
from fxcompress.canonicalize import canonicalize
from fxcompress.capture import capture
from fxcompress.edit.rewrite import rewrite
from fxcompress.program import Program
from fxcompress.verify import verify

RATIO = 0.5
PRUNING = fx.passes.MagnitudePruning(ratio=RATIO, round_to=1)
Result = TypeVar("Result")
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
Stages = dict[str, float]


class Case:
    """A model of the zoo, built when first asked for.

    Attributes:
        name: What the zoo calls it.
        zoo: The module of the zoo.
    """

    def __init__(self, name: str, folder: Path) -> None:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        import zoo

        self.name = name
        self.zoo: Any = zoo

    @cached_property
    def _built(self) -> Any:
        return self.zoo.build(self.name, 2)

    @property
    def model(self) -> nn.Module:
        """In single precision, until `double` was asked for."""
        model: nn.Module = self._built[0]
        return model

    @property
    def inputs(self) -> Inputs:
        """Two examples, in single precision."""
        args, kwargs = self._built[1:]
        return tuple(args), dict(kwargs)

    def double(self) -> tuple[nn.Module, Inputs]:
        """The model, turned to double precision for good, with two examples."""
        return self.model.double(), in_double(self.inputs)

    def drawn(self, batch: int) -> Inputs:
        """Examples in double precision that the capture has not seen."""
        return in_double(self.zoo.inputs(self.name, batch, batch))

    @cached_property
    def staged(self) -> tuple[Program, Program, Stages]:
        """The program before and after pruning, in single precision, with the CPU seconds of every
        stage.
        """
        warm_up()
        stages: Stages = {}
        with _export_noted(stages):
            captured = timed(stages, "capture", lambda: capture(self.model, *self.inputs))
        module = timed(stages, "canonicalize", lambda: canonicalize(captured.module))
        given = captured.args, captured.kwargs
        program = Program(module, *given, captured.dynamic)
        timed(stages, "analysis", lambda: (program.groups, program.cost()))
        plan = timed(stages, "plan", lambda: PRUNING.plan(program))
        coupling = program.analysis.coupling
        done = timed(stages, "rewrite", lambda: rewrite(module, coupling, plan))
        timed(stages, "verify", lambda: verify(module, done.module, coupling, plan, *given))
        return program, Program(done.module, *given, captured.dynamic, kept=done.kept), stages


def timed(stages: Stages, name: str, work: Callable[[], Result]) -> Result:
    """Do something and note its CPU seconds."""
    gc.collect()
    start = time.process_time()
    result = work()
    stages[name] = time.process_time() - start
    return result


@contextmanager
def _export_noted(stages: Stages) -> Iterator[None]:
    """Note the CPU seconds of torch.export alone, within those of the capture."""
    original = torch.export.export
    stages["export"] = 0.0

    def export(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return original(*args, **kwargs)
        finally:
            stages["export"] += time.process_time() - start

    torch.export.export = export
    try:
        yield
    finally:
        torch.export.export = original


def warm_up() -> None:
    """Run a tiny model through, so that no figure pays for imports and caches of torch."""
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)
    fx.compile(nn.Sequential(*layers).eval(), (torch.zeros(2, 3, 8, 8),), passes=[PRUNING])


def in_double(inputs: Inputs) -> Inputs:
    """The inputs with their floating tensors in double precision."""
    converted: Inputs = pytree.tree_map_only(
        Tensor, lambda value: value.double() if value.is_floating_point() else value, inputs
    )
    return converted


def count(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def distance(found: Any, expected: Any) -> float:
    """The largest difference of any output over its largest value; infinite where shapes differ or
    one is finite and the other is not.
    """
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True)
    return max((_apart(a, b) for a, b in pairs if isinstance(b, Tensor)), default=0.0)


def _apart(found: Tensor, expected: Tensor) -> float:
    a, b = found.detach().double(), expected.detach().double()
    if a.shape != b.shape or not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    usable = b.isfinite()
    gap = (a - b)[usable].abs()
    if not gap.numel() or not gap.any():
        return 0.0
    return float(gap.max() / b[usable].abs().max().clamp(min=torch.finfo(torch.float64).tiny))
