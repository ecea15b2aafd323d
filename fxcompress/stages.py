"""The stages of a compilation: a pass is planned, carried out and verified; a step is run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fxcompress.ambient import sealed
from fxcompress.analysis.cost import Cost
from fxcompress.analysis.groups import names_after
from fxcompress.arguments import checked
from fxcompress.edit.masks import masks_after
from fxcompress.edit.plan import Plan
from fxcompress.edit.rewrite import rewrite
from fxcompress.edit.rows import with_parameters
from fxcompress.edit.widths import Kept
from fxcompress.errors import PlanError, VerificationError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import has_values, names_of
from fxcompress.graph.through import read_value
from fxcompress.program import Pass, Program, with_report
from fxcompress.recipes import Recipe
from fxcompress.report import NOT_RUN, Check, PassRun, Report, resized
from fxcompress.train.checkpoints import Checkpoints
from fxcompress.train.step import Context, Step
from fxcompress.verify import verify as verify_pass

logger = logging.getLogger(__name__)
_NO_PROOF = "a step may change what the program computes; its notes say what it measured"


def check(passes: Sequence[Pass | Step]) -> None:
    """Refuse what no program could make right, before any work.

    Raises:
        PlanError: An option is missing.
    """
    for number, one in enumerate(passes):
        if isinstance(one, Recipe):
            with _named(passes, number):
                one.check()


@sealed
def run(
    program: Program,
    passes: Sequence[Pass | Step],
    tell: Callable[[str], None],
    *,
    verify: bool = True,
    checkpoint: Path | None = None,
) -> Program:
    """The program after all passes and steps, in order.

    Args:
        program: What the first gets.
        passes: Passes and steps.
        tell: Called with a line of text before each.
        verify: Compare with a reference after every pass.
        checkpoint: A folder that a run is kept in, and goes on from.

    Raises:
        FxCompressError: Whatever a pass or step raises; a note on it names that and those before.
    """
    kept = Checkpoints.of(checkpoint, program, passes, verify)
    done, program = kept.latest(program, tell)
    for number, one in enumerate(passes[done:], start=done):
        tell(f"{one}")
        with _named(passes, number):
            program = _stage(program, one, kept.context(number, program.seed, tell), verify)
            kept.save(program, number + 1)
    return program


@contextmanager
def _named(passes: Sequence[Pass | Step], number: int) -> Iterator[None]:
    """An error inside says which pass raised it, and which ran before."""
    try:
        yield
    except Exception as error:
        after = f", after {', '.join(map(repr, passes[:number]))}" if number else ""
        error.add_note(f"in pass {number + 1} of {len(passes)}, {passes[number]!r}{after}")
        raise


@checked(PlanError)
@sealed
def apply(program: Program, one: Pass | Step, *, verify: bool = True) -> Program:
    """Run one pass or step on a program and give the new program; the old one stays as it was.

    Raises:
        PlanError: The pass's plan would break the program.
        VerificationError: The result is not what it must be.
    """
    return _stage(program, one, Context(logger.info, program.seed), verify)


def _stage(program: Program, one: Pass | Step, ctx: Context, verify: bool) -> Program:
    if isinstance(one, Step):
        return _stepped(program, one, ctx, verify)
    return _passed(program, one, verify)


def _passed(program: Program, one: Pass, verify: bool) -> Program:
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
    return with_report(new, _next_report(program, new, plan, run, checks))


def _stepped(program: Program, step: Step, ctx: Context, verify: bool) -> Program:
    """The program after a step, with a row that says no more than the step measured."""
    start = time.perf_counter()
    new = step.run(program, ctx)
    if not isinstance(new, Program):
        raise PlanError(f"{step!r} returned {type(new).__name__}; run() must return a Program")
    _check_zeros(new, step)
    run = PassRun(repr(step), time.perf_counter() - start, tuple(ctx.notes))
    unproved = Check(NOT_RUN, None, None, ok=True, where=repr(step), compared=_NO_PROOF)
    checks = (*new.report.checks, unproved) if verify else new.report.checks
    report = resized(new.report, new.cost())
    return replace(
        new,
        history=(*program.history, repr(step)),
        parent=program.origin,
        report=replace(report, passes=(*report.passes, run), checks=checks),
    )


def _check_zeros(program: Program, step: Step) -> None:
    """Refuse a step that filled zeros which the program says are permanent."""
    for name, zeros in program.masks.items():
        value = read_value(program.module, name)
        if value is None or bool(value.detach()[~zeros.mask.to(value.device)].any()):
            raise VerificationError(
                f"{step!r} left entries of {name} that are not zero, where the program has "
                "permanent zeros; mask the weight again, or read it through a mask while it "
                "trains, as NMSparsity(trainable=True) does"
            )


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


def _cost_after(old: Program, new: Program, plan: Plan) -> Cost:
    """The cost of the new program: by its widths where nothing but widths has changed, so that it
    need not be analysed.
    """
    narrowed = len(plan.projects) == len(plan.edits) and all(e.selects for e in plan.projects)
    return old.cost(plan.widths) if narrowed else new.cost()


def _next_report(
    old: Program, new: Program, plan: Plan, run: PassRun, checks: tuple[Any, ...]
) -> Report:
    report = resized(old.report, _cost_after(old, new, plan))
    report = with_parameters(report, new.module, new.masks)
    widths = {group.name: width for group, width in plan.widths.items()}
    return replace(
        report,
        groups=tuple(
            replace(g, units=replace(g.units, after=widths[g.name])) if g.name in widths else g
            for g in report.groups
        ),
        passes=(*report.passes, run),
        checks=checks,
    )
