"""Compression methods, one a file; each decides and none of them edits a graph."""

from __future__ import annotations

from fxcompress.passes.flap import FLAPPruning, Fluctuation
from fxcompress.passes.fold_batchnorm import FoldBatchNorm
from fxcompress.passes.folding import Folding
from fxcompress.passes.fpgm import FPGMPruning, MedianDistance
from fxcompress.passes.group_norm import CoupledNorm, GroupNormPruning
from fxcompress.passes.ippro import IPPRO, PROscore
from fxcompress.passes.kron_obs import KroneckerSurgeon, KronOBSPruning
from fxcompress.passes.lamp import LAMPPruning, LayerAdaptiveMagnitude
from fxcompress.passes.least_squares import LeastSquares, LeastSquaresPruning
from fxcompress.passes.magnitude import Magnitude, MagnitudePruning
from fxcompress.passes.nm_sparsity import NMSparsity
from fxcompress.passes.progressive import progressive
from fxcompress.passes.projective import Projective, ProjectivePruning
from fxcompress.passes.random import RandomPruning, Uniform
from fxcompress.passes.recalibrate import RecalibrateBatchNorm
from fxcompress.passes.slicegpt import PrincipalAxes, SliceGPT
from fxcompress.passes.slimming import BatchNormScale, SlimmingPruning
from fxcompress.passes.structured import Criterion, Reconstruction, Selection, StructuredPass
from fxcompress.passes.taylor import Taylor, TaylorPruning
from fxcompress.passes.torch_pruning import TorchPruning, TorchPruningPass
from fxcompress.passes.tune_norms import TuneNorms
from fxcompress.passes.wanda import WandaPruning, WeightTimesInput

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
    "StructuredPass",
    "Taylor",
    "TaylorPruning",
    "TorchPruning",
    "TorchPruningPass",
    "TuneNorms",
    "Uniform",
    "WandaPruning",
    "WeightTimesInput",
    "progressive",
]
