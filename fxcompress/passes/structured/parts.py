"""The two parts of every structured method: a criterion says which units matter, a reconstruction
what becomes of the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import Recipe
from fxcompress.edit.plan import Edit, Project
from fxcompress.errors import PlanError
from fxcompress.program import Program


class DeclinedError(PlanError):
    """A group that a method cannot take, raised by a criterion or a reconstruction at any time.

    The pass leaves the group whole, tells the reason in the report and plans again without it; a
    method used alone ends with this error.
    """

    def __init__(self, group: ChannelGroup, reason: str) -> None:
        super().__init__(
            f"group {group.name}: {reason}; leave it out with exclude=, or take another method"
        )
        self.group, self.reason = group, reason


def refusal(check: Callable[[], object]) -> str | None:
    """The reason of the `DeclinedError` that `check` raises, or None."""
    try:
        check()
    except DeclinedError as declined:
        return declined.reason
    return None


class Part:
    """What a criterion or a reconstruction may have beside what it is for.

    Attributes:
        notes: What the report is to tell; read when the last group is planned.
    """

    notes: Sequence[str] = ()

    def prepare(self, program: Program, groups: Sequence[ChannelGroup]) -> Any:
        """What answers for the groups of one plan; the part itself, unless it looks at data first.

        It is asked once for a plan with all groups in scope, so that one pass over data serves all.
        A part that is both criterion and reconstruction is prepared once.
        """
        return self

    def declines(self, program: Program, group: ChannelGroup) -> str | None:
        """Why this part cannot take a group, or None. Such a group stays whole, and the report
        tells the reason; what is found out later raises `DeclinedError`.
        """
        return None


class Criterion(Part, ABC):
    """Which units of a group matter."""

    @abstractmethod
    def score(self, program: Program, group: ChannelGroup) -> Tensor:
        """Scores of shape (cells, units); the larger, the more a unit matters.

        For a budget with global or exact allocation, the scores of all groups are compared.
        """


class Reconstruction(Part, ABC):
    """What becomes of a group when some of its units go."""

    @abstractmethod
    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        """The projection onto the units `kept`, ascending indices of shape (k,) or (cells, k), and
        the values that are replaced before it.
        """


@dataclass(frozen=True, repr=False)
class Selection(Recipe, Reconstruction):
    """The units that stay are left as they are."""

    def edits(self, program: Program, group: ChannelGroup, kept: Tensor) -> tuple[Edit, ...]:
        return (Project(group, kept),)


SELECTION = Selection()
"""The default: it has no options."""
