"""Proof of a pass: the new program against a reference computed from the old one.

The reference is the dense graph with the plan carried out on it in another way than the rewriter
does. Where units are only selected and nothing mixes along them, it is the dense graph as it is, on
parameters with zeros (`zeroed`). Otherwise units that leave are zero after every operation
(`masked`), matrices scatter the new units over the places of the old ones (`scatter`), new values
are read in place of the old (`values`), constants are added to what a layer gives (`constants`),
and an operation that mixes along a factor (a norm, a mean) is computed over the kept units instead,
as its definition asks. All come from the old graph and the axes of the analysis, so a wrong mapping
in any layer shows.

There is one forward pass of the reference and one of the new program. A program read through
modules is also compared with itself once finalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from fxcompress.analysis.coupling import Coupling
from fxcompress.edit.context import Context
from fxcompress.edit.finalize import finalize
from fxcompress.edit.plan import Plan
from fxcompress.edit.proof import Proof, joined
from fxcompress.errors import PlanError, VerificationError
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.parameters import has_values
from fxcompress.graph.precision import TOLERANCE, inputs_in_double
from fxcompress.report import NOT_RUN, Check
from fxcompress.verify.compare import coarsest_dtype, distance
from fxcompress.verify.draws import refuse_unequal_draws, unequal_draws
from fxcompress.verify.reference import compared_by, reference_of
from fxcompress.verify.trial import Reference, Trial
from fxcompress.verify.values import check_values
from fxcompress.verify.zeroed import obstacle, zeroed_reference

__all__ = ["distance", "verify"]


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
    were added), ``reparametrized``, ``decoded`` or ``replaced`` (parameters read as other values);
    a kind of edit may have a name of its own. Other edits of the same plan are in the reference
    too; `Check.compared` tells all of them. Both run in evaluation mode, whatever mode they are in.
    On the meta device nothing can be run, and where no output of the reference is finite there is
    nothing to compare; the kind says so. Parameters and buffers that no matrix mixed are compared
    bit by bit.

    `Check.zeroed_error` is the error where the reference is the dense graph on parameters with
    zeros, None where that does not apply; `Check.compared` then says why.

    Raises:
        VerificationError: They differ by more than the tolerance, an output is not finite
            where the reference is, a tensor does not hold what the plan says, the new program does
            not run or is another one once finalised, or the model draws random numbers that cannot
            be lined up.
    """
    if not has_values(old):
        return Check(NOT_RUN, None, None, ok=True, compared="the meta device holds no values")
    context = Context(old, coupling)
    proof = joined([edit.proof(context) for edit in plan.edits])
    check_values(old, new, coupling, proof)
    runs = _Comparison(_evaluating(old), _evaluating(new), coupling, proof, args, kwargs)
    reason = obstacle(coupling, proof) if proof.kind == "zero-masked" else ""
    if reason is None:
        result, reason = runs.by_zeroed_parameters()
    else:
        result = runs.by_masks()
    if result.kind == NOT_RUN:
        return result
    words = _finalized(new, proof)[1]
    if reason is None:
        words = ", whose parameters alone are zero there" + words
    elif reason:
        words = f"; not with zeroed parameters: {reason}" + words
    return replace(result, compared=compared_by(proof) + words)


@dataclass(frozen=True)
class _Comparison:
    """What is compared: the two modules in evaluation mode, and the inputs they run on."""

    old: CapturedModule
    new: CapturedModule
    coupling: Coupling
    proof: Proof
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def by_zeroed_parameters(self) -> tuple[Check, str | None]:
        """The proof on zeroed parameters, or the one by masks and why the first cannot be.

        Raises:
            VerificationError: As `verify`.
        """
        result = self._compared(zeroed_reference(self.old, self.coupling, self.proof))
        if result.ok:
            return replace(result, zeroed_error=result.max_relative_error), None
        masked = self.by_masks()  # tells a fault of the pass from one of an axis rule
        if unequal_draws(self.old, self.new, self.args, self.kwargs):
            return masked, "random numbers are drawn in other shapes"
        raise VerificationError(
            f"zeroed parameters: the outputs differ by {result.max_relative_error:.3g} (relative) "
            "from those of the dense graph whose parameters are zero at the units that leave, "
            f"allowed {result.tolerance}, although they agree with the zero-masked run; an axis "
            "rule takes something for zero that is not, or for a unit's that is another's, and the "
            "program was left as it was; exclude the groups in question, or pin them with pin="
        )

    def by_masks(self) -> Check:
        """The proof by the dense graph with the plan carried out on every value.

        Raises:
            VerificationError: As `verify`.
        """
        result = self._compared(reference_of(self.old, self.coupling, self.proof))
        if not result.ok:
            refuse_unequal_draws(self.old, self.new, self.args, self.kwargs)
            raise VerificationError(
                f"{self.proof.kind}: the outputs differ by {result.max_relative_error:.3g} "
                f"(relative), allowed {result.tolerance}; "
                "this is a fault in an axis rule or in the pass, and the program was left as it was"
            )
        return result

    def _compared(self, reference: Reference) -> Check:
        trial = Trial(reference, self.new, _finalized(self.new, self.proof)[0])
        exact, coarsest = self.proof.kind == "bit-identical", coarsest_dtype(self.old)
        result = trial(
            self.args, self.kwargs, self.proof.kind, 0.0 if exact else TOLERANCE[coarsest]
        )
        if result.ok or exact or coarsest != torch.float32:
            return result
        # Single precision may be at its end in a deep net; double precision tells rounding from a
        # wrong mapping.
        args, kwargs = inputs_in_double((self.args, dict(self.kwargs)))
        return trial.double()(args, kwargs, self.proof.kind, _tolerance_in_double(self.proof))


def _finalized(new: CapturedModule, proof: Proof) -> tuple[CapturedModule | None, str]:
    """The new program finalised, where the plan reparametrises, and that in words."""
    if not proof.finalizes:
        return None, ""
    try:
        return finalize(new), ", and with those of the new program once finalised"
    except PlanError as error:
        return None, f"; not with the new program once finalised: {error}"


def _tolerance_in_double(proof: Proof) -> float:
    """Selected units have the very weights of the dense model. What a plan mixes, adds or computes
    has been rounded to single precision on the way into the program or the reference.
    """
    return TOLERANCE[torch.float32 if proof.rounded else torch.float64]


def _evaluating(module: CapturedModule) -> CapturedModule:
    training = any(part.training for part in module.modules())
    return clone_graph(module).eval() if training else module
