"""Compression methods, one a file; each decides and none of them edits a graph."""

from __future__ import annotations

from fxcompress.passes.criteria.flap import FLAPPruning, Fluctuation
from fxcompress.passes.criteria.fpgm import FPGMPruning, MedianDistance
from fxcompress.passes.criteria.group_norm import CoupledNorm, GroupNormPruning
from fxcompress.passes.criteria.lamp import LAMPPruning, LayerAdaptiveMagnitude
from fxcompress.passes.criteria.magnitude import Magnitude, MagnitudePruning
from fxcompress.passes.criteria.random import RandomPruning, Uniform
from fxcompress.passes.criteria.slimming import BatchNormScale, SlimmingPruning
from fxcompress.passes.criteria.taylor import Taylor, TaylorPruning
from fxcompress.passes.criteria.wanda import WandaPruning, WeightTimesInput
from fxcompress.passes.folding.method import Folding
from fxcompress.passes.ippro.method import IPPRO, PROscore
from fxcompress.passes.kron_obs.method import KroneckerSurgeon, KronOBSPruning
from fxcompress.passes.least_squares.method import LeastSquares, LeastSquaresPruning
from fxcompress.passes.projective import Projective, ProjectivePruning
from fxcompress.passes.quantize.weight_only import WeightOnlyQuantization
from fxcompress.passes.repair.fold_batchnorm import FoldBatchNorm
from fxcompress.passes.repair.recalibrate import RecalibrateBatchNorm
from fxcompress.passes.repair.tune_norms import TuneNorms
from fxcompress.passes.slicegpt.method import PrincipalAxes, SliceGPT
from fxcompress.passes.sparse.nm_sparsity import NMSparsity
from fxcompress.passes.structured.method import (
    Criterion,
    Reconstruction,
    Selection,
    Structured,
    StructuredPass,
)
from fxcompress.passes.structured.progressive import progressive
from fxcompress.passes.torch_pruning.method import TorchPruning, TorchPruningPass

__all__ = [
    "IPPRO",
    "BatchNormScale",
    "CoupledNorm",
    "Criterion",
    "FLAPPruning",
    "FPGMPruning",
    "Fluctuation",
    "FoldBatchNorm",
    "Folding",
    "GroupNormPruning",
    "KronOBSPruning",
    "KroneckerSurgeon",
    "LAMPPruning",
    "LayerAdaptiveMagnitude",
    "LeastSquares",
    "LeastSquaresPruning",
    "Magnitude",
    "MagnitudePruning",
    "MedianDistance",
    "NMSparsity",
    "PROscore",
    "PrincipalAxes",
    "Projective",
    "ProjectivePruning",
    "RandomPruning",
    "RecalibrateBatchNorm",
    "Reconstruction",
    "Selection",
    "SliceGPT",
    "SlimmingPruning",
    "Structured",
    "StructuredPass",
    "Taylor",
    "TaylorPruning",
    "TorchPruning",
    "TorchPruningPass",
    "TuneNorms",
    "Uniform",
    "WandaPruning",
    "WeightOnlyQuantization",
    "WeightTimesInput",
    "progressive",
]
