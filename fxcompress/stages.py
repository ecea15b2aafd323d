"""The stages of a compilation: a pass is planned, carried out and verified; a step is run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from fxcompress.ambient import sealed
from fxcompress.analysis.cost import Cost
from fxcompress.analysis.groups import names_after
from fxcompress.arguments import checked
from fxcompress.edit.kept import kept_after
from fxcompress.edit.masks import masks_after
from fxcompress.edit.plan import Plan
from fxcompress.edit.rewrite import rewrite
from fxcompress.edit.rows import with_parameters
from fxcompress.errors import PlanError, VerificationError
from fxcompress.graph.lazy import READ_LAZILY, is_lazy
from fxcompress.graph.parameters import has_values
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

    The two share the tensors that nothing changed: train a ``copy.deepcopy`` of one.

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
    mixed = program.mixed | done.mixed
    new = replace(
        program,
        module=done.module,
        masks=masks,
        kept=kept_after(done.module, program.kept, done.kept, mixed),
        mixed=mixed,
        names=names_after(coupling, program.groups, plan.widths),
        history=(*program.history, repr(one)),
        parent=program.origin,
    )
    run = PassRun(repr(one), seconds, (*plan.notes, *lost))
    widths = {group.name: width for group, width in plan.widths.items()}
    cost = _cost_after(program, new, plan)
    return with_report(new, _reported(new, cost, run, checks, widths))


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
    new = replace(new, history=(*program.history, repr(step)), parent=program.origin)
    return with_report(new, _reported(new, new.cost(), run, checks, {}))


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
        if is_lazy(program.module):
            raise PlanError(
                f"{one!r} fails ({error}) where the values of parameters {READ_LAZILY}; it needs "
                "them in memory"
            ) from error
        if has_values(program.module):
            raise
        raise PlanError(
            f"{one!r} looks at the values of parameters, and on the meta device there are none; "
            "load the weights first, or use a pass that looks at none, such as RandomPruning"
        ) from error


def _cost_after(old: Program, new: Program, plan: Plan) -> Cost:
    """The cost of the new program: by its widths where nothing but widths has changed, so that it
    need not be analysed.
    """
    narrowed = len(plan.projects) == len(plan.edits) and all(e.selects for e in plan.projects)
    return old.cost(plan.widths) if narrowed else new.cost()


def _reported(
    program: Program,
    cost: Cost,
    run: PassRun,
    checks: tuple[Check, ...],
    widths: Mapping[str, int],
) -> Report:
    """The report so far with one more row, and with the sizes and zeros that the program has."""
    report = with_parameters(resized(program.report, cost), program.module, program.masks)
    return replace(
        report,
        groups=tuple(
            replace(g, units=replace(g.units, after=widths[g.name])) if g.name in widths else g
            for g in report.groups
        ),
        passes=(*report.passes, run),
        checks=checks,
    )
