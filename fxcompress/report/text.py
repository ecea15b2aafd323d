"""A report as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxcompress.analysis.quantities import quantities
from fxcompress.report import NOT_RUN
from fxcompress.report.tables import rendered, sizes_table, table

if TYPE_CHECKING:
    from fxcompress.report import Check, Report, SparseParameter, StoredParameter

_ROWS = 24
_REASONS = 8


def as_text(report: Report) -> str:
    """The tables of `render` as plain text, of the same width everywhere."""
    return rendered(render(report))


def render(report: Report) -> RenderableType:
    """What a rich console prints for a report. Long lists end with how many more there are."""
    parts: list[RenderableType] = [sizes_table(report.model or "program", sizes(report))]
    if report.groups:
        parts.append(_groups(report))
    if report.passes:
        parts.append(_passes(report))
    parts += [Text(line) for line in _closing_lines(report)]
    return Group(*parts)


def sizes(report: Report) -> Iterator[tuple[str, int, int, float]]:
    """For each quantity its name, how much there was and is, and the share that is left."""
    known = quantities()
    for name, change in report.sizes.items():
        title = known[name].title if name in known else name
        yield title, change.before, change.after, change.ratio


def _groups(report: Report) -> Table:
    changed = sum(group.units.before != group.units.after for group in report.groups)
    title = f"{len(report.groups)} groups, {changed} changed"
    made = table(title, "group", "kind", ">units", ">left", ">sites")
    # What shrank is what one looks for.
    ordered = sorted(report.groups, key=lambda group: group.units.before == group.units.after)
    for group in ordered[:_ROWS]:
        cells = f" x {group.cells}" if group.cells > 1 else ""
        units = f"{group.units.before} -> {group.units.after}{cells}"
        made.add_row(
            group.name, group.kind, units, f"{group.units.ratio:.0%}", str(len(group.sites))
        )
    if len(ordered) > _ROWS:
        made.add_row(f"and {len(ordered) - _ROWS} more", "", "", "", "")
    return made


def _passes(report: Report) -> Table:
    made = table(f"{len(report.passes)} passes", "pass", ">seconds")
    for run in report.passes:
        notes = [*run.notes[:_REASONS], *_more(run.notes)]
        made.add_row("\n".join([run.repr, *(f"  {note}" for note in notes)]), f"{run.seconds:.2f}")
    return made


def _more(notes: tuple[str, ...]) -> list[str]:
    return [f"and {len(notes) - _REASONS} more"] if len(notes) > _REASONS else []


def _closing_lines(report: Report) -> Iterator[str]:
    if report.sparse:
        yield f"{len(report.sparse)} parameters have zeros for good:"
        lines = (f"{one.name}: {describe_zeros(one)}" for one in report.sparse)
        yield from _listed(lines, len(report.sparse))
    if report.stored:
        yield f"{len(report.stored)} parameters are kept in another form:"
        lines = (f"{one.name}: {describe_form(one)}" for one in report.stored)
        yield from _listed(lines, len(report.stored))
    if report.frozen:
        yield f"{len(report.frozen)} groups may not shrink:"
        reasons = Counter(group.reason for group in report.frozen).most_common()
        yield from _listed((f"{count} x {reason}" for reason, count in reasons), len(reasons))
    if report.unknown:
        yield "operators without a rule (what they touch may not shrink):"
        items = report.unknown.items()
        yield from _listed((f"{op} at {', '.join(nodes[:3])}" for op, nodes in items), len(items))
    if report.probed:
        yield "operators without a rule that were probed (experiments told their axes):"
        items = report.probed.items()
        yield from _listed((f"{op} at {', '.join(nodes[:3])}" for op, nodes in items), len(items))
    if report.failed:
        yield "axis rules that failed (what the operators touch may not shrink):"
        told = [f"{op} at {error}" for op, errors in report.failed.items() for error in errors]
        yield from _listed(told, len(told))
    axes = [f"{axis} ({name})" for free in report.dynamic for axis, name in sorted(free.items())]
    if axes:
        yield f"free input axes: {', '.join(dict.fromkeys(axes))}"
    ranges = [f"{name}: {sizes}" for name, sizes in report.ranges.items()]
    if ranges:
        yield "sizes of the free axes:"
        yield from _listed(ranges, len(ranges))
    if report.relations:
        yield "relations between these sizes:"
        yield from _listed(report.relations, len(report.relations))
    if report.static:
        yield f"the batch is fixed: {report.static}"
    if report.training:
        yield "in training the program differs from the model:"
        yield from _listed(report.training, len(report.training))
    yield from (describe_check(check) for check in report.checks[-_REASONS:])
    if not report.checks:
        yield "not verified"


def describe_zeros(one: SparseParameter) -> str:
    """How sparse a parameter is, and in what pattern."""
    return f"{one.zeros:.1%}" + (f", {one.pattern}" if one.pattern else ", no pattern")


def describe_form(one: StoredParameter) -> str:
    """How a parameter is kept."""
    return f"{one.form}, {one.bytes.after:,} of {one.bytes.before:,} bytes"


def describe_check(check: Check) -> str:
    """One line on one check."""
    after = f" after {check.where}" if check.where else ""
    if check.kind == NOT_RUN:
        return f"not verified{after}: {check.compared}"
    verdict = "verified" if check.ok else "FAILED"
    if check.max_relative_error is None or check.tolerance is None:
        return f"{verdict}: {check.kind}{after}"
    figures = f"error {check.max_relative_error:.2g}, tolerance {check.tolerance:.2g}"
    how = "" if check.zeroed_error is None else ", against zeroed parameters"
    return f"{verdict}: {check.kind}{after}, {figures}{how}"


def _listed(lines: Iterable[str], count: int) -> Iterator[str]:
    for index, line in enumerate(lines):
        if index == _REASONS:
            yield f"  and {count - _REASONS} more"
            return
        yield f"  {line}"
