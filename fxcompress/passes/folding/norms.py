"""What becomes of BatchNorm when the units it normalises are merged.

A merged unit is the mean of its members, z' = E z, so its mean is E μ and its variance the diagonal
of E Σ Eᵀ: less than the mean of their variances unless the members move together. How far they do,
the correlations of Σ, is measured on data or estimated from the weights; the variances themselves
are the stored ones, so that a unit that stays alone keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.axes.expressions import leaves
from fxcompress.graph.norms import BatchNorm, batch_norms
from fxcompress.graph.parameters import read_tensor
from fxcompress.layers.units import units_on
from fxcompress.program import Program
from fxcompress.stats import Sums, observe, unit_signals

Statistics = Literal["auto", "data", "isotropic", "correlation", "mean"]
STATISTICS: tuple[Statistics, ...] = ("auto", "data", "isotropic", "correlation", "mean")
TINY = 1e-30


@dataclass(frozen=True, eq=False)
class UnitNorm:
    """A BatchNorm over the units of a group.

    Tensors have shape (cells, units, copies): a unit that stands for several channels has several.

    Attributes:
        node: Name of the call.
        value: Name of the node that it normalises.
        names: Names of its tensors: ``scale`` and ``shift`` where it has them, ``mean`` and
            ``variance``.
        tensors: Their values, float64; scale and shift as 1 and 0 where there are none.
        eps: Added to the variance.
    """

    node: str
    value: str
    names: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    eps: float

    @property
    def deviation(self) -> Tensor:
        """What it divides by: s = √(variance + eps)."""
        return (self.tensors["variance"] + self.eps).sqrt()


@dataclass(frozen=True, eq=False)
class MergedNorm:
    """The norm of merged units, and what each member's producer is to be multiplied by before.

    Attributes:
        tensors: As of `UnitNorm`, shape (cells, k, copies).
        gains: Shape (cells, units, copies).
    """

    tensors: Mapping[str, Tensor]
    gains: Tensor


def unit_norms(program: Program, group: ChannelGroup) -> tuple[UnitNorm, ...]:
    """The BatchNorms with running statistics over the units of `group`, in order."""
    found = []
    for norm in batch_norms(program.module):
        if norm.mean and group.factor in leaves(program.analysis.axes(norm.mean)[0]):
            found.append(_unit_norm(program, group, norm))
    return tuple(found)


def _unit_norm(program: Program, group: ChannelGroup, norm: BatchNorm) -> UnitNorm:
    fields = ("scale", "shift", "mean", "variance")
    names = {key: name for key in fields if (name := getattr(norm, key)) is not None}
    tensors = {key: _entries(program, group, name) for key, name in names.items()}
    tensors.setdefault("scale", torch.ones_like(tensors["mean"]))
    tensors.setdefault("shift", torch.zeros_like(tensors["mean"]))
    return UnitNorm(norm.node.name, norm.value.name, names, tensors, norm.eps)


def _entries(program: Program, group: ChannelGroup, name: str) -> Tensor:
    value = read_tensor(program.module, name).double()
    axes = program.analysis.axes(name)
    return units_on(axes, 0, group.factor, group.over).read(value).flatten(2)


# ---- merging


def averaged(norm: UnitNorm, encode: Tensor, variance: Tensor) -> MergedNorm:
    """Means of the scales, shifts and means of the members, and the variance of the merged units.

    Args:
        norm: The norm.
        encode: E, shape (cells, k, n).
        variance: Of the merged units, from `merged_variance`.
    """
    means = {key: encode @ value for key, value in norm.tensors.items()}
    return MergedNorm(means | {"variance": variance}, torch.ones_like(norm.deviation))


def reweighted(norm: UnitNorm, encode: Tensor, correlation: Correlation) -> MergedNorm:
    """A norm under which merged units are the means of the members *after* their norms.

    Each member's row is multiplied by r = (g/s) (s'/g') first, with g its scale and s its standard
    deviation. Then g' (E(r z) - E(r mean))/s' + E shift is the mean of what the members' norms give
    for any g' and s'. They are chosen such that statistics measured again would be the same, with
    s' as large as the members' and the sign of their scales.
    """
    gain = norm.tensors["scale"] / norm.deviation
    spread = gain * norm.tensors["variance"].sqrt()
    after = correlation(spread, encode)
    deviation = encode @ norm.deviation
    variance = (deviation.square() - norm.eps).clamp(min=0)
    usable = (after > TINY) & (variance > TINY)
    ratio = (after / variance.clamp(min=TINY)).sqrt()
    size = torch.where(usable, ratio, 1.0) * deviation
    scale = torch.where(encode @ norm.tensors["scale"] < 0, -size, size)
    members = (encode > 0).double().mT
    gains = gain * (members @ (deviation / scale))
    tensors = {
        "scale": scale,
        "shift": encode @ norm.tensors["shift"],
        "mean": encode @ (gains * norm.tensors["mean"]),
        "variance": variance,
    }
    return MergedNorm(tensors, gains)


# ---- variances of merged units

Correlation = Callable[[Tensor, Tensor], Tensor]
"""From standard deviations (cells, units, copies), signed as the units are scaled, and E to the
variances of merged units, shape (cells, k, copies).
"""


def by_mean(deviation: Tensor, encode: Tensor) -> Tensor:
    """The mean variance: as if members moved together (and were equally large)."""
    return encode @ deviation.square()


def by_matrix(correlation: Tensor) -> Correlation:
    """The diagonal of E Σ Eᵀ, for correlations of shape (cells, copies or 1, n, n)."""

    def merged(deviation: Tensor, encode: Tensor) -> Tensor:
        sided = encode[:, None] * deviation.permute(0, 2, 1)[:, :, None]  # cells, copies, k, n
        return ((sided @ correlation) * sided).sum(-1).clamp(min=0).mT

    return merged


def by_factor(correlation: Tensor) -> Correlation:
    """The mean variance times (1 + (m - 1) r)/m, for m members that correlate by r on average."""

    def merged(deviation: Tensor, encode: Tensor) -> Tensor:
        shares = by_matrix(correlation)(deviation.sign(), encode)
        return by_mean(deviation, encode) * shares

    return merged


def cosines(rows: Tensor) -> Tensor:
    """Cosines between the rows of (…, n, m); between a row of zeros and others 0."""
    unit = torch.nn.functional.normalize(rows, dim=-1)
    found = unit @ unit.mT
    found.diagonal(dim1=-2, dim2=-1).fill_(1)
    return found


def measured(
    program: Program, norms: Iterable[tuple[ChannelGroup, UnitNorm]], who: str
) -> dict[tuple[ChannelGroup, str], Tensor]:
    """Correlations of what norms normalise, on the program's data, in one pass over them.

    Returns:
        By group and node of the norm, shape (cells, copies, n, n).
    """
    sums = {(group, norm.node): _Covariance(program, group, norm) for group, norm in norms}
    taps: dict[str, list[_Covariance]] = {}
    for one in sums.values():
        taps.setdefault(one.norm.value, []).append(one)
    if sums:
        observe(program, {name: _tap(own) for name, own in taps.items()}, who=who)
    return {key: one.correlation() for key, one in sums.items()}


def _tap(sums: list[_Covariance]) -> Callable[[Tensor], None]:
    def tap(value: Tensor) -> None:
        for one in sums:
            one.update(value)

    return tap


class _Covariance(Sums[Tensor]):
    """Sums over the values that one norm normalises."""

    def __init__(self, program: Program, group: ChannelGroup, norm: UnitNorm) -> None:
        super().__init__()
        self.group, self.norm = group, norm
        self.axes = program.analysis.coupling.axes[norm.value]

    def update(self, batch: Tensor) -> None:
        signals = unit_signals(batch, self.axes, self.group.factor, self.group.over).double()
        # Near the stored mean, so that squares lose no digits.
        signals = (signals - self.norm.tensors["mean"][..., None]).transpose(1, 2)
        self.add("first", signals.sum(-1))
        self.add("second", signals @ signals.mT)
        self.count += signals.shape[-1]

    def correlation(self) -> Tensor:
        mean = self.sums["first"] / self.count
        spread = self.sums["second"] / self.count - mean[..., None] * mean[..., None, :]
        scale = spread.diagonal(dim1=-2, dim2=-1).clamp(min=TINY).rsqrt()
        found = spread * scale[..., None] * scale[..., None, :]
        found.diagonal(dim1=-2, dim2=-1).fill_(1)
        return found
