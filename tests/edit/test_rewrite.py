"""The rewriter: general matrices, values, reparametrisations, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from edited import Just, linear_chain
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.program import Program
from fxcompress.verify import verify
from models import build
from selection import RandomSelection


def program(name: str) -> Program:
    model, args, kwargs = build(name)
    return fx.compile(model, args, kwargs)


def first(found: Program, name: str) -> ChannelGroup:
    return found.group(name)


def test_an_invertible_encode_with_its_inverse_changes_nothing_through_linear_maps() -> None:
    net, args = linear_chain()
    encode = torch.randn(8, 8, dtype=torch.float64)
    decode = torch.linalg.inv(encode)
    dense = fx.compile(net, args)
    new = fx.apply(dense, Just(lambda p: [fx.Project(p.group("0"), encode, decode)]))
    torch.testing.assert_close(new(*args), net(*args), rtol=1e-9, atol=1e-9)


def test_folding_equal_units_is_exact_through_an_activation() -> None:
    torch.manual_seed(0)
    first = nn.Linear(5, 6)
    net = nn.Sequential(first, nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        first.weight[3:], first.bias[3:] = first.weight[:3].clone(), first.bias[:3].clone()
    members = torch.eye(3, dtype=torch.float64).repeat(2, 1)
    args = (torch.randn(4, 5, dtype=torch.float64),)
    edits = Just(lambda p: [fx.Project(p.group("0"), members.T / 2, members)])
    folded = fx.apply(fx.compile(net, args), edits)
    torch.testing.assert_close(folded(*args), net(*args), rtol=1e-12, atol=1e-12)
    assert folded.report.params.after < folded.report.params.before


@pytest.mark.parametrize("name", ["fused_attention", "interleaved_attention"])
def test_a_matrix_for_each_head_acts_on_that_head_alone(name: str) -> None:
    dense = program(name)
    group = next(g for g in dense.groups if g.kind == "vo")
    torch.manual_seed(0)
    encode = torch.randn(group.cells, group.units, group.units, dtype=torch.float64)
    edits = Just(lambda p: [fx.Project(group, encode, torch.linalg.inv(encode))])
    new = fx.apply(dense, edits)
    torch.testing.assert_close(new(*dense.args), dense(*dense.args), rtol=1e-8, atol=1e-8)


def test_a_tied_embedding_refuses_what_is_no_rotation() -> None:
    dense = program("tied_language_model")
    group = next(g for g in dense.groups if any(s.role == "table" for s in g.sites))
    square = torch.randn(group.units, group.units, dtype=torch.float64)
    if group.frozen:
        pytest.fail(group.frozen)
    with pytest.raises(fx.PlanError, match="transpose"):
        fx.apply(dense, Just(lambda p: [fx.Project(group, square, torch.linalg.inv(square))]))


def test_a_tied_embedding_takes_a_rotation_in_both_its_roles() -> None:
    dense = program("tied_language_model")
    group = next(g for g in dense.groups if any(s.role == "table" for s in g.sites))
    torch.manual_seed(0)
    square = torch.linalg.qr(torch.randn(group.units, group.units, dtype=torch.float64)).Q
    new = fx.apply(dense, Just(lambda p: [fx.Project(group, square, square.T)]))
    name = next(s.parameter for s in group.sites if s.role == "table")
    old, turned = dense.module.get_parameter(name), new.module.get_parameter(name)
    torch.testing.assert_close(turned, old @ square.T, rtol=1e-12, atol=1e-12)
    assert name not in new.kept
    assert name in new.mixed


def test_units_that_stay_may_stand_in_for_those_that_go() -> None:
    net, args = linear_chain()
    weight, bias = net.get_parameter("0.weight"), net.get_parameter("0.bias")
    with torch.no_grad():  # the last four units are combinations of the first four
        mix = torch.randn(4, 4, dtype=torch.float64)
        weight[4:], bias[4:] = mix @ weight[:4], mix @ bias[:4]
    decode = torch.cat([torch.eye(4, dtype=torch.float64), mix])
    edits = Just(lambda p: [fx.Project(p.group("0"), torch.arange(4), decode)])
    cut = fx.apply(fx.compile(net, args), edits)
    torch.testing.assert_close(cut(*args), net(*args), rtol=1e-10, atol=1e-10)


class Joined(nn.Module):
    """Two layers side by side, read by one without a bias, whose outputs shrink too."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 4), nn.Linear(5, 6)
        self.mid, self.head = nn.Linear(10, 7, bias=False), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1)
        out: Tensor = self.head(self.mid(joined).relu())
        return out


def test_a_shift_of_one_part_of_what_a_layer_reads_is_that_parts_alone() -> None:
    """The constant goes into a new bias, which is cut with the outputs of its layer."""
    torch.manual_seed(0)
    net, x = Joined().double(), torch.randn(3, 5, dtype=torch.float64)
    shift, kept = torch.randn(4, dtype=torch.float64), torch.arange(0, 7, 2)
    edits = Just(
        lambda p: [
            fx.Project(p.group("left"), torch.arange(4), shift=shift),
            fx.Project(p.group("mid"), kept),
        ]
    )
    moved = fx.apply(fx.compile(net, (x,)), edits)
    joined = torch.cat([net.left(x) + shift, net.right(x)], 1)
    hidden = net.mid(joined)[:, kept].relu()
    expected = hidden @ net.head.weight[:, kept].T + net.head.bias
    torch.testing.assert_close(moved(x), expected, rtol=1e-10, atol=1e-10)
    assert moved.module.get_parameter("mid.bias").requires_grad


def test_replace_puts_values_and_shares_the_rest() -> None:
    dense = program("mlp")
    value = torch.zeros_like(dense.module.get_parameter("first.weight"))
    new = fx.apply(dense, Just(lambda p: [fx.Replace("first.weight", value)]))
    assert not new.module.get_parameter("first.weight").any()
    kept = new.module.get_parameter("second.weight")
    assert kept is dense.module.get_parameter("second.weight")


class Half(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / 2


def test_reparametrize_reads_through_the_module_until_finalised() -> None:
    dense = program("mlp")
    new = fx.apply(dense, Just(lambda p: [fx.Reparametrize("first.weight", Half())]))
    halved = fx.apply(
        dense,
        Just(lambda p: [fx.Replace("first.weight", p.module.get_parameter("first.weight") / 2)]),
    )
    torch.testing.assert_close(new(*dense.args), halved(*dense.args), rtol=0, atol=0)
    done = new.finalize()
    assert not [n for n in done.module.graph.nodes if n.op == "call_module"]
    torch.testing.assert_close(done(*dense.args), halved(*dense.args), rtol=0, atol=0)
    assert set(done.module.state_dict()) == set(dense.module.state_dict())


def test_a_reparametrised_parameter_keeps_its_shape() -> None:
    dense = program("mlp")
    new = fx.apply(dense, Just(lambda p: [fx.Reparametrize("first.weight", Half())]))
    assert "finalize" in str(new.group("first").frozen)


class LikeNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ParameterDict({"b_c": torch.ones(3)})
        self.a_b = nn.ParameterDict({"c": torch.ones(3)})

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_parameter("a.b_c") + self.get_parameter("a_b.c")


def test_parameters_of_like_names_go_through_their_own_modules() -> None:
    dense = fx.compile(LikeNames(), (torch.ones(2, 3),))
    edits = [fx.Reparametrize("a.b_c", Half()), fx.Reparametrize("a_b.c", nn.Identity())]
    new = fx.apply(dense, Just(lambda p: edits))
    torch.testing.assert_close(new(torch.ones(2, 3)), torch.full((2, 3), 1.5))


def test_a_parameter_goes_through_one_module_at_a_time() -> None:
    half = Just(lambda p: [fx.Reparametrize("first.weight", Half())])
    once = fx.apply(program("mlp"), half)
    with pytest.raises(fx.PlanError, match="finalize"):
        fx.apply(once, half)
    twice = fx.apply(once.finalize(), half).finalize().module.get_parameter("first.weight")
    torch.testing.assert_close(twice, program("mlp").module.get_parameter("first.weight") / 4)


def test_a_tensor_is_edited_once_in_a_plan() -> None:
    dense = program("mlp")
    both = Just(
        lambda p: [
            fx.Project(p.group("first"), torch.arange(3)),
            fx.Reparametrize("first.bias", nn.Identity()),
        ]
    )
    with pytest.raises(fx.PlanError, match="two passes"):
        fx.apply(dense, both)


def test_values_replaced_beside_a_selection_are_proved_too() -> None:
    dense = program("mlp")
    value = torch.randn(3, dtype=torch.float64)
    plan = fx.Plan(
        (fx.Project(dense.group("first"), torch.arange(3)), fx.Replace("head.bias", value))
    )
    new = fx.apply(dense, Just(lambda p: plan.edits))
    assert new.report.checks[-1].kind == "zero-masked"
    with torch.no_grad():
        new.module.get_parameter("first.weight").zero_()
    with pytest.raises(fx.VerificationError):
        verify(dense.module, new.module, dense.analysis.coupling, plan, dense.args, dense.kwargs)


def test_inputs_of_zeros_prove_nothing_so_others_are_drawn() -> None:
    net = nn.Sequential(nn.Linear(5, 8, bias=False), nn.Linear(8, 3, bias=False)).double()
    dense = fx.compile(net, (torch.zeros(2, 5, dtype=torch.float64),))
    plan = RandomSelection().plan(dense)
    new = fx.apply(dense, RandomSelection())
    with torch.no_grad():
        new.module.get_parameter("0.weight").mul_(2)
    with pytest.raises(fx.VerificationError):
        verify(dense.module, new.module, dense.analysis.coupling, plan, dense.args, dense.kwargs)


def test_a_program_in_training_mode_is_left_alone_by_a_pass() -> None:
    dense = program("projected_residual")
    dense.module.train()
    before = {k: v.clone() for k, v in dense.module.state_dict().items()}
    small = fx.apply(dense, RandomSelection())
    assert small.module.training
    assert all(torch.equal(before[k], v) for k, v in dense.module.state_dict().items())


REFUSED: dict[str, tuple[Callable[[ChannelGroup], Any], str]] = {
    "index out of range": (lambda g: fx.Project(g, torch.tensor([0, 99])), "0…6"),
    "index twice": (lambda g: fx.Project(g, torch.tensor([1, 1])), "twice"),
    "nothing left": (lambda g: fx.Project(g, torch.tensor([], dtype=torch.int64)), "at least one"),
    "no decode": (lambda g: fx.Project(g, torch.eye(7)), "needs a decode"),
    "not finite": (
        lambda g: fx.Project(g, torch.full((3, 7), torch.nan), torch.zeros(7, 3)),
        "not finite",
    ),
    "unknown parameter": (lambda g: fx.Replace("frist.weight", torch.zeros(1)), "no parameter"),
    "wrong shape": (lambda g: fx.Replace("first.weight", torch.zeros(2, 2)), r"\(2, 2\)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_plans_are_refused_and_leave_the_program(case: str) -> None:
    make, words = REFUSED[case]
    dense = program("mlp")
    before = {k: v.clone() for k, v in dense.module.state_dict().items()}
    with pytest.raises(fx.PlanError, match=words):
        fx.apply(dense, Just(lambda p: [make(p.group("first"))]))
    assert all(torch.equal(before[k], v) for k, v in dense.module.state_dict().items())


def test_frozen_and_foreign_groups_are_refused() -> None:
    dense = program("mlp")
    with pytest.raises(fx.PlanError, match="output of the model"):
        fx.apply(dense, Just(lambda p: [fx.Project(p.group("head"), torch.tensor([0]))]))
    other = program("mlp").group("first")
    with pytest.raises(fx.PlanError, match="another program"):
        fx.apply(dense, Just(lambda p: [fx.Project(other, torch.tensor([0]))]))


@pytest.mark.parametrize("name", ["padded_residual", "fused_attention", "swiglu"])
def test_the_proof_catches_a_wrong_mapping(name: str) -> None:
    dense = program(name)
    plan = RandomSelection().plan(dense)
    new = fx.apply(dense, RandomSelection())
    victim = next(n for n, axes in new.kept.items() if n.endswith("weight") and axes[0] is not None)
    with torch.no_grad():
        new.module.get_parameter(victim).copy_(new.module.get_parameter(victim).flip(0))
    coupling = dense.analysis.coupling
    with pytest.raises(fx.VerificationError, match="zero-masked"):
        verify(dense.module, new.module, coupling, plan, dense.args, dense.kwargs)
