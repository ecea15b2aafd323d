"""Clusters of units for folding: k-means by moves of single units, or Ward's tree.

A partition U ∈ {0,1}^(n, k) gives E = (UᵀU)⁻¹Uᵀ, which takes means of the members, and D = U, which
gives every member its cluster's value; C = D E is an orthogonal projection, and ‖X - C X‖² is what
k-means minimises. Everything is float64 on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from fxcompress.passes.folding.moves import Floats, Labels, Partition

SWAPS, PATIENCE = 400, 100


@dataclass(frozen=True, eq=False)
class Clusters:
    """A partition of n units.

    Attributes:
        labels: The cluster of every unit, int64 of shape (n,); clusters are numbered in the order
            of their first members, so that n clusters of n units are the units.
    """

    labels: Tensor

    @property
    def count(self) -> int:
        """How many clusters there are."""
        return int(self.labels.max()) + 1

    @cached_property
    def sizes(self) -> Tensor:
        """Members of every cluster, shape (k,)."""
        return torch.bincount(self.labels)

    @cached_property
    def decode(self) -> Tensor:
        """D = U, shape (n, k): consumers sum what belongs to the members."""
        return nn.functional.one_hot(self.labels, self.count).to(torch.float64)

    @cached_property
    def encode(self) -> Tensor:
        """E = (UᵀU)⁻¹Uᵀ, shape (k, n): producers are averaged."""
        return self.decode.mT / self.sizes[:, None]

    def inertia(self, features: Tensor) -> float:
        """‖X - C X‖² for `features` of shape (n, m)."""
        features = features.to(torch.float64)
        return float((features - self.decode @ (self.encode @ features)).square().sum())


def numbered(labels: Labels) -> Clusters:
    """Clusters numbered in the order of their first members."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return Clusters(torch.from_numpy(np.argsort(np.argsort(first))[inverse].astype(np.int64)))


def kmeans(features: Tensor, count: int, seed: int = 0) -> Clusters:
    """A partition that no move of one unit and no swap that was tried makes better.

    It starts from Ward's tree, or from the fold that belongs to magnitude pruning where that is
    better: `count` - 1 units by themselves, and those of least norm together. That fold loses
    ‖X_P‖² - |P|‖μ_P‖², where pruning to `count` - 1 units loses ‖X_P‖²; so the result never loses
    more than any such pruning (Cut Less, Fold More, theorem 2.1).

    Args:
        features: Floats to cluster, shape (n, m).
        count: How many clusters, from 1 to n.
        seed: For the swaps that are tried.
    """
    rows = _rows(features)
    if count >= len(rows):
        return numbered(np.arange(len(rows)))
    centred = rows - rows.mean(0)
    gram = centred @ centred.T
    starts = (Partition(gram, labels) for labels in (_cut(rows, count), _special(rows, count)))
    best = min(starts, key=lambda each: each.error)
    best.settle()
    if count > 1:
        best.improve(SWAPS, PATIENCE, np.random.default_rng(seed))
    return numbered(best.labels)


def ward(features: Tensor, count: int, seed: int = 0) -> Clusters:
    """The agglomerative clusters that at each step add least to ‖X - C X‖²; `seed` is unused."""
    rows = _rows(features)
    return numbered(np.arange(len(rows)) if count >= len(rows) else _cut(rows, count))


LINKAGES: dict[str, Callable[[Tensor, int, int], Clusters]] = {"kmeans": kmeans, "ward": ward}


def special(features: Tensor, count: int) -> Clusters:
    """The fold of theorem 2.1: the `count` - 1 rows of largest norm alone, the rest together."""
    return numbered(_special(_rows(features), count))


def merge_costs(features: Tensor) -> Tensor:
    """What each unit's merge adds to ‖X - C X‖² along Ward's tree, shape (n,).

    A merge is booked to that of its two clusters whose first member comes later. Costs never fall
    along the tree, so the r smallest add up to the error of Ward's n - r clusters; the first unit
    never leaves, and has the largest.
    """
    rows = _rows(features)
    costs = np.full(len(rows), len(rows) * float(np.square(rows.mean(0)).sum()))
    if len(rows) > 1:
        costs[1:] = _booked(_tree(rows))[1:]
        costs[0] = max(costs)
    return torch.from_numpy(costs)


def _booked(tree: Floats) -> Floats:
    """The rise of error at which each unit's cluster ends: height²/2 in Ward's tree."""
    count = len(tree) + 1
    first = [*range(count), *([0] * len(tree))]
    costs = np.zeros(count)
    for number, (one, other, height, _) in enumerate(tree):
        keeps, leaves = sorted((first[int(one)], first[int(other)]))
        first[count + number] = keeps
        costs[leaves] = height**2 / 2
    return costs


def _rows(features: Tensor) -> Floats:
    return features.detach().to("cpu", torch.float64).numpy()


def _special(rows: Floats, count: int) -> Labels:
    order = np.argsort(-np.square(rows).sum(1), kind="stable")
    labels = np.full(len(rows), count - 1, dtype=np.int64)
    labels[order[: count - 1]] = np.arange(count - 1)
    return labels


def _cut(rows: Floats, count: int) -> Labels:
    from scipy.cluster import hierarchy  # slow to import

    return np.asarray(hierarchy.cut_tree(_tree(rows), n_clusters=[count])[:, 0], dtype=np.int64)


def _tree(rows: Floats) -> Floats:
    from scipy.cluster import hierarchy

    return np.asarray(hierarchy.linkage(rows, method="ward"))
