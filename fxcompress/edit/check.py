"""What a plan must satisfy before anything is edited: each edit alone, and all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

from torch import Tensor

from fxcompress.axes.expressions import leaves
from fxcompress.edit.base import Edit
from fxcompress.edit.context import Context
from fxcompress.edit.plan import Plan
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import find_tensor


def check_plan(context: Context, plan: Plan) -> None:
    """Refuse a plan that would break the program.

    Args:
        context: The program before the plan.
        plan: What a pass decided.

    Raises:
        PlanError: Naming the group or parameter, the site and the reason.
    """
    _check_groups(plan)
    _check_names(plan)
    for edit in plan.edits:
        edit.check(context)
    _check_sizes(context, plan, _check_tensors(context, plan))


def check_values(module: CapturedModule, values: Mapping[str, Tensor]) -> None:
    """Refuse values for parameters or buffers that there are not, or of other shapes.

    Raises:
        PlanError: With the name, and the nearest ones.
    """
    for name, value in values.items():
        old = find_tensor(module, name)
        if old is None:
            near = get_close_matches(name, module.state_dict(), n=3, cutoff=0.0)
            raise PlanError(
                f"values: the program has no parameter or buffer {name!r}; the nearest are "
                f"{', '.join(near)}"
            )
        if value.shape != old.shape or value.dtype != old.dtype:
            raise PlanError(
                f"values: {name} has shape {list(old.shape)} and is {old.dtype}, "
                f"not {list(value.shape)} and {value.dtype}"
            )


def _check_groups(plan: Plan) -> None:
    """A group is projected once."""
    groups: set[object] = set()
    for one in plan.projects:
        if one.group in groups:
            raise PlanError(
                f"group {one.group.name} is projected twice in one plan; give one Project"
            )
        groups.add(one.group)


def _check_names(plan: Plan) -> None:
    """A parameter gets its value from one edit."""
    names: set[str] = set()
    for edit in plan.edits:
        if edit.owns in names:
            raise PlanError(f"parameter {edit.owns} is edited twice in one plan; give one edit")
        names.update(() if edit.owns is None else (edit.owns,))


def _check_tensors(context: Context, plan: Plan) -> dict[str, Edit]:
    """A tensor gets its value from one edit, whichever of its names that gives; it by all names."""
    owners: dict[str, Edit] = {}
    for edit in plan.edits:
        for name in () if edit.owns is None else context.names[edit.owns]:
            if name in owners:
                raise PlanError(f"{edit.owns} and {owners[name].owns} are one tensor; edit one")
            owners[name] = edit
    return owners


def _check_sizes(context: Context, plan: Plan, owners: Mapping[str, Edit]) -> None:
    """What is made for the size of a parameter does not stand while a projection changes it."""
    groups = {one.group.factor: one.group for one in plan.projects}
    for name in owners.keys() & context.coupling.parameters.keys():
        for factor in (f for expr in context.coupling.parameters[name] for f in leaves(expr)):
            if factor in groups and not owners[name].resizes:
                raise PlanError(
                    f"{owners[name].owns} is kept or read in another form, and its size changes "
                    f"with group {groups[factor].name}; make two passes of it"
                )
