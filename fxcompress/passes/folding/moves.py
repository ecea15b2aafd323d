"""Local search for k-means: units that move between clusters, and clusters that are made anew.

‖x_i - μ_c‖² = K_ii - (2/n_c) Σ_j K_ij + (1/n_c²) Σ_jl K_jl over members j, l of cluster c, so the
Gram matrix K of the centred units says everything, whatever their width.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
SLACK = 1e-12
"""A move must gain this share of all variance, so that rounding moves nothing back and forth."""
FLOOR = 1e-3
"""A cluster that costs nothing to dissolve is drawn as if it cost this share of the mean."""


class Partition:
    """n units in k clusters, none empty, with what a move of any unit costs and saves.

    Unit x lets a cluster that it joins rise by n_c/(n_c+1) ‖x - μ_c‖², and its own fall by
    n_c/(n_c-1) ‖x - μ_c‖² when it leaves (Hartigan).

    Args:
        gram: X Xᵀ of the centred units, shape (n, n).
        labels: The cluster of every unit, from 0 to k - 1, shape (n,).
    """

    def __init__(self, gram: Floats, labels: Labels) -> None:
        self.gram, self.labels = gram, labels.copy()
        self.least = SLACK * float(gram.trace())
        count = int(labels.max()) + 1
        self._joining = np.empty((len(gram), count))  # infinite for the cluster it is in
        self._leaving = np.empty(len(gram))  # minus infinity for a unit alone
        self._explained = np.empty(count)
        for cluster in range(count):
            self._measure(cluster)

    @property
    def error(self) -> float:
        """‖X - C X‖², the squares that the clusters' means do not explain."""
        return float(self.gram.trace() - self._explained.sum())

    def settle(self) -> None:
        """Move units to where they cost less, until every move costs more.

        Several move at once: what a move gains depends on the two clusters alone, so moves between
        different pairs of clusters, the best first, gain what they gain one after the other.
        """
        while True:
            best = self._joining.argmin(1)
            gains = self._leaving - self._joining[np.arange(len(best)), best]
            units = np.flatnonzero(gains > self.least)
            if not len(units):
                return
            ordered = units[np.argsort(-gains[units], kind="stable")]
            chosen = self._apart(ordered, best)
            self._move(chosen, best[chosen])

    def improve(self, swaps: int, patience: int, generator: np.random.Generator) -> None:
        """Dissolve a cluster, let a unit begin another, settle, and keep that if it is better.

        That is tried `swaps` times, or until `patience` swaps in a row were no better.

        Random swaps lead out of minima in which single moves get stuck (Fränti, Efficiency of
        random swap clustering, 2018). Units that cost much and clusters that cost little to
        dissolve are drawn more often.
        """
        failed = 0
        for _ in range(swaps):
            before, error = self.labels.copy(), self.error
            if error <= self.least or failed == patience:
                return
            self._swap(generator)
            self.settle()
            failed = 0 if self.error < error - self.least else failed + 1
            if failed:
                moved = np.flatnonzero(self.labels != before)
                self._move(moved, before[moved])

    def _swap(self, generator: np.random.Generator) -> None:
        """Units of one cluster join the next best; a unit of another is alone there."""
        saved = self._leaving.clip(0)
        unit = generator.choice(len(saved), p=saved / saved.sum())
        rises = np.bincount(self.labels, self._joining.min(1) - saved).clip(self.least)
        weights = 1 / (rises + FLOOR * rises.mean())
        cluster = generator.choice(len(rises), p=weights / weights.sum())
        members = np.setdiff1d(np.flatnonzero(self.labels == cluster), unit)
        targets = self._joining[members].argmin(1)
        self._move(np.append(members, unit), np.append(targets, cluster))

    def _apart(self, units: Labels, targets: Labels) -> list[int]:
        """The first units of which no two leave or join the same cluster."""
        touched: set[int] = set()
        chosen = []
        for unit in units.tolist():
            pair = {int(self.labels[unit]), int(targets[unit])}
            if not touched & pair:
                touched |= pair
                chosen.append(unit)
        return chosen

    def _move(self, units: Labels | list[int], clusters: Labels) -> None:
        touched = np.union1d(self.labels[units], clusters)
        self.labels[units] = clusters
        for cluster in touched.tolist():
            self._measure(cluster)

    def _measure(self, cluster: int) -> None:
        members = np.flatnonzero(self.labels == cluster)
        size = len(members)
        sums = self.gram[members].sum(0)
        total = sums[members].sum()
        far = self.gram.diagonal() - (2 / size) * sums + total / size**2
        self._joining[:, cluster] = far * (size / (size + 1))
        self._joining[members, cluster] = np.inf
        self._leaving[members] = far[members] * (size / (size - 1)) if size > 1 else -np.inf
        self._explained[cluster] = total / size
