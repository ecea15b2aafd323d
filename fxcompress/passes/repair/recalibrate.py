"""Recalibrate BatchNorm: running statistics that fit the weights as they are now (REPAIR)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fxcompress.arguments import Count
from fxcompress.budget import Recipe
from fxcompress.edit.plan import Plan, Replace
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule, aten, clone_graph
from fxcompress.graph.metadata import parameter_of
from fxcompress.graph.parameters import find_tensor, names_of, replace_tensor
from fxcompress.graph.state import forked, written_tensors
from fxcompress.program import Program
from fxcompress.stats import require_data
from fxcompress.stats.data import samples_of
from fxcompress.train import recalibrate

STATISTICS = (3, 4)  # running mean and variance, in the arguments of aten.batch_norm


@dataclass(frozen=True, kw_only=True, repr=False)
class RecalibrateBatchNorm(Recipe):
    """Measure the running statistics of BatchNorm anew: plain means over the program's data.

    Before and after, the graph and all parameters are the same; only the buffers change. Merged or
    pruned units have other variances than before, and everything after them sees other inputs; this
    is what a compressed net with BatchNorm needs first.

    Attributes:
        batches: How many batches of the data; None for all. A thousand images are enough.
    """

    batches: Count | None = None

    def plan(self, program: Program) -> Plan:
        """Run the data through a copy that normalises by its batches.

        Raises:
            PlanError: The program has no data.
        """
        task = require_data(program, "RecalibrateBatchNorm")
        if next(samples_of(program, "RecalibrateBatchNorm"), None) is None:
            raise PlanError("RecalibrateBatchNorm: the task's data are empty; give some batches")
        statistics = tuple(_statistics(program.module))
        module = _with_own(program.module, statistics)
        with forked(module):
            recalibrate(module, task, self.batches)
        found = {name: find_tensor(module, name) for name in statistics}
        edits = [Replace(name, value) for name, value in found.items() if value is not None]
        return Plan(tuple(edits), (f"{len(edits) // 2} BatchNorm recalibrated",))


def _statistics(module: CapturedModule) -> Iterator[str]:
    """The running statistics that the graph reads, each tensor under one name."""
    names, seen = names_of(module), set[str]()
    for node in module.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        for place in STATISTICS:
            if (name := parameter_of(node.args[place])) is not None and name not in seen:
                seen |= names[name]
                yield name


def _with_own(module: CapturedModule, statistics: tuple[str, ...]) -> CapturedModule:
    """The module in evaluation mode, over the same tensors but for copies of the statistics and of
    whatever else its graph writes to.
    """
    own = clone_graph(module).eval()
    names = names_of(own)
    for name in {*statistics, *written_tensors(own)}:
        value = find_tensor(module, name)
        assert value is not None
        replace_tensor(own, names, name, value.clone())
    return own
