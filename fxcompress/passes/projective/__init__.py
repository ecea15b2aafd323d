"""Projective Pruning: remove the units that the others reproduce best, and give their part back."""

from __future__ import annotations

from fxcompress.passes.projective.method import Projective, ProjectivePruning

__all__ = ["Projective", "ProjectivePruning"]
