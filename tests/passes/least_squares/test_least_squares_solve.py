"""The greedy elimination of least squares is the cheapest refit, step by step."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fxcompress.passes.elimination import lazy
from fxcompress.passes.least_squares.solve import Greedy, System


@pytest.mark.parametrize("width", [1, 7, 256])
@pytest.mark.parametrize("updates", [False, True])
@pytest.mark.parametrize(
    ("blocks", "cells", "places"), [(1, 1, 3), (1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 1)]
)
def test_greedy_is_the_cheapest_refit_at_every_step(
    width: int, updates: bool, blocks: int, cells: int, places: int, monkeypatch: Any
) -> None:
    """Its damage is what refitting on the rest costs, from scratch, in two maps; or what removing
    one unit costs with the weights of the others as they were. However many downdates are put off.
    """
    monkeypatch.setattr(lazy, "BLOCK", width)
    draw = partial(torch.randn, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    n = 4 * places * cells // blocks
    systems = []
    for _ in range(2):
        h = draw(blocks, 30, n) @ draw(n, n)
        systems.append(System(h.mT @ h / 30, draw(blocks, n, 5), 1e-3, "a map"))
    score = Greedy(systems, cells, 4, updates).importance()
    order = score.flatten().argsort().tolist()

    def rows(gone: list[int]) -> Tensor:
        stay = torch.ones(cells * 4, dtype=torch.bool)
        stay[gone] = False
        return stay.repeat_interleave(places).reshape(blocks, -1)

    def cost(gone: list[int], unit: int) -> float:
        return sum(_cost(system, rows(gone), rows([*gone, unit]), updates) for system in systems)

    gone: list[int] = []
    for step, unit in enumerate(order[:-cells]):
        cell = step % cells  # in turn
        rest = [u for u in range(4 * cell, 4 * cell + 4) if u not in gone]
        costs = {u: cost(gone, u) for u in rest}
        assert min(costs, key=costs.__getitem__) == unit
        gone.append(unit)


def _cost(system: System, before: Tensor, after: Tensor, updates: bool) -> float:
    """By how much refitting on `after` is worse than on `before`, as a share of the outputs."""
    if updates:
        changes = [system.columns - system.refitted(stay) for stay in (before, after)]
        old, new = (float((c * (system.ridged @ c)).sum()) for c in changes)
        return (new - old) / system.energy
    left = System(
        system.ridged * before.unsqueeze(2) * before.unsqueeze(1) + torch.diag_embed(~before * 1.0),
        system.columns * before.unsqueeze(2), 0.0, "a map",
    )  # fmt: skip
    change = left.columns - left.refitted(after)
    return float((change * (left.gram @ change)).sum()) / system.energy
