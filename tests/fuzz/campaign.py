"""Many random nets, side by side, and what became of them."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

import torchvision_shim
from fuzz.nets import draw
from fuzz.oracle import examine

SECONDS = 120
"""What one net may take, before it counts as a fault."""
_LIBRARIES: list[object] = []  # declarations of operators vanish with the object


def main() -> int:
    """Read the options and run."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Check every law on random nets.")
    parser.add_argument("--count", type=int, default=1000, help="how many nets")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--only", help="always this pass")
    parser.add_argument("--show", action="store_true", help="print the net of --seed, and its laws")
    parser.add_argument("--json", help="also write outcomes to this file, a line each")
    options = parser.parse_args()
    return show(options) if options.show else campaign(options)


def show(options: argparse.Namespace) -> int:
    """One net in words, and what became of it."""
    _prepare()
    limit = shortest(options.seed, options.only)
    case = draw(options.seed, limit)
    print(f"v0 = input {list(case.x.shape)}\n{case.net.describe()}")
    outcome = examine(options.seed, limit, options.only)
    print(f"pass: {outcome.method}", *(f"{k}: {v}" for k, v in outcome.stages.items()), sep="\n")
    print(outcome.fault or "no fault")
    return int(outcome.fault is not None)


def shortest(seed: int, only: str | None) -> int | None:
    """The number of blocks with which the fault of a net first shows; None without a fault."""
    if examine(seed, None, only).fault is None:
        return None
    return next((n for n in range(10) if examine(seed, n, only).fault is not None), None)


def campaign(options: argparse.Namespace) -> int:
    """All seeds; a line for each fault, progress on the way, a table at the end."""
    start, stages, faults = time.perf_counter(), Counter[tuple[str, str]](), 0
    sink = open(options.json, "a") if options.json else None  # noqa: SIM115
    for number, row in enumerate(_outcomes(options), 1):
        for stage, result in row["stages"].items():
            stages[stage, result.split(":")[0]] += 1
        if row["fault"]:
            faults += 1
            print(
                f"\nseed {row['seed']}, {row['method']}: {row['fault']}\n{row['net']}", flush=True
            )
        if sink:
            print(json.dumps(row), file=sink, flush=True)
        if number % 50 == 0:
            seconds = time.perf_counter() - start
            left = seconds / number * (options.count - number)
            print(f"{number}/{options.count}, faults {faults}, {left:.0f} s left", file=sys.stderr)
    print()
    for (stage, result), number in sorted(stages.items()):
        print(f"{stage:18} {result:24} {number:6}")
    print(f"{options.count} nets, {faults} faults, {time.perf_counter() - start:.0f} s")
    return int(faults > 0)


def _outcomes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    jobs = [(seed, options.only) for seed in range(options.seed, options.seed + options.count)]
    context = multiprocessing.get_context("spawn")
    with context.Pool(options.workers, _prepare, maxtasksperchild=250) as pool:
        yield from pool.imap_unordered(_one, jobs)


def _prepare() -> None:
    """What a process needs before its first net."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    _LIBRARIES.append(torchvision_shim.install())


def _one(job: tuple[int, str | None]) -> dict[str, Any]:
    seed, only = job
    signal.signal(signal.SIGALRM, _out_of_time)
    signal.alarm(SECONDS)
    net = ""
    try:
        outcome = examine(seed, None, only)
        if outcome.fault:
            limit = shortest(seed, only)
            outcome = examine(seed, limit, only)
            net = draw(seed, limit).net.describe()
    finally:
        signal.alarm(0)
    return {**vars(outcome), "net": net}


def _out_of_time(*_: object) -> None:
    raise TimeoutError(f"took longer than {SECONDS} s")
