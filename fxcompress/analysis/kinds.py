"""What the units of a factor are, told by the operations that use them and never by names.

Three things are looked for in the captured graph:

* **Attention**: a product of two computed tensors whose result goes through a softmax into a second
  product. What the first contracts are query/key dims (``qk``), what the second takes from the
  values alone are value dims (``vo``), and what both share are ``heads``. What the first takes from
  one side alone are places of ``scores``: positions, or channels that attend to each other. An op
  that is attention as a whole says so by its rule.
* **Sums**: an addition of values that different linear maps or tables wrote. A function written as
  a sum of functions of one value (``x + 0.044715 * x ** 3``, a rotary embedding) is none, and
  neither is a bias or a table of positions, which parameters alone are.
* **Windows**: the axes along which a convolution moves.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import fx

from fxcompress.axes.expressions import Factor
from fxcompress.graph.schema import arguments, packet_of
from fxcompress.rules import Constraint, Context

__all__ = ["find_kinds"]

SUMS = ("aten::add", "aten::rsub", "aten::sub")
PRODUCTS = ("aten::baddbmm", "aten::bmm", "aten::einsum", "aten::matmul")
SOFTMAX = ("aten::_softmax", "aten::softmax", "aten::_safe_softmax")
Factors = frozenset[Factor]


def find_kinds(ctx: Context) -> None:
    """Add to the constraints of `ctx` what the whole graph tells of its factors."""
    maps = frozenset(work.node for work in ctx.work)
    _claim_sums(ctx, maps)
    _claim_attention(ctx, maps)
    for node in ctx.axes:
        if packet_of(node).startswith("aten::conv"):
            ctx.kind(ctx.of(arguments(node)["weight"])[2:], node, "window")


# ---- sums


def _claim_sums(ctx: Context, maps: frozenset[str]) -> None:
    """Follow every value back to what wrote it: one map, or the first node where several meet."""
    written: dict[fx.Node, fx.Node] = {}
    for node in ctx.axes:
        own = [operand for operand in node.all_input_nodes if operand in written]
        sources = {written[operand] for operand in own}
        if node.name in maps or packet_of(node) == "aten::embedding":
            written[node] = node
        elif sources:
            written[node] = node if len(sources) > 1 else sources.pop()
        if packet_of(node).removesuffix("_") in SUMS and len({written[op] for op in own}) > 1:
            first, second = (_factors(ctx, operand) for operand in own)
            _constrain(ctx, first & second, node, "sum")


# ---- attention


def _claim_attention(ctx: Context, maps: frozenset[str]) -> None:
    nodes = list(ctx.axes)
    weights = _reached(ctx, nodes, maps, back=False)
    scores = _reached(ctx, reversed(nodes), maps, back=True)
    for node in (node for node in nodes if packet_of(node) in PRODUCTS):
        operands = [operand for operand in node.all_input_nodes if operand in ctx.axes]
        if len(operands) == 2 and not any(map(ctx.sources.get, operands)):
            if node in scores:
                _claim_scores(ctx, node, operands)
            for operand, other in (operands, operands[::-1]):
                if operand in weights and other not in weights:
                    _claim_values(ctx, node, operand, other)


def _reached(
    ctx: Context, nodes: Iterable[fx.Node], maps: frozenset[str], *, back: bool
) -> set[fx.Node]:
    """The nodes that a softmax leads to, or that lead to one, with no linear map in between."""
    found: set[fx.Node] = set()
    for node in nodes:
        near = (user for user in node.users if user.name not in maps) if back else ()
        before = () if back or node.name in maps else node.all_input_nodes
        if packet_of(node) in SOFTMAX or not found.isdisjoint((*near, *before)):
            found.add(node)
    return found


def _claim_scores(ctx: Context, node: fx.Node, operands: list[fx.Node]) -> None:
    """Queries by keys: what is contracted, what both share, and what each has alone."""
    first, second, out = (_factors(ctx, each) for each in (*operands, node))
    both = first & second
    _constrain(ctx, both - out, node, "qk")
    _constrain(ctx, (first ^ second) & out, node, "scores")
    _constrain(ctx, both & out, node, "heads")


def _claim_values(ctx: Context, node: fx.Node, weights: fx.Node, values: fx.Node) -> None:
    """Weights by values: what the values alone have, and what both share."""
    own, other, out = (_factors(ctx, each) for each in (values, weights, node))
    _constrain(ctx, (own - other) & out, node, "vo")
    _constrain(ctx, own & other & out, node, "heads")


def _factors(ctx: Context, node: fx.Node) -> Factors:
    return frozenset().union(*map(ctx.factors, ctx.each(node)))


def _constrain(ctx: Context, factors: Factors, node: fx.Node, words: str) -> None:
    ctx.kinds.extend(Constraint(factor, node.name, words) for factor in factors)
