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
import copy
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "examples"))

from cifar10 import SIDE, Images, load_cifar10, load_resnet, normalised  # noqa: E402
from evidence import DOCS, Points, page, plot, shared, table  # noqa: E402
from methods import METHODS  # noqa: E402

import fxcompress as fx  # noqa: E402
from fxcompress.train import Trainer, evaluate, recalibrate  # noqa: E402

SHORTCUTS = ("conv1.weight:out", "*.conv2.weight:out")
"""What writes into the residual stream."""
CALIBRATION, RECALIBRATION, TUNING = 512, 2000, 5000
"""Training images that methods look at, that renew BatchNorm's statistics, and to tune on."""
TEST = {"resnet20": 5000, "resnet56": 2000}
"""Test images, of 10,000."""
BATCH, RATE, EPOCHS, BORDER = 100, 0.02, 1, 4
SEEDS = {"random": (0, 1, 2)}
"""Methods that draw are measured with several seeds; the tables hold the mean."""
STAGES = {
    "none": "right after pruning",
    "bn": "after BatchNorm's statistics are renewed",
    "tuned": "after fine-tuning",
}


class Varied(Images):
    """Training batches as the networks saw them: mirrored, and moved over a black border."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for places in torch.randperm(len(self.images), generator=self._random).split(self.batch):
            padded = nn.functional.pad(self.images[places], (BORDER,) * 4)
            images = torch.stack([self._crop(image) for image in padded])
            yield normalised(images), self.labels[places]

    def _crop(self, image: Tensor) -> Tensor:
        row, column = torch.randint(2 * BORDER + 1, (2,), generator=self._random).tolist()
        piece = image[:, row : row + SIDE, column : column + SIDE]
        return piece.flip(2) if torch.rand((), generator=self._random) < 0.5 else piece


def _budget(share: float, allocation: str) -> dict[str, Any]:
    return {"budget": fx.Budget(flops=share, allocation=allocation)}  # type: ignore[arg-type]


POINTS: dict[str, dict[str, Any]] = {
    **{f"{10 * tenth}%": {"ratio": tenth / 10} for tenth in range(1, 8)},
    "2x": _budget(1 / 2, "global"),
    "3x": _budget(1 / 3, "global"),
    "2x exact": _budget(1 / 2, "exact"),
    "3x exact": _budget(1 / 3, "exact"),
}


@dataclass(frozen=True)
class Bench:
    """One network with its images.

    Attributes:
        name: ``resnet20`` or ``resnet56``.
        count: Test images.
    """

    name: str
    count: int

    @cached_property
    def model(self) -> nn.Module:
        """The network as it was trained."""
        file = f"cifar10_{self.name}_optA.safetensors"
        return load_resnet(shared("data") / "checkpoints" / file)

    @cached_property
    def test(self) -> Images:
        """What accuracy is measured on, and nothing else."""
        return Images(*load_cifar10(shared("data") / "cifar10", "test", self.count), batch=25)

    def train(self, count: int, kind: type[Images] = Varied) -> Images:
        """The first training images; their classes take turns."""
        return kind(*load_cifar10(shared("data") / "cifar10", "train", count), batch=BATCH)

    @cached_property
    def program(self) -> fx.Program:
        """The network with what methods may look at."""
        task = fx.Task(self.train(CALIBRATION, Images), loss=nn.functional.cross_entropy)
        example = next(iter(self.test))[0][:1]
        return fx.compile(self.model, (example,), task=task)

    def accuracy(self, module: nn.Module) -> float:
        """Top-1 in percent."""
        return 100 * evaluate(module, fx.Task(self.test, metric=_share_right))

    def pruned(self, method: str, point: str, seed: int) -> fx.Program:
        """The network after one method."""
        if method == "dense":
            return self.program
        extra = {"seed": seed} if method in SEEDS else {}
        one = METHODS[method](**POINTS[point], **extra, exclude=SHORTCUTS, round_to=1)
        return fx.apply(self.program, one)


def _share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


class Run:
    """One method at one point, stage after stage; every stage goes on from the one before."""

    def __init__(self, bench: Bench, method: str, point: str, seed: int) -> None:
        self.bench, self.which = bench, (method, point, seed)

    @cached_property
    def program(self) -> fx.Program:
        """The pruned network."""
        return self.bench.pruned(*self.which)

    @cached_property
    def renewed(self) -> nn.Module:
        """Its module with new statistics."""
        module = copy.deepcopy(self.program.module)
        recalibrate(module, fx.Task(self.bench.train(RECALIBRATION)))
        return module

    @cached_property
    def tuned(self) -> nn.Module:
        """That module after a short training."""
        module = copy.deepcopy(self.renewed)
        task = fx.Task(self.bench.train(TUNING), loss=nn.functional.cross_entropy)
        Trainer(epochs=EPOCHS, lr=RATE).fit(module, task)
        return module

    def figures(self, stage: str) -> dict[str, Any]:
        """Accuracy, and what is left of the network."""
        module = {
            "none": lambda: self.program.module,
            "bn": lambda: self.renewed,
            "tuned": lambda: self.tuned,
        }[stage]()
        report = self.program.report
        return {
            "accuracy": self.bench.accuracy(module),
            "flops": report.flops.ratio,
            "params": report.params.ratio,
        }


def measure(points: Points, bench: Bench, wanted: argparse.Namespace) -> None:
    """Fill in what is not known yet: the dense network, then method after method."""
    for method in ("dense", *wanted.methods):
        for point in ["0%"] if method == "dense" else wanted.points:
            for seed in SEEDS.get(method, (0,)):
                run = Run(bench, method, point, seed)
                for stage in wanted.stages:
                    if stage == "tuned" and point not in (*wanted.tune, "0%"):
                        continue
                    points.measure(_work(run, stage), **_key(bench, method, point, stage, seed))


def _work(run: Run, stage: str) -> Callable[[], dict[str, Any]]:
    return lambda: run.figures(stage)


def _key(bench: Bench, method: str, point: str, stage: str, seed: int) -> dict[str, Any]:
    return {"model": bench.name, "method": method, "point": point, "stage": stage, "seed": seed,
            "test": bench.count}  # fmt: skip


def accuracy(points: Points, bench: Bench, method: str, point: str, stage: str) -> Any:
    """The mean over seeds; ``failed`` where a run did; None where one is missing."""
    seeds = SEEDS.get(method, (0,))
    found = [points.get(**_key(bench, method, point, stage, seed)) for seed in seeds]
    if any(each is None for each in found):
        return None
    if any("failed" in each for each in found if each):
        return "failed"
    return mean(each["accuracy"] for each in found if each)


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
                failures = _failures(points, bench, stage)
                found[f"{bench.name}: top-1 in percent {words}{top}"] = f"{body}{failures}"
    return found


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
        f"falling to 0, batch {BATCH}), and its last state counts. Random is the mean of three "
        "seeds. A dash was not measured."
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
    out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Measure what is asked for and write all that is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--models", nargs="+", default=["resnet20"], choices=["resnet20", "resnet56"])
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
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
