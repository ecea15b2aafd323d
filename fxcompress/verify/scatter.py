"""What a projection does, said on the dense graph: k units scattered to k places of n.

Where units are only selected, the places are the kept indices and no parameter changes. Where they
are mixed, what produces them becomes S E W and what consumes them V D Sᵀ, with S the scatter of the
k units to their places, so that every tensor keeps its dense shape. All other places are masked.
A wrong index, size or parameter in the smaller program then shows through every nonlinearity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.axes.transforms import Choice, Choices, transform
from fxcompress.edit.plan import Project


@dataclass(frozen=True)
class Scatter:
    """The projections of a plan on the dense graph.

    Attributes:
        places: The places that the units of each factor take; the others are masked.
        encoders: S E of shape (n, n) or (cells, n, n), for factors whose producers mix units.
        decoders: (D Sᵀ)ᵀ of that shape, for factors whose consumers mix units.
    """

    places: Choices
    encoders: Choices
    decoders: Choices

    def parameters(
        self, coupling: Coupling, value_of: Callable[[str], Tensor]
    ) -> dict[str, Tensor]:
        """New values of all parameters that hold units which are mixed."""
        found: dict[str, Tensor] = {}
        for name, axes in coupling.parameters.items():
            choices: list[Choices] = []
            for dim, expr in enumerate(axes):
                factors = set(leaves(expr))
                read = {f for f in factors if contracts(coupling, name, dim, f)}
                choices.append(
                    {f: self.decoders[f] for f in read & self.decoders.keys()}
                    | {f: self.encoders[f] for f in (factors - read) & self.encoders.keys()}
                )
            if any(choices):
                found[name] = transform(value_of(name).detach(), axes, choices)
        return found

    def produced(
        self, coupling: Coupling, name: str, value: Tensor, read: Factor | None = None
    ) -> Tensor:
        """A parameter whose producing axes are encoded, and whose axes that contract `read` are as
        dense as they were.
        """
        axes = coupling.parameters[name]
        choices = [
            {f: self.encoders[f] for f in leaves(expr) if f in self.encoders}
            if read not in leaves(expr)
            else {}
            for expr in axes
        ]
        return transform(value.detach(), axes, choices)


def contracts(coupling: Coupling, name: str, dim: int, factor: Factor) -> bool:
    """Whether an axis of a parameter sums over the units of a factor."""
    return (name, dim, "contract") in coupling.roles.get(factor, ())


def scatter_of(projects: Sequence[Project]) -> Scatter:
    """The projections as places and square matrices."""
    places: dict[Factor, Choice] = {}
    encoders: dict[Factor, Choice] = {}
    decoders: dict[Factor, Choice] = {}
    mixed = {edit.group.factor for edit in projects if edit.mixes}
    for edit in projects:
        factor, over = edit.group.factor, edit.group.over
        if edit.encoder.selects and not mixed.isdisjoint(over):
            # Cells that are mixed with each other must have their units at the same places.
            edit = _as_matrices(edit)
        index = edit.encode if edit.encoder.selects else torch.arange(edit.width)
        places[factor] = Choice(index, over if index.dim() == 2 else ())
        if not edit.encoder.selects:
            encoders[factor] = _square(edit.encode, index, over)
        if edit.decode is not None:
            decoders[factor] = _square(edit.decode.mT, index, over)
    return Scatter(places, encoders, decoders)


def _as_matrices(edit: Project) -> Project:
    encode = nn.functional.one_hot(edit.encode, edit.group.units).double()
    return replace(edit, encode=encode, decode=encode.mT if edit.decode is None else edit.decode)


def _square(rows: Tensor, index: Tensor, over: tuple[Factor, ...]) -> Choice:
    """K rows put at their places among n rows of zeros, in each cell."""
    n = rows.shape[-1]
    index = index.to(rows.device)
    cells = torch.broadcast_shapes(rows.shape[:-2], index.shape[:-1])
    rows = rows.expand(*cells, *rows.shape[-2:])
    places = index[..., None].expand(rows.shape)
    square = rows.new_zeros(*cells, n, n).scatter(-2, places, rows)
    return Choice(square, over if cells else ())
