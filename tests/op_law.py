"""The law every axis rule constraints: op(sliced inputs) == slice(op(inputs)).

A graph of one op (or of a few) over buffers is coupled as any model is, so every axis is free until
a rule says otherwise. What no rule freezes may be cut at random; integers of the graph follow as
the rewriter mends them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from axis_strategies import kept
from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes, Concat, Expr, Factor, leaves
from fxcompress.axes.masks import stays
from fxcompress.axes.transforms import Choice, Choices, select, transform
from fxcompress.edit.widths import axis_choices, mend
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.parameters import find_tensor, set_tensor
from fxcompress.graph.schema import operands_of

UNOWNED = ("no layer produces it",)
"""Buffers alone make no channels; the law holds for them all the same."""


def graph_of(
    op: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> CapturedModule:
    """A graph that calls `op` once, with every tensor among the arguments in a parameter."""
    module = CapturedModule(nn.Module(), fx.Graph())

    def held(tensor: Tensor) -> fx.Node:
        name = f"t{len(list(module.parameters()))}"
        set_tensor(module, name, nn.Parameter(tensor, requires_grad=False))  # masked to zero
        node = module.graph.get_attr(name)
        node.meta["val"] = tensor
        return node

    placed = pytree.tree_map_only(Tensor, held, (tuple(args), dict(kwargs)))
    node = module.graph.call_function(op, *placed)
    copies = pytree.tree_map_only(Tensor, torch.clone, (tuple(args), dict(kwargs)))
    node.meta["val"] = op(*copies[0], **copies[1])
    return _finished(module)


def append(module: CapturedModule, op: Callable[..., Any], *args: Any) -> None:
    """Call `op` on what the only call yields; the first of its outputs that has axes."""
    (node,) = calls(module)
    value, before = node.meta["val"], module.graph.output_node()
    with module.graph.inserting_before(before):
        if isinstance(value, (tuple, list)):
            number = next(n for n, one in enumerate(value) if one.dim())
            node = module.graph.call_function(operator.getitem, (node, number))
            node.meta["val"] = value = value[number]
        made = module.graph.call_function(op, (node, *args))
    made.meta["val"] = op(value, *args)
    module.recompile()


def traced(fn: Callable[..., Any], tensors: Sequence[Tensor]) -> CapturedModule:
    """The graph of ATen ops that `fn` runs, with every tensor it is given in a parameter."""
    graph_module = make_fx(fn, tracing_mode="fake", pre_dispatch=True)(*tensors)
    module = CapturedModule(nn.Module(), graph_module.graph)
    given = iter(tensors)
    for node in list(module.graph.nodes):
        if node.op == "placeholder":
            value = nn.Parameter(next(given), requires_grad=False)  # which masking makes zero
            set_tensor(module, node.name, value)
            with module.graph.inserting_before(node):
                buffer = module.graph.get_attr(node.name)
            buffer.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(buffer)
            module.graph.erase_node(node)
        elif node.op == "get_attr":
            set_tensor(module, str(node.target), getattr(graph_module, str(node.target)))
    module.graph.erase_node(module.graph.output_node())
    return _finished(module)


def _finished(module: CapturedModule) -> CapturedModule:
    module.graph.output(())  # nothing is an output, so no output freezes an axis
    module.recompile()
    return module


def calls(module: CapturedModule) -> list[fx.Node]:
    """The nodes that call something, getitem aside."""
    named = (node for node in module.graph.nodes if node.op == "call_function")
    return [node for node in named if isinstance(node.target, torch._ops.OpOverload)]


# ---- the law


class _Runner(fx.Interpreter):
    """Runs a graph on copies of the given tensors, keeping every value."""

    def __init__(self, module: CapturedModule, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.tensors = tensors

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Tensor:
        return self.tensors[target].clone()


def run(module: CapturedModule, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    runner = _Runner(module, tensors)
    torch.manual_seed(0)
    runner.run()
    return {node.name: value for node, value in runner.env.items() if node.op != "output"}


def free(coupling: Coupling) -> list[Factor]:
    """The factors that no rule freezes, in order of appearance."""
    axes = [*coupling.axes.values(), *(one for many in coupling.outputs.values() for one in many)]
    found = dict.fromkeys(leaf for own in axes for expr in own for leaf in leaves(expr))
    return [f for f in found if coupling.frozen.get(f, UNOWNED) == UNOWNED and f.size > 1]


@st.composite
def cuts(draw: st.DrawFn, factors: Sequence[Factor]) -> Choices:
    """Random kept units of some of the factors."""
    return {f: Choice(draw(kept(f.size))) for f in factors if draw(st.booleans())}


def check(
    module: CapturedModule, coupling: Coupling, choices: Choices, values: bool = True
) -> None:
    """Compare the op on sliced tensors with the slice of the op on (zero-masked) tensors.

    `values` is False where the numbers are random: then the shapes have to agree.
    """
    exact = {f: c for f, c in choices.items() if f not in coupling.inexact}
    _compare(module, coupling, exact, values)
    if len(exact) < len(choices):
        _compare(module, coupling, choices, values=False)


def _compare(module: CapturedModule, coupling: Coupling, choices: Choices, values: bool) -> None:
    small, cut, masked = clone_graph(module), {}, {}
    for name, axes in coupling.parameters.items():
        tensor = find_tensor(module, name)
        assert tensor is not None
        cut[name] = select(tensor, axes, choices)
        masked[name] = tensor
        for mask in stays(axes, choices):
            masked[name] = masked[name].masked_fill(~mask, 0)
    mend(small, coupling, {factor: choice.width for factor, choice in choices.items()})
    small.recompile()
    found, dense = run(small, cut), run(module, masked)
    for place, axes in _outputs(coupling):
        expected = select(_item(dense, place), axes, choices)
        got = _item(found, place)
        assert got.shape == expected.shape, (place, got.shape, expected.shape)
        if values:
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, equal_nan=True)


def commutes(module: CapturedModule, coupling: Coupling, factor: Factor) -> None:
    """The op on transformed tensors is the transformed op: any linear map E of the units, with its
    inverse where they are contracted.
    """
    encode = torch.eye(factor.size).double() + 0.3 * torch.randn(factor.size, factor.size).double()
    decode = torch.linalg.inv(encode).mT
    pair = {factor: Choice(encode)}, {factor: Choice(decode)}
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    for name, axes in coupling.parameters.items():
        tensor = find_tensor(module, name)
        assert tensor is not None
        before[name] = tensor
        after[name] = transform(tensor, axes, axis_choices(coupling, name, axes, *pair))
    found, dense = run(module, after), run(module, before)
    for place, axes in _outputs(coupling):
        value = _item(dense, place)
        if place[0] not in coupling.parameters and value.dtype.is_floating_point:
            own = [pair[0] if factor in leaves(expr) else {} for expr in axes]
            torch.testing.assert_close(_item(found, place), transform(value, axes, own))


def transformable(module: CapturedModule, coupling: Coupling) -> list[Factor]:
    """The factors of real tensors that the rule says any linear map commutes with."""
    held: dict[Factor, bool] = {}
    for name, axes in coupling.parameters.items():
        tensor = find_tensor(module, name)
        assert tensor is not None
        real = tensor.dtype.is_floating_point and tensor.numel() > 0
        for leaf in (leaf for expr in axes for leaf in leaves(expr)):
            held[leaf] = held.get(leaf, True) and real
    claimed = {**coupling.nonlinearities, **coupling.inexact}
    return [factor for factor in free(coupling) if held.get(factor) and factor not in claimed]


def _outputs(coupling: Coupling) -> list[tuple[tuple[str, int | None], Axes]]:
    single = [((name, None), axes) for name, axes in coupling.axes.items()]
    many = [((n, i), a) for n, own in coupling.outputs.items() for i, a in enumerate(own)]
    return [*single, *many]


def _item(values: Mapping[str, Any], name: tuple[str, int | None]) -> Tensor:
    node, number = name
    value = values[node] if number is None else values[node][number]
    assert isinstance(value, Tensor)
    return value


# ---- what a rule says, as text


def relation(module: CapturedModule, coupling: Coupling) -> str:
    """The axes of the operands and outputs of the only call: letters in order of appearance.

    ``#`` stands for an axis that is frozen; ``~a`` for one that the op mixes along.
    """
    (node,) = calls(module)
    letters: dict[Factor, str] = {}
    inputs = [operand for operand in operands_of(node) if isinstance(operand, fx.Node)]
    texts = [_axes(coupling, coupling.axes[operand.name], letters) for operand in inputs]
    outputs = coupling.outputs.get(node.name) or (coupling.axes[node.name],)
    return f"{', '.join(texts)} -> {', '.join(_axes(coupling, o, letters) for o in outputs)}"


def _axes(coupling: Coupling, axes: Axes, letters: dict[Factor, str]) -> str:
    return " ".join(_text(coupling, expr, letters) for expr in axes) or "."


def _text(coupling: Coupling, expr: Expr, letters: dict[Factor, str]) -> str:
    if isinstance(expr, Factor):
        if expr.size == 0:
            return "0"
        if coupling.frozen.get(expr, UNOWNED) != UNOWNED:
            return "#"
        letter = letters.setdefault(expr, "abcdefghijklmnop"[len(letters)])
        return f"~{letter}" if expr in coupling.inexact else letter
    parts = [_text(coupling, part, letters) for part in expr.parts]
    if isinstance(expr, Concat):
        return f"[{' | '.join(parts)}]"
    return f"({' '.join(parts)})" if parts else "1"
