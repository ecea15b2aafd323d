"""What parameters and buffers must hold after a plan, to the bit, wherever no matrix mixed them."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes, leaves
from fxcompress.axes.masks import kept_shape, stays, take
from fxcompress.axes.transforms import Choices
from fxcompress.edit.proof import Proof
from fxcompress.errors import VerificationError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import value_of
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import find_tensor, names_of, read_tensor
from fxcompress.graph.through import read_value
from fxcompress.verify.scatter import contracts


def check_values(
    old: CapturedModule, new: CapturedModule, coupling: Coupling, proof: Proof
) -> None:
    """Compare the new program's own tensors with what the plan says of them, bit by bit.

    A replaced parameter holds the plan's value, a stored one the plan's parts, masked entries are
    read as zero, what a selection leaves is as it was, and what no edit names is untouched. Left to
    the comparison of outputs: tensors that matrices mix, units that were put in another order, and
    biases and norms beside the constants of the plan.

    Raises:
        VerificationError: A tensor holds something else; with its name.
    """
    places = {e.group.factor: e.encoder for e in proof.projects}
    open_, names = _left_to_outputs(old, new, coupling, proof), names_of(old)
    held = {**dict(_tensors(old)), **proof.holds}
    for name, value in held.items():
        after = find_tensor(new, name)
        if name in open_ or (after is None and name in names):
            continue
        analysed = next((n for n in names.get(name, ()) if n in coupling.parameters), "")
        axes = coupling.parameters.get(analysed, ())
        if after is value:
            continue
        kept = _kept(value_of(value), axes, places)
        if after is None or not same_bits(value_of(after), kept):
            raise _wrong(proof, f"{name} does not hold what the plan says")
    _check_bounds(old, proof)
    _check_masks(new, proof)


def _wrong(proof: Proof, what: str) -> VerificationError:
    return VerificationError(
        f"{proof.kind}: {what}; this is a fault in the rewriter, and the program was left as it was"
    )


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


def _kept(value: Tensor, axes: Axes, places: Choices) -> Tensor:
    """The entries at the places that stay, in their order."""
    own = {f: c for expr in axes for f in leaves(expr) if (c := places.get(f)) is not None}
    masks = [mask.to(value.device) for mask in stays(axes, own)]
    return take(value, masks, kept_shape(axes, own, value.shape)) if masks else value


def _left_to_outputs(
    old: CapturedModule, new: CapturedModule, coupling: Coupling, proof: Proof
) -> set[str]:
    """The names of tensors whose bits the plan does not tell."""
    projects = proof.projects
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
    weights = {weight for weight, _ in proof.constants}
    shifted = {factor for factor, _ in proof.shifts}
    weights |= {
        name
        for name, axes in coupling.parameters.items()
        for dim, expr in enumerate(axes)
        if any(contracts(coupling, name, dim, f) for f in shifted.intersection(leaves(expr)))
    }
    gone = {name for name, _ in _tensors(old) if find_tensor(new, name) is None}
    found |= set(_beside(old, weights | (gone - proof.bounds.keys())))
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


def _check_bounds(old: CapturedModule, proof: Proof) -> None:
    """What is read of a stored parameter is near what it was, and zero where it was zero."""
    for name, bound in proof.bounds.items():
        before, value = read_tensor(old, name), proof.reads[name]
        gap = (value.double() - before.double()).abs()
        if not bool((gap <= bound.to(gap)).all()):
            raise VerificationError(
                f"{proof.kind}: an entry of {name} is {float(gap.max()):.3g} from what it was, and "
                f"its codec says at most {float(bound.max()):.3g}; encode the values that the "
                "parameter has, or mend the codec's `bound`"
            )
        if bool(value[before == 0].any()):
            raise VerificationError(
                f"{proof.kind}: {name} is not zero everywhere where it was zero; "
                "a codec keeps zeros, so mend its `encode`"
            )


def _check_masks(new: CapturedModule, proof: Proof) -> None:
    for name, zeros in proof.masks.items():
        value = read_value(new, name)
        if value is None or value.shape != zeros.mask.shape:
            continue  # the units that stay were compared with the plan's values
        if bool(value.detach()[~zeros.mask.to(value.device).bool()].any()):
            raise _wrong(proof, f"{name} is not zero everywhere where the mask of the plan is")
