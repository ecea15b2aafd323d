"""Rules of the linear maps: dense layers, convolutions, matrix products, attention, einsum."""

from __future__ import annotations

from typing import Any

from torch import fx

from fxcompress.axes import Axes, Expr
from fxcompress.rules.context import Context, arguments
from fxcompress.rules.notation import NotationRule
from fxcompress.rules.registry import RULES, axis_rule

WINDOW = {"*k": "kernel window", "*s": "spatial extent"}


def _groups(named: dict[str, Any]) -> dict[str, int]:
    return {"g": named["groups"]}


CONV = NotationRule(
    "b (g i) *s, (g o) i *k, (g o) -> b (g o) *s'",
    sizes=_groups,
    frozen=WINDOW,
    work=("b g i o *k *s'",),
    bound={"groups": "g"},
    channelwise="g",
)
CONV_TRANSPOSE = NotationRule(
    "b (g i) *s, (g i) o *k, (g o) -> b (g o) *s'",
    sizes=_groups,
    frozen=WINDOW,
    work=("b g i o *k *s",),
    bound={"groups": "g"},
    channelwise="g",
)

RULES.update(
    {
        "aten::linear": NotationRule("*b i, o i, o -> *b o", work=("*b i o",)),
        "aten::mm": NotationRule("m k, k n -> m n", work=("m k n",)),
        "aten::bmm": NotationRule("b m k, b k n -> b m n", work=("b m k n",)),
        "aten::mv": NotationRule("m k, k -> m", work=("m k",)),
        "aten::dot": NotationRule("k, k -> ", work=("k",)),
        "aten::addmm": NotationRule("n, m k, k n -> m n", work=("m k n",)),
        "aten::baddbmm": NotationRule("b m n, b m k, b k n -> b m n", work=("b m k n",)),
        "aten::outer": NotationRule("m, n -> m n"),
        "aten::bilinear": NotationRule("*b i, *b j, o i j, o -> *b o", work=("*b i j o",)),
    }
    | {f"aten::conv{n}d": CONV for n in (1, 2, 3)}
    | {f"aten::conv_transpose{n}d": CONV_TRANSPOSE for n in (1, 2, 3)}
)

MATMUL = {
    (True, True): NotationRule("*b m k, *b k n -> *b m n", work=("*b m k n",)),
    (False, True): NotationRule("k, *b k n -> *b n", work=("*b k n",)),
    (True, False): NotationRule("*b m k, k -> *b m", work=("*b m k",)),
    (False, False): NotationRule("k, k -> ", work=("k",)),
}


@axis_rule("aten::matmul")
def _matmul(ctx: Context, node: fx.Node) -> Axes:
    first, second = (len(ctx.of(operand)) > 1 for operand in node.args[:2])
    return MATMUL[first, second](ctx, node)


@axis_rule("aten::scaled_dot_product_attention")
def _attention(ctx: Context, node: fx.Node) -> Axes:
    """Queries (*b l e), keys (*b s e), values (*b s v); with grouped queries the heads are (kv r)."""
    named = arguments(node)
    query, key, value = (ctx.of(named[name]) for name in ("query", "key", "value"))
    lead = list(query[:-2])
    for operand in (key, value):
        for dim, expr in enumerate(operand[:-2]):
            lead[dim] = _tie_heads(ctx, node, lead[dim], expr)
    ctx.unify(query[-1], key[-1], node)
    ctx.unify(key[-2], value[-2], node)
    if named["attn_mask"] is not None:
        mask = ctx.of(named["attn_mask"])
        ctx.broadcast([(*lead, query[-2], key[-2]), mask], node)
        ctx.role(mask[-3] if len(mask) > 2 else mask[-1], named["attn_mask"], "affine")
    for expr in (query[-2], key[-2]):
        ctx.over(expr, node, "softmax over the positions")
        ctx.freeze(expr, node, "sequence position")
    ctx.kind(lead[1:], node, "heads")
    ctx.kind(query[-1], node, "qk")
    ctx.kind(value[-1], node, "vo")
    ctx.flops(node, (*lead, query[-2], key[-2], query[-1]))
    ctx.flops(node, (*lead, query[-2], key[-2], value[-1]))
    return (*lead, query[-2], value[-1])


def _tie_heads(ctx: Context, node: fx.Node, query: Expr, other: Expr) -> Expr:
    """Equal heads are the same; n times fewer key heads serve n consecutive query heads each."""
    if other.size == query.size:
        ctx.unify(query, other, node)
    elif other.size > 1 and query.size % other.size == 0:
        shared, _ = ctx.split(query, (other.size, query.size // other.size), node)
        ctx.unify(shared, other, node)
    elif query.size == 1:
        return other
    return ctx.space.resolve(query)


@axis_rule("aten::einsum")
def _einsum(ctx: Context, node: fx.Node) -> Axes:
    """An equation is a rule already: letters become axes, an ellipsis becomes ``*dots``."""
    equation = str(node.args[0]).replace(" ", "")
    left, arrow, right = equation.partition("->")
    if not arrow:
        alphabet = sorted(set(left) - set(",."))
        right = ("..." if "..." in left else "") + "".join(
            c for c in alphabet if left.count(c) == 1
        )
    text = ", ".join(map(_spaced, left.split(","))) + " -> " + _spaced(right)
    names = sorted(set(left.replace("...", "")) - {","})
    work = " ".join((["*dots"] if "..." in left else []) + names)
    return NotationRule(text, work=(work,) if left.count(",") == 1 else ())(ctx, node)


def _spaced(term: str) -> str:
    return " ".join("*dots" if part == "." else part for part in term.replace("...", "."))
