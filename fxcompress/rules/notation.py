r"""Op rules written as one line of text, in the manner of einops.

A pattern names the axes of the tensor operands (in the order of the op's schema) and of the output::

    linear      "*b i, o i, o -> *b o"
    conv2d      "b (g i) *s, (g o) i *k, (g o) -> b (g o) *s'"

A letter is an axis, ``*b`` any number of axes, ``(g o)`` a product. The same letter is the same factor. A letter that is missing
on the right is summed over; a letter that is only on the right, or ends in ``'``, is a new axis of fixed size. In an operand
that is computed from parameters, the letters tell the role: beside a summed letter, the output letters *produce* and the summed
ones *contract*; an operand with no summed letter is *affine*.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxcompress.axes import Axes, Expr, product
from fxcompress.rules.context import Context, Role, arguments

Item = str | tuple[str, ...]
Pattern = tuple[Item, ...]
Values = dict[str, Axes]


def parse(text: str) -> tuple[tuple[Pattern, ...], Pattern]:
    """(operands, output) of a rule; ValueError where it cannot be read.

    >>> parse("*b i, (g o) i -> *b o'")
    ((('*b', 'i'), (('g', 'o'), 'i')), ('*b', "o'"))
    """
    left, arrow, right = text.partition("->")
    if not arrow or not re.fullmatch(r"[\w\s*'(),]*", left + right):
        raise ValueError(
            f"an axis rule reads 'operand, operand -> output' in letters, *letters and (letters): {text!r}"
        )
    return tuple(_pattern(part) for part in left.split(",")), _pattern(right)


def _pattern(text: str) -> Pattern:
    tokens = re.findall(r"\(([^()]*)\)|(\*?\w+'?)", text)
    return tuple(tuple(group.split()) if group else letter for group, letter in tokens)


def letters(pattern: Pattern) -> set[str]:
    """The letters of a pattern."""
    return {letter for item in pattern for letter in ((item,) if isinstance(item, str) else item)}


@dataclass(frozen=True)
class NotationRule:
    """A rule in text; calling it with a context and a node gives the output axes.

    Attributes:
        text: The pattern.
        sizes: For the arguments of a node, the sizes of letters that a product needs, e.g. ``{"g": groups}``.
        frozen: Letters that the op mixes or indexes (kernel windows, vocabulary rows), with the words that say so.
        roles: Roles of operands where the letters do not tell.
        work: The letters whose product, times two, is the op's FLOPs; one string for each term.
        bound: Arguments that follow the size of a letter, e.g. ``{"groups": "g"}``.
        over: Letters the op normalises over.
        channelwise: Letters on each of which the op acts alone but not linearly.
        kinds: What the factors of letters are known as.
    """

    text: str
    sizes: Callable[[dict[str, Any]], Mapping[str, int]] = lambda _: {}
    frozen: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[int, Role] = field(default_factory=dict)
    work: tuple[str, ...] = ()
    bound: Mapping[str, str] = field(default_factory=dict)
    over: str = ""
    channelwise: str = ""
    kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parse(self.text)

    def __call__(self, ctx: Context, node: fx.Node) -> Axes:
        values, out = self.relate(ctx, node)
        return out

    def relate(self, ctx: Context, node: fx.Node) -> tuple[Values, Axes]:
        """What each letter stands for, and the axes of the output."""
        inputs, output = parse(self.text)
        named = arguments(node)
        operands = operands_of(node)
        sizes = self.sizes(named)
        values: Values = {}
        present = [
            (n, op, inputs[n])
            for n, op in enumerate(operands)
            if ctx.tensor(op) and n < len(inputs)
        ]
        for _, operand, pattern in present:
            _match(ctx, node, ctx.of(operand), pattern, values, sizes)
        out = _build(ctx, node, output, values)
        self._claim(ctx, node, values)
        self._roles(ctx, present, output, values)
        return values, out

    def _claim(self, ctx: Context, node: fx.Node, values: Values) -> None:
        for letter, words in self.frozen.items():
            ctx.freeze(values.get(letter, ()), node, words)
        for letter in self.over.split():
            ctx.over(values.get(letter, ()), node, f"{node.target} normalises over it")
        for letter in self.channelwise.split():
            ctx.barrier(values.get(letter, ()), node, str(node.target))
        for letter, words in self.kinds.items():
            ctx.kind(values.get(letter, ()), node, words)
        for term in self.work:
            ctx.flops(node, tuple(e for letter in term.split() for e in values.get(letter, ())))
        for argument, letter in self.bound.items():
            path = _path(node, argument)
            if path is not None:
                ctx.bind(node, path, product(values.get(letter, ())))

    def _roles(
        self,
        ctx: Context,
        present: list[tuple[int, fx.Node, Pattern]],
        output: Pattern,
        values: Values,
    ) -> None:
        kept = letters(output)
        elsewhere = {
            n: set().union(*(letters(p) for m, _, p in present if m != n), set())
            for n, _, _ in present
        }
        for number, operand, pattern in present:
            own = letters(pattern)
            others = any(ctx.sources.get(op) for n, op, _ in present if n != number)
            summed = {letter for letter in own - kept if letter in elsewhere[number]}
            for dim, letter, expr in _places(pattern, values):
                if letter in kept or letter in summed:
                    role: Role = "contract" if letter in summed else "produce"
                    if not summed or (number == 0 and others):
                        role = "affine"
                    ctx.role(expr, operand, self.roles.get(number, role), dim)


def _places(pattern: Pattern, values: Values) -> Iterator[tuple[int, str, Expr]]:
    """(axis, letter, expression) for every letter of a matched pattern."""
    dim = 0
    for item in pattern:
        if isinstance(item, tuple):
            yield from ((dim, letter, values[letter][0]) for letter in item)
            dim += 1
            continue
        for expr in values[item]:
            yield dim, item, expr
            dim += 1


def operands_of(node: fx.Node) -> list[Any]:
    """The tensor operands of a node in schema order, None where an optional one is missing; lists are spread."""
    named = arguments(node)
    found: list[Any] = []
    for argument in node.target._schema.arguments:  # type: ignore[union-attr]
        kind = str(argument.type)
        if kind in ("Tensor", "Optional[Tensor]"):
            found.append(named.get(argument.name))
        elif kind.startswith(("List[Tensor]", "List[Optional[Tensor]]")):
            found.extend(named[argument.name])
    return found


def _path(node: fx.Node, argument: str) -> tuple[int | str, ...] | None:
    names = [arg.name for arg in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index(argument)
    if place < len(node.args):
        return (place,)
    return (argument,) if argument in node.kwargs else None


def _match(
    ctx: Context,
    node: fx.Node,
    axes: Axes,
    pattern: Pattern,
    values: Values,
    sizes: Mapping[str, int],
) -> None:
    rest = len(axes) - sum(not _star(item) for item in pattern)
    place = 0
    for item in pattern:
        if isinstance(item, tuple):
            _match_product(ctx, node, axes[place], item, values, sizes)
            place += 1
            continue
        width = rest if _star(item) else 1
        piece = axes[place : place + width]
        values[item] = ctx.broadcast([values[item], piece], node) if item in values else piece
        place += width


def _star(item: Item) -> bool:
    return isinstance(item, str) and item.startswith("*")


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
    shape = ctx.shape(node)
    rest = len(shape) - sum(
        1 if not _star(item) else len(values.get(str(item), ())) for item in output
    )
    out: list[Expr] = []
    for item in output:
        if isinstance(item, tuple):
            out.append(product(values[letter][0] for letter in item))
        elif item in values:
            out.extend(values[item])
        else:
            width = rest if _star(item) else 1
            sizes = shape[len(out) : len(out) + width]
            values[item] = tuple(
                ctx.fixed(size, node, "an extent this op computes") for size in sizes
            )
            out.extend(values[item])
    return tuple(ctx.space.resolve(expr) for expr in out)
