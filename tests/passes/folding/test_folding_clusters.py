"""Partitions for folding: their matrices, their optimum, and the theorem that compares them with
pruning.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxcompress.passes.folding.clusters import (
    LINKAGES,
    Clusters,
    kmeans,
    merge_costs,
    numbered,
    special,
    ward,
)
from fxcompress.passes.folding.moves import Partition

SEEDS = st.integers(0, 2**31 - 1)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)  # a few dozen terms of size 1


def rows(seed: int, units: int, width: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((units, width)))


@pytest.fixture(scope="module")
def dense(shared: object) -> dict[str, Tensor]:
    return read(shared, "folding_dense")


@pytest.fixture(scope="module")
def small(shared: object) -> dict[str, Tensor]:
    return read(shared, "folding_optimal_small")


def read(shared: object, name: str) -> dict[str, Tensor]:
    with np.load(f"{shared}/golden/{name}.npz") as arrays:
        return {each: torch.from_numpy(arrays[each]) for each in arrays.files}


def test_means_and_sums_are_the_reference_ones(dense: dict[str, Tensor]) -> None:
    found = Clusters(dense["labels"])
    for name, value in (
        ("E", found.encode),
        ("U", found.decode),
        ("D", found.decode),
        ("C", found.decode @ found.encode),
        ("Wf", found.encode @ dense["W"]),
        ("bf", found.encode @ dense["b"]),
        ("Vf", dense["V"] @ found.decode),
        ("bn_var_mean_f", found.encode @ dense["bn_var"]),
        ("cluster_counts", found.sizes),
    ):
        torch.testing.assert_close(value, dense[name].to(value.dtype), rtol=1e-9, atol=1e-10)
    assert found.inertia(dense["W"]) == pytest.approx(float(dense["recon_error"]), rel=1e-12)


@pytest.mark.parametrize("count", range(1, 7))
def test_small_sets_reach_the_optimum(small: dict[str, Tensor], count: int) -> None:
    found = kmeans(small["A"], count)
    best = float(small["best_fold_error"][count - 1])
    assert found.inertia(small["A"]) == pytest.approx(best, rel=1e-9, abs=1e-12)
    assert found.labels.tolist() == small["best_fold_labels"][count - 1].tolist()


@given(SEEDS, st.integers(2, 14), st.integers(1, 9), st.data())
def test_folding_loses_no_more_than_pruning_to_one_unit_less(
    seed: int, units: int, width: int, data: st.DataObject
) -> None:
    features = rows(seed, units, width)
    count = data.draw(st.integers(1, units - 1))
    norms = features.square().sum(1)
    pruned = norms.argsort(stable=True)[: units - count + 1]
    lost, mean = float(norms[pruned].sum()), features[pruned].mean(0)
    fold = special(features, count)
    margin = len(pruned) * float(mean.square().sum())
    assert lost - fold.inertia(features) == pytest.approx(margin, abs=1e-12 * lost * units)
    assert kmeans(features, count, seed).inertia(features) <= fold.inertia(features) + 1e-12 * lost


@given(SEEDS, st.integers(1, 12), st.data(), st.sampled_from(sorted(LINKAGES)))
def test_a_fold_is_an_orthogonal_projection(
    seed: int, units: int, data: st.DataObject, linkage: str
) -> None:
    count = data.draw(st.integers(1, units))
    features = rows(seed, units, 3)
    found = LINKAGES[linkage](features, count, 0)
    both = found.decode @ found.encode
    assert found.count == count
    same(both @ both, both)
    same(both, both.mT)
    assert float(both.trace()) == pytest.approx(count, abs=1e-12)
    same(found.encode @ found.decode, torch.eye(count).double())
    lost = features.square().sum() - (both @ features).square().sum()
    assert found.inertia(features) == pytest.approx(float(lost), abs=1e-11)


@pytest.mark.parametrize("linkage", sorted(LINKAGES))
def test_as_many_clusters_as_units_are_the_units(linkage: str) -> None:
    found = LINKAGES[linkage](rows(0, 5, 3), 5, 0)
    assert torch.equal(found.encode, torch.eye(5).double())


@pytest.mark.parametrize("linkage", sorted(LINKAGES))
def test_equal_rows_are_together_and_cost_nothing(linkage: str) -> None:
    features = rows(0, 4, 3)[torch.tensor([0, 1, 0, 2, 1, 3])]
    found = LINKAGES[linkage](features, 4, 0)
    assert found.labels.tolist() == [0, 1, 0, 2, 1, 3]
    assert found.inertia(features) == pytest.approx(0, abs=1e-28)
    few = LINKAGES[linkage](torch.ones(6, 2), 4, 0)
    assert few.count == 4


@given(SEEDS, st.integers(1, 40))
def test_the_same_seed_makes_the_same_clusters(seed: int, count: int) -> None:
    features = rows(seed, 40, 5)
    first, again = kmeans(features, count, seed), kmeans(features, count, seed)
    assert torch.equal(first.labels, again.labels)


@given(SEEDS, st.integers(2, 12), st.data())
def test_no_single_move_helps(seed: int, units: int, data: st.DataObject) -> None:
    features = rows(seed, units, 2)
    found = kmeans(features, data.draw(st.integers(2, units)), seed)
    best = found.inertia(features)
    for unit in range(units):
        for cluster in range(found.count):
            labels = found.labels.clone()
            labels[unit] = cluster
            if len(labels.unique()) == found.count:
                assert Clusters(labels).inertia(features) >= best - 1e-9 * best


@given(SEEDS, st.integers(3, 20), st.integers(1, 40), st.data())
def test_the_error_after_any_moves_is_that_of_the_units(
    seed: int, units: int, swaps: int, data: st.DataObject
) -> None:
    """What is kept of every cluster follows the moves, those that are taken back too."""
    features, generator = rows(seed, units, 3), np.random.default_rng(seed)
    count = data.draw(st.integers(2, units - 1))
    labels = np.append(np.arange(count), generator.integers(count, size=units - count))
    centred = (features - features.mean(0)).numpy()
    partition = Partition(centred @ centred.T, labels)
    partition.improve(swaps, 5, generator)
    found = numbered(partition.labels)
    assert found.count == count
    assert partition.error == pytest.approx(found.inertia(features), abs=1e-12 * units)


@given(SEEDS, st.integers(1, 12), st.data())
def test_merge_costs_add_up_to_the_error_of_the_tree(
    seed: int, units: int, data: st.DataObject
) -> None:
    features = rows(seed, units, 4)
    count = data.draw(st.integers(1, units))
    costs = merge_costs(features)
    lost = float(costs.sort().values[: units - count].sum())
    assert lost == pytest.approx(ward(features, count).inertia(features), abs=1e-10)
    assert float(costs[0]) == float(costs.max())
