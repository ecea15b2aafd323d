"""Folding: units that are alike become one, instead of some of them going."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Seed
from fxcompress.edit.plan import Edit, Project, Replace
from fxcompress.edit.project import tied_axis
from fxcompress.graph.parameters import read_tensor
from fxcompress.layers.units import Units, units_on
from fxcompress.layers.weights import Producer, Rows, consumers, producers, units_in
from fxcompress.passes.folding.clusters import LINKAGES, merge_costs
from fxcompress.passes.folding.norms import (
    Correlation,
    Statistics,
    UnitNorm,
    averaged,
    by_factor,
    by_matrix,
    by_mean,
    cosines,
    measured,
    reweighted,
    unit_norms,
)
from fxcompress.passes.structured.method import Criterion, Reconstruction, Structured
from fxcompress.passes.structured.scores import Normaliser, normalised
from fxcompress.passes.structured.unweighted import bare_readers, unweighted
from fxcompress.program import Program

Linkage = Literal["kmeans", "ward"]


@dataclass(frozen=True, kw_only=True, repr=False)
class Folding(Structured, Reconstruction):
    """Merge units whose weights are alike (Cut Less, Fold More).

    Before, with ``ratio=0.5``::

        up.weight: [16, 8]            down.weight: [8, 16]

    After, with 8 clusters of the 16 rows::

        up.weight: [8, 8], means of rows       down.weight: [8, 8], sums of columns

    Units are clustered by their rows; what produces them takes the mean of each cluster and what
    consumes them the sum. Of all ways to lose a group's units, none that keeps one unit less is
    nearer to the rows in the sum of squares. Query and key dims are merged so that a head's scores
    are the mean query's with the sum of keys.

    Attributes:
        rows: ``raw`` merges the weights as they are and gives BatchNorm the means of its tensors
            and a variance that fits; ``effective`` merges what comes out of BatchNorm, which stays
            in the graph.
        consumers: Cluster by the columns of the consumers too. The bound on the error speaks of
            rows alone; trained convolutions with BatchNorm fold better with both, the dense layers
            that were tried without (``docs/folding.md``, ``docs/small_nets.md``).
        standardize: Give every column of what is clustered mean 0 and variance 1.
        linkage: ``kmeans``, refined by single moves; or ``ward``.
        statistics: Where the variance of merged units comes from: ``data`` measures how units
            correlate, ``isotropic`` takes the cosines of their rows, ``correlation`` the mean
            cosine of each cluster, ``mean`` the mean variance (always too large); ``auto`` is data
            where the program has some, else isotropic.
        normaliser: What makes merges of different groups comparable, for global budgets, where a
            unit counts as much as its merge costs.
        seed: For the starts of k-means; None takes the seed of the program.
        exact_only: On unless turned off: LayerNorm is no mean of LayerNorms, so merging the width
            that it runs over does damage.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    rows: Rows = "raw"
    consumers: bool = False
    standardize: bool = False
    linkage: Linkage = "kmeans"
    statistics: Statistics = "auto"
    normaliser: Normaliser = "mean"
    seed: Seed | None = None
    exact_only: bool = True

    @property
    def own_reconstruction(self) -> Reconstruction:
        return self

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Merge:
        """Measure how units correlate, where that is asked for.

        Raises:
            PlanError: ``statistics="data"`` and there are none.
        """
        if self.statistics == "data" or (self.statistics == "auto" and program.task is not None):
            norms = [(group, norm) for group in groups for norm in unit_norms(program, group)]
            return Merge(self, measured(program, norms, "Folding"))
        return Merge(self)

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        """Why a group stays whole: sums of what reads units must be another thing than means."""
        return tied_axis(program.analysis.coupling, group.factor) or unweighted(program, group)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return self.prepare(program, (group,)).edits(program, group, kept)


@dataclass(eq=False)
class Merge(Criterion, Reconstruction):
    """`Folding` in one plan.

    Attributes:
        options: What to do.
        correlations: Of the units over each BatchNorm, where data told them.
        lost: Squares that the clusters' means have not, so far.
        whole: Squares of all that was clustered.
    """

    options: Folding
    correlations: dict[tuple[ChannelGroup, str], Tensor] = field(default_factory=dict)
    lost: float = 0.0
    whole: float = 0.0

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        costs = [merge_costs(rows) for rows in self.features(program, group)]
        return normalised(torch.stack(costs), self.options.normaliser)

    def features(self, program: Program, group: ChannelGroup) -> Tensor:
        """What units are clustered by, shape (cells, units, m)."""
        parts = [one.matrix(self.options.rows) for one in producers(program, group)]
        if self.options.consumers:
            parts += [one.columns for one in consumers(program, group)]
        found = torch.cat([part / _size(part) for part in parts], 2) if parts[1:] else parts[0]
        if self.options.standardize:
            spread = found.std(1, correction=0, keepdim=True)
            found = (found - found.mean(1, keepdim=True)) / torch.where(spread > 0, spread, 1.0)
        return found.to("cpu")

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        features = self.features(program, group)
        seed = program.seed if self.options.seed is None else self.options.seed
        cluster, count = LINKAGES[self.options.linkage], kept.shape[-1]
        cells = [cluster(rows, count, seed) for rows in features]
        self.lost += sum(own.inertia(rows) for own, rows in zip(cells, features, strict=True))
        self.whole += float(features.square().sum())
        if self.whole:
            lost = self.lost / self.whole
            self.notes = (f"folding lost {lost:.2%} of the squares of what it clustered",)
        encode, decode = (torch.stack([getattr(c, n) for c in cells]) for n in ("encode", "decode"))
        values = _Values(program, group)
        self._norms(values, encode, features)
        if bare_readers(program, group):
            _sum_keys(values, decode)
        single = group.cells == 1
        project = Project(group, *((m[0] if single else m) for m in (encode, decode)))
        return (*values.replaced(), project)

    def _norms(self, values: _Values, encode: Tensor, features: Tensor) -> None:
        """Give every BatchNorm over the units the values that their means are wanted to be."""
        program, group = values.program, values.group
        own = {one.norm.node: one for one in producers(program, group) if one.norm is not None}
        for norm in unit_norms(program, group):
            source = own.get(norm.node)
            ways = self._correlation(group, norm, source, features)
            matrix = encode.to(norm.deviation)
            if self.options.rows == "effective" and source and "scale" in norm.names:
                merged = reweighted(norm, matrix, ways)
                values.scale(source, merged.gains)
            else:
                variance = ways(norm.tensors["variance"].sqrt(), matrix)
                merged = averaged(norm, matrix, variance)
            members = (matrix > 0).double().mT
            for key, name in norm.names.items():
                values.put(name, members @ merged.tensors[key])

    def _correlation(
        self, group: ChannelGroup, norm: UnitNorm, source: Producer | None, features: Tensor
    ) -> Correlation:
        if (group, norm.node) in self.correlations:
            return by_matrix(self.correlations[group, norm.node])
        if self.options.statistics == "mean":
            return by_mean
        rows = features.to(norm.deviation)[:, None] if source is None else _copies(source, norm)
        return (by_factor if self.options.statistics == "correlation" else by_matrix)(cosines(rows))


class _Values:
    """New values for parameters, in their own shapes, by units of one group."""

    def __init__(self, program: Program, group: ChannelGroup) -> None:
        self.program, self.group = program, group
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, value: Tensor) -> None:
        """Set the entries of all units, (cells, units, copies), in a vector."""
        axes = self.program.analysis.axes(name)
        self._write(name, units_on(axes, 0, self.group.factor, self.group.over), value)

    def scale(self, producer: Producer, gains: Tensor) -> None:
        """Multiply a producer's units, bias included, by (cells, units, copies or 1)."""
        gains = gains.to(producer.rows)
        rows = producer.rows.unflatten(2, (gains.shape[2], -1)) * gains[..., None]
        self._write(producer.weight, self._units(producer, producer.weight), rows)
        if producer.bias is not None:
            units = self._units(producer, producer.bias)
            self._write(producer.bias, units, producer.offset * gains)

    def replaced(self) -> list[Replace]:
        """What was set."""
        return [Replace(name, value) for name, value in self.tensors.items()]

    def _units(self, producer: Producer, name: str) -> Units:
        return units_in(self.program, self.group, producer, name)

    def _value(self, name: str) -> Tensor:
        if name not in self.tensors:
            self.tensors[name] = read_tensor(self.program.module, name).double().clone()
        return self.tensors[name]

    def _write(self, name: str, units: Units, value: Tensor) -> None:
        self.tensors[name] = units.write(self._value(name), value)


def _sum_keys(values: _Values, decode: Tensor) -> None:
    """Let queries times keys be a sum over the members, not a mean: √n_c on either side."""
    sizes = decode.sum(1, keepdim=True)  # cells, 1, k
    gains = (decode * sizes.sqrt()).sum(2, keepdim=True)
    for producer in producers(values.program, values.group):
        values.scale(producer, gains)


def _copies(producer: Producer, norm: UnitNorm) -> Tensor:
    """The rows of every copy of the units, shape (cells, copies, units, m / copies)."""
    copies = norm.deviation.shape[2]
    rows: Tensor = producer.rows.unflatten(2, (copies, -1))
    return rows.transpose(1, 2)


def _size(part: Tensor) -> Tensor:
    """The root mean square of the units' lengths, 1 for zeros, so that parts weigh the same."""
    size = part.square().sum(2).mean().sqrt()
    return torch.where(size > 0, size, 1.0)
