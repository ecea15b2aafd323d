"""The rule of scaled dot-product attention."""

from __future__ import annotations

from torch import fx

from fxcompress.axes.expressions import Axes, Expr
from fxcompress.graph.schema import arguments
from fxcompress.rules.context import Context
from fxcompress.rules.registry import axis_rule


@axis_rule("aten::scaled_dot_product_attention")
def _attention(ctx: Context, node: fx.Node) -> Axes:
    """Queries (*b l e), keys (*b s e), values (*b s v); heads of grouped queries are (kv r)."""
    named = arguments(node)
    operands = [named[name] for name in ("query", "key", "value")]
    query, key, value = map(ctx.of, operands)
    lead = list(query[:-2])
    for operand in (key, value):
        for dim, expr in enumerate(operand[:-2]):
            lead[dim] = _tie_heads(ctx, node, lead[dim], expr)
    ctx.unify(query[-1], key[-1], node)
    ctx.unify(key[-2], value[-2], node)
    if named["attn_mask"] is not None:
        mask = ctx.of(named["attn_mask"])
        ctx.broadcast([(*lead, query[-2], key[-2]), mask], node)
        for dim, expr in enumerate(mask):
            ctx.role(expr, named["attn_mask"], "affine", dim)
    for expr in (query[-2], key[-2]):
        ctx.freeze(expr, node, "sequence position")
    ctx.kind(lead[1:], node, "heads")
    ctx.kind(query[-1], node, "qk")
    ctx.kind(value[-1], node, "vo")
    ctx.flops(node, (*lead, query[-2], key[-2], query[-1]))
    ctx.flops(node, (*lead, query[-2], key[-2], value[-1]))
    ctx.nonlinearity((*lead, query[-1]), node, "attention")
    ctx.sums(node, (query[-1],), operands[:2])
    alone = ctx.factors((*lead, query[-2])) - ctx.factors(value)
    ctx.set_nonzero(node, (*ctx.nonzero_factors(operands[2]), *alone))
    return tuple(map(ctx.space.resolve, (*lead, query[-2], value[-1])))


def _tie_heads(ctx: Context, node: fx.Node, query: Expr, other: Expr) -> Expr:
    """Equal heads are the same; n times fewer key heads serve n consecutive query heads each."""
    if other.size == query.size:
        ctx.unify(query, other, node)
    elif query.size == 1:
        return other
    elif other.size > 1:
        shared, _ = ctx.split(query, (other.size, query.size // other.size), node)
        ctx.unify(shared, other, node)
    return ctx.space.resolve(query)
