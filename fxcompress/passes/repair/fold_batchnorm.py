"""Fold BatchNorm into the linear map before it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.budget import Recipe
from fxcompress.canonicalize.norms import NormedMap, normed_maps
from fxcompress.edit.plan import Plan, Replace
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import read_tensor
from fxcompress.program import Program


@dataclass(frozen=True, repr=False)
class FoldBatchNorm(Recipe):
    """Let a linear map do the scale and shift of the BatchNorm that alone reads it.

    Before::

        conv: weight, bias     norm: weight, bias, mean, variance

    After, with scale = norm.weight / sqrt(variance + eps)::

        conv: scale * weight, scale * (bias - mean) + norm.bias

    The plan leaves the norm with scale 1, so that the rewriter takes it out of the graph. Only
    evaluation is preserved: a model that is to be trained with statistics of the batch needs its
    norms.
    """

    def plan(self, program: Program) -> Plan:
        """Replace the values of maps and norms.

        Raises:
            PlanError: The program is in training mode.
        """
        if program.module.training:
            raise PlanError(
                "BatchNorm can be folded in evaluation only; call program.module.eval() first"
            )
        pairs, left = normed_maps(program.module)
        edits = [edit for pair in pairs for edit in _fold(program, pair)]
        reasons = Counter(left.values())
        notes = [f"{count} BatchNorm not folded: {reason}" for reason, count in reasons.items()]
        return Plan(tuple(edits), (f"{len(pairs)} BatchNorm folded", *notes))


def _fold(program: Program, pair: NormedMap) -> list[Replace]:
    scale, shift = pair.affine(program.module)
    weight = _value(program, pair.weight)
    one = next(one for one in program.maps if one.node == pair.node.name)
    edits = [Replace(pair.weight, (weight * one.at_outputs(scale)).to(weight.dtype))]
    if pair.bias is not None:
        bias = _value(program, pair.bias)
        edits.append(Replace(pair.bias, (bias * scale + shift).to(bias.dtype)))
        shift = torch.zeros_like(shift)
    return edits + _neutral(program, pair, shift)


def _neutral(program: Program, pair: NormedMap, shift: Tensor) -> list[Replace]:
    """The norm that only adds `shift`."""
    mean = _value(program, pair.mean)
    none = torch.zeros_like(shift)
    values = {pair.mean: none if pair.shift else -shift, pair.variance: none + 1 - pair.eps}
    if pair.scale:
        values[pair.scale] = none + 1
    if pair.shift:
        values[pair.shift] = shift
    return [Replace(name, value.to(mean.dtype)) for name, value in values.items()]


def _value(program: Program, name: str) -> Tensor:
    return read_tensor(program.module, name)
