"""Op rules: how each ATen op relates the axes of its inputs and its output, one file a family.

``context`` is what a rule works with, ``notation`` the one-line language most rules are written in, ``registry`` the table.
"""

from fxcompress.rules import index, linear, norm, pieces, pointwise, reduce, shape
from fxcompress.rules.context import Binding, Claim, Context, Role, RoleClaim, Work
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.registry import RULES, axis_rule, name_of, rule_for

FAMILIES = (index, linear, norm, pieces, pointwise, reduce, shape)
"""Importing a family fills the table."""

__all__ = [
    "FAMILIES",
    "RULES",
    "Binding",
    "Claim",
    "Context",
    "NotationRule",
    "Role",
    "RoleClaim",
    "Work",
    "axis_rule",
    "name_of",
    "rule_for",
]
