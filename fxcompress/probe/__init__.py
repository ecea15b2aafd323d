"""The probe: finding by experiment which axes pass through an op that has no axis rule.

Asked for with ``fxcompress.compile(..., probe=True)``. The op runs alone, on random tensors of the
node's shapes and dtypes, its other arguments as they are. An axis of the result follows an axis of
an operand when slice i of the one depends on slice i of the other and on no other slice, in several
draws, and when ``op(slice(x)) == slice(op(x))`` at several smaller sizes: the law that rules obey.
Everything else freezes, as it does without the probe.

Experiments show what happened, not what must happen: an op that acts otherwise on values or at
sizes that were not tried can pass. So the report names every op that was probed, only selecting
units is allowed across it, and the proof after every pass runs the op as the program does.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from fxcompress.axes.expressions import Expr
from fxcompress.graph.metadata import is_tensor
from fxcompress.probe.experiment import Experiment, experiment, refusal
from fxcompress.probe.relation import Relation, Tie, relation
from fxcompress.rules.context import Context, Output
from fxcompress.rules.create import frozen
from fxcompress.rules.registry import name_of

__all__ = ["Prober", "Relation", "Tie"]


class Prober:
    """The rule of ops that have none. It asks each op once for the same shapes and arguments."""

    def __init__(self) -> None:
        self._found: dict[tuple[Any, ...], Relation] = {}

    def __call__(self, ctx: Context, node: fx.Node) -> Output:
        """The axes of what `node` yields: those that pass through, and fixed ones."""
        reason = refusal(ctx, node)
        if reason is not None:
            return _unprobed(ctx, node, reason)
        trial = experiment(ctx, node)
        if trial.key not in self._found:
            self._found[trial.key] = relation(trial)
        found = self._found[trial.key]
        if not found.ties:
            return _unprobed(
                ctx, node, found.refused or "no axis of it passes through unit by unit"
            )
        ctx.probed[name_of(node.target)].append(node.name)
        return _tied(ctx, node, trial, found)


def _unprobed(ctx: Context, node: fx.Node, reason: str) -> Output:
    ctx.unknown[name_of(node.target)].append(node.name)
    return frozen(ctx, node, f"no axis rule for {node.target}; by probing: {reason}")


def _tied(ctx: Context, node: fx.Node, trial: Experiment, found: Relation) -> Output:
    """Unify what moves together; freeze the rest of the operands."""
    words = f"no axis rule for {node.target}; by probing: this axis does not pass unit by unit"
    tied: dict[tuple[int, int], Expr] = {}
    nonzero: list[Expr] = []
    for tie in found.ties:
        first, *others = (ctx.of(trial.operands[number])[dim] for number, dim in tie.inputs)
        for other in others:
            ctx.unify(first, other, node)
        tied.update(dict.fromkeys(tie.outputs, first))
        ctx.nonlinearity(first, node, name_of(node.target))
        nonzero += [] if tie.zero_preserving else [first]
        _claim_roles(ctx, trial, tie)
    held = {place for tie in found.ties for place in tie.inputs}
    for number, operand in enumerate(trial.operands):
        free = (e for dim, e in enumerate(ctx.of(operand)) if (number, dim) not in held)
        ctx.freeze(tuple(free), node, words)
    spread = frozenset().union(*map(ctx.nonzero_factors, trial.operands))
    ctx.set_nonzero(node, (*nonzero, *spread))
    outputs = tuple(
        tuple(
            ctx.space.resolve(tied[number, dim])
            if (number, dim) in tied
            else ctx.fixed(size, node, words)
            for dim, size in enumerate(shape)
        )
        for number, shape in enumerate(trial.shapes)
    )
    return outputs[0] if is_tensor(node) else outputs


def _claim_roles(ctx: Context, trial: Experiment, tie: Tie) -> None:
    """Parameters that alone make the units produce them; beside an activation they scale them."""
    alone = all(ctx.sources.get(trial.operands[number]) for number, _ in tie.inputs)
    for number, dim in tie.inputs:
        operand = trial.operands[number]
        ctx.role(ctx.of(operand)[dim], operand, "produce" if alone else "affine", dim)
