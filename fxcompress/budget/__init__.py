"""Budgets: how much of a model stays, from where units may go, and how many each group keeps."""

from __future__ import annotations

from fxcompress.budget.allocation import Allocation, by_budget, by_ratio
from fxcompress.budget.normalise import NORMALISERS, Normaliser, normalised
from fxcompress.budget.options import Budget, Globs, Limits, Sizing
from fxcompress.budget.rounding import TARGETS
from fxcompress.budget.scope import Scope, check_globs, matches, names_of, scope_of
from fxcompress.budget.weights import WeightGlobs
from fxcompress.recipes import Recipe

__all__ = [
    "NORMALISERS",
    "TARGETS",
    "Allocation",
    "Budget",
    "Globs",
    "Limits",
    "Normaliser",
    "Recipe",
    "Scope",
    "Sizing",
    "WeightGlobs",
    "by_budget",
    "by_ratio",
    "check_globs",
    "matches",
    "names_of",
    "normalised",
    "scope_of",
]
