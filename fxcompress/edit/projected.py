"""The small modules of a trained projection: a matrix, and a parameter read through matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxcompress.axes.expressions import Axes, Concat, Expr, Factor, Product, leaves
from fxcompress.axes.transforms import Choice, transform
from fxcompress.errors import FxCompressError, LoadError
from fxcompress.graph.saveable import Saveable, is_saveable, kind_of, make, saveable


@dataclass(frozen=True)
class Side:
    """What one factor of an axis is read through.

    Attributes:
        matrix: Gives E, or D where the axis consumes the units.
        over: The factors that number the cells, where each has a matrix.
        consumes: Whether the axis consumes the units.
    """

    matrix: nn.Module
    over: tuple[Factor, ...]
    consumes: bool


@saveable
class Matrix(nn.Module):
    """A matrix that trains, or one for each cell: the plainest encode or decode module."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = nn.Parameter(value.detach().clone())

    def forward(self) -> Tensor:
        return self.value

    def config(self) -> Mapping[str, Any]:
        return {"shape": list(self.value.shape), "dtype": self.value.dtype}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Matrix:
        return cls(torch.empty(config["shape"], dtype=config["dtype"]))


@saveable
class Projected(nn.Module):
    """Reads a parameter through the matrices of the units on its axes; gradients reach both.

    Args:
        axes: Of the parameter.
        sides: For each axis, what its factors are read through. Parameters of one group share the
            modules.
    """

    def __init__(self, axes: Axes, sides: Sequence[Mapping[Factor, Side]]) -> None:
        super().__init__()
        self.axes = axes
        self.sides = [{f: (side.over, side.consumes) for f, side in own.items()} for own in sides]
        self.matrices = nn.ModuleList(side.matrix for own in sides for side in own.values())

    def forward(self, parameter: Tensor) -> Tensor:
        values = (matrix() for matrix in self.matrices)
        choices = [
            {f: _choice(next(values), *side) for f, side in own.items()} for own in self.sides
        ]
        return transform(parameter, self.axes, choices)

    def config(self) -> Mapping[str, Any]:
        factors = list(dict.fromkeys(leaf for expr in self.axes for leaf in leaves(expr)))
        number = {factor: place for place, factor in enumerate(factors)}
        return {
            "factors": [[factor.size, factor.label] for factor in factors],
            "axes": [_written(expr, number) for expr in self.axes],
            "sides": [
                [[number[f], [number[o] for o in over], consumes] for f, (over, consumes) in own]
                for own in (side.items() for side in self.sides)
            ],
            "matrices": [_described(module) for module in self.matrices],
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Projected:
        factors = [Factor(n, size, label) for n, (size, label) in enumerate(config["factors"])]
        matrices = iter([make(kind, own) for kind, own in config["matrices"]])
        sides = [
            {
                factors[f]: Side(next(matrices), tuple(factors[o] for o in over), consumes)
                for f, over, consumes in own
            }
            for own in config["sides"]
        ]
        return cls(tuple(_read(expr, factors) for expr in config["axes"]), sides)


def _choice(value: Tensor, over: tuple[Factor, ...], consumes: bool) -> Choice:
    """What becomes of a factor, by the matrix of now."""
    return Choice(value.mT if consumes else value, over)


def _described(module: nn.Module) -> list[Any]:
    if not is_saveable(module):
        raise FxCompressError(
            f"a projection is trained through a {type(module).__name__}, which a file cannot hold; "
            "decorate its class with fxcompress.io.saveable, or save program.finalize()"
        )
    assert isinstance(module, Saveable)
    return [kind_of(type(module)), dict(module.config())]


def _written(expr: Expr, number: Mapping[Factor, int]) -> Any:
    """An expression as plain lists: the number of a factor, or a kind and its parts."""
    if isinstance(expr, Factor):
        return number[expr]
    kind = "product" if isinstance(expr, Product) else "concat"
    return [kind, [_written(part, number) for part in expr.parts]]


def _read(data: Any, factors: Sequence[Factor]) -> Expr:
    if isinstance(data, int):
        return factors[data]
    kind, parts = data
    if kind not in _KINDS:
        raise LoadError(f"there is no expression of kind {kind!r}; the manifest is damaged")
    return _KINDS[kind](tuple(_read(part, factors) for part in parts))


_KINDS: Mapping[str, type[Product] | type[Concat]] = {"product": Product, "concat": Concat}
