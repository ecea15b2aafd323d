"""Every axis rule is proved by its constraint: op(sliced inputs) == slice(op(inputs))."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch.utils import _pytree as pytree

from fxcompress.analysis.couple import couple
from fxcompress.axes.expressions import Axes
from fxcompress.graph.schema import read as argument_at
from fxcompress.rules import RULES, Context, axis_rule, name_of
from fxcompress.rules.create import CONSIDERED
from fxcompress.rules.registry import is_pointwise
from op_law import (
    append,
    calls,
    check,
    commutes,
    cuts,
    free,
    relation,
    transformable,
)
from op_table import CASES, RANDOM, Case, overload, read


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_rule_says_what_the_table_says(case: Case) -> None:
    module = case.graph()
    assert relation(module, couple(module)) == case.says


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=5)
@given(data=st.data())
def test_slicing_commutes_with_the_op(case: Case, data: st.DataObject) -> None:
    module = case.graph()
    coupling = couple(module)
    choices = data.draw(cuts(free(coupling)))
    check(module, coupling, choices, values=not any(name in case.op for name in RANDOM))


@pytest.mark.parametrize("case", [case for case in CASES if case.op not in CONSIDERED], ids=str)
@settings(max_examples=5)
@given(data=st.data())
def test_what_is_summed_after_the_op_is_exact_where_it_is_said_to_be(
    case: Case, data: st.DataObject
) -> None:
    """Only buffers are masked with zeros here: what an op makes of zeros must be known."""
    module = case.graph()
    values = [v for v in pytree.tree_leaves(calls(module)[0].meta["val"]) if v.dim()]
    if len(values) != 1 or any(name in case.op for name in RANDOM):
        return
    append(module, torch.ops.aten.sum.dim_IntList, [data.draw(st.integers(0, values[0].dim() - 1))])
    coupling = couple(module)
    check(module, coupling, data.draw(cuts(free(coupling))))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_linear_maps_commute_with_the_op_where_there_is_no_barrier(case: Case) -> None:
    if case.says.endswith(" 0"):  # nothing comes out
        return
    module = case.graph()
    coupling = couple(module)
    for factor in (
        [] if any(name in case.op for name in RANDOM) else transformable(module, coupling)
    ):
        commutes(module, coupling, factor)


def test_every_rule_has_a_case() -> None:
    """The table of rules and the table of cases cannot drift apart."""
    proved = {_key(case) for case in CASES}
    assert sorted(key for key in RULES if isinstance(key, str) and key not in proved) == []


def _key(case: Case) -> str | None:
    """The entry of the table that serves a case."""
    target = overload(case.op)
    assert isinstance(target, torch._ops.OpOverload)
    names = (target.name(), target._schema.name, target._schema.name.removesuffix("_"))
    return next((name for name in names if name in RULES), None)


# ---- what has no rule


@pytest.mark.parametrize(
    "line",
    [
        "bitwise_left_shift.Tensor(I(4, 3), I(4, 3))",
        "cholesky(torch.eye(3).double())",
        "fft_fft(F(2, 4))",
        "linalg_inv(torch.eye(3).double())",
        "nonzero(I(2, 3, 4))",
        "rot90(F(3, 4))",
        "trace(F(3, 3))",
        "unique_dim(I(3, 4), 0)",
        "where(B(3, 4))",
    ],
)
def test_an_op_without_a_rule_freezes_what_it_touches(line: str) -> None:
    """Never a crash, never a guess; a pointwise op needs no rule."""
    module = read(line).graph()
    coupling = couple(module)
    (node,) = calls(module)
    refused = not is_pointwise(node)
    assert bool(coupling.unknown) == (refused and name_of(node.target) not in CONSIDERED)
    assert bool(free(coupling)) != refused


def test_unknown_ops_are_named_with_their_nodes() -> None:
    coupling = couple(read("trace(F(3, 3))").graph())
    assert coupling.unknown == {"aten::trace": ("trace_default",)}
    (reasons,) = set(coupling.frozen.values())
    assert reasons == ("no axis rule for aten.trace.default (at trace_default)",)


def test_a_rule_of_the_user() -> None:
    """A rule added for an op is found before anything else, and by its name."""

    @axis_rule("aten::trace")
    def _trace(ctx: Context, node: fx.Node) -> Axes:
        ctx.freeze(ctx.of(node.args[0]), node, "a diagonal")
        return ()

    try:
        coupling = couple(read("trace(F(3, 3))").graph())
    finally:
        del RULES["aten::trace"]
    assert coupling.unknown == {}
    assert {reason for reasons in coupling.frozen.values() for reason in reasons} == {
        "a diagonal (at trace_default)"
    }


# ---- what a rule binds


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bound_arguments_have_the_sizes_they_follow(case: Case) -> None:
    module = case.graph()
    (node,) = calls(module)
    for binding in couple(module).bindings:
        value = argument_at(node, binding.path)
        if value != -1 and value <= binding.expr.size:
            assert value == binding.sign * binding.expr.size
