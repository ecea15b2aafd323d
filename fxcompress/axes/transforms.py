"""Folds over axis expressions: sizes, kept indices, masks, and the lift of encode and decode
matrices.

A *choice* says what becomes of a factor: a sorted or permuted index tensor (a selection) or a
matrix. For a factor whose cells may differ it has one row, or one matrix, for each cell; the cells
are numbered by the factors the group is `over`. Block matrices are never made: a product is
unfolded and each factor transformed on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from fxcompress.axes.coordinates import cell_numbers, coordinates
from fxcompress.axes.expressions import Axes, Concat, Expr, Factor, Product, leaves


@dataclass(frozen=True)
class Choice:
    """What becomes of one factor.

    Attributes:
        value: Kept indices, int64 of shape (k,) or (cells, k); or a matrix of shape (k, n) or
            (cells, k, n).
        over: The factors whose indices number the cells.
    """

    value: Tensor
    over: tuple[Factor, ...] = ()

    @property
    def selects(self) -> bool:
        """Whether units are only selected."""
        return not self.value.is_floating_point()

    @property
    def width(self) -> int:
        """Units afterwards (in each cell)."""
        return int(self.value.shape[-1 if self.selects else -2])


Choices = Mapping[Factor, Choice]


def size_of(expr: Expr, widths: Mapping[Factor, int]) -> int:
    """The size of `expr` when the given factors have other widths."""
    if isinstance(expr, Factor):
        return widths.get(expr, expr.size)
    sizes = [size_of(part, widths) for part in expr.parts]
    return prod(sizes) if isinstance(expr, Product) else sum(sizes)


def kept_indices(expr: Expr, choices: Choices) -> Tensor:
    """The places of an axis that stay, in their new order, when `choices` only select."""
    places, _ = _kept(expr, choices, {})
    return places


def _kept(
    expr: Expr, choices: Choices, outer: Mapping[Factor, Tensor]
) -> tuple[Tensor, dict[Factor, Tensor]]:
    """Kept places at each of the outer places, shape (outer, k), and the factor indices there."""
    count = next((len(index) for index in outer.values()), 1)
    if isinstance(expr, Factor):
        index = _choice_at(expr, choices, outer, count)
        flat = index.reshape(-1)
        return index.squeeze(0) if not outer else index, {expr: flat}
    if isinstance(expr, Concat):
        return _kept_concat(expr, choices, outer, count)
    places = torch.zeros(count, 1, dtype=torch.int64)
    known = dict(outer)
    for part in expr.parts:
        rows = places.reshape(-1)
        scope = known or {_NOTHING: torch.zeros(1, dtype=torch.int64)}
        index, own = _kept(part, choices, scope)
        places = (rows[:, None] * part.size + index.reshape(len(rows), -1)).reshape(count, -1)
        width = index.numel() // len(rows)
        known = {factor: at.repeat_interleave(width) for factor, at in scope.items()} | own
    own = {
        factor: at for factor, at in known.items() if factor not in outer and factor is not _NOTHING
    }
    return places if outer else places.squeeze(0), own


def _kept_concat(
    expr: Concat, choices: Choices, outer: Mapping[Factor, Tensor], count: int
) -> tuple[Tensor, dict[Factor, Tensor]]:
    columns, start = [], 0
    for part in expr.parts:
        index, _ = _kept(part, choices, outer or {_NOTHING: torch.zeros(1, dtype=torch.int64)})
        columns.append(index.reshape(count, -1) + start)
        start += part.size
    places = torch.cat(columns, 1)
    return places if outer else places.squeeze(0), {}


_NOTHING = Factor(0, 1, "nothing")


def _choice_at(
    factor: Factor, choices: Choices, outer: Mapping[Factor, Tensor], count: int
) -> Tensor:
    """The kept indices of `factor` at each of the outer places, shape (outer, k)."""
    choice = choices.get(factor)
    if choice is None:
        return torch.arange(factor.size).expand(count, -1)
    if choice.value.dim() == 1:
        return choice.value.expand(count, -1)
    return choice.value[cell_numbers(choice.over, outer)]


def select(tensor: Tensor, axes: Axes, choices: Choices) -> Tensor:
    """`tensor` with every axis cut to the places that stay."""
    for dim, expr in enumerate(axes):
        if not choices.keys().isdisjoint(leaves(expr)):
            tensor = tensor.index_select(dim, kept_indices(expr, choices).to(tensor.device))
    return tensor


def transform(tensor: Tensor, axes: Axes, choices: Sequence[Choices]) -> Tensor:
    """`tensor` with each axis transformed by its own choices: encoded here, decoded there."""
    for dim, (expr, own) in enumerate(zip(axes, choices, strict=True)):
        if own.keys().isdisjoint(leaves(expr)):
            continue
        if all(choice.selects for choice in own.values()):
            tensor = tensor.index_select(dim, kept_indices(expr, own).to(tensor.device))
        else:
            tensor = _transformed(tensor.movedim(dim, 0), (), expr, own).movedim(0, dim)
    return tensor.contiguous()


def _transformed(tensor: Tensor, left: Axes, expr: Expr, choices: Choices) -> Tensor:
    """Transform the axis `expr`, on which the axes `left` stand to the left, as they were.

    They tell the cell for factors whose cells choose for themselves; so a product goes from right
    to left. Axes to the right ride along.
    """
    place = len(left)
    if choices.keys().isdisjoint(leaves(expr)):
        return tensor
    if isinstance(expr, Concat):
        pieces = tensor.split([part.size for part in expr.parts], place)
        done = [_transformed(p, left, e, choices) for p, e in zip(pieces, expr.parts, strict=True)]
        return torch.cat(done, place)
    if isinstance(expr, Product):
        tensor = tensor.unflatten(place, [part.size for part in expr.parts])
        for number in reversed(range(len(expr.parts))):
            before = (*left, *expr.parts[:number])
            tensor = _transformed(tensor, before, expr.parts[number], choices)
        return tensor.flatten(place, place + len(expr.parts) - 1)
    choice = choices[expr]
    if choice.value.dim() > (1 if choice.selects else 2):
        return _transform_cells(tensor, left, choice)
    if choice.selects:
        return tensor.index_select(place, choice.value.to(tensor.device))
    flat = _precise(tensor).movedim(place, 0).flatten(1 if tensor.dim() > 1 else 0)
    rows = (choice.value.to(flat) @ flat).to(tensor.dtype)
    return rows.reshape(-1, *tensor.shape[:place], *tensor.shape[place + 1 :]).movedim(0, place)


def _precise(tensor: Tensor) -> Tensor:
    """In double precision, where the device has it: a half-precision E would be a coarse one."""
    if tensor.device.type == "mps":
        return tensor
    return tensor.to(torch.promote_types(tensor.dtype, torch.float64))


def _transform_cells(tensor: Tensor, left: Axes, choice: Choice) -> Tensor:
    """One matrix or index set for each cell, on the axis right of `left`."""
    lead = tensor.shape[: len(left)]
    number = cell_numbers(choice.over, coordinates(Product(left))).expand(prod(lead))
    flat = tensor.reshape(prod(lead), tensor.shape[len(left)], -1)
    if choice.selects:
        index = choice.value[number].to(tensor.device).unsqueeze(2)
        rows = flat.gather(1, index.expand(-1, -1, flat.shape[2]))
    else:
        flat = _precise(flat)
        rows = torch.bmm(choice.value.to(flat)[number.to(flat.device)], flat).to(tensor.dtype)
    return rows.reshape(*lead, rows.shape[1], *tensor.shape[len(left) + 1 :])


__all__ = [
    "Choice",
    "Choices",
    "cell_numbers",
    "coordinates",
    "kept_indices",
    "select",
    "size_of",
    "transform",
]
