"""Compression methods, one a file; each decides and none of them edits a graph."""

from __future__ import annotations

from fxcompress.passes.fold_batchnorm import FoldBatchNorm
from fxcompress.passes.magnitude import Magnitude, MagnitudePruning
from fxcompress.passes.nm_sparsity import NMSparsity
from fxcompress.passes.random import RandomPruning, Uniform
from fxcompress.passes.structured import Criterion, Reconstruction, Selection, StructuredPass

__all__ = [
    "Criterion",
    "FoldBatchNorm",
    "Magnitude",
    "MagnitudePruning",
    "NMSparsity",
    "RandomPruning",
    "Reconstruction",
    "Selection",
    "StructuredPass",
    "Uniform",
]
