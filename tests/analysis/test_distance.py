"""How far two outputs are apart, for every kind of number."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.verify import distance
from models import normal, randomize
from selection import RandomSelection


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_numbers_differ_in_both_parts(dtype: torch.dtype) -> None:
    wanted = torch.tensor([3 + 4j, 1j], dtype=dtype)
    for gap in (0.5, 0.5j, 0.3 + 0.4j):
        found, finite = distance(wanted + torch.tensor([0, gap], dtype=dtype), wanted)
        assert finite
        assert found == pytest.approx(0.1)  # of 5, the largest magnitude
    assert distance(wanted, wanted) == (0.0, True)
    assert distance(wanted.real, wanted)[0] == pytest.approx(0.8)
    assert not distance(wanted * complex(1, float("inf")), wanted)[1]


class Waves(nn.Module):
    """A spectrum between two layers; its outputs are complex."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.fft.fft(self.head(torch.tanh(self.first(x))), dim=1)
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_with_complex_outputs_is_proved(dtype: torch.dtype) -> None:
    model, x = randomize(Waves()).to(dtype), normal(2, 6, 5).to(dtype)
    check = fx.compile(model, (x,), passes=[RandomSelection()]).report.verification
    assert check is not None
    assert check.ok
    assert check.max_relative_error is not None
    assert check.zeroed_error is not None
