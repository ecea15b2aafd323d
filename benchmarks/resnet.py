"""Accuracy of pruned CIFAR-10 ResNets, method by method on one planner.

    python benchmarks/resnet.py --models resnet20

Removed are channels inside the blocks (the outputs of every block's first convolution): the
shortcuts are padded with zeros, so the three stages share one stream of channels, which is left
whole. A point is a share of those channels, the same in every block, or a share of the model's
FLOPs: ``2x`` and ``3x`` with one ranking over all blocks, each method with its own normalisation,
``2x exact`` and ``3x exact`` with the widths that keep the largest total score. Widths are not
rounded. Measured points are kept, so a stopped run goes on where it was; ``--fresh`` measures anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from evidence import DOCS, HERE, Points, page, plot, table
from methods import METHODS
from resnet_run import (
    BATCH,
    CALIBRATION,
    EPOCHS,
    POINTS,
    RATE,
    RECALIBRATION,
    SEED,
    TUNING,
    Bench,
    Run,
)

from fxcompress.files.write import write_text

OWN = "least squares"
"""How the names of our own method's settings begin."""
TEST = {"resnet20": 5000, "resnet56": 2000}
"""Test images, of 10,000."""
STAGES = {
    "none": "right after pruning",
    "bn": "after BatchNorm's statistics are renewed",
    "tuned": "after fine-tuning",
}


def measure(points: Points, bench: Bench, wanted: argparse.Namespace) -> None:
    """Fill in what is not known yet: the dense network, then method after method."""
    for method in ("dense", *wanted.methods):
        for point in ["0%"] if method == "dense" else wanted.points:
            run = Run(bench, method, point)
            for stage in wanted.stages:
                if stage != "tuned" or point in (*wanted.tune, "0%"):
                    points.measure(_work(run, stage), **_key(bench, method, point, stage))


def _work(run: Run, stage: str) -> Callable[[], dict[str, Any]]:
    return lambda: run.figures(stage)


def _key(bench: Bench, method: str, point: str, stage: str) -> dict[str, Any]:
    return {"model": bench.name, "method": method, "point": point, "stage": stage, "seed": SEED,
            "test": bench.count}  # fmt: skip


def accuracy(points: Points, bench: Bench, method: str, point: str, stage: str) -> Any:
    """In percent; ``failed`` where the method did; None where it is missing."""
    found = points.get(**_key(bench, method, point, stage))
    return found and ("failed" if "failed" in found else found["accuracy"])


def sections(points: Points, benches: Sequence[Bench]) -> dict[str, str]:
    """A table for each network and stage that has figures."""
    found = {}
    for bench in benches:
        for stage, words in STAGES.items():
            rows = {
                method: [accuracy(points, bench, method, point, stage) for point in POINTS]
                for method in METHODS
            }
            rows = {method: cells for method, cells in rows.items() if any(cells)}
            if rows:
                dense = accuracy(points, bench, "dense", "0%", stage)
                top = "" if dense is None else f", dense {dense:.2f}"
                body = table(rows, list(POINTS), corner="removed", digits=2)
                body += "\n\n" + table(_lead(rows), list(POINTS), corner="", digits=2, better=None)
                failures = _failures(points, bench, stage)
                found[f"{bench.name}: top-1 in percent {words}{top}"] = f"{body}{failures}"
    return found


def _lead(rows: Mapping[str, Sequence[Any]]) -> dict[str, list[float | None]]:
    """By how much the best setting of our own method is ahead of the best of all others."""
    lead: list[float | None] = []
    for cells in zip(*rows.values(), strict=True):
        known = {m: c for m, c in zip(rows, cells, strict=True) if isinstance(c, float)}
        own = [cell for method, cell in known.items() if method.startswith(OWN)]
        others = [cell for method, cell in known.items() if not method.startswith(OWN)]
        lead.append(max(own) - max(others) if own and others else None)
    return {f"best of {OWN}, less the best of the others": lead}


def _failures(points: Points, bench: Bench, stage: str) -> str:
    lines = {
        f"- {key['method']} failed: {record['failed']}"
        for record in points.known.values()
        if "failed" in record and _is_of(record, bench) and (key := record["key"])["stage"] == stage
    }
    return "\n\n" + "\n".join(sorted(lines)) if lines else ""


def _is_of(record: dict[str, Any], bench: Bench) -> bool:
    return bool(record["key"]["model"] == bench.name and record["key"]["test"] == bench.count)


def draw(points: Points, bench: Bench, path: Path) -> None:
    """Accuracy over the share of channels removed, a panel for each stage."""
    tenths = [point for point in POINTS if point.endswith("%")]
    panels = {}
    for stage, words in STAGES.items():
        curves = {}
        for method in METHODS:
            cells = [accuracy(points, bench, method, point, stage) for point in tenths]
            line = [(10.0 * n, c) for n, c in enumerate(cells, 1) if isinstance(c, float)]
            if line:
                curves[method] = line
        if curves:
            panels[f"{bench.name}, {words}"] = curves
    if panels:
        plot(path, panels, x="channels removed inside blocks (%)", y="top-1 (%)")


def write(points: Points, benches: Sequence[Bench], out: Path) -> None:
    """The page, the figures and the plots, of all that is known."""
    counts = " and ".join(f"{bench.count:,} ({bench.name})" for bench in benches)
    words = (
        f"Top-1 on the first {counts} of CIFAR-10's 10,000 test images. Only channels "
        "inside the blocks are removed; the residual stream, whose shortcuts are padded with "
        "zeros, keeps its widths. Points in percent remove that share of every block's channels; "
        "2x and 3x are FLOP budgets: the units of least score go, wherever they are, each method "
        "with its own normalisation, or with *exact* the widths are those that keep the largest "
        "total score. Widths are not rounded. Methods that look at data see "
        f"{CALIBRATION} training images; statistics of BatchNorm are renewed on {RECALIBRATION:,}; "
        f"fine-tuning is {EPOCHS} epoch on {TUNING:,} augmented training images (SGD, rate {RATE} "
        f"falling to 0, batch {BATCH}), and its last state counts. Random is one draw. The last "
        f"line under each table takes, point by point, the best of the settings of {OWN}, on these "
        "images, and the best of all others as well. Every figure is one that `python "
        "benchmarks/resnet.py --models resnet20 resnet56` measures; a dash was left out for time."
    )
    for bench in benches:
        draw(points, bench, out.with_name(f"{out.name}_{bench.name}.png"))
    body = sections(points, benches)
    pictures = {
        "Curves": "\n\n".join(f"![{b.name}]({out.name}_{b.name}.png)" for b in benches
                              if out.with_name(f"{out.name}_{b.name}.png").exists())
    }  # fmt: skip
    page(out.with_suffix(".md"), "Pruned ResNets on CIFAR-10", words, body | pictures)
    records = [r for r in points.known.values() if any(_is_of(r, bench) for bench in benches)]
    text = json.dumps(records, indent=1)
    write_text(out.with_suffix(".json"), text + "\n")


def main() -> None:
    """Measure what is asked for and write all that is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--models", nargs="+", default=["resnet20"], choices=["resnet20", "resnet56"])
    add("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    add("--points", nargs="+", default=list(POINTS), choices=list(POINTS), metavar="POINT")
    add("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    add("--tune", nargs="*", default=list(POINTS), metavar="POINT", help="points to fine-tune at")
    add("--test-images", type=int, help="of 10,000; by default 5,000 and 2,000")
    add("--points-file", type=Path, default=HERE.parent / "out" / "resnet.jsonl")
    add("--out", type=Path, default=DOCS / "resnet", help="of the page, without its ending")
    add("--fresh", action="store_true", help="forget what was measured before")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    points = Points(wanted.points_file, wanted.fresh)
    benches = [Bench(name, wanted.test_images or TEST[name]) for name in wanted.models]
    for bench in benches:
        measure(points, bench, wanted)
        write(points, benches, wanted.out)


if __name__ == "__main__":
    main()
