"""SliceGPT: the residual stream in its principal axes, and the last of them cut away."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from fxcompress.budget import Recipe, Sizing
from fxcompress.calibrate.observe import observe
from fxcompress.errors import PlanError
from fxcompress.graph import find_tensor
from fxcompress.groups import ChannelGroup
from fxcompress.members import consumers, producers
from fxcompress.passes.slicegpt_norms import (
    StreamNorm,
    check_rotates,
    handed_on_by,
    stream_norms,
)
from fxcompress.passes.structured import StructuredPass
from fxcompress.plan import Edit, Plan, Project, Replace
from fxcompress.program import Program
from fxcompress.tensors import names_of

WHO = "SliceGPT"


@dataclass(frozen=True, repr=False)
class PrincipalAxes(Recipe):
    """Score the principal axes of a stream by their variance, and turn the stream into them.

    Ashkboos et al., ICLR 2024: writers become QᵀW, readers W diag(gain) Q, every norm's gain one,
    with Q the eigenvectors of Σ x xᵀ over what the norms read, each sample divided by its root mean
    square. All of that is exact. Then the axes of the smallest eigenvalues go; norms still divide
    by √(Σ x² / d) with the d of before, for the factor √(d/k) is folded into the readers (what is
    added to the mean square, ε, counts k/d of what it did).

    There is one Q for the whole stream, and not one for each block: skip connections then need no
    matrices. Only streams under RMS norms are turned; LayerNorm, with its mean, is refused.

    Attributes:
        samples: How many samples of the program's data are looked at; None for all.
    """

    samples: int | None = None

    def prepare(self, program: Program, groups: Iterable[ChannelGroup]) -> Rotations:
        """Find the axes of all groups in one pass over the data.

        Raises:
            PlanError: A stream cannot be turned, or there are no data.
        """
        streams = {group: _checked(program, group) for group in groups}
        sums = {group: _second_moment(group) for group in streams}
        taps: dict[str, Tap] = {}
        for group, norms in streams.items():
            for norm in norms:
                taps[norm.source.name] = Tap(sums[group])
        observe(program, taps, who=WHO, samples=self.samples)
        found = {}
        for group, total in sums.items():
            values, vectors = torch.linalg.eigh(total)
            found[group] = (values.flip(0).clamp(min=0), vectors.flip(1))
        return Rotations(found)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return self.prepare(program, (group,)).edits(program, group, kept)


@dataclass(frozen=True)
class Tap:
    """Adds Σ x xᵀ / mean(x²) of what a norm reads to a sum."""

    total: Tensor

    def __call__(self, value: Tensor) -> None:
        rows = value.detach().flatten(0, -2).to(self.total)
        square = rows.square().mean(1, keepdim=True)
        rows = rows * torch.where(square > 0, square.rsqrt(), 0.0)
        self.total.add_(rows.mT @ rows)


@dataclass(frozen=True, eq=False)
class Rotations:
    """Eigenvalues, descending, and eigenvectors as columns, of each stream."""

    axes: Mapping[ChannelGroup, tuple[Tensor, Tensor]]

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.axes[group][0].unsqueeze(0)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return sliced(program, group, self.axes[group][1][:, kept.to(self.axes[group][1].device)])


def sliced(program: Program, group: ChannelGroup, basis: Tensor) -> tuple[Edit, ...]:
    """The edits that turn a stream and keep some of its axes.

    Args:
        program: Whose stream.
        group: Of d units.
        basis: Orthonormal columns, shape (d, k).

    Raises:
        PlanError: The stream cannot be turned.
    """
    norms = _checked(program, group)
    factor = sqrt(group.units / basis.shape[1])
    edits: list[Edit] = [
        _scaled(program, name, dim, gain * factor)
        for (name, dim), gain in _reading(program, group, norms).items()
    ]
    for name in sorted({norm.gain for norm in norms if norm.gain is not None}):
        old = find_tensor(program.module, name)
        assert old is not None
        # The projection takes it as what writes units: Qᵀ of this is ones.
        edits.append(Replace(name, basis.sum(1).to(old)))
    return (*edits, Project(group, basis.mT.contiguous(), basis))


def _checked(program: Program, group: ChannelGroup) -> tuple[StreamNorm, ...]:
    norms = stream_norms(program, group)
    check_rotates(program, group, norms)
    names = names_of(program.module)
    writers = {name for one in producers(program, group) for name in names[one.weight]}
    tied = sorted(writers & {one.weight for one in consumers(program, group)})
    if tied:
        raise PlanError(
            f"group {group.name}: {', '.join(tied)} both writes and reads the stream, so it cannot "
            "take up the gain of the norm before it; untie it before compiling, as in "
            "model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone())"
        )
    if not norms:
        raise PlanError(
            f"group {group.name} has no RMS norm: it is no stream that {WHO} could turn; leave it "
            "out with dims='residual' or exclude="
        )
    return norms


def _second_moment(group: ChannelGroup) -> Tensor:
    return torch.zeros(group.units, group.units, dtype=torch.float64)


def _gain(program: Program, group: ChannelGroup, norm: StreamNorm) -> Tensor:
    if norm.gain is None:
        return torch.ones(group.units, dtype=torch.float64)
    value = find_tensor(program.module, norm.gain)
    assert value is not None
    return value.detach().double()


def _reading(
    program: Program, group: ChannelGroup, norms: Iterable[StreamNorm]
) -> dict[tuple[str, int], Tensor]:
    """The axes of weights that read what a norm yields, with its gain.

    Raises:
        PlanError: A weight reads after norms of different gains, or inside one.
    """
    nodes = {node.name: node for node in program.module.graph.nodes}
    gains = {handed_on_by(norm.output): _gain(program, group, norm) for norm in norms}
    inner = frozenset().union(*(norm.nodes for norm in norms))
    found: dict[tuple[str, int], Tensor | None] = {}
    for one in consumers(program, group):
        base, key = handed_on_by(nodes[one.value]), (one.weight, one.site.dim)
        gain = gains.get(base)
        known = found.setdefault(key, gain)
        if not _same(known, gain) or (gain is None and base in inner):
            raise PlanError(
                f"group {group.name}: {one.weight} reads the stream after norms of different "
                "gains, which it cannot take up; leave the stream out with exclude="
            )
    return {key: gain for key, gain in found.items() if gain is not None}


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return torch.equal(first, second)


def _scaled(program: Program, name: str, dim: int, scale: Tensor) -> Replace:
    """The weight with its columns scaled."""
    value = find_tensor(program.module, name)
    assert value is not None
    shape = [-1 if each == dim else 1 for each in range(value.dim())]
    return Replace(
        name, (value.detach().double() * scale.reshape(shape).to(value.device)).to(value)
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SliceGPT(Sizing):
    """Turn the residual stream into its principal axes and keep the first of them.

    See `PrincipalAxes`. Needs data, without labels.

    Attributes:
        samples: How many samples of the program's data are looked at; None for all.
        ratio: Share of axes removed from every stream, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    samples: int | None = None
    dims: str | tuple[str, ...] | None = ("residual",)

    @property
    def criterion(self) -> PrincipalAxes:
        """What ranks the axes, and turns the stream."""
        return PrincipalAxes(self.samples)

    def plan(self, program: Program) -> Plan:
        both = self.criterion
        one = StructuredPass(criterion=both, reconstruction=both, **self.sizing)
        return one.plan(program)
