"""The structured methods that the tables compare, by the name that the tables give them.

Each takes what every method takes: ``ratio=`` or ``budget=``, and limits such as ``include=``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fxcompress import passes

Method = Callable[..., Any]


def _torch_pruning(name: str, **options: Any) -> Method:
    return partial(passes.TorchPruningPass, importance=f"{name}Importance", **options)


METHODS: Mapping[str, Method] = {
    "random": passes.RandomPruning,
    "magnitude L1": partial(passes.MagnitudePruning, p=1),
    "magnitude L2": partial(passes.MagnitudePruning, p=2),
    "FPGM": passes.FPGMPruning,
    "LAMP": passes.LAMPPruning,
    "slimming": partial(passes.SlimmingPruning, normaliser="mean"),
    "group norm": passes.GroupNormPruning,
    "Taylor": passes.TaylorPruning,
    "diagonal Fisher": partial(passes.TaylorPruning, form="fisher"),
    "Kron-OBS": passes.KronOBSPruning,
    "Wanda": passes.WandaPruning,
    "FLAP": passes.FLAPPruning,
    "IPPRO": passes.IPPRO,
    "IPPRO, slope": partial(passes.IPPRO, score="slope"),
    "IPPRO, scale free": partial(passes.IPPRO, scale_free=True),
    "folding": passes.Folding,
    "folding, rows and columns": partial(passes.Folding, consumers=True),
    "projective": passes.ProjectivePruning,
    "least squares, taps shared": partial(passes.LeastSquaresPruning, taps=False),
    "least squares": passes.LeastSquaresPruning,
    "least squares, group norm chooses": partial(
        passes.StructuredPass,
        criterion=passes.CoupledNorm(),
        reconstruction=passes.LeastSquares(),
    ),
    "least squares, in order": partial(passes.LeastSquaresPruning, sequential=True, centred=True),
    "torch-pruning magnitude": passes.TorchPruningPass,
    "torch-pruning FPGM": _torch_pruning("FPGM"),
    "torch-pruning LAMP": _torch_pruning("LAMP"),
    "torch-pruning BN scale": _torch_pruning("BNScale"),
    "torch-pruning Taylor": _torch_pruning("Taylor"),
    "torch-pruning Hessian": _torch_pruning("Hessian", samples=64),  # only the last counts
    "torch-pruning OBD-C": _torch_pruning("OBDC"),
}
