"""How long the compiler takes, and how much memory, beside torch.export and torch-pruning.

    python benchmarks/compile_time.py

The targets: analysis, plan and rewrite together take no longer than torch.export; `compile` needs
less than 2.5 times the model's own memory above what torch.export needs. Every model is measured in
processes of its own, several for time and two for memory. What has been measured is kept in the
JSON file, so that a stopped run goes on where it was; ``--fresh`` measures anew.
"""

from __future__ import annotations

import argparse
import json
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

MOST_TIME, MOST_MEMORY = 1.0, 2.5
MEMORY = ("memory-export", "memory-compile")
THEIRS = "torch-pruning"
OURS = ("canonicalize", "analysis", "plan", "rewrite")
TIME_COLUMNS = (
    "parameters", "export", *OURS, "ratio", "warm ratio", "verify", "TP graph", "TP step",
)  # fmt: skip
MEMORY_COLUMNS = ("model", "torch.export", "compile", "above export, of model")

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


def ratio(found: Found, state: str = "cold") -> float | None:
    """The compiler's CPU time after capture, over that of torch.export."""
    ours = [median(found, state, stage) for stage in OURS]
    export = median(found, state, "export")
    return sum(filter(None, ours)) / export if export else None


def memory_above(found: Found) -> float | None:
    """The peak of `compile` above that of torch.export, over the model's own size."""
    exported, compiled = (found[run] for run in MEMORY)
    if "error" in exported or "error" in compiled:
        return None
    return float((compiled["above"] - exported["above"]) / compiled["model"])


def time_cells(name: str, found: Found) -> tuple[object, ...]:
    """A line of the first table."""
    stages = [_seconds(median(found, "cold", stage)) for stage in ("export", *OURS)]
    theirs = found[THEIRS]
    step = "fails" if "error" in theirs else _seconds(theirs["step"])
    return (
        name, f"{(median(found, 'parameters') or 0) / 1e6:.1f} M", *stages,
        _two(ratio(found)), _two(ratio(found, "warm")), _seconds(median(found, "cold", "verify")),
        _seconds(theirs.get("graph")), step,
    )  # fmt: skip


def memory_cells(name: str, found: Found) -> tuple[object, ...]:
    """A line of the second table."""
    above = [_megabytes(found[run].get("above")) for run in MEMORY]
    return name, _megabytes(found[MEMORY[0]].get("model")), *above, _two(memory_above(found), "x")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _megabytes(value: float | None) -> str:
    return "" if value is None else f"{value / 1e6:.0f}"


def _two(value: float | None, unit: str = "") -> str:
    return "failed" if value is None else f"{value:.2f}{unit}"


def verdict(results: Mapping[str, Found]) -> list[str]:
    """Which targets were met, and which were not."""
    ratios = {name: ratio(found) for name, found in results.items()}
    memories = {name: memory_above(found) for name, found in results.items()}
    lines = [
        _judged("Analysis, plan and rewrite no longer than torch.export", ratios, MOST_TIME),
        _judged(f"Memory above export below {MOST_MEMORY} times the model", memories, MOST_MEMORY),
    ]
    for name, found in results.items():
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
    options = parser.parse_args()
    kept = options.out.with_suffix(".json")
    results: dict[str, dict[str, Any]] = {}
    if kept.exists():
        results = json.loads(kept.read_text(encoding="utf-8"))["models"]
    runs = (*(f"time {number}" for number in range(1, options.runs + 1)), THEIRS, *MEMORY)
    for name in options.models:
        found = {} if options.fresh else results.get(name, {})
        for run in runs:
            if "error" in found.get(run, {"error": "not measured"}):
                found = found | {run: _told(name, run, options.limit)}
                results[name] = found
                _keep(results, kept)
    whole = {
        name: results[name]
        for name in SUBJECTS
        if {THEIRS, *MEMORY} <= results.get(name, {}).keys()
    }
    _write(whole, options.out, results)


def _keep(results: Mapping[str, Found], path: Path) -> None:
    """What has been measured so far; the next run goes on from there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"models": results}, indent=1) + "\n")


def _told(name: str, run: str, limit: float) -> dict[str, Any]:
    with CONSOLE.status(f"{name}: {run}"):
        return measured(name, run, limit)


def _write(results: Mapping[str, Found], path: Path, everything: Mapping[str, Found]) -> None:
    machine = this_machine()
    runs = max(sum(run.startswith("time") for run in found) for found in results.values())
    notes = [
        *verdict(results),
        "Half of the units of every group go (MagnitudePruning(ratio=0.5)), from a batch of two.",
        f"CPU seconds of one thread, medians of {runs} process(es), on {machine.cpu}, "
        f"{machine.system}, torch {machine.versions['torch']}.",
        "`ratio`: canonicalize, analysis, plan and rewrite over export. `warm ratio`: the same for "
        "a second time in the same process. `TP`: torch-pruning.",
        "Memory in MB: how far the process rose above itself with the model loaded.",
    ]
    tables = [
        tabled("Time of the compiler", ("model", *TIME_COLUMNS), [
            time_cells(name, found) for name, found in results.items()
        ]),
        tabled("Memory of the compiler", ("", *MEMORY_COLUMNS), [
            memory_cells(name, found) for name, found in results.items()
        ]),
    ]  # fmt: skip
    written(tables, {"models": everything, "versions": machine.versions}, path, notes)


if __name__ == "__main__":
    main()
