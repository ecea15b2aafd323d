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
from torch import Tensor, fx
from torch.fx._pytree import tree_flatten_spec
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxcompress.axes import Axes, leaves
from fxcompress.coupling import Coupling
from fxcompress.errors import VerificationError
from fxcompress.graph import CapturedModule
from fxcompress.plan import Plan, Project
from fxcompress.projection import Choices, size_of, stays
from fxcompress.report import Check

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
    only selected) or ``runs`` (values changed on purpose: the figure is the distance to the old
    program, and only has to be finite).

    Raises:
        VerificationError: They differ by more than the tolerance, or an output is not finite where
            the reference is.
    """
    kind = _kind(plan)
    result = _compare(old, new, coupling, plan, args, kwargs, kind)
    if not result.ok and kind == "zero-masked" and _dtype(old) == torch.float32:
        # Single precision may be at its end in a deep net; double precision tells rounding from a
        # wrong mapping.
        old, new = copy.deepcopy(old).double(), copy.deepcopy(new).double()
        args, kwargs = pytree.tree_map_only(Tensor, _double, (args, dict(kwargs)))
        result = _compare(old, new, coupling, plan, args, kwargs, kind)
    if not result.ok:
        raise VerificationError(
            f"{kind}: the outputs differ by {result.max_relative_error:.3g} (relative), "
            f"allowed {result.tolerance}; "
            "this is a fault in an axis rule or in the pass, and the program was left as it was"
        )
    return result


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _kind(plan: Plan) -> str:
    if not plan.edits:
        return "bit-identical"
    if all(isinstance(edit, Project) and edit.encoder.selects for edit in plan.edits):
        return "zero-masked"
    return "runs"


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
        found = new(*_copies(args), **_copies(dict(kwargs)))
        reference = _reference(old, new, coupling, plan, kind, args, kwargs)
    error, finite = distance(found, reference)
    tolerance = {"bit-identical": 0.0, "zero-masked": TOLERANCE.get(_dtype(old), 1e-5)}.get(kind)
    return Check(kind, error, tolerance, finite and (tolerance is None or error <= tolerance))


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
        return old(*_copies(args), **_copies(dict(kwargs)))
    choices = {edit.group.factor: edit.encoder for edit in plan.edits if isinstance(edit, Project)}
    return masked_forward(old, new, coupling, choices, args, kwargs)


def _copies(values: Any) -> Any:
    """Inputs that an in-place operation may write to."""
    return pytree.tree_map_only(Tensor, torch.clone, values)


def _dtype(module: CapturedModule) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


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


def masked_forward(
    old: CapturedModule,
    new: CapturedModule | None,
    coupling: Coupling,
    choices: Choices,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """The outputs of `old` with all units zero that `choices` do not keep.

    `new` is the rewritten module: where an operation mixes along a changed factor, its arguments
    there (a normalised shape, say) are used on the kept units.
    """
    runner = _Masked(old, new, coupling, choices)
    flat = flat_inputs(old, _copies(args), _copies(dict(kwargs)))
    return old.graph.process_outputs(runner.run(*flat, enable_io_processing=False))


def flat_inputs(
    module: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The values of the graph's placeholders, in order."""
    codegen = module.graph._codegen
    if not isinstance(codegen, _PyTreeCodeGen):
        return [*args, *kwargs.values()]
    flat: list[Any] = tree_flatten_spec((args, dict(kwargs)), codegen.pytree_info.in_spec)
    return flat


class _Masked(fx.Interpreter):
    """Runs a graph, masking every value on the axes that change."""

    def __init__(
        self, old: CapturedModule, new: CapturedModule | None, coupling: Coupling, choices: Choices
    ) -> None:
        super().__init__(old)
        self.coupling = coupling
        self.choices = choices
        self.twins = {node.name: node for node in new.graph.nodes} if new is not None else {}
        self.masks: dict[Axes, Tensor | None] = {}

    def run_node(self, n: fx.Node) -> Any:
        if any(
            leaf in self.choices
            for expr in self.coupling.over.get(n.name, ())
            for leaf in leaves(expr)
        ):
            return self._over_kept(n)
        value = super().run_node(n)
        if n.op in ("placeholder", "output"):
            return value
        if isinstance(value, (tuple, list)) and n.name in self.coupling.outputs:
            many = self.coupling.outputs[n.name]
            return type(value)(self._masked(v, axes) for v, axes in zip(value, many, strict=True))
        owned = n.op != "get_attr"  # the module's own tensors are never written to
        return self._masked(value, self.coupling.axes.get(n.name, ()), owned)

    def _mask(self, axes: Axes, device: torch.device) -> Tensor | None:
        if axes not in self.masks:
            self.masks[axes] = stays(axes, self.choices)
        mask = self.masks[axes]
        return None if mask is None else mask.to(device)

    def _masked(self, value: Any, axes: Axes, owned: bool = True) -> Any:
        if not isinstance(value, Tensor) or not axes:
            return value
        mask = self._mask(axes, value.device)
        if mask is None:
            return value
        if not owned or not _writable(value):
            return value.detach().masked_fill(~mask, 0)
        return value.masked_fill_(~mask, 0)

    def _over_kept(self, n: fx.Node) -> Any:
        """Run the node on the kept units alone and put the result back among zeros."""
        twin = self.twins[n.name]
        operands = {node.name: self.env[node] for node in n.all_input_nodes}
        cut = {name: self._cut(value, name) for name, value in operands.items()}

        def fetch(node: fx.Node) -> Any:
            return cut.get(node.name, self.env.get(node))

        small_args = fx.node.map_arg(twin.args, fetch)
        small_kwargs = fx.node.map_arg(twin.kwargs, fetch)
        small = n.target(*small_args, **small_kwargs)  # type: ignore[operator]
        if isinstance(small, (tuple, list)):
            many = self.coupling.outputs[n.name]
            return type(small)(self._spread(v, axes) for v, axes in zip(small, many, strict=True))
        return self._spread(small, self.coupling.axes[n.name])

    def _cut(self, value: Any, name: str) -> Any:
        mask = (
            self._mask(self.coupling.axes.get(name, ()), value.device)
            if isinstance(value, Tensor)
            else None
        )
        if mask is None:
            return value
        shape = _kept_shape(self.coupling.axes[name], self.choices, value.shape)
        return value[mask.expand(value.shape)].reshape(shape)

    def _spread(self, value: Tensor, axes: Axes) -> Tensor:
        mask = self._mask(axes, value.device)
        if mask is None:
            return value
        shape = [
            expr.size if set(leaves(expr)) & self.choices.keys() else size
            for expr, size in zip(axes, value.shape, strict=True)
        ]
        full = value.new_zeros(shape)
        full[mask.expand(shape)] = value.flatten()
        return full


def _kept_shape(axes: Axes, choices: Choices, shape: torch.Size) -> list[int]:
    widths = {factor: choice.width for factor, choice in choices.items()}
    return [
        size_of(expr, widths) if set(leaves(expr)) & choices.keys() else size
        for expr, size in zip(axes, shape, strict=True)
    ]


def _writable(value: Tensor) -> bool:
    """Whether each element has memory of its own, so that it can be masked in place (which views
    of it then see).
    """
    return all(
        stride > 0 or size <= 1 for stride, size in zip(value.stride(), value.shape, strict=True)
    )
