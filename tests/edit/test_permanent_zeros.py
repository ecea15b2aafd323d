"""Permanent zeros that come through a module are as known as those of new values, at any time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.plan import Pattern
from fxcompress.program import Program

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Gate(nn.Module):
    """Rows are read where their gate is above zero, as movement pruning does."""

    def __init__(self, gates: Tensor, *, lies: bool = False) -> None:
        super().__init__()
        self.gates, self.lies = nn.Parameter(gates), lies

    def forward(self, weight: Tensor) -> Tensor:
        return weight * (self.gates > 0).unsqueeze(1)

    def zeros(self) -> tuple[Tensor, Pattern | None]:
        mask = (self.gates > (1 if self.lies else 0)).unsqueeze(1).expand(-1, 6)
        return mask, Pattern(6, 6, 1)


@dataclass(frozen=True)
class Just:
    """A pass with these edits."""

    edits: Callable[[Program], Any]

    def plan(self, found: Program) -> fx.Plan:
        return fx.Plan(tuple(self.edits(found)))


def gated(gate: nn.Module) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    return fx.compile(net, (X,), passes=[Just(lambda _: [fx.Reparametrize("0.weight", gate)])])


def replaced(mask: Tensor) -> Program:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    value = net.get_parameter("0.weight").detach() * mask
    edit = fx.Replace("0.weight", value, mask, Pattern(6, 6, 1))
    return fx.compile(net, (X,), passes=[Just(lambda _: [edit])])


def test_they_are_known_as_those_of_replace_before_and_after_finalize() -> None:
    gate = Gate(torch.tensor([1.0, -1] * 4))
    through, plain = gated(gate), replaced(gate.zeros()[0])
    for found in (through, through.finalize()):
        assert found.sparsity == plain.sparsity == {"0.weight": 0.5}
        assert found.report.sparse == plain.report.sparse
        assert torch.equal(found.masks["0.weight"].mask, plain.masks["0.weight"].mask)
        assert found.masks["0.weight"].pattern == plain.masks["0.weight"].pattern
    torch.testing.assert_close(through(X), plain(X), rtol=0, atol=0)


def test_what_training_closes_is_known_at_once_and_kept_by_finalize() -> None:
    gate = Gate(torch.ones(8))
    found = gated(gate)
    assert found.sparsity == {"0.weight": 0.0}
    with torch.no_grad():
        gate.gates[:6] = -1
    assert found.sparsity == {"0.weight": 0.75}
    final = found.finalize()
    assert final.sparsity == {"0.weight": 0.75}
    assert [row.zeros for row in final.report.sparse] == [0.75]
    assert not final.module.get_parameter("0.weight")[:6].any()


def test_a_module_that_names_zeros_that_are_none_fails_its_proof() -> None:
    with pytest.raises(fx.VerificationError, match="not zero everywhere where the mask"):
        gated(Gate(torch.ones(8), lies=True))
