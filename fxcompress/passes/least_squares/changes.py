"""What least squares has made of a layer so far: several groups may hold inputs of one weight."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fxcompress.edit.plan import Edit, Replace
from fxcompress.passes.structured.readers import Reader
from fxcompress.stats import Grams, aligned


@dataclass(eq=False)
class Changed:
    """What became of one weight, which several groups may have inputs of.

    Attributes:
        gone: Its entries that no input is left for, flat.
        shift: What each entry has lost of the outputs' means, flat.
        edits: That need no projection: what is left of the program computes as if the units that
            went were gone.
    """

    gone: Tensor
    shift: Tensor
    edits: list[Edit] = field(default_factory=list)

    def shifted(self, one: Reader, lost: Tensor, whole: bool) -> Tensor:
        """What the outputs' means have lost more than they had; `lost` is all of it, or more."""
        before = self.shift[one.index]
        self.shift[one.index] = lost if whole else before + lost
        return lost - before if whole else lost

    def without(self, one: Reader, left: Tensor, value: Tensor, offsets: list[Edit]) -> None:
        """Remember the layer as it will be: units that went are units that nothing reads."""
        self.gone[one.index[~left]] = True
        old = next((edit.values[one.weight] for edit in self.edits if edit.values), None)
        if old is not None:  # of inputs that this group does not hold
            kept = old.flatten().clone()
            kept[one.index] = value.flatten()[one.index]
            value = kept.reshape(value.shape)
        shifts = [edit for edit in self.edits if not edit.values]
        self.edits = [Replace(one.weight, value), *shifts, *offsets]


def contributions(weights: Tensor, means: Tensor, kind: Grams) -> Tensor:
    """Every entry times the mean of its input, of the shape of the entries."""
    return (aligned(weights, kind) * means.unsqueeze(2)).reshape(weights.shape)
