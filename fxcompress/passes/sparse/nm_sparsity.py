"""N:M sparsity: of every m consecutive inputs of a weight only n stay, as sparse tensor cores want.

Sizes stay as they are; a runtime that knows the pattern skips the zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.arguments import Count
from fxcompress.budget import WeightGlobs, names_of
from fxcompress.edit.plan import Pattern, Plan, Reparametrize, Replace
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import find_tensor, read_tensor
from fxcompress.io import saveable
from fxcompress.layers.maps import LinearMap
from fxcompress.layers.uses import only_multiplies
from fxcompress.program import Program


@dataclass(frozen=True, kw_only=True, repr=False)
class NMSparsity(WeightGlobs):
    """Keep the n largest of every m consecutive inputs of each weight.

    In a convolution the m are neighbouring input channels at one position of the kernel. Of equal
    magnitudes the first stays. Every weight of a linear map is looked at (`Program.maps`). Those
    whose inputs do not come in whole blocks of m, or that are read in another way too, stay dense,
    with a note. Passes that remove units come first: after this one they would break the blocks,
    which the report says.

    Attributes:
        n: How many stay.
        m: Out of how many.
        trainable: Keep the weights as they are and read them through a mask, so that they may be
            trained on; `Program.finalize` folds the mask.
        include: Globs on parameter names; empty for all weights.
        exclude: Globs on parameter names.
    """

    n: Count = 2
    m: Count = 4
    trainable: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n >= self.m:
            raise PlanError(f"n of every m inputs stay, so 0 < n < m; got n={self.n}, m={self.m}")

    def plan(self, program: Program) -> Plan:
        """Choose a mask for every weight.

        Raises:
            PlanError: No weight can be made sparse, or one is not finite.
            BudgetError: A glob matches no parameter.
        """
        names = names_of(program.module)
        self.check_globs(names)
        edits: list[Replace | Reparametrize] = []
        notes: list[str] = []
        for name, maps in _weights(program).items():
            if not self.meant(names.get(name, frozenset((name,)))):
                continue
            reason, axis = _obstacle(program, maps, self.m), maps[0].input_axis
            if reason or axis is None:
                notes.append(f"{name} stays dense: {reason}")
            else:
                edits.append(self._edit(program, name, axis))
        if not edits:
            raise PlanError(
                f"{self!r} finds no weight to make sparse: {'; '.join(notes) or 'none is included'}"
            )
        return Plan(tuple(edits), tuple(notes))

    def _edit(self, program: Program, name: str, axis: int) -> Replace | Reparametrize:
        weight = read_tensor(program.module, name)
        if not torch.isfinite(weight).all():
            raise PlanError(f"{name} has entries that are not finite; mend the checkpoint")
        mask = largest(weight.abs(), self.n, self.m, axis)
        pattern = Pattern(self.n, self.m, axis)
        if self.trainable:
            return Reparametrize(name, Mask(mask, pattern))
        return Replace(name, weight * mask, mask, pattern)


@saveable
class Mask(nn.Module):
    """Multiplies a weight by a mask that stays."""

    mask: Tensor

    def __init__(self, mask: Tensor, pattern: Pattern) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.pattern = pattern

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def zeros(self) -> tuple[Tensor, Pattern]:
        return self.mask, self.pattern

    def config(self) -> Mapping[str, Any]:
        return {"shape": list(self.mask.shape), "pattern": list(astuple(self.pattern))}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Mask:
        return cls(torch.ones(config["shape"], dtype=torch.bool), Pattern(*config["pattern"]))


def largest(score: Tensor, n: int, m: int, axis: int) -> Tensor:
    """True for the `n` largest of every `m` consecutive entries along `axis`; of equal ones for the
    first.

    Args:
        score: Its size along `axis` is a multiple of `m`.
        n: How many.
        m: Out of how many.
        axis: Along which axis.
    """
    blocks = score.movedim(axis, -1).unflatten(-1, (-1, m))
    order = blocks.argsort(dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(blocks, dtype=torch.bool).scatter_(-1, order[..., :n], True)
    return mask.flatten(-2).movedim(-1, axis).contiguous()


def _weights(program: Program) -> dict[str, list[LinearMap]]:
    """The linear maps of every weight."""
    found: dict[str, list[LinearMap]] = {}
    for one in program.maps:
        found.setdefault(one.weight, []).append(one)
    return found


def _obstacle(program: Program, maps: Sequence[LinearMap], m: int) -> str:
    """Why the weight of these maps stays dense; empty where it need not."""
    computed = next((one.computed for one in maps if one.computed), None)
    if computed is not None:
        return f"its layer multiplies what '{computed}' makes of it"
    if not isinstance(find_tensor(program.module, maps[0].weight), nn.Parameter):
        return "it is a buffer, not a parameter"
    if len({one.input_axis for one in maps}) > 1 or not only_multiplies(program.module, maps):
        return "it is read in another way too"
    return _uneven(maps[0], m)


def _uneven(one: LinearMap, m: int) -> str:
    """Why the inputs of a map do not come in blocks of m."""
    if one.inputs == 1 and one.groups > 1:
        return "depthwise, each output has one input channel"
    if one.input_axis is None:
        return "its inputs do not fill an axis"
    inputs = one.shape[one.input_axis]
    return f"its {inputs} inputs are no multiple of {m}" if inputs % m else ""
