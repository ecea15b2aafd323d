"""Accuracy of two small published nets, method by method: LeNet-5 on MNIST, PointNet on ModelNet10.

    python benchmarks/small_nets.py

The same share of units leaves every layer but the last; nothing is trained. PointNet's BatchNorm is
recalibrated after, and both accuracies are told; LeNet has none. Measured points are kept, so a
stopped run goes on where it was; ``--fresh`` measures anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from evidence import DOCS, HERE, Points, page, plot, shared, table
from fashion_mnist import packs
from methods import METHODS
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.files.write import write_text
from fxcompress.passes import RecalibrateBatchNorm
from fxcompress.train import evaluate

RATIOS = {"LeNet-5": (0.1, 0.3, 0.5, 0.7), "PointNet": (0.1, 0.3, 0.5)}
IMAGES, CLOUDS, EVERY = 500, 200, 2
"""Training samples that methods look at, and which of the test clouds are measured on."""
SEEDS = {"random": (0, 1, 2)}
STAGES = {"none": "as it is", "bn": "after BatchNorm is recalibrated"}


@dataclass(frozen=True)
class Subject:
    """A net with its data.

    Attributes:
        program: With what methods may look at.
        test: With the metric.
        stages: Which accuracies there are.
        words: What the page says of it.
    """

    program: fx.Program
    test: fx.Task
    stages: tuple[str, ...]
    words: str = field(repr=False)


def lenet() -> Subject:
    """LeNet-5, all test images."""
    net = packs().LeNet5()
    net.load_state_dict(packs().ckpt("mnist_lenet5"))
    train, test = (_digits(split) for split in ("train", "test"))
    order = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(0))[:IMAGES]
    seen = _batches(train[0][order], train[1][order], 100)
    return Subject(
        fx.compile(net.eval(), (seen[0][0][:1],), task=fx.Task(seen, nn.functional.cross_entropy)),
        fx.Task(_batches(*test, 500), metric=_right),
        ("none",),
        f"LeNet-5 with ReLU on all 10,000 MNIST test images; methods see {IMAGES} training "
        "images (seed 0).",
    )


def _digits(split: str) -> tuple[Tensor, Tensor]:
    images, labels = packs().mnist(split)
    x = torch.from_numpy(images.copy())[:, None].float() / 255
    x = nn.functional.interpolate(x, size=32, mode="bilinear", antialias=True)
    return x, torch.from_numpy(labels)


def pointnet() -> Subject:
    """PointNet for 40 classes, on the clouds of ten of them."""
    net = packs().PointNet()
    net.load_state_dict(packs().ckpt("modelnet40_pointnet"))
    points, labels = _clouds("train")
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))[:CLOUDS]
    seen = _batches(points[order], torch.tensor(packs().MN10_IN_40)[labels[order]], 50)
    test = [part[::EVERY] for part in _clouds("test")]
    return Subject(
        fx.compile(net.eval(), (seen[0][0][:1],), task=fx.Task(seen, nn.functional.cross_entropy)),
        fx.Task(_batches(*test, 50), metric=_right_of_ten),
        ("none", "bn"),
        f"PointNet without T-nets, trained for 40 classes, on {len(test[0])} ModelNet10 test "
        f"clouds (one in {EVERY}), among its ten classes; methods and recalibration see "
        f"{CLOUDS} training clouds (seed 0).",
    )


def _clouds(split: str) -> tuple[Tensor, Tensor]:
    """Clouds with y up, as the net was trained."""
    points, labels = packs().modelnet10(split)
    turned = points[:, :, [0, 2, 1]] * np.array([-1, 1, 1], np.float32)
    return torch.from_numpy(turned), torch.from_numpy(labels)


def _batches(x: Tensor, y: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def _right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def _right_of_ten(logits: Tensor, labels: Tensor) -> float:
    return _right(logits[:, list(packs().MN10_IN_40)], labels)


SUBJECTS = {"LeNet-5": cache(lenet), "PointNet": cache(pointnet)}


def figures(name: str, method: str, ratio: float, seed: int) -> dict[str, float]:
    """Top-1 in percent at every stage."""
    subject = SUBJECTS[name]()
    program = subject.program
    if ratio:
        extra = {"seed": seed} if method in SEEDS else {}
        program = fx.apply(program, METHODS[method](ratio=ratio, round_to=1, **extra))
    found = {"none": 100 * evaluate(program.module, subject.test)}
    if "bn" in subject.stages:
        renewed = fx.apply(program, RecalibrateBatchNorm())
        found["bn"] = 100 * evaluate(renewed.module, subject.test)
    return found | {"params": program.report.params.ratio}


def measure(points: Points, wanted: argparse.Namespace) -> None:
    """Fill in what is not known yet."""
    for name in wanted.nets:
        for ratio in (0.0, *RATIOS[name]):
            for method in METHODS if ratio else ("dense",):
                for seed in SEEDS.get(method, (0,)):
                    work = _bound(figures, name, method, ratio, seed)
                    points.measure(work, net=name, method=method, ratio=ratio, seed=seed)


def _bound(work: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    return lambda: work(*args)


def cell(points: Points, name: str, method: str, ratio: float, stage: str) -> float | str | None:
    """The mean over seeds."""
    seeds = SEEDS.get(method, (0,))
    found = [points.get(net=name, method=method, ratio=ratio, seed=seed) for seed in seeds]
    if any(each is None for each in found):
        return None
    if any("failed" in each for each in found if each):
        return "failed"
    return mean(each[stage] for each in found if each)


def write(points: Points, wanted: argparse.Namespace) -> None:
    """The page, the figures and the plot."""
    body, panels = {}, {}
    for name in wanted.nets:
        ratios = sorted(RATIOS[name])
        for stage in SUBJECTS[name]().stages:
            rows = {
                method: [cell(points, name, method, ratio, stage) for ratio in ratios]
                for method in METHODS
            }
            rows = {method: cells for method, cells in rows.items() if any(cells)}
            if not rows:
                continue
            dense = cell(points, name, "dense", 0.0, stage)
            top = f"dense {dense:.2f}" if isinstance(dense, float) else ""
            title = f"{name}, {STAGES[stage]}: top-1 in percent, {top}"
            names = [f"{ratio:.0%}" for ratio in ratios]
            body[title] = table(rows, names, corner="removed", digits=2) + _failures(points, name)
            panels[f"{name}, {STAGES[stage]}"] = {
                method: [(100 * r, c) for r, c in zip(ratios, cells, strict=True)
                         if isinstance(c, float)]
                for method, cells in rows.items() if any(isinstance(c, float) for c in cells)
            }  # fmt: skip
    plot(
        wanted.out.with_suffix(".png"),
        panels,
        x="units removed from every layer (%)",
        y="top-1 (%)",
    )
    words = " ".join(
        [
            *(SUBJECTS[name]().words for name in wanted.nets),
            "The same share of units leaves every layer; widths are not rounded and nothing is "
            "trained. Random is the mean of three seeds.",
        ]
    )
    picture = {"Curves": f"![accuracy]({wanted.out.name}.png)"}
    page(wanted.out.with_suffix(".md"), "Two small nets, method by method", words, body | picture)
    records = json.dumps(list(points.known.values()), indent=1)
    write_text(wanted.out.with_suffix(".json"), records + "\n")


def _failures(points: Points, name: str) -> str:
    lines = {
        f"- {record['key']['method']} failed: {record['failed']}"
        for record in points.known.values()
        if "failed" in record and record["key"]["net"] == name
    }
    return "\n\n" + "\n".join(sorted(lines)) if lines else ""


def main() -> None:
    """Measure what is asked for and write all that is known."""
    shared("data")
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--nets", nargs="+", default=list(SUBJECTS), choices=list(SUBJECTS))
    add("--points-file", type=Path, default=HERE.parent / "out" / "small_nets.jsonl")
    add("--out", type=Path, default=DOCS / "small_nets", help="of the page, without its ending")
    add("--fresh", action="store_true", help="forget what was measured before")
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    points = Points(wanted.points_file, wanted.fresh)
    measure(points, wanted)
    write(points, wanted)


if __name__ == "__main__":
    main()
