"""An error inside an axis rule freezes what the operator touches; it never ends a compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from typing import Any, Literal

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import fxcompress
from fxcompress.analysis.couple import couple
from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Factor, leaves
from fxcompress.axes.space import Space
from fxcompress.program import Program
from fxcompress.rules import Context, registry
from fxcompress.rules.context import Rule
from fxcompress.rules.pointwise import pointwise
from fxcompress.rules.registry import RULES
from models import MODELS, randomize, rebatch
from nets_generated import CondConvNet, FlatMixture, StyleNet
from programs import program
from selection import RandomSelection, zero_masked

ROUNDING = 1e-10  # float64: sums of a few hundred terms in another order


WITHOUT_SHRINKING = (Phase.explicit, Phase.reuse, Phase.generate)
"""A smaller example is no simpler here, and each costs a compile."""


class FaultError(Exception):
    """Raised in the middle of a rule."""


READS = {
    "each", "factors", "leaves", "many", "nonzero_factors", "of", "resolve", "shape", "tensor",
    "text", "__eq__", "__init__", "__repr__",
}  # fmt: skip
ACTIONS = {
    kind: [name for name, value in vars(kind).items() if callable(value) and name not in READS]
    for kind in (Context, Space)
}
"""Every method that changes what a rule works with, steps of unification among them."""


class Fuse:
    """Counts the actions of the rule of one node and raises before the action `at`."""

    def __init__(self, node: str, at: int | None) -> None:
        self.node, self.at, self.count, self.armed = node, at, 0, False

    def step(self) -> None:
        if self.armed:
            self.count += 1
            if self.at is not None and self.count > self.at:
                self.armed = False
                raise FaultError("in the middle of a rule")

    def rule(self, rule: Rule) -> Rule:
        def armed(ctx: Context, node: fx.Node) -> Any:
            self.armed, self.count = True, 0
            out = rule(ctx, node)
            if self.at is not None:  # past the last action
                self.step()
            self.armed = False
            return out

        return armed


def _counted(method: Callable[..., Any], fuse: Fuse) -> Callable[..., Any]:
    @wraps(method)
    def step(*args: Any, **kwargs: Any) -> Any:
        fuse.step()
        return method(*args, **kwargs)

    return step


@contextmanager
def fused(node: str, at: int | None) -> Iterator[Fuse]:
    """The rule of `node` fails before its action `at`; never, where that is None."""
    fuse = Fuse(node, at)
    with pytest.MonkeyPatch.context() as patch:
        for kind, names in ACTIONS.items():
            for name in names:
                patch.setattr(kind, name, _counted(getattr(kind, name), fuse))

        def rule_for(each: fx.Node) -> Rule | None:
            rule = registry.rule_for(each) or (pointwise if registry.is_pointwise(each) else None)
            return fuse.rule(rule) if rule is not None and each.name == node else rule

        patch.setattr("fxcompress.analysis.couple.rule_for", rule_for)
        yield fuse


def facts(found: Coupling) -> dict[str, Any]:
    """A coupling as text, factors numbered in order of appearance."""
    numbers: dict[Factor, int] = {}
    every = [*found.axes.items(), *((n, a) for n, own in found.outputs.items() for a in own)]
    for _, axes in every:
        for leaf in (leaf for expr in axes for leaf in leaves(expr)):
            numbers.setdefault(leaf, len(numbers))

    def text(expr: Any) -> Any:
        if isinstance(expr, Factor):
            return numbers.get(expr, -1), expr.size
        return type(expr).__name__, tuple(map(text, expr.parts))

    def known(table: Any) -> dict[int, Any]:
        return {numbers[f]: sorted(own) for f, own in table.items() if f in numbers}

    return {
        "axes": [(name, tuple(map(text, axes))) for name, axes in every],
        "facts": [
            known(t) for t in (found.frozen, found.inexact, found.nonlinearities, found.kinds)
        ],
        "roles": known(found.roles),
        "bindings": [(b.node, b.path, text(b.expr)) for b in found.bindings],
        "work": [(w.node, w.coefficient, tuple(map(text, w.exprs))) for w in found.work],
        "failed": found.failed,
    }


def called(name: str) -> list[str]:
    return [node.name for node in program(name).module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=1, phases=WITHOUT_SHRINKING)
@given(data=st.data())
def test_where_in_its_rule_an_error_happens_leaves_no_trace(name: str, data: st.DataObject) -> None:
    """An error at any action gives what an error at the first gives, and names op and error."""
    module, node = program(name).module, data.draw(st.sampled_from(called(name)))
    with fused(node, None) as fuse:
        couple(module)
    expected: dict[str, Any] = {}
    for at in range(fuse.count + 1):
        with fused(node, at):
            found = couple(module)
        expected = expected or facts(found)
        assert facts(found) == expected, at
    if fuse.count:
        (only,) = expected["failed"].values()
        assert only == (f"{node}: FaultError: in the middle of a rule",)


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=1, phases=WITHOUT_SHRINKING)
@given(data=st.data())
def test_what_is_cut_beside_a_failing_rule_is_exact(name: str, data: st.DataObject) -> None:
    node = data.draw(st.sampled_from(called(name)))
    at, seed = data.draw(st.integers(0, 12)), data.draw(st.integers(0, 2**31))
    with fused(node, at):
        found = fxcompress.apply(replace(program(name)), RandomSelection(seed))
    assert proved(found)


def proved(found: Program) -> bool:
    check = found.report.verification
    assert check is not None
    assert check.kind in ("zero-masked", "bit-identical")
    return check.ok and (check.max_relative_error or 0.0) <= ROUNDING


# ---- errors of a user's own rule, and of the probe


def _nothing(ctx: Context, node: fx.Node) -> Any:
    return None


def _numbers(ctx: Context, node: fx.Node) -> Any:
    return (2, 8)


def _one_too_few(ctx: Context, node: fx.Node) -> Any:
    return ctx.of(node.args[0])[1:]


def _turned(ctx: Context, node: fx.Node) -> Any:
    return ctx.of(node.args[0])[::-1]


def _ties_what_differs(ctx: Context, node: fx.Node) -> Any:
    first, second = ctx.of(node.args[0])
    left, right = ctx.cut(second, (4, 4), node)
    ctx.unify(left, right, node)
    ctx.unify(first, second, node)
    return first, second


def _claims_no_argument(ctx: Context, node: fx.Node) -> Any:
    ctx.bind(node, (7,), ctx.of(node.args[0])[1])
    return ctx.of(node.args[0])


def _endless(ctx: Context, node: fx.Node) -> Any:
    return _endless(ctx, node)


WRONG = {
    "nothing": _nothing,
    "numbers": _numbers,
    "an axis less": _one_too_few,
    "other sizes": _turned,
    "sizes that differ": _ties_what_differs,
    "no such argument": _claims_no_argument,
    "recursion": _endless,
}


class _Activated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.tanh(self.first(x)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("rule", WRONG.values(), ids=WRONG)
def test_a_wrong_rule_of_the_user_freezes_and_is_named(
    rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "aten::tanh", rule)
    net, x = randomize(_Activated()).double(), torch.randn(2, 5, dtype=torch.float64)
    found = fxcompress.compile(net, (x,), passes=[RandomSelection()])
    assert proved(found)
    (failed,) = found.report.failed["aten::tanh"]
    assert failed.startswith("tanh: ")
    assert failed in str(found.report).replace("\n", " ")
    assert fxcompress.report.Report.from_dict(found.report.to_dict()) == found.report
    units = {group.name: group.frozen for group in found.groups}
    assert "axis rule of aten::tanh failed" in str(units["first"])
    assert units["second"] is None


def test_an_error_of_the_probe_freezes(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("probe")

    monkeypatch.setattr("fxcompress.probe.experiment", broken)
    net, x = nn.Sequential(nn.Linear(4, 4), Inverse(), nn.Linear(4, 2)).double(), torch.randn(4, 4)
    found = fxcompress.compile(net, (x.double(),), passes=[RandomSelection()], probe=True)
    assert proved(found)
    assert found.report.failed == {"aten::matrix_exp": ("matrix_exp: KeyError: 'probe'",)}


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.matrix_exp(x.mT @ x)


def test_an_interrupt_is_no_error_of_a_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setitem(RULES, "aten::tanh", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fxcompress.compile(_Activated(), (torch.randn(2, 5),))


# ---- weights made for each sample

GENERATED: dict[str, tuple[Callable[[], nn.Module], tuple[tuple[int, ...], ...]]] = {
    "modulated": (StyleNet, ((3, 6, 4), (4,))),
    "mixture": (CondConvNet, ((3, 6, 4),)),
    "flat mixture": (lambda: CondConvNet(FlatMixture), ((3, 6, 4),)),
}


@pytest.mark.parametrize("free", ["batch", "none"])
@pytest.mark.parametrize("name", GENERATED)
def test_convolutions_with_a_group_for_each_sample(
    name: str, free: Literal["batch", "none"]
) -> None:
    """The samples are no channels; the channels beside them may shrink, at any batch size."""
    make, shapes = GENERATED[name]
    net = randomize(make()).double()
    inputs = tuple(torch.randn(2, *shape, dtype=torch.float64) for shape in shapes)
    old = fxcompress.compile(net, inputs, dynamic=free)
    assert not old.report.failed
    found = fxcompress.apply(old, RandomSelection())
    assert proved(found)
    held = {site.parameter for group in old.groups if not group.frozen for site in group.sites}
    assert {"enter.weight", "first.weight", "second.weight"} <= held
    if free == "batch":
        assert old.dynamic[0] == {0: "batch"}
        masked, new = zero_masked(net, found), rebatch(inputs, 5)
        exact = all(group.exact for group in old.groups)
        assert not exact or torch.allclose(found(*new), masked(*new), rtol=0, atol=ROUNDING)
