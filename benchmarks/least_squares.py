"""What least squares costs, on one thread: its greedy elimination, and layers refitted in order.

    python benchmarks/least_squares.py [elimination] [order] [--save found.pt] [--against found.pt]

``elimination`` removes all units of random maps. ``order`` halves the inner channels of ResNet-20
and the MLPs, heads and value dims of the stories260K LLaMA, each layer refitted on what those
before it give; a pass is as many operations as the graph has, for every batch, and six runs of few
samples at the start count as if they were batches. ``--save`` writes orders and weights,
``--against`` compares with those of another checkout, bit by bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import resnet_run
import stories_methods
import torch

import fxcompress as fx
from fxcompress.passes import LeastSquaresPruning
from fxcompress.passes.least_squares.solve import Greedy, System

SIZES = (
    # units, rows of a unit, outputs
    (512, 1, 512), (512, 1, 2048), (1024, 1, 1024), (1024, 1, 4096), (2048, 1, 2048),
    (2048, 1, 512), (64, 9, 64), (128, 9, 128), (256, 9, 256), (64, 49, 128),
)  # fmt: skip


def systems(units: int, rows: int, outputs: int) -> list[System]:
    """A map of random weights and inputs that depend on each other."""
    draw = torch.Generator().manual_seed(units + rows + outputs)
    n = units * rows
    mixing = torch.randn(n, n, generator=draw, dtype=torch.float64) / n**0.5
    inputs = mixing @ torch.randn(n, 2 * n, generator=draw, dtype=torch.float64)
    columns = torch.randn(n, outputs, generator=draw, dtype=torch.float64)
    return [System((inputs @ inputs.mT / (2 * n))[None], columns[None], 1e-3, "a map")]


def elimination() -> Iterator[tuple[str, Any]]:
    """A row a size; what was found by the name of the row."""
    print("| units | rows | outputs | inverse, s | removals, s | same order |")
    print("|---|---|---|---|---|---|")
    for size in SIZES:
        own = systems(*size)
        times = [time.process_time()]
        greedy = Greedy(own, 1, size[0], True)
        times.append(time.process_time())
        score = greedy.importance()
        times.append(time.process_time())
        first, second = (b - a for a, b in pairwise(times))
        print(f"| {' | '.join(map(str, size))} | {first:.2f} | {second:.2f}", end="")
        yield str(size), score.argsort()


@dataclass
class Counted:
    """Data that know how often they are read."""

    batches: Any
    reads: int = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        return iter(self.batches)


def in_order() -> Iterator[tuple[str, Any]]:
    """A row a network and kind of unit; the weights by the name of the row."""
    print("| network | units | CPU s | reads of the data | passes | same weights |")
    print("|---|---|---|---|---|---|")
    networks = {"resnet20": resnet_run.Bench("resnet20", 25), "LLaMA": stories_methods.Bench(16)}
    for name, bench in networks.items():
        program = bench.program
        for dims in ("channels",) if name == "resnet20" else ("mlp", "vo", "heads"):
            data = Counted(program.task.data)
            task = replace(program.task, data=data)
            method = LeastSquaresPruning(ratio=0.5, sequential=True, dims=dims, round_to=1)
            start = time.process_time()
            with counted_nodes() as nodes:
                plan = method.plan(replace(program, task=task))
            seconds = time.process_time() - start
            every = sum(node.op.startswith("call") for node in program.module.graph.nodes)
            passes = len(nodes) / every / len(data)
            print(f"| {name} | {dims} | {seconds:.1f} | {data.reads} | {passes:.1f}", end="")
            yield f"{name} {dims}", [e.value for e in plan.edits if isinstance(e, fx.Replace)]


@contextmanager
def counted_nodes() -> Iterator[list[None]]:
    """A list that grows by one with every operation that is run."""
    run, found = torch.fx.Interpreter.run_node, []

    def run_node(self: Any, node: Any) -> Any:
        if node.op.startswith("call"):
            found.append(None)
        return run(self, node)

    torch.fx.Interpreter.run_node = run_node  # type: ignore[method-assign]
    try:
        yield found
    finally:
        torch.fx.Interpreter.run_node = run  # type: ignore[method-assign]


def same(first: Any, second: Any) -> bool:
    """Whether two tensors, or two lists of them, have the same bits."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return len(first) == len(second) and all(map(same, first, second))


def main() -> None:
    """Print the tables."""
    tables = {"elimination": elimination, "order": in_order}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=list(tables))
    parser.add_argument("--save")
    parser.add_argument("--against")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = {} if given.against is None else torch.load(given.against)
    found = {}
    for each in given.tables:
        for name, value in tables[each]():
            print(f" | {same(known[name], value) if name in known else ''} |", flush=True)
            found[name] = value
    if given.save is not None:
        torch.save(found, given.save)


if __name__ == "__main__":
    main()
