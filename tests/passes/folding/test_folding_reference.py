"""Folding on small nets: every array of the reference, out of the pass itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.passes import Folding, MagnitudePruning
from fxcompress.passes.folding.clusters import LINKAGES, Clusters, kmeans
from fxcompress.program import Program
from references import Arrays, close, read


@pytest.fixture(scope="module")
def dense(shared: Path) -> Arrays:
    return read(shared, "folding_dense")


@pytest.fixture(scope="module")
def small(shared: Path) -> Arrays:
    return read(shared, "folding_optimal_small")


@pytest.fixture
def given(dense: Arrays, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clusters of the reference, which chose none by itself."""
    monkeypatch.setitem(LINKAGES, "kmeans", lambda *_: Clusters(dense["labels"]))


def normed(dense: Arrays, rows: str = "W") -> Program:
    """Linear map, BatchNorm, ReLU and linear map with the reference's values, and its data."""
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4, bias=False))
    net.double().load_state_dict({
        "0.weight": dense[rows], "0.bias": dense["b"], "3.weight": dense["V"],
        "1.weight": dense["bn_gamma"], "1.bias": dense["bn_beta"],
        "1.running_mean": dense["bn_mean"], "1.running_var": dense["bn_var"],
        "1.num_batches_tracked": torch.tensor(1),
    })  # fmt: skip
    return fx.compile(net.eval(), (dense["X"],), task=[dense["X"]])


def folded(found: Program, **options: Any) -> dict[str, Tensor]:
    """Three of eight units less."""
    made = fx.apply(found, Folding(ratio=3.5 / 8, round_to=1, **options))
    return made.module.state_dict()


@pytest.mark.usefixtures("given")
def test_layers_and_norm_of_clusters_are_the_reference_ones(dense: Arrays) -> None:
    values = folded(normed(dense), statistics="mean")
    for name, key in (
        ("0.weight", "Wf"), ("0.bias", "bf"), ("3.weight", "Vf"), ("1.weight", "bn_gamma_f"),
        ("1.bias", "bn_beta_f"), ("1.running_mean", "bn_mean_f"),
        ("1.running_var", "bn_var_mean_f"),
    ):  # fmt: skip
        close(values[name], dense[key])


@pytest.mark.usefixtures("given")
def test_statistics_of_clusters_are_those_of_the_reference_data(dense: Arrays) -> None:
    """Where the norm's own statistics are those of the data."""
    z = dense["X"] @ dense["W"].T + dense["b"]
    own = dense | {"bn_mean": z.mean(0), "bn_var": z.var(0, correction=0)}
    values = folded(normed(own), statistics="data")
    close(values["1.running_mean"], dense["exact_mean_f"])
    close(values["1.running_var"], dense["exact_var_f"])


@pytest.mark.usefixtures("given")
def test_variances_shrink_by_the_reference_correlations(dense: Arrays) -> None:
    """The reference takes the rows' correlations for the units', so rows are centred here: then
    their cosines are that.
    """
    rows = dense["W"] - dense["W"].mean(1, keepdim=True)
    values = folded(normed(dense | {"centred": rows}, "centred"), statistics="correlation")
    share = values["1.running_var"] / dense["bn_var_mean_f"]
    close(share.rsqrt(), dense["variance_factor"])
    count = dense["cluster_counts"]
    several = count > 1
    found = (share * count - 1)[several] / (count - 1)[several]
    close(found, dense["mean_corr"][several])


def read_by_itself(rows: Tensor) -> Program:
    """The rows as a layer, and one that hands on what it gives."""
    count, width = rows.shape
    net = nn.Sequential(nn.Linear(width, count, bias=False), nn.Linear(count, count, bias=False))
    net.double().load_state_dict({"0.weight": rows, "1.weight": torch.eye(count).double()})
    return fx.compile(net, (torch.eye(width).double(),))


@pytest.mark.parametrize("kept", range(1, 6))
def test_pruning_by_length_loses_what_the_best_pruning_loses(small: Arrays, kept: int) -> None:
    """And folding, with one unit more, no more than that: on the identity both give their rows."""
    found = read_by_itself(small["A"])
    less = fx.apply(found, MagnitudePruning(ratio=(6.5 - kept) / 6, round_to=1))
    assert less.module.state_dict()["0.weight"].shape == (kept, 3)
    lost = (less(*found.args) - found(*found.args)).square().sum()
    close(lost, small["best_prune"][kept])
    fold = kmeans(small["A"], kept + 1)
    assert fold.inertia(small["A"]) <= float(small["best_prune"][kept])


@pytest.mark.parametrize("kept", range(1, 6))
def test_folding_loses_what_the_best_folding_loses(small: Arrays, kept: int) -> None:
    found = read_by_itself(small["A"])
    less = fx.apply(found, Folding(ratio=(6.5 - kept) / 6, round_to=1))
    lost = (less(*found.args) - found(*found.args)).square().sum()
    close(lost, small["best_fold_error"][kept - 1])
