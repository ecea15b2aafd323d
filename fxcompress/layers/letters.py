"""What the letters of a contraction number: groups, outputs, inputs and taps of a matrix."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from fxcompress.layers.layouts import Layout
from fxcompress.rules import Contraction
from fxcompress.rules.constraints import LetterAxes

Letters = tuple[str, ...]


@dataclass(frozen=True)
class Numbered:
    """The letters of a contraction by what they number.

    Groups, outputs and samples stand in the order of the output's axes, inputs and taps in that of
    the weight's.

    Attributes:
        groups: Shared by weight, value and output; or by weight and what routes rows.
        outputs: Shared by weight and output alone.
        inputs: Shared by weight and value alone.
        taps: Of the weight alone.
        samples: Of the output, and not of the weight.
        layout: The entries of the weight with one axis for each of its letters, in this order.
    """

    groups: Letters
    outputs: Letters
    inputs: Letters
    taps: Letters
    samples: Letters
    layout: Layout

    def count(self, letters: Letters) -> int:
        """How many indices some of the first letters of the weight have together."""
        order = (*self.groups, *self.outputs, *self.inputs, *self.taps)
        sizes = dict(zip(order, self.layout.sizes, strict=True))
        return prod(sizes[letter] for letter in letters)

    def axis_of(self, letters: Letters, shape: tuple[int, ...]) -> int | None:
        """The axis of a weight of this shape that one letter of it is; None if it is none alone."""
        order = (*self.groups, *self.outputs, *self.inputs, *self.taps)
        own = [
            (size, stride)
            for letter, size, stride in zip(
                order, self.layout.sizes, self.layout.strides, strict=True
            )
            if letter in letters
        ]
        axes = [(size, prod(shape[dim + 1 :])) for dim, size in enumerate(shape)]
        return axes.index(own[0]) if len(own) == 1 and own[0] in axes else None


def numbered(one: Contraction, layout: Layout) -> Numbered:
    """What the letters of a contraction number.

    Args:
        one: The contraction.
        layout: Where the entries of its weight lie. A letter along which they repeat (an expanded
            weight) is none of the weight's.
    """
    strides = _strides(one, layout)
    read = {letter for value in one.value_axes for letter in _flat(value)}
    given = _flat(one.output_axes)
    routed = [letter for letter in strides if letter in one.routed]
    own = [letter for letter in strides if letter not in one.routed]
    groups = (*(x for x in given if x in own and x in read), *routed)
    outputs = tuple(x for x in given if x in own and x not in read)
    inputs = tuple(x for x in own if x not in given and x in read)
    taps = tuple(x for x in own if x not in given and x not in read)
    order = (*groups, *outputs, *inputs, *taps)
    return Numbered(
        groups,
        outputs,
        inputs,
        taps,
        samples=tuple(x for x in given if x not in strides),
        layout=Layout(
            tuple(strides[x][0] for x in order), tuple(strides[x][1] for x in order), layout.offset
        ),
    )


def _flat(axes: LetterAxes) -> list[str]:
    return [letter for axis in axes for letter in axis]


def _strides(one: Contraction, layout: Layout) -> dict[str, tuple[int, int]]:
    """Size and stride of every letter of the weight."""
    found: dict[str, tuple[int, int]] = {}
    for axis, stride in zip(one.axes, layout.strides, strict=True):
        own = {}
        for letter, size in reversed(axis):
            own[letter] = (size, stride)
            stride *= size
        found |= dict(reversed(own.items()))
    return {letter: held for letter, held in found.items() if held[1] > 0 or held[0] == 1}


def multiplied(
    values: Sequence[Tensor], axes: Iterable[LetterAxes], sizes: dict[str, int], order: Letters
) -> Tensor:
    """The product of values, with one axis for each letter of `order`, summed over the others.

    Args:
        values: Tensors.
        axes: The letters of each value's axes; an axis without one has size 1.
        sizes: Of the letters that stand in products.
        order: Letters of the result.
    """
    numbers: dict[str, int] = {}
    operands: list[Any] = []
    for value, own in zip(values, axes, strict=True):
        split = [
            [sizes[letter] for letter in axis] if len(axis) > 1 else [size] * len(axis)
            for axis, size in zip(own, value.shape, strict=True)
        ]
        operands.append(value.reshape([size for axis in split for size in axis]))
        operands.append([numbers.setdefault(letter, len(numbers)) for letter in _flat(own)])
    product: Tensor = torch.einsum(*operands, [numbers[letter] for letter in order])
    return product
