"""SliceGPT: the residual stream in its principal axes, and the last of them cut away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count
from fxcompress.edit.offset import refuses_offset
from fxcompress.edit.plan import Edit, Offset, Project, Replace
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import names_of, read_tensor
from fxcompress.layers.weights import consumers, producers
from fxcompress.passes.slicegpt.axes import Tap, even, principal_axes
from fxcompress.passes.slicegpt.norms import (
    StreamNorm,
    check_rotates,
    handed_on_by,
    stream_norms,
)
from fxcompress.passes.structured.method import (
    Criterion,
    DeclinedError,
    Reconstruction,
    Structured,
    refusal,
)
from fxcompress.program import Program
from fxcompress.stats import Gram, observe

WHO = "SliceGPT"
Affine = tuple[Tensor, Tensor]
"""Gain and shift of a norm."""


@dataclass(frozen=True, kw_only=True, repr=False)
class SliceGPT(Structured, Reconstruction, alias="PrincipalAxes"):
    """Turn the residual stream into its principal axes and keep the first of them.

    Axes score their variance (Ashkboos et al., ICLR 2024). It needs data, without labels. Writers
    become QᵀW, readers W diag(gain) Q, every norm's gain one, with Q the eigenvectors of Σ x xᵀ
    over what the norms read, each sample divided by its root mean square. All of that is exact.
    Then the axes of the smallest eigenvalues go; norms still divide by √(Σ x² / d) with the d of
    before, for the factor √(d/k) is folded into the readers (what is added to the mean square, ε,
    counts k/d of what it did).

    There is one Q for the whole stream, and not one for each block: skip connections then need no
    matrices.

    A LayerNorm stays one, and takes the mean out by itself: under LayerNorms the stream's mean is
    an axis of its own, never cut, and the k axes left are written so that equal units before are
    equal units after. So a stream of k units holds k - 1 axes. What a LayerNorm adds goes into the
    biases of its readers.

    Attributes:
        samples: How many samples of the program's data are looked at; None for all.
        dims: Only residual streams have the norms that it needs.
        ratio: Share of axes removed from every stream, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    samples: Count | None = None
    dims: str | tuple[str, ...] | None = ("residual",)

    @property
    def own_reconstruction(self) -> Reconstruction:
        return self

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Rotations:
        """Find the axes of all groups in one pass over the data.

        Raises:
            PlanError: A stream cannot be turned, or there are no data.
        """
        streams = {group: _checked(program, group) for group in groups}
        sums = {group: Gram() for group in streams}
        taps: dict[str, Tap] = {}
        for group, norms in streams.items():
            for norm in norms:
                taps[norm.source.name] = Tap(sums[group], norm.centred)
        observe(program, taps, who=WHO, samples=self.samples)
        return Rotations(
            {
                group: principal_axes(sums[group].total, _centred(norms))
                for group, norms in streams.items()
            }
        )

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        return refusal(lambda: _check_offsets(program, group))

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return self.prepare(program, (group,)).edits(program, group, kept)


@dataclass(frozen=True, eq=False)
class Rotations(Criterion, Reconstruction):
    """Eigenvalues, descending, and axes as columns, of each stream."""

    axes: Mapping[ChannelGroup, tuple[Tensor, Tensor]]

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.axes[group][0].unsqueeze(0)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return sliced(program, group, self.axes[group][1][:, kept.to(self.axes[group][1].device)])


def sliced(program: Program, group: ChannelGroup, axes: Tensor) -> tuple[Edit, ...]:
    """The edits that turn a stream and keep some of its axes.

    Args:
        program: Whose stream.
        group: Of d units.
        axes: Orthonormal columns, shape (d, k); under LayerNorms the first is that of the mean.

    Raises:
        PlanError: The stream cannot be turned, or not into these axes.
    """
    norms = _checked(program, group)
    basis = even(axes) if _centred(norms) else axes
    if basis is None:
        raise PlanError(
            f"group {group.name}: a LayerNorm takes the mean out of the stream, so the mean's "
            "axis, the first by PrincipalAxes, has to stay; rank the axes by PrincipalAxes"
        )
    edits = _read_edits(program, group, norms, sqrt(group.units / basis.shape[1]))
    # The projection takes a gain as what writes units: Qᵀ of this is ones.
    for each, value in (("gain", basis.sum(1)), ("shift", basis.new_zeros(group.units))):
        for name in sorted({getattr(norm, each) for norm in norms} - {None}):
            edits.append(Replace(name, value.to(read_tensor(program.module, name))))
    return (*edits, Project(group, basis.mT.contiguous(), basis))


def _read_edits(
    program: Program, group: ChannelGroup, norms: tuple[StreamNorm, ...], factor: float
) -> list[Edit]:
    """What reads a norm takes up its gain, times `factor`, and what it adds."""
    edits: list[Edit] = []
    for (name, dim), (gain, shift) in _reading(program, group, norms).items():
        edits.append(_scaled(program, name, dim, gain * factor))
        if bool(shift.any()):
            weight = read_tensor(program.module, name)
            moved = weight.double().movedim(dim, -1) @ shift
            edits.append(Offset(name, moved.to(weight)))
    return edits


def _check_offsets(program: Program, group: ChannelGroup) -> None:
    """Refuse a stream that cannot be turned, or whose readers take no constant."""
    for (name, _), (_, shift) in _reading(program, group, _checked(program, group)).items():
        reason = refuses_offset(program.module, program.maps, name) if bool(shift.any()) else None
        if reason is not None:
            raise DeclinedError(group, reason)


def _centred(norms: Iterable[StreamNorm]) -> bool:
    return any(norm.centred for norm in norms)


def _checked(program: Program, group: ChannelGroup) -> tuple[StreamNorm, ...]:
    norms = stream_norms(program, group)
    check_rotates(program, group, norms)
    names = names_of(program.module)
    writers = {name for one in producers(program, group) for name in names[one.weight]}
    tied = sorted(writers & {one.weight for one in consumers(program, group)})
    if tied:
        raise DeclinedError(
            group,
            f"{', '.join(tied)} both writes and reads the stream, so it cannot "
            "take up the gain of the norm before it; untie it before compiling, as in "
            "model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())",
        )
    if not norms:
        raise DeclinedError(group, f"it has no norm: it is no stream that {WHO} could turn")
    return norms


def _affine(program: Program, group: ChannelGroup, norm: StreamNorm) -> Affine:
    """Gain and shift of a norm, shape (d,) each."""
    gain, shift = (
        None if name is None else read_tensor(program.module, name)
        for name in (norm.gain, norm.shift)
    )
    ones = torch.ones(group.units, dtype=torch.float64)
    return (
        ones if gain is None else gain.detach().double(),
        torch.zeros_like(ones) if shift is None else shift.detach().double(),
    )


def _reading(
    program: Program, group: ChannelGroup, norms: Iterable[StreamNorm]
) -> dict[tuple[str, int], Affine]:
    """The axes of weights that read what a norm yields, with its gain and shift.

    Raises:
        PlanError: A weight reads after norms of different gains, or inside one.
    """
    nodes = {node.name: node for node in program.module.graph.nodes}
    own = {handed_on_by(norm.output): _affine(program, group, norm) for norm in norms}
    inner = frozenset().union(*(norm.nodes for norm in norms))
    found: dict[tuple[str, int], Affine | None] = {}
    for one in consumers(program, group):
        base, key = handed_on_by(nodes[one.value]), (one.weight, one.site.dim)
        affine = own.get(base)
        known = found.setdefault(key, affine)
        if not _same(known, affine) or (affine is None and base in inner):
            raise DeclinedError(
                group,
                f"{one.weight} reads the stream after norms of different gains, which it cannot "
                "take up",
            )
    return {key: affine for key, affine in found.items() if affine is not None}


def _same(first: Affine | None, second: Affine | None) -> bool:
    if first is None or second is None:
        return first is second
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def _scaled(program: Program, name: str, dim: int, scale: Tensor) -> Replace:
    """The weight with its columns scaled."""
    value = read_tensor(program.module, name)
    shape = [-1 if each == dim else 1 for each in range(value.dim())]
    return Replace(name, (value.double() * scale.reshape(shape).to(value.device)).to(value))


PrincipalAxes = SliceGPT
"""The name it has as a criterion and a reconstruction."""
