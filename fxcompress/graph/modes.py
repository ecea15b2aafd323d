"""Training and evaluation of a captured graph: flags of nodes, and the batches that norms count.

An operator that differs between the modes takes a flag. A norm also counts its batches in training,
and one without a momentum weighs each batch by that count: nodes for both stand in the graph as
long as it is in training.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx
from torch._ops import OpOverload

aten = torch.ops.aten

MODE_FLAGS: Mapping[OpOverload, int] = {
    aten.dropout.default: 2,
    aten.dropout_.default: 2,
    aten.feature_dropout.default: 2,
    aten.feature_dropout_.default: 2,
    aten.alpha_dropout.default: 2,
    aten.alpha_dropout_.default: 2,
    aten.feature_alpha_dropout.default: 2,
    aten.feature_alpha_dropout_.default: 2,
    aten.native_dropout.default: 2,
    aten.rrelu.default: 3,
    aten.rrelu_.default: 3,
    aten.batch_norm.default: 5,
    aten.native_batch_norm.default: 5,
    aten._native_batch_norm_legit.default: 5,
    aten.instance_norm.default: 5,
    aten.lstm.input: 6,
    aten.gru.input: 6,
    aten.rnn_tanh.input: 6,
    aten.rnn_relu.input: 6,
}
"""Where an operator takes "this is training": the position of that argument."""

RUNNING_MEAN, _MOMENTUM = 3, 6
NORMS = {
    aten.batch_norm.default,
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten.instance_norm.default,
}
FIXED_MODE = "fixed_mode"
"""Key in ``node.meta`` of a node that `train` and `eval` leave alone: the model fixed its mode."""
COUNTER = "counter"
"""Key in ``node.meta`` of a norm: the buffer that counts its batches in training."""
CUMULATIVE = "cumulative"
"""Key in ``node.meta`` of a norm whose running statistics are the mean of all batches so far."""
_IN_TRAINING = "in_training"
"""Key in ``node.meta`` of nodes that are in the graph during training only."""
MODE_META = (FIXED_MODE, COUNTER, CUMULATIVE, _IN_TRAINING)
"""All of these keys: what a file has to keep of a node's ``meta``."""


def set_mode(graph: fx.Graph, training: bool) -> bool:
    """Switch a graph to training or evaluation, in place; say whether that changed it."""
    changed = [_set_flag(node, training) for node in graph.nodes]
    count = _count_batches if training else _count_no_batches
    return count(graph) or any(changed)


def mode_of(node: fx.Node) -> bool | None:
    """Whether the node computes as in training; None if its operator knows no modes."""
    position = MODE_FLAGS.get(node.target) if isinstance(node.target, OpOverload) else None
    if position is None:
        return None
    if position < len(node.args):
        return bool(node.args[position])
    return bool(node.target._schema.arguments[position].default_value)  # type: ignore[union-attr]


def _set_flag(node: fx.Node, training: bool) -> bool:
    position = MODE_FLAGS.get(node.target) if isinstance(node.target, OpOverload) else None
    if position is None or node.meta.get(FIXED_MODE) or _computes_own_statistics(node):
        return False
    if mode_of(node) is training:
        return False
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    defaults = [argument.default_value for argument in schema[len(node.args) : position + 1]]
    args = [*node.args, *defaults]
    args[position] = training
    node.args = tuple(args)
    return True


def _computes_own_statistics(node: fx.Node) -> bool:
    """A norm without running statistics uses those of the batch in both modes."""
    return node.target in NORMS and node.args[RUNNING_MEAN] is None


def _count_batches(graph: fx.Graph) -> bool:
    """Let every norm that counts do so before it runs."""
    if any(node.meta.get(_IN_TRAINING) for node in graph.nodes):
        return False
    norms = [node for node in graph.nodes if node.meta.get(COUNTER) and mode_of(node)]
    for norm in norms:
        with graph.inserting_before(norm):
            counter = graph.get_attr(norm.meta[COUNTER])
            added = graph.call_function(aten.add_.Tensor, (counter, 1))
            made = [counter, added]
            if norm.meta.get(CUMULATIVE):
                number = graph.call_function(aten.item.default, (added,))
                share = graph.call_function(operator.truediv, (1.0, number))
                made += [number, share]
                number.meta["val"], share.meta["val"] = 1, 1.0
                norm.update_arg(_MOMENTUM, share)
        for node in made:
            node.meta[_IN_TRAINING] = True
        for node in made[:2]:
            node.meta["val"] = torch.empty((), dtype=torch.int64, device="meta")
    return bool(norms)


def _count_no_batches(graph: fx.Graph) -> bool:
    counting = [node for node in graph.nodes if node.meta.get(_IN_TRAINING)]
    for node in graph.nodes if counting else ():
        if node.meta.get(CUMULATIVE):
            node.update_arg(_MOMENTUM, 0.0)
    for node in reversed(counting):
        graph.erase_node(node)
    return bool(counting)
