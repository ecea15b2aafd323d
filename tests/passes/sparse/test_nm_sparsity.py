"""N:M: exactly n of every m inputs stay, the largest ones, and training brings no others back."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fxcompress as fx
import models
from fxcompress.edit.plan import Plan, Replace
from fxcompress.errors import BudgetError, PlanError
from fxcompress.passes import FoldBatchNorm, MagnitudePruning, NMSparsity
from fxcompress.passes.sparse.nm_sparsity import largest
from fxcompress.program import Program
from map_law import contracted
from programs import program


class Net(nn.Module):
    """Convolutions of 3 and 8 channels, a depthwise one, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.depthwise, self.head = nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.conv(torch.relu(self.stem(x))))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class Ones:
    """A pass that fills a weight."""

    def plan(self, program: Program) -> Plan:
        return Plan((Replace("conv.weight", torch.ones(12, 8, 3, 3)),))


X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def net(**options: Any) -> Program:
    torch.manual_seed(0)
    return fx.compile(Net(), (X,), passes=[NMSparsity(**options)])


def blocks(weight: Tensor, m: int) -> Tensor:
    """Groups of m consecutive inputs, shape (…, m)."""
    return weight.detach().movedim(1, -1).unflatten(-1, (-1, m))  # type: ignore[no-any-return]


@given(
    st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 5)]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.integers(0, 2),
    st.data(),
)
def test_the_largest_stay_and_of_equals_the_first(
    pattern: tuple[int, int], rows: int, count: int, tail: int, data: st.DataObject
) -> None:
    n, m = pattern
    shape = (rows, count * m, *(2,) * tail)
    size = int(np.prod(shape))
    score = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size)))
    score = score.reshape(shape).float()
    mask = largest(score, n, m, 1)

    for values, stays in zip(
        blocks(score, m).reshape(-1, m).tolist(),
        blocks(mask, m).reshape(-1, m).tolist(),
        strict=True,
    ):
        order = sorted(range(m), key=lambda place: (-values[place], place))
        assert [place for place in range(m) if stays[place]] == sorted(order[:n])


def test_the_mask_is_the_reference_one(shared: Path) -> None:
    with np.load(shared / "golden" / "nm24.npz") as golden:
        mask = largest(torch.from_numpy(golden["W"]).abs(), 2, 4, 1)
        assert torch.equal(mask, torch.from_numpy(golden["kept_mask"]).bool())


@pytest.mark.parametrize("pattern", [(2, 4), (1, 4), (1, 2)])
@pytest.mark.parametrize("trainable", [False, True])
def test_every_block_keeps_exactly_n(pattern: tuple[int, int], trainable: bool) -> None:
    n, m = pattern
    weights = net(n=n, m=m, trainable=trainable).finalize().module.state_dict()
    for name in ("conv.weight", "head.weight"):
        assert bool(((blocks(weights[name], m) != 0).sum(-1) == n).all())


def test_what_stays_is_not_changed_and_the_dense_ones_are_named() -> None:
    torch.manual_seed(0)
    dense = Net()
    plan = NMSparsity().plan(fx.compile(dense, (X,)))
    for edit in plan.edits:
        assert isinstance(edit, Replace)
        assert edit.mask is not None
        assert torch.equal(edit.value, dense.get_parameter(edit.parameter) * edit.mask)
    assert plan.notes == (
        "stem.weight stays dense: its 3 inputs are no multiple of 4",
        "depthwise.weight stays dense: depthwise, each output has one input channel",
    )


class ManyMaps(nn.Module):
    """Weights that are matrices in many operators, two of which cannot be sparse."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(8, 4, 2)
        self.heads = nn.Parameter(torch.randn(4, 8, 3))
        self.join = nn.Parameter(torch.randn(3, 4, 8))
        self.left = nn.Parameter(torch.randn(8, 12))
        self.normed = weight_norm(nn.Linear(8, 8))
        self.parts = nn.Parameter(torch.randn(8, 9))
        self.rnn = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("btc,hcd->btdh", self.rnn(x)[0], self.heads)
        x = torch.einsum("btdh,dho->bto", x.relu(), self.join)
        x = self.normed((self.left @ x).relu())
        out: Tensor = self.up(F.linear(x, self.parts[:, 1:]).mT)
        return out


def test_weights_of_all_operators_are_sparse_along_their_inputs_or_named() -> None:
    torch.manual_seed(0)
    found = fx.compile(ManyMaps(), (torch.randn(2, 12, 8),))
    plan = NMSparsity().plan(found)
    masks = {edit.parameter: edit.mask for edit in plan.edits if isinstance(edit, Replace)}
    assert set(masks) == {
        "up.weight", "heads", "join", "left", "rnn.weight_ih_l0", "rnn.weight_hh_l0"
    }  # fmt: skip
    assert [note.partition(": ")[0] for note in plan.notes] == [
        "normed.parametrizations.weight.original1 stays dense",
        "parts stays dense",
    ]
    for one in found.maps:
        if one.weight in masks:
            mask = masks[one.weight]
            assert mask is not None
            matrix = one.matrix(mask).unflatten(2, (one.inputs, one.taps))
            assert bool((blocks(matrix.flatten(0, 1), 4).sum(-1) == 2).all())


@pytest.mark.parametrize("name", models.MODELS)
def test_every_contracted_weight_is_sparse_or_named(name: str) -> None:
    found = program(name)
    try:
        plan = NMSparsity(m=3).plan(found)
        said = {edit.target for edit in plan.edits} | {n.split(" ")[0] for n in plan.notes}
    except PlanError as error:
        said = set(re.findall(r"([\w.]+) stays dense", str(error)))
    assert said >= contracted(found.analysis.coupling)


def test_a_mask_in_the_graph_computes_what_replaced_values_do() -> None:
    torch.testing.assert_close(net(trainable=True)(X), net()(X), rtol=0, atol=0)


def test_training_moves_what_stays_and_nothing_else() -> None:
    sparse = net(trainable=True)
    before = {name: value.clone() for name, value in sparse.finalize().module.state_dict().items()}
    optimizer = torch.optim.SGD(sparse.module.parameters(), 0.1, momentum=0.9, weight_decay=0.01)
    sparse.module.train()
    for _ in range(3):
        optimizer.zero_grad()
        sparse(X).square().sum().backward()
        optimizer.step()
    after = sparse.finalize().module.state_dict()

    for name in ("conv.weight", "head.weight"):
        assert torch.equal(after[name] != 0, before[name] != 0)
        assert not torch.equal(after[name], before[name])


def test_include_and_exclude_choose_weights() -> None:
    def chosen(**options: Any) -> set[str]:
        plan: Plan = NMSparsity(**options).plan(fx.compile(Net(), (X,)))
        return {edit.parameter for edit in plan.edits if isinstance(edit, Replace)}

    assert chosen(include="conv.*") == {"conv.weight"}
    assert chosen(exclude=("conv.*",)) == {"head.weight"}
    with pytest.raises(BudgetError, match=r"nearest are 'conv\.weight'"):
        chosen(include="convs.weight")


def test_a_weight_that_is_also_a_table_stays_dense() -> None:
    with pytest.raises(PlanError, match=r"head\.weight stays dense: it is read in another way too"):
        NMSparsity().plan(program("tied_language_model"))


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 2)])
def test_patterns_that_are_none_are_refused(n: int, m: int) -> None:
    with pytest.raises(PlanError, match=r"0 < n < m|n must be an int of at least 1"):
        NMSparsity(n=n, m=m)


def test_a_weight_that_is_not_finite_is_named() -> None:
    found = fx.compile(Net(), (X,))
    with torch.no_grad():
        found.module.get_parameter("conv.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(PlanError, match=r"conv\.weight has entries that are not finite"):
        NMSparsity().plan(found)


# ---- zeros for good are known


def sparse() -> Program:
    torch.manual_seed(0)
    return fx.compile(Net(), (X,), passes=[NMSparsity(include="conv.weight")])


def test_the_report_knows_what_is_sparse_and_in_what_pattern(tmp_path: Path) -> None:
    small = sparse()
    weight = small.module.get_parameter("conv.weight")
    assert small.sparsity == {"conv.weight": 0.5}
    assert torch.equal(small.masks["conv.weight"].mask, weight != 0)
    assert small.report.to_dict()["sparse"] == [
        {"name": "conv.weight", "zeros": 0.5, "pattern": "2:4"}
    ]
    assert "conv.weight: 50.0%, 2:4" in str(small.report)
    assert "50.0%, 2:4" in small.report.to_html(tmp_path / "page.html").read_text()
    small.save(tmp_path / "net.fxc")
    loaded = fx.load(tmp_path / "net.fxc")
    assert loaded.report.sparse == small.report.sparse
    assert str(loaded.masks["conv.weight"].pattern) == "2:4"
    assert torch.equal(loaded.masks["conv.weight"].mask, small.masks["conv.weight"].mask)


def test_removing_inputs_breaks_a_pattern_and_says_so() -> None:
    small = fx.apply(sparse(), MagnitudePruning(ratio=0.25, include="stem.*", round_to=1))
    assert small.report.sparse[0].pattern == ""
    assert small.sparsity["conv.weight"] > 0
    weight = small.module.get_parameter("conv.weight")
    assert not weight.detach()[~small.masks["conv.weight"].mask].any()
    (note,) = (note for note in small.report.passes[-1].notes if "conv.weight" in note)
    assert note.startswith("1 sparse parameters keep their zeros but lose the pattern")


def test_removing_outputs_keeps_a_pattern() -> None:
    small = fx.apply(sparse(), MagnitudePruning(ratio=0.25, include="depthwise.*", round_to=1))
    assert small.report.sparse[0].pattern == "2:4"
    assert not any("sparse" in note for note in small.report.passes[-1].notes)


def test_values_that_fill_the_zeros_are_told() -> None:
    filled = fx.apply(sparse(), Ones())
    assert filled.sparsity == {}
    assert "1 sparse parameters lose their zeros: conv.weight" in str(filled.report)


def test_folding_a_norm_keeps_the_zeros() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)).eval()
    small = fx.compile(model, (X,), passes=(NMSparsity(include="1.weight"), FoldBatchNorm()))
    assert small.report.sparse[0].pattern == "2:4"
