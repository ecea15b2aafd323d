r"""Op rules written as one line of text, in the manner of einops.

A pattern names the axes of the tensor operands (in the order of the schema) and of the output::

    linear      "*b i, o i, o -> *b o"
    conv2d      "b (g i) *s, (g o) i *k, (g o) -> b (g o) *s'"
    addmm       "+, m k, k n -> m n"

A letter is an axis, ``*b`` any number of axes, ``(g o)`` a product, ``+`` an operand that
broadcasts against the output. The same letter is the same factor. A letter that is missing on the
right is summed over; one that is only on the right, or ends in ``'``, is a new axis of fixed size.
In an operand that is computed from parameters, the letters tell the role: beside a summed letter,
the output letters *produce* and the summed ones *contract*; an operand with no summed letter is
*affine*.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxcompress.axes.expressions import Axes, Expr, Factor, product
from fxcompress.graph.schema import arguments, given, operands_of, position
from fxcompress.graph.window import Window
from fxcompress.rules.constraints import Role
from fxcompress.rules.context import Context
from fxcompress.rules.contractions import Multiplied, contract
from fxcompress.rules.patterns import BROADCAST, Pattern, Present, is_star, letters, parse

Values = dict[str, Axes]


@dataclass(frozen=True)
class NotationRule:
    """A rule in text; calling it with a context and a node gives the output axes.

    Attributes:
        text: The pattern.
        sizes: The sizes of letters that a product needs, from the arguments: ``{"g": groups}``.
        frozen: Letters that the op mixes or indexes (kernel windows, vocabulary rows), and why.
        roles: Roles of operands where the letters do not tell.
        plus: Operands that are added to the product of the others.
        beside: Operands that no masked unit of the output depends on (a variance to divide by).
        work: The letters whose product, times two, is the op's FLOPs; one string for each term.
        bound: Arguments that follow the size of a letter: ``{"groups": "g"}``.
        channelwise: Letters on each of which the op acts alone but not linearly.
        window: Where a convolution reads, from its arguments.
    """

    text: str
    sizes: Callable[[dict[str, Any]], Mapping[str, int]] = lambda _: {}
    frozen: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[int, Role] = field(default_factory=dict)
    plus: tuple[int, ...] = ()
    beside: tuple[int, ...] = ()
    work: tuple[str, ...] = ()
    bound: Mapping[str, str] = field(default_factory=dict)
    channelwise: str = ""
    window: Callable[[Mapping[str, Any]], Window] | None = None

    def __post_init__(self) -> None:
        parse(self.text)

    def __call__(self, ctx: Context, node: fx.Node) -> Axes:
        inputs, output = parse(self.text)
        sizes = self.sizes(arguments(node))
        present: Present = [
            (number, operand, pattern)
            for number, (operand, pattern) in enumerate(
                zip(operands_of(node), inputs, strict=False)
            )
            if ctx.tensor(operand)
        ]
        values: Values = {}
        for _, operand, pattern in present:
            if pattern != BROADCAST:
                _match(ctx, node, ctx.of(operand), pattern, values, sizes)
        out = _build(ctx, node, output, values)
        added = [operand for _, operand, pattern in present if pattern == BROADCAST]
        out = ctx.broadcast([out, *map(ctx.of, added)], node)
        self._constrain(ctx, node, values)
        self._roles(ctx, present, output, values)
        self._contractions(ctx, node, present, output, values)
        self._sums(ctx, node, present, output, values)
        for operand in (op for number, op, _ in present if number in self.plus):
            shifted = ctx.factors(out) - ctx.factors(ctx.of(operand))
            ctx.nonlinearity(shifted, node, str(node.target))
        ctx.set_nonzero(node, self._loud(ctx, present, out))
        return out

    def _constrain(self, ctx: Context, node: fx.Node, values: Values) -> None:
        for letter, words in self.frozen.items():
            ctx.freeze(values.get(letter, ()), node, words)
        for letter in self.channelwise.split():
            ctx.nonlinearity(values.get(letter, ()), node, str(node.target))
        for term in self.work:
            ctx.flops(node, tuple(e for letter in term.split() for e in values.get(letter, ())))
        for argument, letter in self.bound.items():
            if not given(node, argument):
                continue
            if isinstance(arguments(node)[argument], int):
                ctx.bind(node, (position(node, argument),), product(values.get(letter, ())))
            else:
                ctx.freeze(values.get(letter, ()), node, f"{argument} follows the inputs")

    def _roles(self, ctx: Context, present: Present, output: Pattern, values: Values) -> None:
        kept = letters(output)
        for number, operand, pattern in present:
            summed, weighed = _summed(present, output, number), self._weighed(ctx, present, number)
            for dim, letter, expr in _places(pattern, values, ctx.of(operand)):
                if letter in kept or letter in summed or pattern == BROADCAST:
                    role: Role = "contract" if letter in summed else "produce"
                    if not summed or weighed:
                        role = "affine"
                    ctx.role(expr, operand, self.roles.get(number, role), dim)

    def _weighed(self, ctx: Context, present: Present, number: int) -> bool:
        """Whether a weight multiplies this operand, which is none itself then."""
        added = (*self.plus, *self.beside)
        return any(ctx.sources.get(op) for n, op, _ in present if n > number and n not in added)

    def _contractions(
        self, ctx: Context, node: fx.Node, present: Present, output: Pattern, values: Values
    ) -> None:
        """Every operand that contracts is a matrix, which the letters say."""
        found = [
            number
            for number, operand, _ in present
            if ctx.sources.get(operand) and number not in self.roles
            if _summed(present, output, number) and not self._weighed(ctx, present, number)
        ]
        if not found:
            return
        sizes = {letter: axes[0].size for letter, axes in values.items() if len(axes) == 1}
        window = self.window(arguments(node)) if self.window else None
        counts = {letter: len(axes) for letter, axes in values.items()}
        call = Multiplied(present, output, sizes, counts, self.plus, self.beside, window)
        for number in found:
            contract(ctx, node, number, call)

    def _sums(
        self, ctx: Context, node: fx.Node, present: Present, output: Pattern, values: Values
    ) -> None:
        """Along a letter that two operands share only a weight that is summed over can be
        transformed. Summed letters are exact where a product is zero on masked units.
        """
        kept = letters(output)
        for letter in (one for one in values if one not in self.frozen):
            holders = [op for n, op, p in present if letter in letters(p) and n not in self.plus]
            weighed = any(ctx.sources.get(operand) for operand in holders)
            twice = any(list(pattern).count(letter) > 1 for _, _, pattern in present)
            alone = len(holders) == 1 and letter not in kept  # its units are added up
            if twice or alone or (len(holders) > 1 and (letter in kept or not weighed)):
                ctx.nonlinearity(values[letter], node, str(node.target))
            if letter not in kept:
                ctx.sums(node, values[letter], holders)

    def _loud(self, ctx: Context, present: Present, out: Axes) -> frozenset[Factor]:
        """A product is zero where one factor is; a sum where every term is."""
        terms = [[op for n, op, _ in present if n not in (*self.plus, *self.beside)]]
        quiet = everything = ctx.factors(out)
        for term in (*terms, *([op] for n, op, _ in present if n in self.plus)):
            zero = (ctx.factors(ctx.of(op)) - ctx.nonzero_factors(op) for op in term)
            quiet &= frozenset().union(*zero)
        return everything - quiet


def _summed(present: Present, output: Pattern, number: int) -> frozenset[str]:
    """The letters of one operand that are summed over together with another operand's."""
    own = next(letters(pattern) for n, _, pattern in present if n == number)
    others = (letters(pattern) for n, _, pattern in present if n != number)
    return (own - letters(output)) & frozenset().union(*others)


def _places(pattern: Pattern, values: Values, axes: Axes) -> Iterator[tuple[int, str, Expr]]:
    """(axis, letter, expression) for every letter of a matched pattern."""
    if pattern == BROADCAST:
        yield from ((dim, "+", expr) for dim, expr in enumerate(axes))
        return
    rest, dim = len(axes) - sum(not is_star(item) for item in pattern), 0
    for item in pattern:
        if isinstance(item, tuple):
            yield from ((dim, letter, values[letter][0]) for letter in item)
        elif is_star(item):  # other operands may have more of these axes, further left
            yield from ((dim + n, item, expr) for n, expr in enumerate(axes[dim : dim + rest]))
        else:
            yield from ((dim, item, expr) for expr in values[item])
        dim += rest if is_star(item) else 1


def _match(
    ctx: Context,
    node: fx.Node,
    axes: Axes,
    pattern: Pattern,
    values: Values,
    sizes: Mapping[str, int],
) -> None:
    rest = len(axes) - sum(not is_star(item) for item in pattern)
    place = 0
    for item in pattern:
        if isinstance(item, tuple):
            _match_product(ctx, node, axes[place], item, values, sizes)
            place += 1
            continue
        width = rest if is_star(item) else 1
        piece = axes[place : place + width]
        values[item] = ctx.broadcast([values[item], piece], node) if item in values else piece
        place += width


def _match_product(
    ctx: Context,
    node: fx.Node,
    expr: Expr,
    item: tuple[str, ...],
    values: Values,
    sizes: Mapping[str, int],
) -> None:
    """Split `expr` into the letters of `item`; at most one of them may have an unknown size."""
    known = {
        letter: values[letter][0].size if letter in values else sizes.get(letter, 0)
        for letter in item
    }
    unknown = [letter for letter in item if known[letter] == 0]
    total = expr.size
    for letter in item:
        total //= known[letter] or 1
    known.update(dict.fromkeys(unknown, total))
    parts = ctx.split(expr, [known[letter] for letter in item], node)
    for letter, part in zip(item, parts, strict=True):
        if letter in values:
            ctx.unify(values[letter][0], part, node)
        values[letter] = (part,)


def _build(ctx: Context, node: fx.Node, output: Pattern, values: Values) -> Axes:
    out: list[Expr] = []
    for item in output:
        if isinstance(item, tuple):
            out.append(product(values[letter][0] for letter in item))
        else:
            if item not in values:
                values[item] = _computed(ctx, node, len(out), is_star(item))
            out.extend(values[item])
    return tuple(ctx.space.resolve(expr) for expr in out)


def _computed(ctx: Context, node: fx.Node, place: int, star: bool) -> Axes:
    """New fixed axes, from `place` on."""
    sizes = ctx.shape(node)[place:] if star else ctx.shape(node)[place : place + 1]
    return tuple(ctx.fixed(size, node, "an extent this op computes") for size in sizes)
