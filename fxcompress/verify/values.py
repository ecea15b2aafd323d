"""What parameters and buffers must hold after a plan, to the bit, wherever no matrix mixed them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes, leaves
from fxcompress.axes.masks import kept_shape, stays, take
from fxcompress.axes.transforms import Choices
from fxcompress.edit.plan import Offset, Plan, Project, Reparametrize, Replace
from fxcompress.errors import VerificationError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import find_tensor, names_of
from fxcompress.verify.scatter import contracts


def planned_values(old: CapturedModule, plan: Plan) -> dict[str, Tensor]:
    """What the dense graph reads where the plan gives new values, under every name of a tensor.

    A reparametrised parameter is the value its module gives: as it is once finalised.
    """
    names = names_of(old)
    found: dict[str, Tensor] = {}
    for edit in plan.edits:
        if isinstance(edit, Replace):
            before = find_tensor(old, edit.parameter)
            assert before is not None
            value = edit.value.detach().to(before.device, before.dtype)
            found |= dict.fromkeys(names[edit.parameter], value)
        elif isinstance(edit, Reparametrize):
            found[edit.parameter] = _through(old, edit)
    return found


def _through(old: CapturedModule, edit: Reparametrize) -> Tensor:
    before = find_tensor(old, edit.parameter)
    assert before is not None
    modes = [(part, part.training) for part in edit.module.modules()]
    try:
        with torch.no_grad():
            value: Tensor = edit.module.eval()(before)
    finally:
        for part, mode in modes:
            part.training = mode
    return value.detach().clone()


def check_values(
    old: CapturedModule, new: CapturedModule, coupling: Coupling, plan: Plan, kind: str
) -> None:
    """Compare the new program's own tensors with what the plan says of them, bit by bit.

    A replaced parameter holds the plan's value and zeros where the mask has them, what a selection
    leaves is as it was, and what no edit names is untouched. Left to the comparison of outputs:
    tensors that matrices mix, units that were put in another order, and biases and norms beside
    the constants of the plan.

    Raises:
        VerificationError: A tensor holds something else; with its name.
    """
    values = {n: v for n, v in planned_values(old, plan).items() if n not in _reparametrized(plan)}
    places = {e.group.factor: e.encoder for e in plan.edits if isinstance(e, Project)}
    open_, names = _left_to_outputs(old, new, coupling, plan), names_of(old)
    for name, before in _tensors(old):
        after = find_tensor(new, name)
        if name in open_ or after is None:
            continue
        analysed = next((n for n in names[name] if n in coupling.parameters), "")
        axes = coupling.parameters.get(analysed, ())
        wanted = _kept(values.get(name, before), axes, places)
        if not same_bits(after, wanted):
            raise VerificationError(
                f"{kind}: {name} of shape {tuple(after.shape)} does not hold what the plan says; "
                "this is a fault in the rewriter, and the program was left as it was"
            )
    _check_masks(new, plan, kind)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same in shape, type and every bit; NaN is as good as any."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    raw = (t.detach().contiguous().flatten().view(torch.uint8) for t in (a, b.to(a.device)))
    return torch.equal(*raw)


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _reparametrized(plan: Plan) -> set[str]:
    """The parameter itself stays as it is: its module stands between it and the graph."""
    return {edit.parameter for edit in plan.edits if isinstance(edit, Reparametrize)}


def _kept(value: Tensor, axes: Axes, places: Choices) -> Tensor:
    """The entries at the places that stay, in their order."""
    own = {f: c for expr in axes for f in leaves(expr) if (c := places.get(f)) is not None}
    masks = [mask.to(value.device) for mask in stays(axes, own)]
    return take(value, masks, kept_shape(axes, own, value.shape)) if masks else value


def _left_to_outputs(
    old: CapturedModule, new: CapturedModule, coupling: Coupling, plan: Plan
) -> set[str]:
    """The names of tensors whose bits the plan does not tell."""
    projects = [edit for edit in plan.edits if isinstance(edit, Project)]
    ordered = {e.group.factor for e in projects if e.encoder.selects and _ascends(e.encode)}
    decoded = {e.group.factor for e in projects if e.decode is not None}
    found = {
        name
        for name, axes in coupling.parameters.items()
        for dim, expr in enumerate(axes)
        for factor in leaves(expr)
        if factor in {e.group.factor for e in projects} - ordered
        or (factor in decoded and contracts(coupling, name, dim, factor))
    }
    weights = {edit.weight for edit in plan.edits if isinstance(edit, Offset)}
    shifted = {e.group.factor for e in projects if e.shift is not None}
    weights |= {
        name
        for name, axes in coupling.parameters.items()
        for dim, expr in enumerate(axes)
        if any(contracts(coupling, name, dim, f) for f in shifted.intersection(leaves(expr)))
    }
    gone = {name for name, _ in _tensors(old) if find_tensor(new, name) is None}
    found |= set(_beside(old, weights | gone))
    names = names_of(old)
    return {other for name in found for other in names.get(name, ())}


def _ascends(index: Tensor) -> bool:
    return bool((index.diff(dim=-1) > 0).all())


def _beside(old: CapturedModule, weights: Collection[str]) -> Iterator[str]:
    """Vectors that the layers with these weights read, and the layers next to them: a bias and the
    tensors of a norm, into which a constant may go.
    """
    sources = [n for n in old.graph.find_nodes(op="get_attr") if n.target in weights]
    calls = {user for source in sources for user in source.users}
    beside = {near for call in calls for near in (call, *call.users, *call.all_input_nodes)}
    for operand in (operand for node in beside for operand in node.all_input_nodes):
        name = parameter_of(operand)
        value = None if name is None else find_tensor(old, name)
        if value is not None and value.dim() == 1:
            yield str(name)


def _check_masks(new: CapturedModule, plan: Plan, kind: str) -> None:
    for edit in plan.edits:
        if not isinstance(edit, Replace) or edit.mask is None:
            continue
        value = find_tensor(new, edit.parameter)
        if value is None or value.shape != edit.mask.shape:
            continue  # the units that stay were compared with the plan's values
        if bool(value.detach()[~edit.mask.to(value.device).bool()].any()):
            raise VerificationError(
                f"{kind}: {edit.parameter} is not zero everywhere where the mask of the plan is; "
                "this is a fault in the rewriter, and the program was left as it was"
            )
