"""Arguments checked against their annotations, before any work: one error of ours that names the
argument, what was given and what is accepted.

A dataclass that derives from `Checked`, and a function under `checked`, take exactly what their
annotations say, ranges included::

    @checked(PlanError)
    def progressive(pass_: Sizing, steps: Annotated[int, Interval("[1, 1000]")]) -> ...

    @dataclass(frozen=True)
    class MagnitudePruning(Checked): p: Literal[1, 2] = 2
"""

from fxcompress.arguments import containers, scalars
from fxcompress.arguments.calls import Checked, checked
from fxcompress.arguments.conditions import (
    AnyPath,
    Count,
    Data,
    FilePath,
    Holds,
    Index,
    Interval,
    Matrix,
    NotNegative,
    Positive,
    Seed,
    Share,
    Square,
)
from fxcompress.arguments.kinds import Refused, fit
from fxcompress.arguments.words import nearest, shown

FAMILIES = (scalars, containers)
"""Importing a family of kinds fills the table."""

__all__ = [
    "AnyPath",
    "Checked",
    "Count",
    "Data",
    "FilePath",
    "Holds",
    "Index",
    "Interval",
    "Matrix",
    "NotNegative",
    "Positive",
    "Refused",
    "Seed",
    "Share",
    "Square",
    "checked",
    "fit",
    "nearest",
    "shown",
]
