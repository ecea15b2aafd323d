"""How long `import fxcompress` takes beside the libraries it builds on.

    python benchmarks/import_time.py

Every figure is the CPU time of one statement in processes of their own, with bytecode cached, after
what stands before it has been imported.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "examples"))

from outcome import tabled, written  # noqa: E402

MOST = 0.3
"""CPU seconds that `import fxcompress` may take over `import torch`."""
STATEMENTS = (("", "torch"), ("torch", "fxcompress"), ("fxcompress", "fxcompress.export"))
"""What is imported before, and what is timed."""


def seconds(before: str, timed: str, processes: int) -> list[float]:
    """CPU seconds of one import in each of several processes; one before them writes bytecode."""
    lines = [f"import {before}"] if before else []
    lines += ["from time import process_time as now", "start = now()", f"import {timed}"]
    command = [sys.executable, "-c", "\n".join([*lines, "print(now() - start)"])]
    runs = [
        subprocess.run(command, capture_output=True, text=True, check=True)
        for _ in range(processes + 1)
    ]
    return [float(run.stdout) for run in runs[1:]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "import_time")
    options = parser.parse_args(arguments)
    found = {timed: seconds(before, timed, options.processes) for before, timed in STATEMENTS}
    rows = [
        (f"import {name}", *(f"{f(times):.2f}" for f in (statistics.median, min, max)))
        for name, times in found.items()
    ]
    table = tabled("CPU seconds of imports", ("", "median", "least", "most"), rows)
    own = statistics.median(found["fxcompress"])
    verdict = "yes" if own <= MOST else "no"
    notes = [
        "Each after the one above it.",
        f"`import fxcompress` within {MOST} s over torch: {verdict}, {own:.2f} s in the median of "
        f"{options.processes} processes.",
    ]
    written([table], found, options.out, notes)


if __name__ == "__main__":
    main()
