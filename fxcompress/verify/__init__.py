"""Proof of a pass: the new program against a reference computed from the old one.

The reference is the dense graph with the plan carried out on it in another way than the rewriter
does: units that leave are zero after every operation, matrices scatter the new units over the
places of the old ones (`scatter`), new values are read in place of the old (`values`), constants
are added to what a layer gives (`constants`). An operation that mixes along a factor (a norm, a
mean) is computed over the kept units instead, as its definition asks. All come from the old graph
and the axes of the analysis, so a wrong mapping in any layer shows.

Where units are only selected and nothing mixes along them, a second proof stands beside it: the
dense graph as it is, on parameters with zeros (`zeroed`). A program read through modules is also
compared with itself once finalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.analysis.coupling import Coupling
from fxcompress.edit.finalize import finalize
from fxcompress.edit.plan import Plan, Reparametrize
from fxcompress.errors import PlanError, VerificationError
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.parameters import has_values
from fxcompress.report import NOT_RUN, Check
from fxcompress.verify.compare import TOLERANCE, coarsest_dtype, distance, doubled
from fxcompress.verify.draws import refuse_unequal_draws, unequal_draws
from fxcompress.verify.reference import compared_by, kind_of, reference_of
from fxcompress.verify.trial import Trial
from fxcompress.verify.values import check_values
from fxcompress.verify.zeroed import obstacle, zeroed_parameters

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

    `Check.zeroed_error` is the figure of the second proof, None where it does not apply;
    `Check.compared` then says why.

    Raises:
        VerificationError: They differ by more than the tolerance in either proof, an output is not
            finite where the reference is, a tensor does not hold what the plan says, the new
            program does not run or is another one once finalised, or the model draws random numbers
            that cannot be aligned up.
    """
    if not has_values(old):
        return Check(NOT_RUN, None, None, ok=True, compared="the meta device holds no values")
    kind = kind_of(plan)
    check_values(old, new, coupling, plan, kind)
    trial, words = _trial(_evaluating(old), _evaluating(new), coupling, plan, kind)
    tolerance = 0.0 if kind == "bit-identical" else TOLERANCE[coarsest_dtype(old)]
    result = trial(args, kwargs, kind, tolerance)
    if not result.ok and tolerance and coarsest_dtype(old) == torch.float32:
        # Single precision may be at its end in a deep net; double precision tells rounding from a
        # wrong mapping.
        trial = trial.double()
        args, kwargs = pytree.tree_map_only(Tensor, doubled, (args, dict(kwargs)))
        result = trial(args, kwargs, kind, _tolerance_in_double(kind, plan))
    if not result.ok and result.zeroed_error is None:
        refuse_unequal_draws(trial.reference.old, trial.new, args, kwargs)
        raise VerificationError(
            f"{kind}: the outputs differ by {result.max_relative_error:.3g} (relative), "
            f"allowed {result.tolerance}; "
            "this is a fault in an axis rule or in the pass, and the program was left as it was"
        )
    if not result.ok:
        _refuse_unlike_zeroed(trial, result, args, kwargs)
        result = replace(result, ok=True, zeroed_error=None)
        words = "; not with zeroed parameters: random numbers are drawn in other shapes"
    return replace(result, compared=compared_by(plan) + words)


def _trial(
    old: CapturedModule, new: CapturedModule, coupling: Coupling, plan: Plan, kind: str
) -> tuple[Trial, str]:
    """What is to be run, and what that compares beside the reference, in words."""
    words, zeroed, finalized = "", None, None
    if kind == "zero-masked":
        reason = obstacle(coupling, plan)
        zeroed = None if reason else zeroed_parameters(old, coupling, plan)
        words = f"; not with zeroed parameters: {reason}"
        if zeroed is not None:
            words = ", and with those of the dense graph whose parameters alone are zero there"
    if any(isinstance(edit, Reparametrize) for edit in plan.edits):
        try:
            finalized = finalize(new)
            words += ", and with those of the new program once finalised"
        except PlanError as error:
            words += f"; not with the new program once finalised: {error}"
    return Trial(reference_of(old, coupling, plan), new, zeroed, finalized), words


def _refuse_unlike_zeroed(
    trial: Trial, result: Check, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """The second proof failed: say so, unless the draws of the dense graph are other ones."""
    if unequal_draws(trial.reference.old, trial.new, args, kwargs):
        return
    raise VerificationError(
        f"zeroed parameters: the outputs differ by {result.zeroed_error:.3g} (relative) from those "
        "of the dense graph whose parameters are zero at the units that leave, allowed "
        f"{result.tolerance}, although they agree with the zero-masked run; an axis rule takes "
        "something for zero that is not, or for a unit's that is another's, and the program was "
        "left as it was; exclude the groups in question, or pin them with pin="
    )


def _tolerance_in_double(kind: str, plan: Plan) -> float:
    """Selected units have the very weights of the dense model. What a plan mixes, adds or computes
    has been rounded to single precision on the way into the program or the reference.
    """
    computed = any(isinstance(edit, Reparametrize) for edit in plan.edits)
    exact = kind in ("zero-masked", "replaced") and not computed
    return TOLERANCE[torch.float64 if exact else torch.float32]


def _evaluating(module: CapturedModule) -> CapturedModule:
    training = any(part.training for part in module.modules())
    return clone_graph(module).eval() if training else module
