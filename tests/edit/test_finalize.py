"""Folding what parameters are read through: the same function, plain parameters, no traces."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.finalize import finalize
from fxcompress.edit.plan import Plan, Reparametrize
from fxcompress.errors import PlanError
from fxcompress.program import Program
from programs import program


class Gate(nn.Module):
    """Scales the rows of a parameter by something trainable."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, rows, dtype=torch.float64))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gain.unsqueeze(1)


@dataclass(frozen=True)
class Through:
    """Read parameters through modules."""

    modules: dict[str, nn.Module] = field(repr=False)

    def plan(self, program: Program) -> Plan:
        return Plan(tuple(Reparametrize(name, m) for name, m in self.modules.items()))


@pytest.fixture
def gated() -> Program:
    modules: dict[str, nn.Module] = {"first.weight": Gate(7), "second.weight": Gate(11)}
    shared = program("mlp")  # its parameters are those of the gated program
    own = replace(shared, module=copy.deepcopy(shared.module))
    return fx.apply(own, Through(modules))


X = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_function_stays_bit_for_bit(gated: Program) -> None:
    assert torch.equal(gated.finalize()(X), gated(X))
    assert not torch.equal(gated(X), program("mlp")(X))


def test_nothing_of_the_modules_is_left(gated: Program) -> None:
    dense, final = program("mlp").module, gated.finalize().module
    assert final.state_dict().keys() == dense.state_dict().keys()
    assert [n.name for n in final.graph.nodes] == [n.name for n in dense.graph.nodes]
    assert dict(final.named_modules()).keys() == dict(dense.named_modules()).keys()


def test_what_was_not_read_through_a_module_is_shared_and_the_rest_is_not(gated: Program) -> None:
    final = gated.finalize().module
    assert final.get_parameter("head.weight") is gated.module.get_parameter("head.weight")
    with torch.no_grad():
        final.get_parameter("first.weight").zero_()
    assert bool((gated.module.get_parameter("first.weight") != 0).any())


class Noisy(nn.Module):
    """Drops entries of a parameter while it trains, and tells how often it was called."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return nn.functional.dropout(weight, 0.5, self.training)


def test_what_is_folded_is_what_evaluation_reads_in_whatever_mode() -> None:
    noisy = fx.apply(program("mlp"), Through({"first.weight": Noisy()}))
    training = replace(noisy, module=copy.deepcopy(noisy.module).train())
    before = {name: value.clone() for name, value in training.module.state_dict().items()}
    final = training.finalize().module.get_parameter("first.weight")
    assert torch.equal(final, program("mlp").module.get_parameter("first.weight"))
    assert training.module.get_submodule("reparametrized.first_weight").training
    for name, value in training.module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_program_before_still_trains_its_modules(gated: Program) -> None:
    gated.finalize()
    gated(X).sum().backward()
    gain = gated.module.get_parameter("reparametrized.first_weight.gain")
    assert gain.grad is not None


def test_a_module_without_reparametrisations_comes_back_itself() -> None:
    module = program("conv_chain").module
    assert finalize(module) is module


def test_a_parameter_stays_trainable_or_not(gated: Program) -> None:
    gated.module.get_parameter("first.weight").requires_grad_(False)
    final = gated.finalize().module
    assert not final.get_parameter("first.weight").requires_grad
    assert final.get_parameter("second.weight").requires_grad


def test_a_parameter_that_is_also_read_directly_cannot_be_folded(gated: Program) -> None:
    module = gated.module
    source = next(n for n in module.graph.nodes if n.target == "first.weight")
    through = next(n for n in module.graph.nodes if n.op == "call_module" and n.args[0] is source)
    (user,) = through.users
    with module.graph.inserting_before(user):
        both = module.graph.call_function(torch.ops.aten.add.Tensor, (source, through))
    user.replace_input_with(through, both)
    with pytest.raises(PlanError, match=r"first\.weight is read in several ways"):
        finalize(module)
