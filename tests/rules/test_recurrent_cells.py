"""Recurrent cells in a loop of the model's own: their hidden units may shrink."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from models import randomize, rebatch
from selection import RandomSelection, zero_masked

ROUNDING = 1e-10  # float64: sums of a few hundred terms in another order


class Loop(nn.Module):
    """A cell that runs over the steps of a sequence, with a layer before and after it."""

    def __init__(self, cell: type[nn.Module], **options: object) -> None:
        super().__init__()
        self.enter, self.cell, self.head = nn.Linear(5, 6), cell(6, 8, **options), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, state, seen = self.enter(x).relu(), None, []
        for step in range(x.shape[-2]):
            state = self.cell(x[..., step, :], state)
            seen.append(state if isinstance(state, Tensor) else state[0])
        return self.head(torch.stack(seen, -2))  # type: ignore[no-any-return]


CELLS = {
    "gru": lambda: Loop(nn.GRUCell),
    "lstm": lambda: Loop(nn.LSTMCell),
    "tanh": lambda: Loop(nn.RNNCell),
    "relu": lambda: Loop(nn.RNNCell, nonlinearity="relu"),
    "no bias": lambda: Loop(nn.GRUCell, bias=False),
}


@pytest.mark.parametrize("shape", [(2, 4, 5), (4, 5)], ids=["batch", "one sequence"])
@pytest.mark.parametrize("cell", CELLS)
def test_hidden_units_of_cells_are_cut_exactly(cell: str, shape: tuple[int, ...]) -> None:
    net = randomize(CELLS[cell]()).double()
    x = torch.randn(shape, dtype=torch.float64)
    old = fx.compile(net, (x,))
    assert old.report.unknown == old.report.failed == {}
    units = {group.name: group for group in old.groups if not group.frozen}
    assert {group.units for group in units.values()} == {6, 8}
    assert all(group.exact for group in units.values())
    found = fx.apply(old, RandomSelection())
    masked, inputs = zero_masked(net, found), [x, *([rebatch(x, 5)] if len(shape) == 3 else [])]
    for each in inputs:
        torch.testing.assert_close(found(each), masked(each), rtol=0, atol=ROUNDING)
