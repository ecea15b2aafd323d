"""How a rule's own letters say that an operand made of parameters is a matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import fx

from fxcompress.graph.schema import arguments, signature_of
from fxcompress.graph.window import Window
from fxcompress.rules.constraints import Contraction, LetterAxes
from fxcompress.rules.context import Context
from fxcompress.rules.patterns import (
    Pattern,
    Present,
    is_star,
    letters,
    letters_by_axis,
)


@dataclass(frozen=True)
class Multiplied:
    """The operands of a call that a rule in text reads, as far as they make a product.

    Attributes:
        present: Every operand with its number and its pattern.
        output: The pattern of the output.
        sizes: The sizes of the letters that stand in products.
        counts: How many axes each letter stands for.
        added: The numbers of operands that are added to the product.
        routing: The numbers of operands that say which rows meet which part of the weight.
        window: Of a convolution.
    """

    present: Present
    output: Pattern
    sizes: Mapping[str, int]
    counts: Mapping[str, int]
    added: tuple[int, ...]
    routing: tuple[int, ...]
    window: Window | None


def contract(ctx: Context, node: fx.Node, weight: int, call: Multiplied) -> None:
    """Record how operand `weight` of `node` multiplies the others.

    Nothing is recorded where a letter stands twice in one operand: that is a diagonal.
    """
    if any(_repeats(pattern) for *_, pattern in call.present):
        return
    operands = {number: operand for number, operand, _ in call.present}
    output = letters_by_axis(call.output, len(ctx.shape(node)), call.counts)
    lettered = {
        number: letters_by_axis(pattern, len(ctx.shape(operand)))
        for number, operand, pattern in call.present
    }
    values = [n for n in operands if n not in (weight, *call.added, *call.routing)]
    routing = [letters(pattern) for number, _, pattern in call.present if number in call.routing]
    added = [operands[number].name for number in call.added if number in operands]
    wide = _sizes(output, ctx.shape(node))
    named = arguments(node)
    ctx.contractions.append(
        Contraction(
            node=node.name,
            weight=operands[weight].name,
            axes=_sized(lettered[weight], ctx.shape(operands[weight]), call.sizes),
            values=tuple(operands[number].name for number in values),
            value_axes=tuple(
                _read(lettered[number], ctx.shape(operands[number]), wide, call.window)
                for number in values
            ),
            output_axes=output,
            routed=frozenset().union(*routing),
            addend=_named(node, call.added),
            added=added[0] if added else None,
            scales=(named.get("alpha", 1), named.get("beta", 1)),
            window=call.window,
        )
    )


def _named(node: fx.Node, numbers: tuple[int, ...]) -> str | None:
    """What the schema calls the only operand of these numbers."""
    operands = signature_of(node.target).operands
    return operands[numbers[0]][0] if len(numbers) == 1 else None


def _sizes(axes: LetterAxes, shape: tuple[int, ...]) -> dict[str, int]:
    """The sizes of letters that are an axis alone."""
    return {own[0]: size for own, size in zip(axes, shape, strict=True) if len(own) == 1}


def _sized(
    axes: LetterAxes, shape: tuple[int, ...], sizes: Mapping[str, int]
) -> tuple[tuple[tuple[str, int], ...], ...]:
    """The letters of each axis of a weight with their sizes; none on one that broadcasts."""
    return tuple(
        tuple((one, sizes[one] if len(own) > 1 else size) for one in own)
        if size > 1 or not is_star(own[0])
        else ()
        for own, size in zip(axes, shape, strict=True)
    )


def _read(
    axes: LetterAxes, shape: tuple[int, ...], wide: Mapping[str, int], window: Window | None
) -> LetterAxes:
    """The letters of each axis of a value: none on one that broadcasts, and those of the output's
    positions where a window moves.
    """
    if window is not None:
        rank = len(window.kernel)
        positions = list(wide)[-rank:]
        return (*axes[:-rank], *((one,) for one in positions))
    return tuple(
        () if size == 1 and is_star(own[0]) and wide.get(own[0], 1) > 1 else own
        for own, size in zip(axes, shape, strict=True)
    )


def _repeats(pattern: Pattern) -> bool:
    named = [one for item in pattern for one in ((item,) if isinstance(item, str) else item)]
    return len(named) != len(set(named))
