"""Time to remove half of n vectors greedily, against slower ways and one factorisation alone.

    python benchmarks/projective.py

From the Gram matrix of n rows of m columns, every way removes n/2 rows:

- *ours*: `fxcompress.passes.elimination`, ``static`` (and ``scaled``, and without a ridge);
- *downdates*: the inverse and all scores updated on full matrices after every removal, a rank-one
  update and one pass over the inverse; each of its steps costs the same, so for large n some steps
  are timed and the sum is scaled;
- *published*: as the authors' programs score, a product of n by n coefficients with the n by m rows
  at every step, scaled in the same way;
- *definition*: a system of equations for every row at every step, for n = 256 alone;
- *factorisation*: ``torch.linalg.cholesky`` and ``cholesky_inverse``, once.

Repetitions take turns. Measured points are kept; ``--fresh`` measures anew.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from evidence import DOCS, HERE, Points, page, plot, table
from torch import Tensor

from fxcompress.files.write import write_text
from fxcompress.passes.elimination import Elimination, Vectors, eliminate

SIZES, TIMES, LAM = (256, 1024, 4096), (1, 4), 1e-3
SAMPLE = 16
"""Steps of a slow way that are timed where all of them would take too long."""
LONG = 3
"""Most repetitions for larger n."""
WHOLE = 1024
"""Largest n where every step of the downdates is timed, and orders are compared."""


def rows_of(n: int, m: int) -> Tensor:
    """Random rows with a decaying spectrum and lengths around 1/2."""
    generator = torch.Generator().manual_seed(n + m)
    rows = torch.randn(n, m, dtype=torch.float64, generator=generator)
    return rows * torch.linspace(1, 0.1, m, dtype=torch.float64) / m**0.5


def factorised(gram: Tensor) -> Tensor:
    """One Cholesky factorisation and the inverse from it."""
    ridged = gram.clone()
    ridged.diagonal().add_(LAM)
    return torch.cholesky_inverse(torch.linalg.cholesky(ridged))


def downdated(gram: Tensor, steps: int) -> list[int]:
    """Rank-one updates of the whole inverse, all scores from it at every step."""
    g, gone, order = factorised(gram), torch.zeros(len(gram), dtype=torch.bool), []
    for _ in range(steps):
        diagonal = g.diagonal()
        squares = 1 / diagonal - LAM * g.square().sum(1) / diagonal.square()
        unit = int(squares.masked_fill(gone, torch.inf).argmin())
        column = g[:, unit] / g[unit, unit].sqrt()
        g = torch.addr(g, column, column, alpha=-1)
        g[unit, unit] = 1
        gone[unit] = True
        order.append(unit)
    return order


def published(rows: Tensor, gram: Tensor, steps: int) -> None:
    """Coefficients once; the distance ‖QW - W‖ of every row at every step."""
    g = factorised(gram)
    coefficients = torch.eye(len(g), dtype=g.dtype) - g / g.diagonal()[:, None]
    left = rows.clone()
    for _ in range(steps):
        unit = int((coefficients @ left - left).norm(dim=1).argmin())
        left[unit] = 0
        coefficients[:, unit] = 0


def defined(rows: Tensor, steps: int) -> list[int]:
    """Every row on all others, at every step."""
    alive, order = list(range(len(rows))), []
    for _ in range(steps):
        gram = rows[alive] @ rows[alive].T
        best = (float("inf"), -1)
        for place in range(len(alive)):
            others = [other for other in range(len(alive)) if other != place]
            system = gram[others][:, others]
            system.diagonal().add_(LAM)
            found = torch.linalg.solve(system, gram[others, place])
            miss = found @ rows[[alive[other] for other in others]] - rows[alive[place]]
            best = min(best, (float(miss.norm()), place))
        order.append(alive.pop(best[1]))
    return order


def refactorised(gram: Tensor, steps: int) -> list[int]:
    """The definition, with the scores of all rows from a new factorisation at every step."""
    alive, order = torch.arange(len(gram)), []
    for _ in range(steps):
        g = factorised(gram[alive][:, alive])
        diagonal = g.diagonal()
        place = int((1 / diagonal - LAM * g.square().sum(1) / diagonal.square()).argmin())
        order.append(int(alive[place]))
        alive = torch.cat([alive[:place], alive[place + 1 :]])
    return order


def timed(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """Seconds by the clock and of the processor."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu}, result


def whole(taken: dict[str, Any], way: str, clock: str, steps: int) -> float:
    """Seconds of all steps: what was timed, or from the steps that were, after the one
    factorisation that they begin with.
    """
    seconds: float = taken[way][clock]
    if way not in taken["steps"]:
        return seconds
    start = min(seconds, taken["factorisation"][clock])
    return start + (seconds - start) * steps / taken["steps"][way]


def round_of(n: int, m: int) -> dict[str, Any]:
    """One repetition of every way."""
    rows, steps = rows_of(n, m), n // 2
    gram_time, gram = timed(lambda: rows @ rows.T)
    vectors = Vectors.of_gram(gram)
    sample = steps if n <= WHOLE else SAMPLE
    few = min(sample, 1 if n > WHOLE else SAMPLE)
    load = os.getloadavg()[0]
    ours, found = timed(lambda: eliminate(vectors, steps, LAM))
    once, _ = timed(lambda: factorised(gram))
    slow, order = timed(lambda: downdated(gram, sample))
    scaled, _ = timed(lambda: eliminate(vectors, steps, LAM, rescoring="scaled", alpha=0.5))
    pivots, _ = timed(lambda: eliminate(vectors, steps, 0.0))
    theirs, _ = timed(lambda: published(rows, gram, few))
    assert isinstance(found, Elimination)
    return {
        "ours": ours,
        "factorisation": once,
        "downdates": slow,
        "ours, scaled": scaled,
        "ours, no ridge": pivots,
        "published": theirs,
        "gram": gram_time,
        "steps": {"downdates": sample, "published": few},
        "same": order == found.order.tolist()[:sample],
        "load": [load, os.getloadavg()[0]],
    }


def compared(n: int, m: int) -> dict[str, Any]:
    """Whether the order is that of the definition, where that can be run."""
    rows, steps = rows_of(n, m), n // 2
    gram = rows @ rows.T
    ours = eliminate(Vectors.of_gram(gram), steps, LAM).order.tolist()
    if n <= min(SIZES):
        seconds, order = timed(lambda: defined(rows, steps))
        return {"same": order == ours, "definition": seconds}
    return {"same": refactorised(gram, steps) == ours}


def summary(points: Points, n: int, times: int, rounds: int) -> dict[str, Any]:
    """Medians with their spread, and the ratios of medians."""
    m, rounds = times * n, rounds if n <= WHOLE else min(rounds, LONG)
    taken = [
        points.measure(lambda: round_of(n, m), n=n, m=m, round=number) for number in range(rounds)
    ]
    checked = (
        points.measure(lambda: compared(n, m), n=n, m=m, compare=1)
        if n <= WHOLE and times == 1
        else None
    )
    ways = [name for name, value in taken[0].items() if isinstance(value, dict) and "cpu" in value]
    found: dict[str, Any] = {
        name: {
            clock: sorted(whole(each, name, clock, n // 2) for each in taken)
            for clock in ("wall", "cpu")
        }
        for name in ways
    }
    middle = {
        clock: {name: median(found[name][clock]) for name in ways} for clock in ("wall", "cpu")
    }
    return {
        "n": n,
        "m": m,
        "seconds": found,
        "median": middle,
        "faster than downdates": {c: v["downdates"] / v["ours"] for c, v in middle.items()},
        "factorisations": {c: v["ours"] / v["factorisation"] for c, v in middle.items()},
        "first steps agree": all(each["same"] for each in taken),
        "definition": checked,
        "load": [min(min(e["load"]) for e in taken), max(max(e["load"]) for e in taken)],
    }


def sections(found: Sequence[dict[str, Any]]) -> dict[str, str]:
    ways = ("ours", "ours, scaled", "ours, no ridge", "factorisation", "downdates", "published")
    seconds = {_name(one): [_spread(one["seconds"][way]["cpu"]) for way in ways] for one in found}
    ratios: dict[str, list[str | float | None]] = {}
    for one in found:
        checked = one["definition"]
        agrees = one["first steps agree"] if checked is None else checked["same"]
        same = "no" if not agrees else "yes" if checked else "as downdates"
        definition = (checked or {}).get("definition")
        times = definition and definition["wall"] / one["median"]["wall"]["ours"]
        ratios[_name(one)] = [
            *(f"{one['faster than downdates'][clock]:.1f}" for clock in ("wall", "cpu")),
            *(f"{one['factorisations'][clock]:.2f}" for clock in ("wall", "cpu")),
            f"{times:.0f}" if times else "-",
            same,
            f"{one['median']['wall']['gram']:.3g}",
            f"{one['load'][0]:.1f} to {one['load'][1]:.1f}",
        ]
    columns = ["downdates / ours, clock", "CPU", "ours / factorisation, clock", "CPU"]
    columns += ["definition / ours", "same order", "Gram matrix, s", "load"]
    return {
        "Seconds of the processor, median and range": table(seconds, ways, corner="rows x columns"),
        "Ratios of medians": table(ratios, columns, corner="rows x columns", better=None),
    }


def _name(one: dict[str, Any]) -> str:
    return f"{one['n']} x {one['m']}"


def _spread(seconds: Sequence[float]) -> str:
    return f"{median(seconds):.3g} [{seconds[0]:.3g}, {seconds[-1]:.3g}]"


WORDS = """{how}

Rows are random with a decaying spectrum, λ = 1e-3, {threads} thread(s), {rounds} repetitions
({long} for n > {whole}). *Same order* compares all removals for m = n with the definition for
n = 256, and for n = 1024 with its scores from a new factorisation at every step; elsewhere with the
downdates, as far as these were run ({sample} steps for n > {whole}). From a Gram matrix on, m
changes nothing but *published*. *Load* is the number of processes that wanted the processor, by
`os.getloadavg`; where it is above the cores the clock tells little, and the ratios of CPU times
count."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--sizes", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--times", type=int, nargs="*", default=list(TIMES), help="m / n")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tall", action="store_true", help=f"m > n for n > {WHOLE} too: slow")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured")
    parser.add_argument("--points", default=str(HERE.parent / "out" / "projective.jsonl"))
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    points = Points(Path(args.points), args.fresh)
    shapes = [(n, k) for n in args.sizes for k in args.times if n <= WHOLE or k == 1 or args.tall]
    found = [summary(points, n, k, args.rounds) for n, k in shapes]
    DOCS.mkdir(exist_ok=True)
    how = __doc__.partition("projective.py\n\n")[2].rpartition("\n\nRepetitions")[0]  # type: ignore[union-attr]
    words = WORDS.format(
        how=how, threads=args.threads, rounds=args.rounds, long=LONG, whole=WHOLE, sample=SAMPLE
    )
    page(DOCS / "projective.md", "Time of a greedy elimination", words, sections(found))
    write_text(DOCS / "projective.json", json.dumps(found, indent=1) + "\n")
    panels = {
        f"m = {k} n": {
            way: [
                (float(one["n"]), one["median"]["cpu"][way])
                for one in found
                if one["m"] == k * one["n"]
            ]
            for way in ("ours", "ours, no ridge", "factorisation", "downdates", "published")
        }
        for k in args.times
    }
    plot(DOCS / "projective.png", panels, x="rows", y="CPU seconds", log=True)


if __name__ == "__main__":
    main()
