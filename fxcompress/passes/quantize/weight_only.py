"""Weight-only quantisation: weights are kept as eight-bit integers and decoded where they are read.

Activations stay as they are, so no data are needed. The scheme is that of LLM.int8() and of most
runtimes' "dynamic" and "weight-only" modes: symmetric, one scale an output row.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from fxcompress.budget import WeightGlobs, names_of
from fxcompress.edit.codecs import Int8PerRow
from fxcompress.edit.plan import Plan, Store
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import find_tensor, read_tensor
from fxcompress.layers.maps import LinearMap
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class WeightOnlyQuantization(WeightGlobs):
    """Keep the weight of every linear map as INT8 with one scale an output row.

    Zeros stay zeros, so a sparse weight stays sparse. Passes that remove units come first: what is
    kept in another form keeps its size until `Program.finalize` makes it a plain parameter again.

    In ONNX the codes are INT8 initializers that DequantizeLinear reads. onnxruntime may fuse that
    with the product and then rounds activations to 8 bits as well, unless its session option
    ``session.qdq_matmulnbits_accuracy_level`` is 1, which `fxcompress.export.check` sets.

    Attributes:
        include: Globs on parameter names; empty for all weights.
        exclude: Globs on parameter names.
    """

    def plan(self, program: Program) -> Plan:
        """Encode every weight.

        Raises:
            PlanError: No weight can be stored, or one is not finite.
            BudgetError: A glob matches no parameter.
        """
        names = names_of(program.module)
        self.check_globs(names)
        maps = {names[m.weight]: m for m in program.maps if self.meant(names[m.weight])}
        edits, notes = [], []
        for one in maps.values():
            reason = _obstacle(program, one)
            if reason:
                notes.append(f"{one.weight} stays as it is: {reason}")
            else:
                edits.append(_stored(program, one))
        if not edits:
            reasons = "; ".join(notes) or "none is included"
            raise PlanError(f"{self!r} finds no weight to store: {reasons}")
        return Plan(tuple(edits), tuple(notes))


def _obstacle(program: Program, one: LinearMap) -> str:
    """Why a weight is not stored; empty if it is."""
    value, axis = find_tensor(program.module, one.weight), _row_axis(one)
    if one.computed is not None:
        return f"it is not multiplied itself but '{one.computed}', which is computed from it"
    if not isinstance(value, nn.Parameter) or not value.is_floating_point():
        return "it is no floating-point parameter"
    if axis is None:
        return "its outputs are not one of its axes"
    if Int8PerRow(axis).bytes(value.shape, value.dtype) >= value.nbytes:
        return "codes and scales would take as many bytes"
    return ""


def _stored(program: Program, one: LinearMap) -> Store:
    weight, axis = read_tensor(program.module, one.weight), _row_axis(one)
    assert axis is not None
    if not torch.isfinite(weight).all():
        raise PlanError(f"{one.weight} has entries that are not finite; mend the checkpoint")
    codec = Int8PerRow(axis)
    return Store(one.weight, codec, codec.encode(weight))


def _row_axis(one: LinearMap) -> int | None:
    """The axis of a weight along which its outputs lie; those of its groups where each has one."""
    letters = one.letters
    order = (*letters.groups, *letters.outputs, *letters.inputs, *letters.taps)
    strides = dict(zip(order, letters.layout.strides, strict=True))
    steps = [prod(one.shape[dim + 1 :]) for dim in range(len(one.shape))]
    axes = {
        dim
        for letter in letters.outputs or letters.groups
        for dim, (step, size) in enumerate(zip(steps, one.shape, strict=True))
        if step <= strides[letter] < step * size
    }
    return axes.pop() if len(axes) == 1 else None
