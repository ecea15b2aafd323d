"""What a plan must satisfy before anything is edited."""

from __future__ import annotations

import torch
from torch import Tensor

from fxcompress.coupling import Coupling
from fxcompress.errors import PlanError
from fxcompress.graph import CapturedModule, find_tensor
from fxcompress.plan import Plan, Project, Reparametrize, Replace


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
        else:
            if edit.parameter in parameters:
                raise PlanError(
                    f"parameter {edit.parameter} is edited twice in one plan; give one edit for it"
                )
            parameters.add(edit.parameter)
            _check_parameter(module, edit)


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
    _check_shape(edit, where)
    if edit.encoder.selects:
        _check_indices(edit, where)
    else:
        _check_matrices(coupling, edit, where)


def _check_shape(edit: Project, where: str) -> None:
    cells, units = edit.group.cells, edit.group.units
    encode, decode = edit.encode, edit.decode
    rank = 1 if edit.encoder.selects else 2
    if encode.dim() not in (rank, rank + 1) or (
        encode.dim() == rank + 1 and encode.shape[0] != cells
    ):
        raise PlanError(
            f"{where}: encode has shape {tuple(encode.shape)}; "
            f"expected (k, …), or ({cells}, k, …) for {cells} cells"
        )
    if edit.width < 1:
        raise PlanError(f"{where}: nothing would be left; keep at least one unit")
    if edit.encoder.selects:
        return
    if decode is None or encode.shape[-1] != units or decode.shape != encode.mT.shape:
        shape = None if decode is None else tuple(decode.shape)
        raise PlanError(
            f"{where}: encode {tuple(encode.shape)} needs a decode of shape "
            f"{tuple(encode.mT.shape)}, got {shape}"
        )
    if edit.shift is not None and edit.shift.shape != (units,):
        raise PlanError(f"{where}: shift has shape {tuple(edit.shift.shape)}, expected ({units},)")
    for name, value in (("encode", encode), ("decode", decode), ("shift", edit.shift)):
        if value is not None and not bool(torch.isfinite(value).all()):
            raise PlanError(f"{where}: {name} has entries that are not finite")


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


def _check_matrices(coupling: Coupling, edit: Project, where: str) -> None:
    """An axis that both produces and consumes the units (a tied embedding) can only take D = Eᵀ."""
    roles: dict[tuple[str, int], set[str]] = {}
    for parameter, dim, role in coupling.roles[edit.group.factor]:
        roles.setdefault((parameter, dim), set()).add(role)
    for (parameter, dim), own in roles.items():
        if "contract" in own and len(own) > 1 and not _transposed(edit):
            raise PlanError(
                f"{where}: axis {dim} of {parameter} both writes and reads the units, "
                "so decode must be the transpose of encode"
            )


def _transposed(edit: Project) -> bool:
    return edit.decode is not None and torch.allclose(edit.encode.mT, edit.decode)


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
    if not any(
        node.op == "get_attr" and node.target == edit.parameter for node in module.graph.nodes
    ):
        raise PlanError(
            f"{edit.parameter} is not read by the graph, so nothing would go through the new module"
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
