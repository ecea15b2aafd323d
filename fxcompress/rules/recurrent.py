"""Rules of recurrent layers: the hidden units of all layers and directions are one group.

The rows of the weights are (gates hidden), with four gates for an LSTM, three for a GRU and one for
a plain layer. The states of all layers and directions are stacked in one tensor, so they share the
hidden axis; the outputs of two directions stand side by side, [hidden | hidden]. The work is that
of the matrix products of every step, as `torch.utils.flop_counter` counts it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from fxcompress.axes.expressions import UNIT, Axes, Expr, concat, product
from fxcompress.graph.schema import arguments, packet_of
from fxcompress.rules.constraints import Contraction
from fxcompress.rules.context import Context, Output
from fxcompress.rules.registry import axis_rule

GATES = {"aten::gru": 3, "aten::lstm": 4, "aten::rnn_relu": 1, "aten::rnn_tanh": 1}
STEPS = {f"{layer}_cell": gates for layer, gates in GATES.items()}
"""The same layers, one step at a time, as a loop of the model's own runs them."""

GATED = "gates of a recurrent layer"


@dataclass(frozen=True)
class _Cell:
    """One layer in one direction: the rows of its weights are (gates hidden)."""

    gates: int
    hidden: Expr
    output: Expr
    batch: Expr
    steps: Expr


@axis_rule("aten::gru.input", "aten::lstm.input", "aten::rnn_relu.input", "aten::rnn_tanh.input")
def _recurrent(ctx: Context, node: fx.Node) -> Output:
    """Sequences are (b s i) or (s b i), states (layers b h)."""
    named = arguments(node)
    layers, directions = named["num_layers"], 1 + named["bidirectional"]
    states = named["hx"] if isinstance(named["hx"], (tuple, list)) else (named["hx"],)
    axes = ctx.of(named["input"])
    batch, steps = axes[:2] if named["batch_first"] else axes[1::-1]
    ctx.freeze(steps, node, "steps of a sequence")
    params = list(named["params"])
    size = len(params) // (layers * directions)
    for state in states:
        own = ctx.of(state)
        ctx.freeze(own[0], node, "layers and directions")
        batch = ctx.broadcast([(batch,), (own[1],)], node)[0]
    output, hidden = ctx.of(states[0])[2], ctx.of(states[-1])[2]
    if any(len(ctx.of(param)) == 2 for param in params[2:size]):
        ctx.freeze(hidden, node, "torch knows a projection by its being narrower")
    else:
        ctx.unify(output, hidden, node)
    cell = _Cell(GATES[packet_of(node)], hidden, output, batch, steps)
    features = axes[2]
    for layer in range(layers):
        for direction in range(directions):
            start = (layer * directions + direction) * size
            held = params[start : start + size]
            _cell(ctx, node, cell, features, held, None if layer else named["input"])
        features = concat((output,) * directions)
    ctx.nonlinearity((batch, hidden, output), node, GATED)
    ctx.set_nonzero(node, ctx.factors(axes[:2]) | _any_loud(ctx, states))
    stacked = tuple(
        (ctx.fixed(layers * directions, node, "layers and directions"), batch, ctx.of(state)[2])
        for state in states
    )
    return ((*axes[:2], features), *stacked)


@axis_rule(*STEPS)
def _step(ctx: Context, node: fx.Node) -> Output:
    """One step of one layer: inputs (b i) or (i), states (b h) or (h), of an LSTM two of them."""
    named = arguments(node)
    states = named["hx"] if isinstance(named["hx"], (tuple, list)) else (named["hx"],)
    *batch, features = ctx.of(named["input"])
    for state in states:
        batch = list(ctx.broadcast([tuple(batch), ctx.of(state)[:-1]], node))
    hidden = ctx.of(states[0])[-1]
    for state in states[1:]:
        ctx.unify(hidden, ctx.of(state)[-1], node)
    samples = product(batch)
    cell = _Cell(STEPS[packet_of(node)], hidden, hidden, samples, UNIT)
    weights = [named[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    own = [weight for weight in weights if weight is not None]
    _cell(ctx, node, cell, features, own, named["input"])
    ctx.nonlinearity((*batch, hidden), node, GATED)
    ctx.set_nonzero(node, ctx.factors(batch) | _any_loud(ctx, states))
    out = (*batch, hidden)
    return (out,) * len(states) if packet_of(node) == "aten::lstm_cell" else out


def _any_loud(ctx: Context, operands: Any) -> frozenset[Any]:
    return frozenset().union(*map(ctx.nonzero_factors, operands))


def _cell(
    ctx: Context,
    node: fx.Node,
    cell: _Cell,
    features: Expr,
    params: list[fx.Node],
    reads: fx.Node | None,
) -> None:
    """Tie the weights (and biases, and the projection of the output) of one layer and direction.

    The first layer `reads` a node; the state and what layers hand on stay in the operator.
    """
    inputs, recurrent, *rest = params
    _contract(ctx, node, inputs, reads)
    _contract(ctx, node, recurrent)
    gates = ctx.fixed(cell.gates, node, "gates")
    rows = product((gates, cell.hidden))
    for weight, source in ((inputs, features), (recurrent, cell.output)):
        own = ctx.of(weight)
        ctx.unify(own[0], rows, node)
        ctx.unify(own[1], source, node)
        ctx.role(cell.hidden, weight, "produce", 0)
        ctx.role(source, weight, "contract", 1)
        ctx.flops(node, (cell.batch, cell.steps, rows, source))
    for bias in (param for param in rest if len(ctx.of(param)) == 1):
        ctx.unify(ctx.of(bias)[0], rows, node)
        ctx.role(cell.hidden, bias, "affine", 0)
    for projection in (param for param in rest if len(ctx.of(param)) == 2):
        _project(ctx, node, cell, projection)


def _contract(ctx: Context, node: fx.Node, weight: fx.Node, value: fx.Node | None = None) -> None:
    """The weight (rows, inputs) multiplies what the layer reads, or what it holds."""
    if ctx.sources.get(weight):
        rows, inputs = ctx.shape(weight)
        ctx.contractions.append(
            Contraction(
                node=node.name,
                weight=weight.name,
                axes=((("o", rows),), (("i", inputs),)),
                values=() if value is None else (value.name,),
                value_axes=((("i",),),),
                output_axes=(("o",),),
                inner=True,
            )
        )


def _project(ctx: Context, node: fx.Node, cell: _Cell, projection: fx.Node) -> None:
    _contract(ctx, node, projection)
    own: Axes = ctx.of(projection)
    ctx.unify(own[0], cell.output, node)
    ctx.unify(own[1], cell.hidden, node)
    ctx.role(cell.output, projection, "produce", 0)
    ctx.role(cell.hidden, projection, "contract", 1)
    ctx.flops(node, (cell.batch, cell.steps, cell.output, cell.hidden))
