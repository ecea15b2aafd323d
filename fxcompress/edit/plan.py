"""Plans: what a pass decided, as plain data. Only the rewriter edits a graph.

The kinds of edits that there are have a file each beside this one; their names are here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.arguments import Checked
from fxcompress.edit.base import Edit
from fxcompress.edit.offset import Offset
from fxcompress.edit.project import Project
from fxcompress.edit.reparametrize import Reparametrize
from fxcompress.edit.replace import Replace
from fxcompress.edit.store import Store
from fxcompress.edit.trainable import TrainableProject
from fxcompress.edit.zeros import Masking, Masks, Pattern
from fxcompress.report.curves import Curves

__all__ = [
    "Edit",
    "Masking",
    "Offset",
    "Pattern",
    "Plan",
    "Project",
    "Reparametrize",
    "Replace",
    "Store",
    "TrainableProject",
]


@dataclass(frozen=True, eq=False)
class Plan(Checked):
    """The edits of one pass, with what a person should know about them.

    Attributes:
        edits: At most one projection of a group, and one new value of a parameter.
        notes: Sentences for the report.
        curves: The score that each group would keep at each width, where scores of groups were
            compared; the widths chosen are marked. ``plan.curves.plot(path)`` draws them.
    """

    edits: tuple[Edit, ...]
    notes: tuple[str, ...] = ()
    curves: Curves | None = None

    @property
    def projects(self) -> tuple[Project, ...]:
        """What becomes of the units of groups."""
        return tuple(one for edit in self.edits for one in edit.projects)

    @property
    def widths(self) -> dict[ChannelGroup, int]:
        """Units that each projected group keeps (in each cell)."""
        return {one.group: one.width for one in self.projects}

    @property
    def rewritten(self) -> tuple[str, ...]:
        """The parameters that the edits without projections are about."""
        return tuple(edit.target for edit in self.edits if not edit.projects)

    @property
    def masks(self) -> Masks:
        """The entries that the edits make zero for good, by parameter."""
        return {name: zeros for edit in self.edits for name, zeros in edit.masks.items()}

    @property
    def stored(self) -> Mapping[str, int]:
        """The bytes that parameters take afterwards, where they are kept in another form."""
        return {name: size for edit in self.edits for name, size in edit.stored.items()}
