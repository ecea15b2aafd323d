"""Folding: what merging leaves as it is, what it makes of norms, and what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.budget import Budget
from fxcompress.edit.plan import Plan, Project
from fxcompress.edit.rewrite import rewrite
from fxcompress.errors import PlanError
from fxcompress.graph.parameters import find_tensor
from fxcompress.layers.units import units_on
from fxcompress.passes import Folding
from fxcompress.passes.folding.method import Merge
from fxcompress.passes.folding.norms import by_factor, by_matrix, cosines
from fxcompress.program import Program
from models import build, randomize, rebatch
from programs import PRUNABLE, program

OPTIONS: list[dict[str, Any]] = [
    {},
    {"rows": "effective"},
    {"rows": "effective", "statistics": "data"},
    {"statistics": "data", "consumers": False, "linkage": "ward"},
    {"statistics": "correlation", "standardize": True},
    {"statistics": "mean"},
]


def folded(found: Program, group: ChannelGroup, count: int, **options: Any) -> Any:
    """The module with only one group folded to `count` units."""
    merge = Folding(ratio=0.5, **options).prepare(found, [group])
    edits = merge.edits(found, group, torch.arange(count))
    return rewrite(found.module, found.analysis.coupling, Plan(edits)).module


def twinned(found: Program, group: ChannelGroup) -> Program:
    """The program with every second unit of a group made the same as the one before it."""
    values: dict[str, Tensor] = {}
    for site in group.sites:
        if site.role == "contract":
            continue
        old = find_tensor(found.module, site.parameter)
        assert old is not None
        flat = values.get(site.parameter, old.detach()).clone().flatten()
        axes = found.analysis.axes(site.parameter)
        at = units_on(axes, site.dim, group.factor, group.over).entries_in(old)
        pairs = group.units // 2 * 2
        flat[at[:, 1:pairs:2].flatten()] = flat[at[:, 0:pairs:2].flatten()]
        values[site.parameter] = flat.reshape(old.shape)
    return found.with_values(values)


def with_data(name: str) -> Program:
    model, args, kwargs = build(name)
    return fx.compile(model, args, kwargs, task=[rebatch(args, 16)])


def foldable(found: Program) -> list[ChannelGroup]:
    return [g for g in found.groups if g.frozen is None and g.exact and g.units > 1]


def close(found: Any, wanted: Any, size: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=size, atol=size)


# ---- laws


NORMED = ("conv_chain", "dense_concat", "grouped_conv", "projected_residual")
CASES = [(name, options) for name in PRUNABLE for options in OPTIONS[: 6 if name in NORMED else 1]]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_units_that_are_the_same_become_one_and_nothing_changes(
    name: str, options: dict[str, Any]
) -> None:
    found = with_data(name) if options.get("statistics") == "data" else program(name)
    for group in foldable(found):
        twins = twinned(found, group)
        small = folded(twins, group, (group.units + 1) // 2, **options)
        close(small(*found.args, **found.kwargs), twins(*found.args, **found.kwargs))


@pytest.mark.parametrize("options", OPTIONS[:2], ids=str)
@pytest.mark.parametrize("name", NORMED)
def test_as_many_clusters_as_units_change_nothing(name: str, options: dict[str, Any]) -> None:
    found = program(name)
    for group in foldable(found):
        same = folded(found, group, group.units, **options)
        close(same(*found.args, **found.kwargs), found(*found.args, **found.kwargs))


@pytest.mark.parametrize("name", PRUNABLE)
def test_folding_runs_on_every_net_and_repeats(name: str) -> None:
    first = Folding(ratio=0.4, round_to=1).plan(program(name))
    again = Folding(ratio=0.4, round_to=1).plan(program(name))
    for one, other in zip(first.edits, again.edits, strict=True):
        if isinstance(one, Project) and isinstance(other, Project):
            assert torch.equal(one.encode, other.encode)
    assert "folding lost" in first.notes[-1]
    small = fx.apply(program(name), Folding(ratio=0.4, round_to=1))
    assert small.report.checks[-1].ok


def test_producers_are_averaged_and_consumers_add_up() -> None:
    found = program("mlp")
    group = found.group("second")
    small = folded(found, group, 2)
    encode = next(
        e.encode
        for e in Merge(Folding(ratio=0.5)).edits(found, group, torch.arange(2))
        if isinstance(e, Project)
    )
    before, after = dict(found.module.named_parameters()), dict(small.named_parameters())
    close(after["second.weight"], encode @ before["second.weight"])
    members = (encode > 0).double().T
    consumer = next(s.parameter for s in group.sites if s.role == "contract")
    close(after[consumer], before[consumer] @ members)


# ---- BatchNorm


class ConvNorm(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, bias=bias)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))  # type: ignore[no-any-return]


def conv_norm(images: Tensor) -> Program:
    """A program whose statistics are those of its data."""
    net: Any = randomize(ConvNorm()).double()
    with torch.no_grad():
        z = net.first(images)
        net.norm.running_mean = z.mean((0, 2, 3))
        net.norm.running_var = z.var((0, 2, 3), correction=0)
        net.norm.weight[:4] *= -1
    return fx.compile(net, (images[:2],), task=[images])


@pytest.mark.parametrize("rows", ["raw", "effective"])
def test_the_statistics_of_merged_units_are_those_of_their_data(rows: str) -> None:
    images = torch.randn(16, 3, 6, 6, dtype=torch.float64)
    found = conv_norm(images)
    small = folded(found, found.group("first"), 3, rows=rows, statistics="data")
    z = nn.functional.conv2d(images, small.first.weight, small.first.bias)
    close(small.norm.running_mean, z.mean((0, 2, 3)))
    close(small.norm.running_var, z.var((0, 2, 3), correction=0), 2e-5)  # eps beside the variance


def test_effective_rows_merge_what_the_norms_give() -> None:
    images = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    found = conv_norm(images)
    group = found.group("first")
    for statistics in ("data", "isotropic", "correlation", "mean"):
        options: dict[str, Any] = {"rows": "effective", "statistics": statistics}
        merge = Folding(ratio=0.5, **options).prepare(found, [group])
        project = merge.edits(found, group, torch.arange(3))[-1]
        assert isinstance(project, Project)
        small = folded(found, group, 3, **options)
        net: Any = found.module
        dense = nn.functional.batch_norm(
            nn.functional.conv2d(images, net.first.weight, net.first.bias),
            net.norm.running_mean, net.norm.running_var, net.norm.weight, net.norm.bias,
        )  # fmt: skip
        after = nn.functional.batch_norm(
            nn.functional.conv2d(images, small.first.weight, small.first.bias),
            small.norm.running_mean, small.norm.running_var, small.norm.weight, small.norm.bias,
        )  # fmt: skip
        close(after, torch.einsum("kn,bnhw->bkhw", project.encode, dense))


def test_estimated_variances_are_the_reference_ones(shared: Path) -> None:
    with np.load(shared / "golden" / "folding_dense.npz") as arrays:
        golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    encode, z = golden["E"][None], golden["X"] @ golden["W"].T + golden["b"]
    deviation = z.std(0, correction=0)[None, :, None]
    exact = by_matrix(torch.corrcoef(z.T)[None, None])(deviation, encode)
    close(exact[0, :, 0], golden["exact_var_f"])
    ones = torch.ones(1, 8, 1).double()
    rows = golden["W"] - golden["W"].mean(1, keepdim=True)  # the reference centres rows first
    factor = by_factor(cosines(rows)[None, None])(ones, encode)
    close(factor[0, :, 0].rsqrt(), golden["variance_factor"])


# ---- attention


def test_merged_query_and_key_dims_give_the_mean_query_with_the_sum_of_keys() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Linear(6, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x)[:, None] for layer in (self.q, self.k, self.v))
            return nn.functional.scaled_dot_product_attention(q, k, v)

    net: Any = randomize(Scores()).double()
    found = fx.compile(net, (torch.randn(2, 5, 6, dtype=torch.float64),))
    (group,) = (each for each in found.groups if each.kind == "qk")
    merge = Merge(Folding(ratio=0.5))
    encode = merge.edits(found, group, torch.arange(2))[-1].projects[0].encode
    small = folded(found, group, 2)
    members = (encode > 0).double()
    product = small.q.weight.T @ small.k.weight
    close(product, (encode @ net.q.weight).T @ (members @ net.k.weight))


# ---- options


def test_a_global_budget_merges_where_it_costs_least() -> None:
    found = program("mlp")
    group = foldable(found)[0]
    twins = twinned(found, group)
    budget = Budget(params=0.85, allocation="global")
    widths = Folding(budget=budget, round_to=1).plan(twins).widths
    assert group in widths
    cheap = widths[group] / group.units
    assert all(width / each.units >= cheap for each, width in widths.items())


def test_bad_options_are_refused() -> None:
    for options in ({"rows": "cooked"}, {"linkage": "single"}, {"statistics": "best"}):
        with pytest.raises(PlanError, match=r"must be .*raw|must be .*kmeans|must be .*data"):
            Folding(ratio=0.5, **options)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="pass task="):
        Folding(ratio=0.5, statistics="data").plan(program("conv_chain"))


def test_norms_of_the_width_are_left_alone_unless_asked() -> None:
    found = program("convnext_block")
    widths = Folding(ratio=0.5, round_to=1).plan(found).widths
    assert all(group.exact for group in widths)
    assert "exact_only" not in repr(Folding(ratio=0.5))
