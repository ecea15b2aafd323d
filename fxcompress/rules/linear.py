"""Rules of the linear maps: dense layers, convolutions, matrix products, einsum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import fx

from fxcompress.axes.expressions import Axes
from fxcompress.graph.metadata import example_size
from fxcompress.graph.schema import arguments
from fxcompress.graph.window import Window, forward_window, transposed_window
from fxcompress.rules.context import Context, Output
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.pointwise import pointwise
from fxcompress.rules.registry import RULES, axis_rule, rule_for

WINDOW = {"*k": "kernel window", "*s": "spatial extent"}


def _groups(named: Mapping[str, Any]) -> dict[str, int]:
    """How many groups there are at the example inputs; a batch of filters has one a sample."""
    groups = named["groups"]
    return {"g": example_size(groups.meta["val"]) if isinstance(groups, fx.Node) else groups}


def _convolution(
    batch: str, weight: str, positions: str, window: Callable[[Mapping[str, Any]], Window]
) -> NotationRule:
    return NotationRule(
        f"{batch} (g i) *s, {weight} *k, (g o) -> {batch} (g o) *s'",
        sizes=_groups,
        frozen=WINDOW,
        plus=(2,),
        work=(f"{batch} g i o *k {positions}",),
        bound={"groups": "g"},
        channelwise="g",
        window=window,
    )


FORWARD = {
    batch: _convolution("b" * batch, "(g o) i", "*s'", forward_window) for batch in (False, True)
}
TRANSPOSED = {
    batch: _convolution("b" * batch, "(g i) o", "*s", transposed_window) for batch in (False, True)
}

RULES.update(
    {
        "aten::addbmm": NotationRule("+, b m k, b k n -> m n", plus=(0,), work=("b m k n",)),
        "aten::addmm": NotationRule("+, m k, k n -> m n", plus=(0,), work=("m k n",)),
        "aten::addmv": NotationRule("+, m k, k -> m", plus=(0,), work=("m k",)),
        "aten::addr": NotationRule("+, m, n -> m n", plus=(0,)),
        "aten::baddbmm": NotationRule("+, b m k, b k n -> b m n", plus=(0,), work=("b m k n",)),
        "aten::bilinear": NotationRule(
            "*b i, *b j, o i j, o -> *b o", plus=(3,), work=("*b i j o",)
        ),
        "aten::bmm": NotationRule("b m k, b k n -> b m n", work=("b m k n",)),
        "aten::dot": NotationRule("k, k -> ", work=("k",)),
        "aten::mm": NotationRule("m k, k n -> m n", work=("m k n",)),
        "aten::mv": NotationRule("m k, k -> m", work=("m k",)),
        "aten::outer": NotationRule("m, n -> m n"),
        "transformers::grouped_mm_fallback": NotationRule(
            "t i, e i o, e -> t o",
            frozen={
                "e": "experts: rows are read by index",
                "t": "rows are counted for each expert",
            },
            beside=(2,),
            work=("t i o",),
        ),
    }
)

MATMUL = {
    (True, True): NotationRule("*b m k, *b k n -> *b m n", work=("*b m k n",)),
    (False, True): NotationRule("k, *b k n -> *b n", work=("*b k n",)),
    (True, False): NotationRule("*b m k, k -> *b m", work=("*b m k",)),
    (False, False): NotationRule("k, k -> ", work=("k",)),
}
LINEAR = {
    2: NotationRule("*b i, o i, o -> *b o", plus=(2,), work=("*b i o",)),
    1: NotationRule("*b i, i, + -> *b", plus=(2,), work=("*b i",)),
}


@axis_rule("aten::linear")
def _linear(ctx: Context, node: fx.Node) -> Axes:
    """The weight may have no axis for the outputs: then there is one."""
    return LINEAR[len(ctx.of(arguments(node)["weight"]))](ctx, node)


@axis_rule("aten::matmul")
def _matmul(ctx: Context, node: fx.Node) -> Axes:
    first, second = (len(ctx.of(operand)) > 1 for operand in node.args[:2])
    return MATMUL[first, second](ctx, node)


INNER = NotationRule("*m k, *n k -> *m *n", work=("*m *n k",))


@axis_rule("aten::inner")
def _inner(ctx: Context, node: fx.Node) -> Output:
    """A product of each last axis with the other; element-wise with a number."""
    scalars = any(not ctx.of(operand) for operand in node.args[:2])
    return pointwise(ctx, node) if scalars else INNER(ctx, node)


@axis_rule(
    "aten::conv1d", "aten::conv2d", "aten::conv3d", "aten::conv_transpose1d",
    "aten::conv_transpose2d", "aten::conv_transpose3d", "aten::convolution",
)  # fmt: skip
def _conv(ctx: Context, node: fx.Node) -> Axes:
    """Grouped both ways; the batch axis may be missing."""
    named = arguments(node)
    batched = len(ctx.of(named["input"])) == len(ctx.of(named["weight"]))
    return (TRANSPOSED if _is_transposed(node) else FORWARD)[batched](ctx, node)


def window_of(node: fx.Node) -> Window | None:
    """The window of a forward convolution; None for any other node."""
    if rule_for(node) is not _conv or _is_transposed(node):
        return None
    return forward_window(arguments(node))


def _is_transposed(node: fx.Node) -> bool:
    return bool(arguments(node).get("transposed", "transpose" in str(node.target)))


@axis_rule("aten::einsum")
def _einsum(ctx: Context, node: fx.Node) -> Axes:
    """An equation is a rule already: letters become axes, an ellipsis becomes ``*dots``."""
    equation = str(arguments(node)["equation"]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    if not arrow:
        right = _implied(left)
    text = ", ".join(map(_spaced, left.split(","))) + " -> " + _spaced(right)
    names = sorted(set(left.replace("...", "")) - {","})
    work = " ".join((["*dots"] if "..." in left else []) + names)
    return NotationRule(text, work=(work,) if left.count(",") == 1 else ())(ctx, node)


def _implied(left: str) -> str:
    """The output of an equation without one: the letters that occur once, in order."""
    alphabet = sorted(set(left) - set(",."))
    once = "".join(letter for letter in alphabet if left.count(letter) == 1)
    return ("..." if "..." in left else "") + once


def _spaced(term: str) -> str:
    return " ".join("*dots" if part == "." else part for part in term.replace("...", "."))
