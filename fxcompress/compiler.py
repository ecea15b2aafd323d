"""`compile`: capture a model, run passes and steps in order, verify after each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from fxcompress.ambient import sealed, young_heap
from fxcompress.analysis.couple import check_pins
from fxcompress.arguments import FilePath, Seed, checked
from fxcompress.canonicalize import canonicalize
from fxcompress.capture import Captured, DynamicSpec, Source, capture
from fxcompress.capture.lazily import capture_lazily
from fxcompress.errors import CaptureError, PlanError
from fxcompress.graph.sharing import unshare
from fxcompress.program import Pass, Program, with_report
from fxcompress.report import Change, FrozenGroup, GroupChange, Report
from fxcompress.stages import apply, check, run
from fxcompress.task import Task, as_task
from fxcompress.train.step import Step

__all__ = ["apply", "compile"]

logger = logging.getLogger(__name__)
Progress = Callable[[str], None]


@checked(
    PlanError,
    model=CaptureError,
    args=CaptureError,
    kwargs=CaptureError,
    dynamic=CaptureError,
    weights=CaptureError,
)
@sealed
@young_heap()
def compile(
    model: Source,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    passes: Sequence[Pass | Step] = (),
    task: Task | Iterable[Any] | None = None,
    dynamic: DynamicSpec = "batch",
    pin: Collection[str] = (),
    probe: bool = False,
    verify: bool = True,
    seed: Seed = 0,
    on_progress: Progress | None = None,
    trust: bool = False,
    weights: FilePath | None = None,
    checkpoint: FilePath | None = None,
) -> Program:
    """Compress a model and return a program of the same interface, with the evidence that it is
    right.

    The model is captured once and is not changed; every pass sees the program the pass before it
    left.

    Args:
        model: A module, a graph module, an exported program or the path of a ``.pt2`` file.
        args: Example inputs, as ``model(*args, **kwargs)`` takes them; a tuple or list.
        kwargs: Example inputs by keyword.
        passes: Passes and steps, applied left to right, or a `Pipeline` of them. An empty sequence
            captures and analyses.
        task: Data, loss and metric, for passes that need them; batches alone are enough for passes
            that look at no labels.
        dynamic: ``"batch"`` leaves the batch axis free; None fixes every size; a mapping frees
            what it names.
        pin: Globs of parameter or node names whose sizes must not change, e.g. ``["fc.weight"]``.
        probe: Find out by experiment what operators without an axis rule do, instead of freezing
            the channels that touch them; see `fxcompress.probe`.
        verify: Compare with a reference after every pass, on the example inputs.
        seed: Seed for passes that draw.
        on_progress: Called with a line of text before each stage.
        trust: Open a ``.pt2`` file even where it holds pickles or compiled libraries. Such a file
            is code, as a Python file is: open none that you would not run.
        weights: Where the values of a module's parameters are: a ``.safetensors`` file, or a folder
            of them, as Hugging Face's are. The model may lie on the meta device. Values are read
            one tensor at a time, when they are scored and when they are saved, so that a model
            larger than memory can be compressed.
        checkpoint: A folder for the program after every pass, and for what a step keeps on its way.
            The same call with the same folder goes on where a killed run was, to the same result.
            What the task's data hold is not looked at: take another folder for other data. A run on
            `weights` goes on with the values of what was compressed in memory.

    Returns:
        A `Program`: call it like the model, print it, save it, or hand it to `fxcompress.export`.

    Raises:
        CaptureError: The model or its inputs cannot be captured.
        PlanError: A pass asked for what would break the program, or its budget cannot be met.
        VerificationError: A pass gave another function than it must.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxcompress.passes import MagnitudePruning
        >>> net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        >>> half = MagnitudePruning(ratio=0.5)
        >>> small = compile(net, (torch.zeros(2, 8),), passes=[half])
        >>> small.report.params.after
        108
    """
    tell = on_progress or logger.info
    check(passes)
    tell("capture")
    if weights is None:
        captured = capture(model, args, kwargs, dynamic, canonicalize, trust=trust)
    else:
        captured = capture_lazily(model, args, kwargs, dynamic, canonicalize, weights=Path(weights))
    tell("analyse")
    program = _first(captured, task=as_task(task), seed=seed, pin=tuple(pin), probe=probe)
    del captured  # then nothing but programs holds the dense module
    folder = None if checkpoint is None else Path(checkpoint)
    program = run(program, passes, tell, verify=verify, checkpoint=folder)
    _part(program, model)
    return program


def _first(captured: Captured, **options: Any) -> Program:
    """The program that was captured, with its report."""
    program = Program(
        module=captured.module,
        args=captured.args,
        kwargs=captured.kwargs,
        dynamic=captured.dynamic,
        single=captured.single,
        **options,
    )
    check_pins(program.module, program.pin)
    return with_report(program, _first_report(program, captured))


def _part(program: Program, model: Source) -> None:
    """Give the program memory of its own for what no pass has changed, and the model its own."""
    for module in (program.module, model):
        if isinstance(module, nn.Module):
            unshare((*module.parameters(), *module.buffers()))


def _first_report(program: Program, captured: Captured) -> Report:
    cost = program.cost()
    coupling = program.analysis.coupling
    fixed = any(not axes for axes in program.dynamic)
    taken = program.module.interface
    assert taken is not None
    return Report(
        model=captured.source,
        sizes={name: Change(own, own) for name, own in cost.amounts.items()},
        groups=tuple(
            GroupChange(
                g.name,
                g.kind,
                Change(g.units, g.units),
                g.cells,
                tuple(dict(vars(s)) for s in g.sites),
            )
            for g in program.groups
            if not g.frozen
        ),
        frozen=tuple(FrozenGroup(g.name, g.frozen, g.units) for g in program.groups if g.frozen),
        unknown=coupling.unknown,
        probed=coupling.probed,
        failed=coupling.failed,
        dynamic=tuple(program.dynamic),
        training=captured.notes,
        static=(taken.note or "the model fixes the size of an input") if fixed else None,
        ranges={name: str(size) for name, size in taken.sizes.items()},
        relations=taken.conditions,
    )
