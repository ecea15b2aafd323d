"""Proof of a pass: the new program against a reference computed from the old one.

For selections the reference is the *zero-masked* dense model: after every operation the units that
leave are set to zero. An operation that mixes along a factor (a norm, a mean) is computed over the
kept units instead, as its definition asks. Both come from the old graph and the axes of the
analysis, so a wrong mapping in any layer shows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.coupling import Coupling
from fxcompress.errors import VerificationError
from fxcompress.graph import CapturedModule, clone_graph
from fxcompress.masked import copies, masked_forward
from fxcompress.plan import Plan, Project
from fxcompress.report import Check
from fxcompress.rewrite import rewrite
from fxcompress.verify.compare import (
    TOLERANCE,
    coarsest_dtype,
    distance,
    doubled,
    drawn,
    is_vacuous,
)

__all__ = ["TOLERANCE", "distance", "verify"]


def verify(
    old: CapturedModule,
    new: CapturedModule,
    coupling: Coupling,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Check:
    """Compare `new`, which `plan` made of `old`, with its reference on the given inputs.

    The kind of the check is ``bit-identical`` (nothing was edited), ``zero-masked`` (units were
    only selected; values replaced in the same plan are replaced in the reference too) or ``runs``
    (values changed on purpose: the figure is the distance to the old program, and only has to be
    finite). Both run in evaluation mode, whatever mode they are in.

    Raises:
        VerificationError: They differ by more than the tolerance, an output is not finite where
            the reference is, or the new program does not run.
    """
    kind = _kind(plan)
    pair = _evaluating(_replaced(old, coupling, plan, kind)), _evaluating(new)
    result = _compare(*pair, coupling, plan, args, kwargs, kind)
    if not result.ok and kind == "zero-masked" and coarsest_dtype(old) == torch.float32:
        # Single precision may be at its end in a deep net; double precision tells rounding from a
        # wrong mapping.
        pair = copy.deepcopy(pair[0]).double(), copy.deepcopy(pair[1]).double()
        args, kwargs = pytree.tree_map_only(Tensor, doubled, (args, dict(kwargs)))
        result = _compare(*pair, coupling, plan, args, kwargs, kind)
    if not result.ok:
        raise VerificationError(
            f"{kind}: the outputs differ by {result.max_relative_error:.3g} (relative), "
            f"allowed {result.tolerance}; "
            "this is a fault in an axis rule or in the pass, and the program was left as it was"
        )
    return result


def _replaced(old: CapturedModule, coupling: Coupling, plan: Plan, kind: str) -> CapturedModule:
    """The old module with the values of the plan, so that only the selections are left to mask."""
    values = tuple(edit for edit in plan.edits if not isinstance(edit, Project))
    if kind != "zero-masked" or not values:
        return old
    return rewrite(old, coupling, Plan(values)).module


def _evaluating(module: CapturedModule) -> CapturedModule:
    return clone_graph(module).eval() if module.training else module


def _kind(plan: Plan) -> str:
    projects = [edit for edit in plan.edits if isinstance(edit, Project)]
    if not plan.edits:
        return "bit-identical"
    return "zero-masked" if projects and all(edit.selects for edit in projects) else "runs"


def _compare(
    old: CapturedModule,
    new: CapturedModule,
    coupling: Coupling,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    kind: str,
) -> Check:
    with torch.no_grad():
        reference = _reference(old, new, coupling, plan, kind, args, kwargs)
        if is_vacuous(reference):
            args, kwargs = pytree.tree_map_only(Tensor, drawn, (args, dict(kwargs)))
            reference = _reference(old, new, coupling, plan, kind, args, kwargs)
        try:
            found = new(*copies(args), **copies(dict(kwargs)))
        except RuntimeError as error:
            raise VerificationError(
                f"the new program does not run: {error}; this is a fault in an axis rule or in the "
                "pass, and the program was left as it was"
            ) from error
    error_size, finite = distance(found, reference)
    tolerance = {"bit-identical": 0.0, "zero-masked": TOLERANCE.get(coarsest_dtype(old), 1e-5)}.get(
        kind
    )
    ok = finite and (tolerance is None or error_size <= tolerance)
    return Check(kind, error_size, tolerance, ok)


def _reference(
    old: CapturedModule,
    new: CapturedModule,
    coupling: Coupling,
    plan: Plan,
    kind: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    if kind != "zero-masked":
        return old(*copies(args), **copies(dict(kwargs)))
    choices = {edit.group.factor: edit.encoder for edit in plan.edits if isinstance(edit, Project)}
    return masked_forward(old, new, coupling, choices, args, kwargs)
