"""How long the compiler takes, and how much memory, beside torch.export and torch-pruning.

    python benchmarks/compile_time.py

The targets: everything from capture to verified takes no longer than 1.3 times torch.export in the
median and twice as long at most; verification runs two forward passes; `compile` needs less than
twice the model's own memory above what torch.export needs. Every model is measured in processes of
its own, several for time and two for memory. What has been measured is kept in the JSON file, so
that a stopped run goes on where it was; ``--fresh`` measures anew. ``--set-aside`` makes what is
kept the figures that later ones are compared with.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "examples"))

from outcome import CONSOLE, tabled, written  # noqa: E402
from subjects import SUBJECTS  # noqa: E402

from fxcompress.export.timing.machine import this_machine  # noqa: E402
from fxcompress.files.write import write_text  # noqa: E402

MEDIAN_TIME, MOST_TIME, MOST_FORWARDS, MOST_MEMORY = 1.3, 2.0, 2, 2.0
MEMORY = ("memory-export", "memory-compile")
THEIRS = "torch-pruning"
STAGES = ("capture", "canonicalize", "analysis", "plan", "rewrite", "verify")
BETWEEN = STAGES[1:-1]
TIME_COLUMNS = (
    "parameters", "export", *STAGES, "forwards", "whole", "ratio", "ratio before", "TP graph",
    "TP step",
)  # fmt: skip
MEMORY_COLUMNS = ("model", "torch.export", "compile", "above export, of model", "before")

Found = Mapping[str, Mapping[str, Any]]
"""For each run, its figures."""


def measured(name: str, run: str, limit: float) -> dict[str, Any]:
    """The figures of one process, or why there are none."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, str(HERE / "measure.py"), run.partition(" ")[0], name]
    try:
        done = subprocess.run(
            command, env=os.environ | single, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit:.0f} s"}
    if done.returncode:
        killed = f"was killed by signal {-done.returncode}" if done.returncode < 0 else "failed"
        return {"error": (done.stderr.strip().splitlines() or [killed])[-1]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def median(found: Found, *path: str) -> float | None:
    """The median of a figure over the timed runs that have it."""
    values = []
    for run in (figures for name, figures in found.items() if name.startswith("time")):
        value: Any = run
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        values += [] if value is None else [value]
    return statistics.median(values) if values else None


def whole(found: Found) -> float | None:
    """The compiler's CPU time from capture to verified."""
    stages = [median(found, "cold", stage) for stage in STAGES]
    return sum(filter(None, stages)) if any(stages) else None


def ratio(found: Found) -> float | None:
    """That time over torch.export's."""
    ours, export = whole(found), median(found, "cold", "export")
    return ours / export if ours and export else None


def share(found: Found) -> float:
    """The stages between capture and verification, over torch.export's time."""
    ours = sum(median(found, "cold", stage) or 0.0 for stage in BETWEEN)
    return ours / (median(found, "cold", "export") or math.nan)


def memory_above(found: Found) -> float | None:
    """The peak of `compile` above that of torch.export, over the model's own size."""
    exported, compiled = (found.get(run, {"error": "not measured"}) for run in MEMORY)
    if "error" in exported or "error" in compiled:
        return None
    return float((compiled["above"] - exported["above"]) / compiled["model"])


def time_cells(name: str, found: Found, before: Found) -> tuple[object, ...]:
    """A line of the first table."""
    stages = [_seconds(median(found, "cold", stage)) for stage in ("export", *STAGES)]
    forwards = median(found, "cold", "forwards")
    theirs = found.get(THEIRS, {})
    step = "fails" if "error" in theirs else _seconds(theirs.get("step"))
    return (
        name, f"{(median(found, 'parameters') or 0) / 1e6:.1f} M", *stages,
        "" if forwards is None else f"{forwards:.0f}", _seconds(whole(found)), _two(ratio(found)),
        _two(ratio(before)) if before else "", _seconds(theirs.get("graph")), step,
    )  # fmt: skip


def memory_cells(name: str, found: Found, before: Found) -> tuple[object, ...]:
    """A line of the second table."""
    above = [_megabytes(found[run].get("above")) for run in MEMORY]
    share = _two(memory_above(found), "x")
    earlier = _two(memory_above(before), "x") if before else ""
    return name, _megabytes(found[MEMORY[0]].get("model")), *above, share, earlier


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f}"


def _two(value: float | None, unit: str = "") -> str:
    return "failed" if value is None else f"{value:.2f}{unit}"


def verdict(timed: dict[str, Found], held: dict[str, Found]) -> list[str]:
    """Which targets were met by what was timed and by whose memory was measured."""
    ratios = {name: ratio(found) for name, found in timed.items()}
    memories = {name: memory_above(found) for name, found in held.items()}
    forwards = {name: median(found, "cold", "forwards") for name, found in timed.items()}
    middle = statistics.median(value for value in ratios.values() if value is not None)
    shares = [share(found) for found in timed.values()]
    lines = [
        f"{', '.join(BETWEEN)} together: {min(shares):.2f} to {max(shares):.2f} of torch.export",
        f"From capture to verified, over torch.export: {middle:.2f} in the median, "
        f"where {MEDIAN_TIME} was asked for",
        _judged(f"None above {MOST_TIME} times torch.export", ratios, MOST_TIME),
        _judged(f"At most {MOST_FORWARDS} forward passes to verify", forwards, MOST_FORWARDS),
        _judged(f"Memory above export below {MOST_MEMORY} times the model", memories, MOST_MEMORY),
    ]
    for name, found in (held | timed).items():
        lines += [
            f"{name}, {run}: {figures['error']}"
            for run, figures in found.items()
            if "error" in figures
        ]
    return lines


def _judged(words: str, values: Mapping[str, float | None], most: float) -> str:
    missed = [
        f"{name} {_two(value)}" for name, value in values.items() if value is None or value > most
    ]
    good = f"{words}: {len(values) - len(missed)} of {len(values)}"
    return f"{good}; missed by {', '.join(missed)}" if missed else f"{good}, all"


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "compile_time")
    parser.add_argument("--runs", type=int, default=3, help="processes that measure time")
    parser.add_argument("--limit", type=float, default=500, help="seconds for one process")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    parser.add_argument("--without-theirs", action="store_true", help="leave torch-pruning out")
    parser.add_argument("--set-aside", action="store_true", help="compare with what is kept")
    options = parser.parse_args()
    kept = options.out.with_suffix(".json")
    results: dict[str, dict[str, Any]] = {}
    before: dict[str, dict[str, Any]] = {}
    if kept.exists():
        data = json.loads(kept.read_text(encoding="utf-8"))
        results, before = data["models"], data.get("before", {})
    if options.set_aside:
        before = results
        results = {n: {THEIRS: f[THEIRS]} for n, f in results.items() if THEIRS in f}
    runs = (*(f"time {number}" for number in range(1, options.runs + 1)), THEIRS, *MEMORY)
    if options.without_theirs:
        runs = tuple(run for run in runs if run != THEIRS)
    for name in options.models:
        found = {} if options.fresh else results.get(name, {})
        for run in runs:
            if "error" in found.get(run, {"error": "not measured"}):
                found = found | {run: _told(name, run, options.limit)}
                results[name] = found
                _keep(results, before, kept)
    ordered = {name: results[name] for name in SUBJECTS if name in results}
    _write(ordered, options.out, {"models": ordered, "before": before})


def _keep(results: Mapping[str, Found], before: Mapping[str, Found], path: Path) -> None:
    """What has been measured so far; the next run goes on from there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"models": results, "before": before}, indent=1) + "\n")


def _told(name: str, run: str, limit: float) -> dict[str, Any]:
    with CONSOLE.status(f"{name}: {run}"):
        return measured(name, run, limit)


def _write(results: Mapping[str, Found], path: Path, everything: Mapping[str, Any]) -> None:
    machine, before = this_machine(), everything["before"]
    runs = max(sum(run.startswith("time") for run in found) for found in results.values())
    timed = {name: found for name, found in results.items() if whole(found)}
    held = {name: found for name, found in results.items() if {*MEMORY} <= found.keys()}
    notes = [
        *verdict(timed, held),
        "Half of the units of every group go (MagnitudePruning(ratio=0.5)), from a batch of two.",
        f"CPU seconds of one thread, medians of {runs} process(es), on {machine.cpu}, "
        f"{machine.system}, torch {machine.versions['torch']}.",
        "`whole`: from capture, which exports, to verified; `ratio`: that over export; `before`: "
        "the same from figures that were set aside. `TP`: torch-pruning.",
        "Memory in MB: how far the process rose above itself with the model loaded.",
    ]
    tables = [
        tabled("Time of the compiler", ("model", *TIME_COLUMNS), [
            time_cells(name, found, before.get(name, {})) for name, found in timed.items()
        ]),
        tabled("Memory of the compiler", ("", *MEMORY_COLUMNS), [
            memory_cells(name, found, before.get(name, {})) for name, found in held.items()
        ]),
    ]  # fmt: skip
    written(tables, {**everything, "versions": machine.versions}, path, notes)


if __name__ == "__main__":
    main()
