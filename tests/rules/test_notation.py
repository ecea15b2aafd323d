"""The one-line language of rules: what can be read, and what a rule in it does."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxcompress.analysis.couple import couple
from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Factor
from fxcompress.capture import capture
from fxcompress.rules import RULES, NotationRule
from fxcompress.rules.patterns import letters, parse
from op_law import graph_of, relation


@pytest.mark.parametrize(
    ("text", "operands", "output"),
    [
        ("*b i, o i, o -> *b o", (("*b", "i"), ("o", "i"), ("o",)), ("*b", "o")),
        ("b (g i) *s -> b (g i) *s'", (("b", ("g", "i"), "*s"),), ("b", ("g", "i"), "*s'")),
        ("+, m k -> m", (("+",), ("m", "k")), ("m",)),
        ("k, k -> ", (("k",), ("k",)), ()),
    ],
)
def test_a_pattern_is_read_as_it_stands(text: str, operands: object, output: object) -> None:
    assert parse(text) == (operands, output)


@pytest.mark.parametrize("text", ["a b", "a [b | c] -> a", "a, b => c", "a? -> a"])
def test_what_is_no_pattern_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="an axis rule reads") as caught:
        NotationRule(text)
    assert text in str(caught.value)


def test_letters_of_a_pattern() -> None:
    (pattern,), _ = parse("b (g i) *s -> b")
    assert letters(pattern) == {"b", "g", "i", "*s"}


# ---- what a rule does


def ruled(rule: NotationRule, *shapes: tuple[int, ...]) -> tuple[str, Coupling]:
    """What `rule` says of a matrix product of tensors of these shapes."""
    module = graph_of(torch.ops.aten.mm.default, [torch.randn(shape) for shape in shapes], {})
    before = RULES["aten::mm"]
    RULES["aten::mm"] = rule
    try:
        coupling = couple(module)
    finally:
        RULES["aten::mm"] = before
    return relation(module, coupling), coupling


def test_the_same_letter_is_the_same_factor() -> None:
    assert ruled(NotationRule("m k, k n -> m n"), (2, 3), (3, 4))[0] == "a b, b c -> a c"
    assert ruled(NotationRule("m k, k m -> m m"), (2, 3), (3, 2))[0] == "a b, b a -> a a"


def test_a_product_is_split_by_the_sizes_it_is_given() -> None:
    rule = NotationRule("(g m) k, k n -> (g m) n", sizes=lambda _: {"g": 2})
    assert ruled(rule, (6, 3), (3, 4))[0] == "(a b) c, c d -> (a b) d"


def test_a_new_letter_is_an_axis_that_may_not_shrink() -> None:
    assert ruled(NotationRule("m k, k n -> m' n"), (2, 3), (3, 4))[0] == "a b, b c -> # c"


def test_frozen_letters_say_why() -> None:
    rule = NotationRule("m k, k n -> m n", frozen={"k": "because"})
    text, coupling = ruled(rule, (2, 3), (3, 4))
    assert text == "a #, # b -> a b"
    assert ("because (at mm_default)",) in coupling.frozen.values()


def test_work_is_twice_the_product_of_the_letters() -> None:
    _, coupling = ruled(NotationRule("m k, k n -> m n", work=("m k n",)), (2, 3), (3, 4))
    (work,) = coupling.work
    assert work.coefficient * torch.Size(e.size for e in work.exprs).numel() == 2 * 2 * 3 * 4


def test_roles_come_from_the_letters() -> None:
    """A weight produces what it does not sum over; a bias is affine; inputs hold no role."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    coupling = couple(capture(net, (torch.randn(5, 3),)).module)
    (hidden,) = coupling.parameters["0.bias"]
    assert isinstance(hidden, Factor)
    assert sorted(coupling.roles[hidden]) == [
        ("0.bias", 0, "affine"),
        ("0.weight", 0, "produce"),
        ("1.weight", 1, "contract"),
    ]
