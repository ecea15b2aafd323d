"""Every weight that multiplies a value is a matrix: the law of linear maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils import _pytree as pytree

import fxcompress as fx
import models
from fxcompress.analysis.couple import couple
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import find_tensor
from fxcompress.layers.maps import linear_maps
from map_law import check_map, contracted, values_of
from op_table import CASES, Case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_maps_of_an_operator_multiply_as_it_does(case: Case) -> None:
    module = case.graph()
    coupling = couple(module)
    maps = linear_maps(module, coupling)
    assert not coupling.failed
    assert {one.weight for one in maps} >= contracted(coupling)
    values = values_of(module)
    for one in maps:
        if one.direct:
            check_map(module, one, values)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_maps_of_a_model_multiply_as_its_layers_do(name: str) -> None:
    model, args, kwargs = models.build(name)
    program = fx.compile(model, args, kwargs)
    assert {one.weight for one in program.maps} >= contracted(program.analysis.coupling)
    values = values_of(program.module, *pytree.tree_leaves((args, kwargs)))
    for one in program.maps:
        check_map(program.module, one, values)


@pytest.mark.parametrize("name", models.MODELS)
def test_entries_are_the_inverse_of_the_matrix(name: str) -> None:
    model, args, kwargs = models.build(name)
    program = fx.compile(model, args, kwargs)
    for one in program.maps:
        value = find_tensor(program.module, one.weight)
        assert value is not None
        assert one.whole
        drawn = torch.randn_like(value)
        torch.testing.assert_close(one.entries(one.matrix(drawn)), drawn, rtol=0, atol=0)


class Read(nn.Module):
    """One weight, read in some way before it multiplies."""

    def __init__(self, shape: tuple[int, ...], read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape).double())  # which no cast to single rounds
        self.read = read

    def forward(self, x: Tensor) -> Tensor:
        return self.read(x, self.weight)


@dataclass(frozen=True)
class Way:
    """A way to read a weight, and the maps of it: (groups, outputs, inputs, taps) each."""

    shape: tuple[int, ...]
    read: Callable[[Tensor, Tensor], Tensor]
    maps: tuple[tuple[int, int, int, int], ...]
    inputs: tuple[int, ...] = (2, 7, 4)


WAYS = {
    "transposed": Way((4, 6), lambda x, w: F.linear(x, w.t()), ((1, 6, 4, 1),)),
    "of three axes": Way((4, 2, 3), lambda x, w: x @ w.flatten(1), ((1, 6, 4, 1),)),
    "heads first": Way((2, 4, 3), lambda x, w: x.unsqueeze(1) @ w, ((1, 6, 4, 1),)),
    "permuted": Way((3, 4, 2), lambda x, w: x.unsqueeze(1) @ w.permute(2, 1, 0), ((1, 6, 4, 1),)),
    "a group a head": Way((7, 4, 3), lambda x, w: x.mT.permute(2, 0, 1) @ w, ((7, 3, 4, 1),)),
    "expanded": Way((4, 3), lambda x, w: torch.bmm(x, w.expand(x.shape[0], 4, 3)), ((1, 3, 4, 1),)),
    "cast": Way((6, 4), lambda x, w: F.linear(x, w.float().double()), ((1, 6, 4, 1),)),
    "a piece": Way((6, 5), lambda x, w: F.linear(x, w[1:4, 1:]), ((1, 3, 4, 1),)),
    "stacked": Way((3, 6, 4), lambda x, w: F.linear(x, w[1]), ((1, 6, 4, 1),)),
    "in parts": Way(
        (6, 4),
        lambda x, w: F.linear(x, w.chunk(2)[0]) * F.linear(x, w.chunk(2)[1]),
        ((1, 3, 4, 1), (1, 3, 4, 1)),
    ),
    "twice": Way(
        (4, 4), lambda x, w: F.linear(F.linear(x, w).relu(), w), ((1, 4, 4, 1), (1, 4, 4, 1))
    ),
    "from the left": Way((5, 7), lambda x, w: w @ x, ((1, 5, 7, 1),)),
    "a vector": Way((4,), lambda x, w: x @ w, ((1, 1, 4, 1),)),
    "along two axes": Way(
        (7, 4, 3), lambda x, w: torch.einsum("btc,tcd->bd", x, w), ((1, 3, 28, 1),)
    ),
    "a window": Way((6, 7, 3), lambda x, w: F.conv1d(x, w, padding=1, dilation=2), ((1, 6, 7, 3),)),
    "a filter": Way((7, 1, 3), lambda x, w: F.conv1d(x, w, groups=7), ((7, 1, 1, 3),)),
    "transposed, in groups": Way(
        (4, 3, 2), lambda x, w: F.conv_transpose1d(x.mT, w, groups=2, stride=2), ((2, 3, 2, 2),)
    ),
}


@pytest.mark.parametrize("name", WAYS)
def test_a_weight_is_a_matrix_however_it_is_read(name: str) -> None:
    way = WAYS[name]
    torch.manual_seed(0)
    x = torch.randn(way.inputs, dtype=torch.float64)
    program = fx.compile(Read(way.shape, way.read), (x,))
    found = tuple((one.groups, one.outputs, one.inputs, one.taps) for one in program.maps)
    assert found == way.maps
    values = values_of(program.module, x)
    for one in program.maps:
        check_map(program.module, one, values)
    assert not any(one.computed for one in program.maps)
    (weight,) = {one.weight for one in program.maps}
    entries = torch.stack([one.entries(one.matrix(torch.ones(one.shape))) for one in program.maps])
    used = gradient_of(program, x, weight) != 0
    assert torch.equal(entries.sum(0) > 0, used)


def gradient_of(program: fx.Program, x: Tensor, weight: str) -> Tensor:
    """Which entries of the weight the output depends on."""
    held = find_tensor(program.module, weight)
    assert held is not None
    (gradient,) = torch.autograd.grad(program(x).square().sum(), held)
    return gradient


def test_a_weight_that_is_computed_says_so_and_its_map_holds_for_what_is_computed() -> None:
    model = nn.Sequential(weight_norm(nn.Conv1d(4, 6, 3)), nn.ReLU(), nn.Conv1d(6, 2, 1)).double()
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    program = fx.compile(model, (x,))
    first, second = program.maps
    assert first.weight == "0.parametrizations.weight.original1"
    assert first.computed is not None
    assert second.computed is None
    check_map(program.module, first, values_of(program.module, x))


def test_what_a_recurrent_layer_multiplies_inside_is_known_as_matrices_alone() -> None:
    model = nn.LSTM(4, 6, num_layers=2, proj_size=3, batch_first=True)
    program = fx.compile(model, (torch.randn(2, 5, 4),))
    found = {one.weight: (one.outputs, one.inputs, len(one.values)) for one in program.maps}
    assert found == {
        "weight_ih_l0": (24, 4, 1), "weight_hh_l0": (24, 3, 0), "weight_hr_l0": (3, 6, 0),
        "weight_ih_l1": (24, 3, 0), "weight_hh_l1": (24, 3, 0), "weight_hr_l1": (3, 6, 0),
    }  # fmt: skip
    with pytest.raises(PlanError, match="applies weight_ih_l0 inside"):
        program.maps[0].inputs_from(torch.randn(2, 5, 4))


def test_a_map_says_what_shape_it_wants() -> None:
    program = fx.compile(nn.Linear(4, 6), (torch.randn(2, 4),))
    (one,) = program.maps
    with pytest.raises(PlanError, match=r"value has shape \(4, 6\), and weight has \(6, 4\)"):
        one.matrix(torch.zeros(4, 6))
    with pytest.raises(PlanError, match=r"matrix has shape \(6, 4\); .* has \(1, 6, 4\)"):
        one.entries(torch.zeros(6, 4))
    with pytest.raises(PlanError, match=r"reads 1 values \(input_1\), not 2"):
        one.inputs_from(torch.zeros(2, 4), torch.zeros(2, 4))
    assert one.bias == "bias"
    assert one.whole
