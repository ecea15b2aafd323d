"""What a plan must satisfy before anything is edited."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

import torch
from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.edit.plan import Offset, Plan, Project, Reparametrize, Replace
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import find_tensor, names_of


def check_plan(module: CapturedModule, coupling: Coupling, plan: Plan) -> None:
    """Refuse a plan that would break the program.

    Raises:
        PlanError: Naming the group or parameter, the site and the reason.
    """
    groups: set[object] = set()
    parameters: set[str] = set()
    for edit in plan.edits:
        if isinstance(edit, Project):
            if edit.group in groups:
                raise PlanError(
                    f"group {edit.group.name} is projected twice in one plan; give one Project"
                )
            groups.add(edit.group)
            _check_project(coupling, edit)
        elif not isinstance(edit, Offset):
            if edit.parameter in parameters:
                raise PlanError(
                    f"parameter {edit.parameter} is edited twice in one plan; give one edit for it"
                )
            parameters.add(edit.parameter)
            _check_parameter(module, edit)
    _check_overlap(module, coupling, plan)


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


def _check_project(coupling: Coupling, edit: Project) -> None:
    group = edit.group
    first = group.sites[0]
    held = f"axis {first.dim} of {first.parameter}"
    where = f"group {group.name} ({group.units} units, {held})"
    if group.factor not in coupling.roles:
        raise PlanError(
            f"{where} belongs to another program; take groups from the program that the plan is for"
        )
    if group.frozen:
        raise PlanError(f"{where} may not change: {group.frozen}")
    _check_encode(edit, where)
    _check_decode(edit, where)
    for name, value in (("encode", edit.encode), ("decode", edit.decode), ("shift", edit.shift)):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise PlanError(f"{where}: {name} has entries that are not finite")
    if edit.decode is not None:
        _check_tied(coupling, edit, where)


def _check_encode(edit: Project, where: str) -> None:
    encode, cells, units = edit.encode, edit.group.cells, edit.group.units
    if not encode.is_floating_point() and encode.dtype != torch.int64:
        raise PlanError(f"{where}: encode holds {encode.dtype}; give indices as int64, not a mask")
    rank = 1 if edit.encoder.selects else 2
    shaped = encode.dim() == rank or (encode.dim() == rank + 1 and encode.shape[0] == cells)
    if not shaped or (rank == 2 and encode.shape[-1] != units):
        raise PlanError(
            f"{where}: encode has shape {tuple(encode.shape)}; expected indices (k,) or "
            f"({cells}, k), or a matrix (k, {units}) or ({cells}, k, {units})"
        )
    if edit.width < 1:
        raise PlanError(f"{where}: nothing would be left; keep at least one unit")
    if rank == 1:
        _check_indices(edit, where)


def _check_decode(edit: Project, where: str) -> None:
    cells, units, decode = edit.group.cells, edit.group.units, edit.decode
    allowed = {(units, edit.width), (cells, units, edit.width)}
    if decode is None and not edit.encoder.selects:
        raise PlanError(f"{where}: a matrix encode needs a decode of shape ({units}, {edit.width})")
    if decode is not None and tuple(decode.shape) not in allowed:
        raise PlanError(
            f"{where}: decode has shape {tuple(decode.shape)}; expected ({units}, {edit.width}), "
            f"or ({cells}, {units}, {edit.width}) for {cells} cells"
        )
    if edit.shift is not None and edit.shift.shape != (units,):
        raise PlanError(f"{where}: shift has shape {tuple(edit.shift.shape)}, expected ({units},)")


def _check_indices(edit: Project, where: str) -> None:
    index: Tensor = edit.encode.reshape(-1, edit.width)
    if int(index.min()) < 0 or int(index.max()) >= edit.group.units:
        raise PlanError(
            f"{where}: kept indices must be in 0…{edit.group.units - 1}, "
            f"got {int(index.min())}…{int(index.max())}"
        )
    ordered = index.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise PlanError(f"{where}: an index is kept twice; give each unit once")


def _check_tied(coupling: Coupling, edit: Project, where: str) -> None:
    """An axis that both produces and consumes the units (a tied embedding) can only take D = Eᵀ."""
    both = tied_axis(coupling, edit.group.factor)
    if both is not None and not _transposed(edit):
        raise PlanError(f"{where}: {both}, so decode must be the transpose of encode")


def tied_axis(coupling: Coupling, factor: Factor) -> str | None:
    """The axis that both writes and reads the units of a factor, in words; None without one."""
    roles: dict[tuple[str, int], set[str]] = {}
    for parameter, dim, role in sorted(coupling.roles[factor]):
        roles.setdefault((parameter, dim), set()).add(role)
    for (parameter, dim), own in roles.items():
        if "contract" in own and len(own) > 1:
            return f"axis {dim} of {parameter} both writes and reads the units"
    return None


def _transposed(edit: Project) -> bool:
    assert edit.decode is not None
    encode = edit.encode
    if edit.encoder.selects:
        encode = nn.functional.one_hot(encode, edit.group.units).to(edit.decode.dtype)
    return encode.mT.shape == edit.decode.shape and torch.allclose(encode.mT, edit.decode)


def _check_overlap(module: CapturedModule, coupling: Coupling, plan: Plan) -> None:
    """No tensor may be edited twice, under another name or through a module made for the size that
    a projection changes.
    """
    names = names_of(module)
    whole: dict[str, Replace | Reparametrize] = {}
    for edit in plan.edits:
        if isinstance(edit, (Replace, Reparametrize)):
            for name in names[edit.parameter]:
                if name in whole:
                    other = whole[name].parameter
                    raise PlanError(f"{edit.parameter} and {other} are one tensor; edit one")
                whole[name] = edit
    groups = {edit.group.factor: edit.group for edit in plan.edits if isinstance(edit, Project)}
    for name in whole.keys() & coupling.parameters.keys():
        for factor in (leaf for expr in coupling.parameters[name] for leaf in leaves(expr)):
            if factor in groups and isinstance(whole[name], Reparametrize):
                raise PlanError(
                    f"{whole[name].parameter} is read through a new module and changes its size "
                    f"with group {groups[factor].name}; make two passes of it"
                )


def _check_parameter(module: CapturedModule, edit: Replace | Reparametrize) -> None:
    old = find_tensor(module, edit.parameter)
    if old is None:
        raise PlanError(
            f"the program has no parameter or buffer {edit.parameter!r}; "
            "program.module.state_dict() has their names"
        )
    if isinstance(edit, Replace):
        _check_value(old, edit)
        return
    readers = [n for n in module.graph.find_nodes(op="get_attr") if n.target == edit.parameter]
    if not readers:
        raise PlanError(
            f"{edit.parameter} is not read by the graph, so nothing would go through the new module"
        )
    if any(user.op == "call_module" for node in readers for user in node.users):
        raise PlanError(
            f"{edit.parameter} is read through a module already; finalize the program first"
        )
    with torch.no_grad():
        new = edit.module(old)
    if new.shape != old.shape or new.dtype != old.dtype:
        raise PlanError(
            f"the module for {edit.parameter} turns {tuple(old.shape)} {old.dtype} "
            f"into {tuple(new.shape)} {new.dtype}; "
            "it must keep shape and dtype"
        )


def _check_value(old: Tensor, edit: Replace) -> None:
    if edit.value.shape != old.shape:
        raise PlanError(
            f"{edit.parameter}: the new value has shape {tuple(edit.value.shape)}, "
            f"the parameter {tuple(old.shape)}"
        )
    if edit.mask is not None and edit.mask.shape != old.shape:
        raise PlanError(
            f"{edit.parameter}: the mask has shape {tuple(edit.mask.shape)}, "
            f"the parameter {tuple(old.shape)}"
        )
    if not bool(torch.isfinite(edit.value).all()):
        raise PlanError(f"{edit.parameter}: new value has entries that are not finite")
    if edit.mask is not None and bool((edit.value[~edit.mask.bool()] != 0).any()):
        raise PlanError(f"{edit.parameter}: the new value is not zero where the mask says so")
