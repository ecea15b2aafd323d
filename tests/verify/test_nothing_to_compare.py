"""A check says that it verified only where it compared something."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.passes import MagnitudePruning
from fxcompress.report import NOT_RUN, Check
from models import normal


class Normalized(nn.Module):
    """Not a number of inputs that are all zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x / x.norm())))  # type: ignore[no-any-return]


class Undefined(Normalized):
    """Not a number of any input."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(-1 - super().forward(x).abs())


def verified(model: nn.Module, x: Tensor) -> tuple[Check, str]:
    half = [MagnitudePruning(ratio=0.5)]
    report = fx.compile(model.double().eval(), (x.double(),), passes=half).report
    return report.checks[-1], str(report)


def test_inputs_of_which_the_model_makes_no_number_are_drawn_anew() -> None:
    check, _ = verified(Normalized(), torch.zeros(2, 8))
    assert check.kind == "zero-masked", "with the given ones it would not have run"


def test_where_no_output_is_finite_nothing_is_verified() -> None:
    check, text = verified(Undefined(), normal(2, 8))
    assert check.kind == NOT_RUN
    assert check.ok
    assert check.max_relative_error is check.zeroed_error is None
    assert "not verified after MagnitudePruning(ratio=0.5): the dense graph has no finite" in text
