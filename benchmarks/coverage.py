"""The whole zoo through the compiler: which models it takes, and whether the result is right.

    python benchmarks/coverage.py                  # all models, all parts: two hours on one core
    python benchmarks/coverage.py --jobs 2         # the same in an hour on two
    python benchmarks/coverage.py --parts exact    # equivalence only
    python benchmarks/coverage.py --models toy/mlp hf/llama --again

Every model runs in a process of its own. What was measured is kept as lines of JSON beside the
table, so that a stopped run goes on where it was; ``--again`` repeats what failed, ``--fresh``
everything. A part that takes more CPU seconds than ``--limit`` is reported as a failure;
torch-pruning, which does not come to an end on two dozen of the models, has a limit of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# Before torch is imported, here and in the processes started: one thread, so that CPU seconds mean
# something.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")

HERE = Path(__file__).resolve().parent

from coverage_parts import PARTS, THEIRS  # noqa: E402
from coverage_run import Runs  # noqa: E402
from coverage_table import page, summary  # noqa: E402

from fxcompress.export.timing.machine import this_machine  # noqa: E402
from fxcompress.files.write import write_text  # noqa: E402


def zoo_folder() -> Path:
    """Where the zoo lies: in ``FXCOMPRESS_SHARED``, or beside the repository."""
    shared = Path(os.environ.get("FXCOMPRESS_SHARED", HERE.parents[1] / "shared"))
    if not (shared / "zoo" / "zoo.py").is_file():
        raise SystemExit(f"no zoo in {shared}; set FXCOMPRESS_SHARED to the folder that holds it")
    return shared / "zoo"


def known_reductions(folder: Path) -> dict[str, dict[str, Any]]:
    """What torch-pruning did with each model when the zoo was made."""
    lines = (folder / "torch_pruning.jsonl").read_text(encoding="utf-8").splitlines()
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {record["name"]: record for record in records}


def main() -> None:
    """Measure what is not measured yet, and write the table."""
    options = _options()
    folder = zoo_folder()
    names = options.models or _zoo_names(folder)
    if options.fresh:
        options.records.unlink(missing_ok=True)
    limits = dict.fromkeys(PARTS, options.limit) | {THEIRS: options.torch_pruning_limit}
    runs = Runs(options.records, folder, limits)
    parts = [part for part in PARTS if part in options.parts]

    def one(numbered: tuple[int, str]) -> None:
        number, name = numbered
        if todo := runs.missing(name, parts, options.again):
            found = runs.measure(name, todo)
            print(f"{number}/{len(names)} {name}: {_told(found, todo)}", flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, enumerate(names, 1)))
    machine = this_machine()
    facts = [
        f"`{shlex.join(['python', *sys.argv])}`",
        f"{machine.cpu}, {machine.system}",
        ", ".join(f"{package} {number}" for package, number in _versions().items()),
    ]
    everything = {name: runs.records[name] for name in _zoo_names(folder) if name in runs.records}
    theirs = known_reductions(folder)
    write_text(options.table, page(everything, theirs, facts))
    print("\n".join(summary(everything, theirs)))
    print(f"written to {options.table}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", help="names, instead of the whole zoo")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--limit", type=float, default=900, help="CPU seconds for one part")
    parser.add_argument("--torch-pruning-limit", type=float, default=60, help="CPU seconds for it")
    parser.add_argument("--jobs", type=int, default=1, help="models measured side by side")
    parser.add_argument("--again", action="store_true", help="repeat what failed")
    parser.add_argument("--fresh", action="store_true", help="measure everything anew")
    docs = HERE.parent / "docs"
    parser.add_argument("--records", type=Path, default=docs / "coverage.jsonl")
    parser.add_argument("--table", type=Path, default=docs / "coverage.md")
    return parser.parse_args()


def _zoo_names(folder: Path) -> list[str]:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    import zoo

    names: list[str] = zoo.names()
    return names


def _told(found: Mapping[str, Mapping[str, Any]], parts: list[str]) -> str:
    words = []
    for part in parts:
        figures = found[part]
        good = "ok" if "error" not in figures else f"ok, error {figures['error']:.1g}"
        bad = f"{figures.get('failed')}: {figures.get('says')}"
        words.append(f"{part} {bad if 'failed' in figures else good}")
    return "; ".join(words)


def _versions() -> dict[str, str]:
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("fxcompress", "torch", "torchvision", "timm", "transformers", "torch-pruning",
                 "onnx", "onnxscript", "onnxruntime"):  # fmt: skip
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    main()
