"""What least squares' greedy elimination costs: CPU seconds, one thread, and the order it gives.

    python benchmarks/least_squares.py [--save orders.pt] [--against orders.pt]

``--save`` writes the orders, ``--against`` compares with those another checkout saved.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise

import torch

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


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save")
    parser.add_argument("--against")
    given = parser.parse_args()
    torch.set_num_threads(1)
    known = {} if given.against is None else torch.load(given.against)
    found = {}
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
        found[str(size)] = score.argsort()
        same = "" if str(size) not in known else torch.equal(known[str(size)], found[str(size)])
        print(f"| {' | '.join(map(str, size))} | {first:.2f} | {second:.2f} | {same} |", flush=True)
    if given.save is not None:
        torch.save(found, given.save)


if __name__ == "__main__":
    main()
