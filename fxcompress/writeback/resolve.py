"""Choose the values of attributes, best explanations first, until the model passes the gate."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from torch import nn

from fxcompress.canonicalize import canonicalize
from fxcompress.capture import DynamicSpec, capture
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule
from fxcompress.writeback.attention import rescale_queries
from fxcompress.writeback.attributes import Decision
from fxcompress.writeback.gate import Gate, Verdict, beside

_TRIES = 96
_EXPORTS = 6


def resolve(
    result: nn.Module,
    gate: Gate,
    found: list[Decision],
    read: frozenset[tuple[str, str]],
    dynamic: DynamicSpec,
) -> Verdict:
    """Set the attributes of `result`; the verdict on what came of it.

    Args:
        result: Has its new parameters and its old attributes.
        gate: Measures it.
        found: What may have to change.
        read: The attributes that matter; of the others only plain ones are set.
        dynamic: What to ask of torch.export.
    """
    search = _Search(result, gate, [one for one in found if one.touches(read)], dynamic)
    for decision in found:
        if not decision.touches(read) and decision.is_plain:
            decision.apply(result, 0)
    return search.run()


class _Search:
    """Tries combinations of explanations; few are exported, for that takes long."""

    def __init__(
        self, result: nn.Module, gate: Gate, open_: list[Decision], dynamic: DynamicSpec
    ) -> None:
        self.result = result
        self.gate = gate
        self.open = open_
        self.dynamic = dynamic

    def run(self) -> Verdict:
        near: list[tuple[int, ...]] = []
        failed: dict[tuple[int, ...], int] = {}
        for combination in _combinations([len(decision.options) for decision in self.open]):
            self._apply(combination)
            verdict = self.gate.measure(self.result)
            if verdict.ok:
                return verdict
            if verdict.near:
                near.append(combination)
            failed[combination] = verdict.calls
        return self._rescale(near) or self._furthest(near, failed)

    def _rescale(self, near: list[tuple[int, ...]]) -> Verdict | None:
        """Where only the numbers are wrong, the scale of attention may be why."""
        for combination in near[:_EXPORTS]:
            self._apply(combination)
            graph = self._exported()
            inputs = beside(self.gate.inputs[0], self.result)
            if graph is not None and rescale_queries(self.result, graph, self.gate.graph, *inputs):
                return self.gate.measure(self.result)
        return None

    def _furthest(
        self, near: list[tuple[int, ...]], failed: Mapping[tuple[int, ...], int]
    ) -> Verdict:
        """The candidate that ran longest: where it stops is what no attribute can mend."""
        self._apply(near[0] if near else max(failed, key=lambda one: failed[one]))
        return self.gate.measure(self.result)

    def _apply(self, combination: tuple[int, ...]) -> None:
        for decision, option in zip(self.open, combination, strict=True):
            decision.apply(self.result, option)

    def _exported(self) -> CapturedModule | None:
        """The graph of the candidate, or None where torch refuses it."""
        args, kwargs = beside(self.gate.inputs[0], self.result)
        try:
            return canonicalize(capture(self.result, args, kwargs, self.dynamic).module)
        except CaptureError:
            return None


def _combinations(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """Index tuples below `counts`, those of the smallest sum first, up to a limit."""
    start = (0,) * len(counts)
    heap, seen = [(0, start)], {start}
    for _ in range(_TRIES):
        if not heap:
            return
        total, current = heapq.heappop(heap)
        yield current
        for position, count in enumerate(counts):
            following = (*current[:position], current[position] + 1, *current[position + 1 :])
            if current[position] + 1 < count and following not in seen:
                seen.add(following)
                heapq.heappush(heap, (total + 1, following))
