"""IPPRO: pruning by PROscores, which ask the gradient whether a filter moves to the origin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Count, Positive
from fxcompress.budget import Recipe, Sizing
from fxcompress.edit.plan import Plan
from fxcompress.passes.ippro.injection import by_graph, by_hooks
from fxcompress.passes.ippro.scores import Filters, auto_step
from fxcompress.passes.ippro.targets import find_targets
from fxcompress.passes.structured.parts import SELECTION, Criterion
from fxcompress.passes.structured.planning import Planner
from fxcompress.passes.structured.scores import Normaliser, normalised
from fxcompress.program import Program

Form = Literal["proscore", "slope"]
FORMS: tuple[Form, ...] = ("proscore", "slope")
Cells = Literal["each", "mean"]
Injection = Literal["graph", "hook"]
INJECTIONS = {"graph": by_graph, "hook": by_hooks}


@dataclass(frozen=True, kw_only=True, repr=False)
class Options(Recipe):
    """What `PROscore` and `IPPRO` both take.

    Attributes:
        lam: The step λ, absolute as in the paper; ``auto`` takes the one that changes the middle
            score by a hundredth.
        scale_free: Measure steps so that scores stay under rescaling of a unit and its consumers;
            the paper's do not.
        normaliser: What the scores of a group are divided by; the paper compares them as they are.
        cells: Whether the units of each head are ranked by ``each`` head's own scores, or by their
            ``mean`` over heads, so that all heads lose the same.
        injection: ``graph`` adds D·x - D̂·x to a copy of the graph and reads the gradient of D;
            ``hook`` sums the same from values and gradients.
        samples: How many samples of the data are looked at; None for all.
    """

    lam: Positive | Literal["auto"] = "auto"
    scale_free: bool = False
    normaliser: Normaliser = "none"
    cells: Cells = "each"
    injection: Injection = "graph"
    samples: Count | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class PROscore(Options, Criterion):
    """Score a unit by the angle at which one gradient step leaves its filter (IPPRO, eq. 4).

    The program's data need labels, its task a loss. The scores of a group's producers are averaged,
    as are those of a unit's copies (query and key, the pair that a rotation mixes).

    Attributes:
        form: ``proscore``, or ``slope``, its rate of change at λ = 0.
    """

    form: Form = "proscore"

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        """Scores of one group alone; see `prepare` for several."""
        return self.prepare(program, [group]).score(program, group)

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Scored:
        """Go through the data once for all groups.

        Raises:
            PlanError: There are no data, labels or loss, the loss is not finite, no gradient
                reaches the filters, or the step is too large.
        """
        targets = [target for group in groups for target in find_targets(program, group)]
        names = dict.fromkeys(name for target in targets for name in target.names)
        collect = INJECTIONS[self.injection]
        found, signals = collect(program, targets, names, who="IPPRO", samples=self.samples)
        layers: dict[ChannelGroup, list[Filters]] = {group: [] for group in groups}
        for target in targets:
            parts = [signals[target.group, place] for place in target.places]
            signal = torch.stack(parts).sum(0) if parts else None
            layers[target.group].append(target.filters(program, found.mean, signal))
        return Scored(self, layers, self._step([f for own in layers.values() for f in own]))

    def _step(self, layers: list[Filters]) -> float:
        return auto_step(layers, self.scale_free) if self.lam == "auto" else self.lam

    def score_of(self, layer: Filters, lam: float) -> Tensor:
        """The scores of one producer's units, shape (cells, units); small ones go.

        A filter of zeros has score 0, which is a slope of -1/λ.
        """
        if self.form == "proscore":
            return layer.proscore(lam, self.scale_free).mean(2)
        return torch.where(layer.live, layer.slope(self.scale_free), -1 / lam).mean(2)


@dataclass(frozen=True, eq=False)
class Scored(Criterion):
    """What was found for the groups of one program.

    Attributes:
        options: How to score.
        layers: The filters of every group's producers.
        lam: The step.
    """

    options: PROscore
    layers: dict[ChannelGroup, list[Filters]]
    lam: float

    def __repr__(self) -> str:
        return repr(self.options)

    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        """Scores of shape (cells, units), the mean over producers."""
        each = [self.options.score_of(layer, self.lam) for layer in self.layers[group]]
        found = torch.stack(each).mean(0)
        if self.options.cells == "mean":
            found = found.mean(0, keepdim=True).expand_as(found)
        return normalised(found, self.options.normaliser)


@dataclass(frozen=True, kw_only=True, repr=False)
class IPPRO(Options, Sizing):
    """Keep the units whose PROscores are largest.

    ``IPPRO(budget=Budget(flops=0.5, allocation="global"))`` compares units of all layers, as the
    paper does; a ratio or a uniform budget ranks each layer by itself.

    Attributes:
        score: ``proscore`` or ``slope``, as `PROscore.form`; the other options are those of
            `Options`.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    score: Form = "proscore"

    @property
    def criterion(self) -> PROscore:
        """What scores the units."""
        return self.made(PROscore, form=self.score)

    def plan(self, program: Program) -> Plan:
        return Planner(self, self.criterion, SELECTION).plan(program)
