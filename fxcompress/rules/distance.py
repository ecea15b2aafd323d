"""Rules of distances and similarities between vectors."""

from __future__ import annotations

from torch import fx

from fxcompress.axes.expressions import Axes
from fxcompress.graph.schema import arguments, dims
from fxcompress.rules.context import Context
from fxcompress.rules.registry import axis_rule


@axis_rule("aten::_cdist_forward", "aten::cdist")
def _cdist(ctx: Context, node: fx.Node) -> Axes:
    """*b m k, *b n k -> *b m n: zeros in both operands add nothing to a distance."""
    operands = node.all_input_nodes
    first, second = (ctx.of(operand) for operand in node.args[:2])
    lead = ctx.broadcast([first[:-2], second[:-2]], node)
    ctx.unify(first[-1], second[-1], node)
    for operand in operands:
        ctx.sums(node, (first[-1],), (operand,))
    out = (*lead, first[-2], second[-2])
    ctx.nonlinearity((*out, first[-1]), node, "aten::cdist")
    ctx.set_nonzero(node, out)
    return tuple(map(ctx.space.resolve, out))


@axis_rule("aten::cosine_similarity")
def _cosine_similarity(ctx: Context, node: fx.Node) -> Axes:
    """Zeros add nothing to the product nor to the lengths."""
    named = arguments(node)
    axes = ctx.broadcast([ctx.of(named["x1"]), ctx.of(named["x2"])], node)
    if not axes:
        return axes
    (dim,) = dims(named["dim"], len(axes))
    for operand in (named["x1"], named["x2"]):
        ctx.sums(node, (axes[dim],), (operand,))
    ctx.nonlinearity(axes, node, "aten::cosine_similarity")
    return axes[:dim] + axes[dim + 1 :]
