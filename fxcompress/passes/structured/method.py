"""Every structured method is one dataclass: its options, how it scores units, and where it has one
its own reconstruction.

    @dataclass(frozen=True, kw_only=True, repr=False)
    class MagnitudePruning(Structured):
        p: Literal[1, 2] = 2

        def score(self, program: Program, group: ChannelGroup) -> Tensor: ...

It is a pass, ``MagnitudePruning(ratio=0.5)``, and a criterion for any other reconstruction,
``StructuredPass(criterion=MagnitudePruning(p=1), reconstruction=LeastSquares(), ratio=0.5)``.
"""

from __future__ import annotations

from dataclasses import dataclass

from fxcompress.budget import Sizing
from fxcompress.edit.plan import Plan
from fxcompress.passes.structured.parts import (
    SELECTION,
    Criterion,
    DeclinedError,
    Reconstruction,
    Selection,
    refusal,
)
from fxcompress.passes.structured.planning import Planner
from fxcompress.program import Program

__all__ = [
    "SELECTION",
    "Criterion",
    "DeclinedError",
    "Reconstruction",
    "Selection",
    "Structured",
    "StructuredPass",
    "refusal",
]


@dataclass(frozen=True, repr=False)
class Structured(Sizing, Criterion):
    """Base of the methods that remove units: options and `score` make a pass and a criterion.

    Attributes:
        ratio: Share of units removed from every group, in [0, 1). A criterion alone needs neither
            this nor a budget.
        budget: What must remain of the whole model instead.
    """

    @property
    def own_reconstruction(self) -> Reconstruction:
        """What becomes of the units that stay: nothing, unless a method does more."""
        return SELECTION

    def plan(self, program: Program) -> Plan:
        """Decide what goes.

        Raises:
            BudgetError: What was asked cannot be met, or the method can take no group in scope.
            PlanError: Scores are not finite, or the program lacks what the method looks at.
        """
        return Planner(self, self, self.own_reconstruction).plan(program)


@dataclass(frozen=True, kw_only=True, repr=False)
class StructuredPass(Sizing):
    """Remove units of every group, the least important ones first.

    Before, with ``ratio=0.5``::

        up.weight: [16, 8]   down.weight: [8, 16]      # one group of 16 units

    After::

        up.weight: [8, 8]    down.weight: [8, 8]

    Attributes:
        criterion: Scores the units; any method is one.
        reconstruction: Makes up for those that go; the default changes nothing else.
        ratio: Share of units removed from every group, in [0, 1).
        budget: What must remain of the whole model instead.
    """

    criterion: Criterion
    reconstruction: Reconstruction = SELECTION

    def plan(self, program: Program) -> Plan:
        """Decide what goes.

        Raises:
            BudgetError: What was asked cannot be met, or the method can take no group in scope.
            PlanError: Scores are not finite.
        """
        return Planner(self, self.criterion, self.reconstruction).plan(program)
