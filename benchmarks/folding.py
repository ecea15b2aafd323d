"""Folding against pruning on a trained CIFAR-10 ResNet-20: error of every layer, and accuracy.

    python benchmarks/folding.py

Removed are channels inside the blocks, the same share of each. For every layer the page tells what
is lost of the squares of its weights by pruning to k channels and by folding to k and to k + 1, and
checks the theorem with its margin: folding the pruned channels into one loses |P| times the squared
length of their mean less than pruning them. Measured points are kept, so a stopped run goes on
where it was; ``--fresh`` measures anew.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "examples"))

from cifar10 import Images, load_cifar10, load_resnet  # noqa: E402
from evidence import DOCS, Points, page, plot, shared, table  # noqa: E402
from resnet_run import Varied  # noqa: E402

import fxcompress as fx  # noqa: E402
from fxcompress.files.write import write_text  # noqa: E402
from fxcompress.passes import Folding, MagnitudePruning, RecalibrateBatchNorm  # noqa: E402
from fxcompress.passes.folding.clusters import kmeans, special  # noqa: E402
from fxcompress.train import evaluate  # noqa: E402

SHORTCUTS = ("conv1.weight:out", "*.conv2.weight:out")
LAYERS = [f"layer{stage}.{block}.conv1.weight" for stage in (1, 2, 3) for block in range(3)]
RATIOS = (0.1, 0.3, 0.5, 0.7)
CALIBRATION = 1000
"""Training images: for statistics of merged units, and to renew those of BatchNorm."""

PRUNING: Mapping[str, Callable[..., Any]] = {
    "pruning, L1 (MAG1)": partial(MagnitudePruning, p=1),
    "pruning, L2 (MAG2)": partial(MagnitudePruning, p=2),
}
FOLDING: Mapping[str, dict[str, Any]] = {
    "folding": {},
    "folding, mean variances": {"statistics": "mean"},
    "folding, isotropic variances": {"statistics": "isotropic"},
    "folding, rows and columns": {"consumers": True},
    "folding, Ward": {"linkage": "ward"},
    "folding, effective rows": {"rows": "effective"},
    "folding, effective, isotropic": {"rows": "effective", "statistics": "isotropic"},
}
METHODS = {**PRUNING, **{name: partial(Folding, **own) for name, own in FOLDING.items()}}
STAGES = {"none": "as they are", "bn": "after BatchNorm is recalibrated"}


class Bench:
    """The network with its images."""

    def __init__(self, count: int) -> None:
        self.count = count

    @cached_property
    def model(self) -> nn.Module:
        """The network as it was trained."""
        return load_resnet(shared("data") / "checkpoints" / "cifar10_resnet20_optA.safetensors")

    @cached_property
    def program(self) -> fx.Program:
        """The network with the images that methods may look at."""
        folder = shared("data") / "cifar10"
        # Augmented as in training: the borders of shifted images are part of the statistics.
        batches = list(Varied(*load_cifar10(folder, "train", CALIBRATION), batch=100))
        return fx.compile(self.model, (batches[0][0][:1],), task=batches)

    @cached_property
    def test(self) -> fx.Task:
        """What accuracy is measured on."""
        images = Images(*load_cifar10(shared("data") / "cifar10", "test", self.count), batch=100)
        return fx.Task(images, metric=_share_right)

    def figures(self, method: str, ratio: float) -> dict[str, float]:
        """Top-1 in percent, before and after the recalibration."""
        program = self.program
        if ratio:
            one = METHODS[method](ratio=ratio, exclude=SHORTCUTS, round_to=1)
            program = fx.apply(program, one)
        renewed = fx.apply(program, RecalibrateBatchNorm())
        return {
            "none": 100 * evaluate(program.module, self.test),
            "bn": 100 * evaluate(renewed.module, self.test),
            "flops": program.report.flops.ratio,
        }


def _share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def errors(weight: Tensor, ratio: float) -> dict[str, float]:
    """Shares of the squares of a layer's weights that are lost, in float64.

    With the gap between the margin of the theorem and the margin found.
    """
    rows = weight.detach().double().flatten(1)
    units, whole = len(rows), float(rows.square().sum())
    kept = units - int(ratio * units)
    squares = rows.square().sum(1)

    def pruned(score: Tensor) -> Tensor:
        return score.argsort(stable=True)[: units - kept]

    gone = pruned(squares)
    margin = len(gone) * float(rows[gone].mean(0).square().sum())
    lost = float(squares[gone].sum())
    bound = special(rows, kept + 1).inertia(rows)
    return {
        "L1": float(squares[pruned(rows.abs().sum(1))].sum()) / whole,
        "L2": lost / whole,
        "fold k": kmeans(rows, kept).inertia(rows) / whole,
        "special k+1": bound / whole,
        "fold k+1": kmeans(rows, kept + 1).inertia(rows) / whole,
        "margin": margin / whole,
        "gap": abs(lost - bound - margin) / whole,
    }


def measure(points: Points, bench: Bench, ratios: list[float]) -> None:
    """Fill in what is not known yet."""
    weights = dict(bench.model.named_parameters())
    for ratio in ratios:
        for layer in LAYERS:
            work = _bound(errors, weights[layer], ratio)
            points.measure(work, what="error", layer=layer, ratio=ratio)
    for method in ("dense", *METHODS):
        for ratio in [0.0] if method == "dense" else ratios:
            work = _bound(bench.figures, method, ratio)
            points.measure(work, **_key(bench, method, ratio))


def _bound(work: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: work(*args)


def _key(bench: Bench, method: str, ratio: float) -> dict[str, Any]:
    return {"what": "accuracy", "method": method, "ratio": ratio, "test": bench.count}


def sections(points: Points, bench: Bench, ratios: list[float]) -> dict[str, str]:
    """The tables."""
    found = {}
    columns = ["L1", "L2", "fold k", "special k+1", "fold k+1", "margin"]
    for ratio in ratios:
        each = {layer: points.get(what="error", layer=layer, ratio=ratio) for layer in LAYERS}
        known = {layer: record for layer, record in each.items() if record}
        rows = {layer: [record[name] for name in columns] for layer, record in known.items()}
        rows["mean"] = [sum(cells) / len(known) for cells in zip(*rows.values(), strict=True)]
        gap = max(record["gap"] for record in known.values())
        title = f"{ratio:.0%} removed: share of the squares of each layer's weights that is lost"
        body = table(rows, columns, corner="layer", better=None)
        found[title] = f"{body}\n\nThe margin is met to {gap:.1g}."
    for stage, words in STAGES.items():
        rows = {name: _line(points, bench, name, ratios, stage) for name in METHODS}
        dense = points.get(**_key(bench, "dense", 0.0))
        top = f", dense {dense[stage]:.2f}" if dense else ""
        names = [f"{ratio:.0%}" for ratio in ratios]
        found[f"Top-1 in percent, {words}{top}"] = table(rows, names, corner="removed", digits=2)
    return found


def _line(
    points: Points, bench: Bench, method: str, ratios: list[float], stage: str
) -> list[float | str | None]:
    records = [points.get(**_key(bench, method, ratio)) for ratio in ratios]
    return [record.get(stage, "failed") if record else None for record in records]


def draw(points: Points, bench: Bench, ratios: list[float], path: Path) -> None:
    """Mean error over layers, and accuracy before and after, over the share removed."""
    lost = {}
    for name in ("L1", "L2", "fold k", "fold k+1"):
        means = []
        for ratio in ratios:
            each = [points.get(what="error", layer=layer, ratio=ratio) for layer in LAYERS]
            means.append((100 * ratio, sum(r[name] for r in each if r) / len(LAYERS)))
        lost[f"error, {name}"] = means
    panels: dict[str, Any] = {"share of squares lost, mean over layers": lost}
    for stage, words in STAGES.items():
        panels[f"top-1 (%) {words}"] = {
            name: [
                (100 * ratio, cell)
                for ratio, cell in zip(
                    ratios, _line(points, bench, name, ratios, stage), strict=True
                )
                if isinstance(cell, float)
            ]
            for name in METHODS
        }
    plot(path, panels, x="channels removed inside blocks (%)", y="")


def main() -> None:
    """Measure what is asked for and write all that is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--ratios", nargs="+", type=float, default=list(RATIOS))
    add("--test-images", type=int, default=2000, help="of 10,000")
    add("--points-file", type=Path, default=HERE.parent / "out" / "folding.jsonl")
    add("--out", type=Path, default=DOCS / "folding", help="of the page, without its ending")
    add("--fresh", action="store_true", help="forget what was measured before")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    points, bench = Points(wanted.points_file, wanted.fresh), Bench(wanted.test_images)
    measure(points, bench, wanted.ratios)
    draw(points, bench, wanted.ratios, wanted.out.with_suffix(".png"))
    words = (
        f"CIFAR-10 ResNet-20 (zero-padded shortcuts), top-1 on the first {bench.count} test "
        "images; channels inside all nine blocks, widths not rounded, nothing is trained. Folding "
        f"and recalibration see the same first {CALIBRATION} training images, mirrored and shifted "
        "as in training, without labels. Clusters are k-means on raw filters (seed 0), and the "
        "variances of merged channels are the exact ones, from the images, unless a name says "
        "otherwise. Pruning keeps the k filters of largest norm; the special fold keeps those and "
        "merges all others (k + 1 filters), and the theorem says that "
        "it loses exactly the margin less."
    )
    body = sections(points, bench, wanted.ratios)
    picture = {"Curves": f"![errors and accuracy]({wanted.out.name}.png)"}
    page(wanted.out.with_suffix(".md"), "Folding against pruning", words, body | picture)
    records = json.dumps(list(points.known.values()), indent=1)
    write_text(wanted.out.with_suffix(".json"), records + "\n")


if __name__ == "__main__":
    main()
