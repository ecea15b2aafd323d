"""Op rules: how each ATen op relates the axes of its inputs and its output, one file a family.

``context`` is what a rule works with, ``notation`` the one-line language that most linear maps are
written in, ``registry`` the table.
"""

from fxcompress.graph.schema import read
from fxcompress.rules import (
    attention,
    create,
    cuts,
    distance,
    index,
    linear,
    norm,
    pieces,
    pointwise,
    recurrent,
    reduce,
    shape,
    windows,
)
from fxcompress.rules.constraints import (
    Binding,
    Constraint,
    Contraction,
    Role,
    RoleConstraint,
    Work,
)
from fxcompress.rules.context import Context
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.registry import RULES, axis_rule, name_of, rule_for

FAMILIES = (
    attention, create, cuts, distance, index, linear, norm, pieces, pointwise, recurrent, reduce,
    shape, windows,
)  # fmt: skip
"""Importing a family fills the table."""

__all__ = [
    "FAMILIES",
    "RULES",
    "Binding",
    "Constraint",
    "Context",
    "Contraction",
    "NotationRule",
    "Role",
    "RoleConstraint",
    "Work",
    "axis_rule",
    "name_of",
    "read",
    "rule_for",
]
