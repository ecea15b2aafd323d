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
from fxcompress.graph import CapturedModule, clone_graph, dtype_of, is_tensor
from fxcompress.masked import copies, masked_forward
from fxcompress.plan import Plan, Project
from fxcompress.report import Check
from fxcompress.rewrite import rewrite

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-5,  # sums of a few thousand products, in another order
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,  # eight bits of mantissa, accumulated over layers
}


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
    if not result.ok and kind == "zero-masked" and _dtype(old) == torch.float32:
        # Single precision may be at its end in a deep net; double precision tells rounding from a
        # wrong mapping.
        pair = copy.deepcopy(pair[0]).double(), copy.deepcopy(pair[1]).double()
        args, kwargs = pytree.tree_map_only(Tensor, _double, (args, dict(kwargs)))
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


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


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
        if _vacuous(reference):
            args, kwargs = pytree.tree_map_only(Tensor, _drawn, (args, dict(kwargs)))
            reference = _reference(old, new, coupling, plan, kind, args, kwargs)
        try:
            found = new(*copies(args), **copies(dict(kwargs)))
        except RuntimeError as error:
            raise VerificationError(
                f"the new program does not run: {error}; this is a fault in an axis rule or in the "
                "pass, and the program was left as it was"
            ) from error
    error_size, finite = distance(found, reference)
    tolerance = {"bit-identical": 0.0, "zero-masked": TOLERANCE.get(_dtype(old), 1e-5)}.get(kind)
    ok = finite and (tolerance is None or error_size <= tolerance)
    return Check(kind, error_size, tolerance, ok)


def _vacuous(outputs: Any) -> bool:
    """Outputs of zeros (from inputs of zeros, say) prove nothing."""
    return not any(isinstance(t, Tensor) and bool(t.any()) for t in pytree.tree_leaves(outputs))


def _drawn(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(0)
    return torch.randn(tensor.shape, generator=generator).to(tensor)


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


def _dtype(module: CapturedModule) -> torch.dtype:
    """The coarsest floating type anything is computed in; a model may cast in its forward."""
    kinds = {p.dtype for p in module.parameters()}
    kinds.update(dtype_of(node) for node in module.graph.nodes if is_tensor(node))
    floats = [kind for kind in kinds if kind in TOLERANCE]
    return max(floats, key=TOLERANCE.__getitem__, default=torch.float32)


def distance(found: Any, reference: Any) -> tuple[float, bool]:
    """The largest difference over the largest reference value, and whether `found` is finite.

    Tensors are compared one by one; places where the reference is not finite are left out.
    """
    pairs = zip(pytree.tree_leaves(found), pytree.tree_leaves(reference), strict=True)
    worst, finite = 0.0, True
    for a, b in pairs:
        if not isinstance(a, Tensor):
            continue
        if a.shape != b.shape:
            return float("inf"), False
        if a.numel() == 0:
            continue
        a, b = a.detach().to(torch.float64), b.detach().to(torch.float64)
        usable = torch.isfinite(b)
        finite = finite and bool(torch.isfinite(a[usable]).all())
        gap = (a - b)[usable].abs()
        if gap.numel() and float(gap.max()) > 0:
            worst = max(
                worst,
                float(gap.max() / b[usable].abs().max().clamp(min=torch.finfo(torch.float64).tiny)),
            )
    return worst, finite
