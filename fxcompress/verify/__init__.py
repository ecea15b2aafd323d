"""Proof of a pass: the new program against a reference computed from the old one.

The reference is the dense graph with the plan carried out on it in another way than the rewriter
does: units that leave are zero after every operation, matrices scatter the new units over the
places of the old ones (`scatter`), new values are read in place of the old (`values`), constants
are added to what a layer gives (`constants`). An operation that mixes along a factor (a norm, a
mean) is computed over the kept units instead, as its definition asks. All come from the old graph
and the axes of the analysis, so a wrong mapping in any layer shows.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.coupling import Coupling
from fxcompress.errors import VerificationError
from fxcompress.graph import CapturedModule, clone_graph
from fxcompress.plan import Plan
from fxcompress.report import Check
from fxcompress.report.text import NOT_RUN
from fxcompress.state import run_alone
from fxcompress.tensors import has_values
from fxcompress.verify.compare import (
    TOLERANCE,
    coarsest_dtype,
    distance,
    doubled,
    drawn,
    is_vacuous,
)
from fxcompress.verify.draws import refuse_unequal_draws
from fxcompress.verify.reference import Reference, compared_by, kind_of, reference_of
from fxcompress.verify.values import check_values

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

    The kind of the check names the proof: ``bit-identical`` (nothing was edited), ``zero-masked``
    (units were only selected), ``scattered`` (units were mixed by matrices), ``offset`` (constants
    were added), ``reparametrized`` or ``replaced`` (parameters read as other values). Other edits
    of the same plan are in the reference too; `Check.compared` tells all of them. Both run in
    evaluation mode, whatever mode they are in. On the meta device nothing can be run, and the kind
    says so. Parameters and buffers that no matrix mixed are
    compared bit by bit.

    Raises:
        VerificationError: They differ by more than the tolerance, an output is not finite where
            the reference is, a tensor does not hold what the plan says, the new program does not
            run, or the model draws random numbers that cannot be lined up.
    """
    if not has_values(old):
        return Check(NOT_RUN, None, None, ok=True, compared="the meta device holds no values")
    kind = kind_of(plan)
    check_values(old, new, coupling, plan, kind)
    reference = reference_of(_evaluating(old), coupling, plan)
    small = _evaluating(new)
    tolerance = 0.0 if kind == "bit-identical" else TOLERANCE[coarsest_dtype(old)]
    result = _compare(reference, small, args, kwargs, kind, tolerance)
    if not result.ok and tolerance and coarsest_dtype(old) == torch.float32:
        # Single precision may be at its end in a deep net; double precision tells rounding from a
        # wrong mapping.
        reference = reference.double(copy.deepcopy(reference.old).double())
        args, kwargs = pytree.tree_map_only(Tensor, doubled, (args, dict(kwargs)))
        tolerance = _tolerance_in_double(kind)
        small = copy.deepcopy(small).double()
        result = _compare(reference, small, args, kwargs, kind, tolerance)
    if not result.ok:
        refuse_unequal_draws(reference.old, small, args, kwargs)
        raise VerificationError(
            f"{kind}: the outputs differ by {result.max_relative_error:.3g} (relative), "
            f"allowed {result.tolerance}; "
            "this is a fault in an axis rule or in the pass, and the program was left as it was"
        )
    return replace(result, compared=compared_by(plan))


def _tolerance_in_double(kind: str) -> float:
    """Selected units have the very weights of the dense model. What a plan mixes or adds has been
    rounded to single precision on the way into the program.
    """
    exact = kind in ("zero-masked", "replaced", "reparametrized")
    return TOLERANCE[torch.float64 if exact else torch.float32]


def _evaluating(module: CapturedModule) -> CapturedModule:
    training = any(part.training for part in module.modules())
    return clone_graph(module).eval() if training else module


def _compare(
    reference: Reference,
    new: CapturedModule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    kind: str,
    tolerance: float,
) -> Check:
    with torch.no_grad():
        wanted = reference(new, args, kwargs)
        if is_vacuous(wanted):
            args, kwargs = pytree.tree_map_only(Tensor, drawn, (args, dict(kwargs)))
            wanted = reference(new, args, kwargs)
        try:
            found = run_alone(new, args, kwargs)
        except RuntimeError as error:
            raise VerificationError(
                f"the new program does not run: {error}; this is a fault in an axis rule or in the "
                "pass, and the program was left as it was"
            ) from error
    error_size, finite = distance(found, wanted)
    return Check(kind, error_size, tolerance, finite and error_size <= tolerance)
