"""Every pass there is, with options drawn at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import fxcompress as fx
from fxcompress import passes
from fxcompress.program import Pass


def _sized(kind: Callable[..., Pass]) -> Callable[[random.Random], Pass]:
    """A pass that removes units, by a share of them or by a budget."""

    def make(rng: random.Random) -> Pass:
        if rng.random() < 0.8:
            return kind(ratio=rng.choice((0.25, 0.5, 0.7)), round_to=1)
        allocation: Any = rng.choice(("uniform", "global"))
        return kind(budget=fx.Budget(flops=rng.choice((0.5, 0.8)), allocation=allocation))

    return make


def _plain(kind: Callable[..., Pass], **options: Any) -> Callable[[random.Random], Pass]:
    return lambda rng: kind(**options)


PASSES: dict[str, Callable[[random.Random], Pass]] = {
    "random": _sized(passes.RandomPruning),
    "magnitude": _sized(passes.MagnitudePruning),
    "fpgm": _sized(passes.FPGMPruning),
    "lamp": _sized(passes.LAMPPruning),
    "group norm": _sized(passes.GroupNormPruning),
    "slimming": _sized(passes.SlimmingPruning),
    "projective": _sized(passes.ProjectivePruning),
    "folding": _sized(passes.Folding),
    "wanda": _sized(passes.WandaPruning),
    "flap": _sized(passes.FLAPPruning),
    "taylor": _sized(passes.TaylorPruning),
    "least squares": _sized(passes.LeastSquaresPruning),
    "slicegpt": _sized(passes.SliceGPT),
    "ippro": _sized(passes.IPPRO),
    "kron obs": _sized(passes.KronOBSPruning),
    "torch-pruning": _sized(passes.TorchPruningPass),
    "fold batch norm": _plain(passes.FoldBatchNorm),
    "n:m": _plain(passes.NMSparsity),
    "n:m, trainable": _plain(passes.NMSparsity, trainable=True),
    "int8 weights": _plain(passes.WeightOnlyQuantization),
    "recalibrate": _plain(passes.RecalibrateBatchNorm),
    "tune norms": _plain(passes.TuneNorms),
}
