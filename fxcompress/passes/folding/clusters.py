"""Clusters of units for folding: k-means with single moves, or Ward's tree.

A partition U ∈ {0,1}^(n, k) gives E = (UᵀU)⁻¹Uᵀ, which takes means of the members, and D = U, which
gives every member its cluster's value; C = D E is an orthogonal projection, and ‖X - C X‖² is what
k-means minimises. Everything is float64 on the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float64]
RESTARTS = 10
ITERATIONS = 300
SEEDS = 2**32  # scikit-learn takes no larger ones
SWEEPS = 50
SLACK = 1e-12
"""A move must gain this share of all variance, so that rounding moves nothing back and forth."""


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
    """The best of several k-means, each refined by single moves.

    One of them starts from the fold that belongs to magnitude pruning: `count` - 1 units by
    themselves, and those of least norm together. It loses ‖X_P‖² - |P|‖μ_P‖², where pruning to
    `count` - 1 units loses ‖X_P‖²; so the result never loses more than any such pruning (Cut Less,
    Fold More, theorem 2.1). Another starts from Ward's tree.

    Args:
        features: Rows to cluster, shape (n, m).
        count: How many clusters, from 1 to n.
        seed: For the starts drawn by k-means++.
    """
    rows = _rows(features)
    if count >= len(rows):
        return numbered(np.arange(len(rows)))
    starts = (_drawn(rows, count, seed), _special(rows, count), _cut(rows, count))
    refined = [_moved(rows, _lloyd(rows, labels)) for labels in starts]
    return min(map(numbered, refined), key=lambda each: each.inertia(features))


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


def _booked(tree: Rows) -> Rows:
    """The rise of error at which each unit's cluster ends: height²/2 in Ward's tree."""
    count = len(tree) + 1
    first = [*range(count), *([0] * len(tree))]
    costs = np.zeros(count)
    for number, (one, other, height, _) in enumerate(tree):
        keeps, leaves = sorted((first[int(one)], first[int(other)]))
        first[count + number] = keeps
        costs[leaves] = height**2 / 2
    return costs


def _rows(features: Tensor) -> Rows:
    return features.detach().to("cpu", torch.float64).numpy()


def _special(rows: Rows, count: int) -> Labels:
    order = np.argsort(-np.square(rows).sum(1), kind="stable")
    labels = np.full(len(rows), count - 1, dtype=np.int64)
    labels[order[: count - 1]] = np.arange(count - 1)
    return labels


def _cut(rows: Rows, count: int) -> Labels:
    from scipy.cluster import hierarchy  # slow to import

    return np.asarray(hierarchy.cut_tree(_tree(rows), n_clusters=[count])[:, 0], dtype=np.int64)


def _tree(rows: Rows) -> Rows:
    from scipy.cluster import hierarchy

    return np.asarray(hierarchy.linkage(rows, method="ward"))


def _drawn(rows: Rows, count: int, seed: int) -> Labels:
    return _fitted(rows, count, n_init=RESTARTS, random_state=seed % SEEDS)


def _lloyd(rows: Rows, labels: Labels) -> Labels:
    means = _means(rows, labels, int(labels.max()) + 1)
    return _fitted(rows, len(means), n_init=1, init=means)


def _fitted(rows: Rows, count: int, **options: Any) -> Labels:
    from sklearn.cluster import KMeans  # slow to import
    from sklearn.exceptions import ConvergenceWarning

    model = KMeans(count, max_iter=ITERATIONS, **options)
    with warnings.catch_warnings():  # equal rows make fewer clusters than asked for: mended below
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels = model.fit(rows).labels_.astype(np.int64)
    return _filled(rows, labels, count)


def _filled(rows: Rows, labels: Labels, count: int) -> Labels:
    """Give every empty cluster the row that is farthest from its mean and not alone."""
    for empty in np.flatnonzero(np.bincount(labels, minlength=count) == 0):
        far = np.square(rows - _means(rows, labels, count)[labels]).sum(1)
        far[np.bincount(labels, minlength=count)[labels] == 1] = -1
        labels[far.argmax()] = empty
    return labels


def _means(rows: Rows, labels: Labels, count: int) -> Rows:
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, labels, rows)
    return sums / np.maximum(np.bincount(labels, minlength=count), 1)[:, None]


def _moved(rows: Rows, labels: Labels) -> Labels:
    """Move single rows while that lowers the error (Hartigan).

    Row x goes from A to B where n_B/(n_B+1) ‖x - μ_B‖² < n_A/(n_A-1) ‖x - μ_A‖².
    """
    labels, count = labels.copy(), int(labels.max()) + 1
    sizes = np.bincount(labels, minlength=count).astype(np.float64)
    means = _means(rows, labels, count)
    least = SLACK * float(np.square(rows - rows.mean(0)).sum())
    for _ in range(SWEEPS):
        moves = sum(_move(rows[i], i, labels, sizes, means, least) for i in range(len(rows)))
        if not moves:
            break
    return labels


def _move(row: Rows, place: int, labels: Labels, sizes: Rows, means: Rows, least: float) -> bool:
    """Move one row to where it costs least; say whether it moved."""
    own = labels[place]
    if sizes[own] == 1:
        return False
    far = np.square(means - row).sum(1)
    cost = far * sizes / (sizes + 1)
    cost[own] = far[own] * sizes[own] / (sizes[own] - 1) - least
    best = int(cost.argmin())
    if best == own:
        return False
    means[own] += (means[own] - row) / (sizes[own] - 1)
    means[best] += (row - means[best]) / (sizes[best] + 1)
    sizes[own] -= 1
    sizes[best] += 1
    labels[place] = best
    return True
