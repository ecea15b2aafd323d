"""Shifts go into what reads the units, once for each call, or are refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from edited import Just, linear_chain


def test_a_shift_goes_into_the_consumers_bias() -> None:
    net, args = linear_chain()
    keep = torch.arange(4)
    shift = torch.zeros(8, dtype=torch.float64)
    shift[4:] = torch.randn(4, dtype=torch.float64)
    edits = Just(lambda p: [fx.Project(p.group("0"), keep, shift=shift)])
    cut = fx.apply(fx.compile(net, args), edits, verify=False)
    hidden = net[0](*args).detach()
    hidden[:, 4:] = shift[4:]
    torch.testing.assert_close(cut(*args), net[1](hidden), rtol=1e-12, atol=1e-12)


class Readers(nn.Module):
    """The units are read by one layer twice, and by what `reader` names."""

    def __init__(self, reader: str) -> None:
        super().__init__()
        self.reader = reader
        self.enter, self.leave = nn.Linear(5, 8), nn.Linear(8, 3, bias=reader != "no bias")
        self.conv = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.enter(x)
        y: Tensor = self.leave(h) + self.leave(2 * h)
        if self.reader == "sum":
            return y * h.sum(-1, keepdim=True)
        if self.reader == "transposed":
            return y + h @ self.leave.weight.t()
        if self.reader == "padded":
            image: Tensor = self.conv(h[:, :, None, None].expand(-1, -1, 4, 4))
            return y.sum() + image
        return y


@pytest.mark.parametrize("reader", ["shared bias", "no bias"])
def test_a_shift_reaches_each_call_of_a_layer_once(reader: str) -> None:
    torch.manual_seed(0)
    net, x = Readers(reader).double(), torch.randn(4, 5, dtype=torch.float64)
    shift = torch.randn(8, dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    edits = Just(lambda p: [fx.Project(p.group("enter"), eye, eye, shift)])
    moved = fx.apply(fx.compile(net, (x,)), edits)
    expected = net(x) + 2 * net.leave.weight.detach() @ shift
    torch.testing.assert_close(moved(x), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reader", ["sum", "transposed", "padded"])
def test_a_shift_is_refused_where_a_reader_cannot_take_it(reader: str) -> None:
    net, x = Readers(reader).double(), torch.randn(4, 5, dtype=torch.float64)
    eye = torch.eye(8, dtype=torch.float64)
    edits = Just(lambda p: [fx.Project(p.group("enter"), eye, eye, torch.ones(8))])
    with pytest.raises(fx.PlanError, match="shift"):
        fx.apply(fx.compile(net, (x,)), edits)
