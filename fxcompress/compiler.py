"""`compile`: capture a model, run the passes in order, verify after each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fxcompress.ambient import sealed
from fxcompress.analysis.couple import check_pins
from fxcompress.analysis.groups import names_after
from fxcompress.arguments import FilePath, Seed, checked
from fxcompress.canonicalize import canonicalize
from fxcompress.capture import Captured, DynamicSpec, Source, capture
from fxcompress.capture.lazily import capture_lazily
from fxcompress.edit.masks import masks_after
from fxcompress.edit.plan import Plan
from fxcompress.edit.rewrite import rewrite
from fxcompress.edit.widths import Kept
from fxcompress.errors import CaptureError, PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import has_values, names_of
from fxcompress.program import Pass, Program
from fxcompress.recipes import Recipe
from fxcompress.report import (
    Change,
    FrozenGroup,
    GroupChange,
    PassRun,
    Report,
    SparseParameter,
    resized,
)
from fxcompress.task import Task, as_task
from fxcompress.verify import verify as verify_pass

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
def compile(
    model: Source,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    passes: Sequence[Pass] = (),
    task: Task | Iterable[Any] | None = None,
    dynamic: DynamicSpec = "batch",
    pin: Collection[str] = (),
    probe: bool = False,
    verify: bool = True,
    seed: Seed = 0,
    on_progress: Progress | None = None,
    trust: bool = False,
    weights: FilePath | None = None,
) -> Program:
    """Compress a model and return a program of the same interface, with the evidence that it is
    right.

    The model is captured once and is not changed; every pass sees the program the pass before it
    left.

    Args:
        model: A module, a graph module, an exported program or the path of a ``.pt2`` file.
        args: Example inputs, as ``model(*args, **kwargs)`` takes them; a tuple or list.
        kwargs: Example inputs by keyword.
        passes: Applied left to right. An empty sequence captures and analyses.
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
    _check(passes)
    tell("capture")
    if weights is None:
        captured = capture(model, args, kwargs, dynamic, canonicalize, trust=trust)
    else:
        captured = capture_lazily(model, args, kwargs, dynamic, canonicalize, weights=Path(weights))
    program = Program(
        module=captured.module,
        args=captured.args,
        kwargs=captured.kwargs,
        dynamic=captured.dynamic,
        single=captured.single,
        task=as_task(task),
        seed=seed,
        pin=tuple(pin),
        probe=probe,
    )
    tell("analyse")
    check_pins(program.module, program.pin)
    program = replace(program, report=_first_report(program, captured))
    for number, one in enumerate(passes):
        tell(f"{one}")
        with _named(passes, number):
            program = apply(program, one, verify=verify)
    return program


def _check(passes: Sequence[Pass]) -> None:
    """Refuse what no program could make right before any work."""
    for number, one in enumerate(passes):
        if isinstance(one, Recipe):
            with _named(passes, number):
                one.check()


@contextmanager
def _named(passes: Sequence[Pass], number: int) -> Iterator[None]:
    """An error inside says which pass raised it, and which ran before."""
    try:
        yield
    except Exception as error:
        after = f", after {', '.join(map(repr, passes[:number]))}" if number else ""
        error.add_note(f"in pass {number + 1} of {len(passes)}, {passes[number]!r}{after}")
        raise


@checked(PlanError)
@sealed
def apply(program: Program, one: Pass, *, verify: bool = True) -> Program:
    """Run one pass on a program and give the new program; the old one stays as it was.

    Raises:
        PlanError: The pass's plan would break the program.
        VerificationError: The result is not what it must be.
    """
    start = time.perf_counter()
    plan = _planned(program, one)
    if not isinstance(plan, Plan):
        raise PlanError(f"{one!r} returned {type(plan).__name__}; plan(program) must return a Plan")
    coupling = program.analysis.coupling
    done = rewrite(program.module, coupling, plan)
    seconds = time.perf_counter() - start
    checks = program.report.checks
    if verify:
        check = verify_pass(
            program.module, done.module, coupling, plan, program.args, program.kwargs
        )
        checks += (replace(check, where=repr(one)),)
    masks, lost = masks_after(program.masks, plan, done)
    new = replace(
        program,
        module=done.module,
        masks=masks,
        kept=_under_every_name(
            done.module, _composed(program.kept, done.kept, program.mixed | done.mixed)
        ),
        mixed=program.mixed | done.mixed,
        names=names_after(coupling, program.groups, plan.widths),
        history=(*program.history, repr(one)),
        parent=program.origin,
    )
    run = PassRun(repr(one), seconds, (*plan.notes, *lost))
    return replace(new, report=_next_report(program, new, plan, run, checks))


def _planned(program: Program, one: Pass) -> Plan:
    """The pass's plan; on the meta device only passes that look at no value have one."""
    try:
        return one.plan(program)
    except (NotImplementedError, RuntimeError) as error:
        if has_values(program.module):
            raise
        raise PlanError(
            f"{one!r} looks at the values of parameters, and on the meta device there are none; "
            "load the weights first, or use a pass that looks at none, such as RandomPruning"
        ) from error


def _under_every_name(module: CapturedModule, kept: Kept) -> Kept:
    """What stayed, by every name that a tensor of the module has, and by no other name."""
    names = names_of(module)
    return {
        other: axes for name, axes in kept.items() if name in names for other in sorted(names[name])
    }


def _composed(before: Kept, now: Kept, mixed: frozenset[str]) -> Kept:
    """Original indices after a second selection: the second picks among what the first left.

    What a matrix has mixed has no original indices any more.
    """
    kept = dict(before)
    for name, axes in now.items():
        earlier = before.get(name, (None,) * len(axes))
        kept[name] = tuple(_then(a, b) for a, b in zip(earlier, axes, strict=True))
    return {name: axes for name, axes in kept.items() if name not in mixed}


def _then(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first[second]


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


def _next_report(
    old: Program, new: Program, plan: Plan, run: PassRun, checks: tuple[Any, ...]
) -> Report:
    report = resized(old.report, new.cost())
    widths = {group.name: width for group, width in plan.widths.items()}
    return replace(
        report,
        groups=tuple(
            replace(g, units=replace(g.units, after=widths[g.name])) if g.name in widths else g
            for g in report.groups
        ),
        sparse=tuple(
            SparseParameter(name, zeros.share, str(zeros.pattern or ""))
            for name, zeros in new.masks.items()
        ),
        passes=(*report.passes, run),
        checks=checks,
    )
