"""Taylor expansions of the loss: the units without which it should change least go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.arguments import Count
from fxcompress.graph.norms import batch_norms
from fxcompress.graph.parameters import read_tensor
from fxcompress.layers.units import units_on
from fxcompress.passes.structured.method import Criterion, DeclinedError, Structured
from fxcompress.passes.structured.scores import (
    Aggregate,
    MemberRole,
    Normaliser,
    comparable,
    is_bias,
)
from fxcompress.program import Program
from fxcompress.stats import Gradients, gradients

Form = Literal["elements", "units", "norms", "fisher"]
FORMS: tuple[Form, ...] = ("elements", "units", "norms", "fisher")


@dataclass(frozen=True, kw_only=True, repr=False)
class TaylorPruning(Structured, alias="Taylor"):
    """Keep the units without which the loss would change most, by an expansion of it around the
    weights w, with gradients g.

    Each axis that holds the units is a member, scored by ``form``; the members are then combined.
    It needs labelled data and a loss: ``Task(data, loss)``.

    Attributes:
        form: ``elements``: Σ |w g| over the entries of a unit. ``units``: |Σ w g|, the first-order
            change of the loss itself. ``norms``: (g ∂L/∂g + b ∂L/∂b)² with the scale g and
            shift b of the unit's BatchNorm (Molchanov et al., CVPR 2019, eq. 8).
            ``fisher``: Σ w² E[g²] with the gradients of single samples, the second-order change
            with the diagonal of the empirical Fisher information for the Hessian (optimal brain
            damage: LeCun et al., 1989, eq. 6).
        aggregate: How the members of a group are combined: ``mean``, ``sum``, ``max``; ``first``
            takes the first alone.
        normaliser: What makes groups comparable, for global budgets; losses compare as they are.
        roles: Which axes are members; see `MagnitudePruning`. Of no matter for ``norms``.
        samples: How many samples at most; None for all.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    form: Form = "elements"
    aggregate: Aggregate = "mean"
    normaliser: Normaliser = "none"
    roles: tuple[MemberRole, ...] = ("produce", "table", "contract")
    samples: Count | None = None

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Expanded:
        """Go through the data once, for all groups.

        Raises:
            PlanError: There are no data, labels or loss, or the loss is not finite.
        """
        names = {site.parameter for group in groups for site in self.members(program, group)}
        found = gradients(
            program,
            sorted(names),
            squares=self.form == "fisher",
            who=f"Taylor(form={self.form!r})",
            samples=self.samples,
        )
        return Expanded(self, found)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        return self.prepare(program, (group,)).score(program, group)

    def members(self, program: Program, group: ChannelGroup) -> list[Site]:
        """The axes that are scored.

        Raises:
            PlanError: There is none.
        """
        if self.form == "norms":
            affine = {name for pair in _norms(program) for name in pair}
            found = [site for site in group.sites if site.parameter in affine]
        else:
            found = [s for s in group.sites if s.role in self.roles and not is_bias(s)]
        if not found:
            wanted = "BatchNorm" if self.form == "norms" else f"axis in {', '.join(self.roles)}"
            raise DeclinedError(group, f"it has no {wanted} to expand the loss in")
        return found[:1] if self.aggregate == "first" and self.form != "norms" else found


@dataclass(frozen=True, eq=False)
class Expanded(Criterion):
    """`TaylorPruning` with the gradients it needs."""

    options: TaylorPruning
    gradients: Gradients

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        options = self.options
        members = options.members(program, group)
        if options.form == "norms":
            each = self._norms(program, group, members)
        else:
            each = [self._member(program, group, site) for site in members]
        return comparable(each, options.aggregate, options.normaliser)

    def _member(self, program: Program, group: ChannelGroup, site: Site) -> Tensor:
        form, name = self.options.form, site.parameter
        value = _double(program, name)
        if form == "fisher":
            square = self.gradients.square.get(name, torch.zeros_like(value))
            return _rows(program, group, site, value.square() * square.double()).sum(2)
        product = _rows(program, group, site, value * self.gradients.mean[name].double())
        return product.sum(2).abs() if form == "units" else product.abs().sum(2)

    def _norms(self, program: Program, group: ChannelGroup, members: list[Site]) -> list[Tensor]:
        own = {site.parameter: site for site in members}
        each = []
        for pair in _norms(program):
            sites = [own[name] for name in pair if name in own]
            terms = [
                _rows(program, group, s, _double(program, s.parameter) * self._mean(s)).sum(2)
                for s in sites
            ]
            if terms:
                each.append(torch.stack(terms).sum(0).square())
        return each

    def _mean(self, site: Site) -> Tensor:
        return self.gradients.mean[site.parameter].double()


def _norms(program: Program) -> list[tuple[str, ...]]:
    """Scale and shift of every BatchNorm."""
    norms = batch_norms(program.module)
    pairs = (tuple(filter(None, (norm.scale, norm.shift))) for norm in norms)
    return list(dict.fromkeys(pairs))


def _double(program: Program, name: str) -> Tensor:
    return read_tensor(program.module, name).double()


def _rows(program: Program, group: ChannelGroup, site: Site, value: Tensor) -> Tensor:
    axes = program.analysis.axes(site.parameter)
    return units_on(axes, site.dim, group.factor, group.over).read(value).flatten(2)


Taylor = TaylorPruning
"""The name it has as a criterion."""
