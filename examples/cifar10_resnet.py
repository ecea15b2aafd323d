"""Compress a trained ResNet-56 for CIFAR-10 to several FLOP budgets, and see what is left of it.

    python examples/cifar10_resnet.py --data ../shared/data

The network's shortcuts are padded with zeros where a stage widens, so its stages hang together
through constants: pruning one changes how many zeros another needs. For every budget the script
measures the accuracy right after pruning, after renewing BatchNorm's statistics, and after a short
fine-tuning; it writes the weights back into the user's class, exports to ONNX, checks the file in
onnxruntime and times it against the dense one. One table in the end.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from cifar10 import SIDE, Images, ResNet, load_cifar10, load_resnet
from outcome import CONSOLE, default_data, medians, spelled_noise, tabled, written
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.train import Progress, Trainer, evaluate, recalibrate

WRITE_BACK_TOLERANCE = 1e-5  # of the largest logit: the same operations on the same weights
SHORTCUTS = ("conv1.weight:out", "*.conv2.weight:out")
"""What writes into the residual stages."""
COLUMNS = (
    "FLOPs", "of dense", "parameters", "pruned %", "recalibrated %", "tuned %", "write-back error",
    "ONNX KiB", "ONNX error", "ms", "CPU ms", "less CPU",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is run, and how long."""

    data: Path
    out: Path
    checkpoint: str
    budgets: tuple[float, ...]
    inside: tuple[float, ...]
    allocation: Literal["uniform", "global"]
    epochs: int
    images: int
    test: int
    batch: int
    lr: float
    recalibration: int
    round_to: str
    rounds: int
    seed: int


@dataclass(frozen=True)
class Row:
    """One line of the table; accuracies are in percent, errors relative to the largest output."""

    name: str
    file: Path
    flops: int
    share: float
    params: int
    accuracy: float
    onnx_bytes: int
    onnx_error: float
    pruned: float | None = None
    recalibrated: float | None = None
    verified: float | None = None
    write_back: float | None = None
    wall_ms: float = 0.0
    cpu_ms: float = 0.0
    speedup: str = ""

    def cells(self) -> tuple[object, ...]:
        """The row as the table shows it."""
        return (
            self.name, f"{self.flops / 1e6:.1f} M", f"{self.share:.1%}", f"{self.params:,}",
            _percent(self.pruned), _percent(self.recalibrated), _percent(self.accuracy),
            "" if self.write_back is None else f"{self.write_back:.0e}",
            f"{self.onnx_bytes / 1024:.0f}", f"{self.onnx_error:.0e}",
            f"{self.wall_ms:.2f}", f"{self.cpu_ms:.2f}", self.speedup,
        )  # fmt: skip


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


@dataclass(frozen=True)
class Bench:
    """The network with the images that it is measured on and those that it is trained on."""

    settings: Settings
    model: ResNet
    test: Images
    train: Images

    @property
    def example(self) -> tuple[Tensor]:
        """One test image; the compiler frees the batch by itself."""
        return (next(iter(self.test))[0][:1],)

    @property
    def task(self) -> fx.Task:
        """What is trained: renewing statistics looks at the images only."""
        return fx.Task(self.train, loss=nn.functional.cross_entropy)

    def accuracy(self, module: nn.Module) -> float:
        """Top-1 on the test images, in percent."""
        return 100 * evaluate(module, fx.Task(self.test, metric=_share_right))


def _share_right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def prepared(settings: Settings) -> Bench:
    """Load the network and the images."""
    folder = settings.data / "cifar10"
    train = load_cifar10(folder, "train", settings.images)
    return Bench(
        settings,
        load_resnet(settings.data / "checkpoints" / f"{settings.checkpoint}.safetensors"),
        Images(*load_cifar10(folder, "test", settings.test), batch=500),
        Images(*train, batch=settings.batch, augment=True, seed=settings.seed),
    )


def dense_row(bench: Bench) -> Row:
    """The network as it came."""
    program = fx.compile(bench.model, bench.example)
    accuracy = bench.accuracy(bench.model)
    return exported_row("dense", program, accuracy, bench.settings.out)


def compressed_row(bench: Bench, share: float, *, inside: bool = False) -> Row:
    """The network at a share of its FLOPs, through everything; `inside` spares the shortcuts."""
    settings, name = bench.settings, f"{share:g} of FLOPs" + (", inside" if inside else "")
    round_to = int(settings.round_to) if settings.round_to.isdigit() else settings.round_to
    budget = fx.Budget(
        flops=share,
        allocation=settings.allocation,
        round_to=round_to,
        exclude=SHORTCUTS if inside else (),
    )
    pruning = fx.passes.MagnitudePruning(budget=budget)
    program = fx.compile(bench.model, bench.example, passes=[pruning], seed=settings.seed)
    left, check = program.report.flops.ratio, program.report.verification
    assert left <= share, f"{left:.4f} of the FLOPs are left, {share} was asked for"
    assert check is not None
    with CONSOLE.status(f"{name}: measuring the accuracy") as status:
        pruned = bench.accuracy(program.module)
        status.update(f"{name}: renewing the statistics of BatchNorm")
        recalibrate(program.module, bench.task, batches=settings.recalibration)
        recalibrated = bench.accuracy(program.module)
        Trainer(epochs=settings.epochs, lr=settings.lr, seed=settings.seed).fit(
            program.module, bench.task, lambda now: status.update(f"{name}: {_spelled(now)}")
        )
        status.update(f"{name}: measuring the accuracy")
        accuracy = bench.accuracy(program.module)
    difference = written_back(bench, program)
    row = exported_row(name, program, accuracy, settings.out)
    program.save(row.file.with_suffix(".safetensors"))
    return replace(
        row, pruned=pruned, recalibrated=recalibrated, verified=check.max_relative_error,
        write_back=difference,
    )  # fmt: skip


def _spelled(now: Progress) -> str:
    return (
        f"training, epoch {now.epoch} of {now.epochs}, batch {now.batch} of {now.batches}, "
        f"loss {now.loss:.3f}"
    )


def written_back(bench: Bench, program: fx.Program) -> float:
    """How far the user's own class with the smaller weights is from the graph, on test images."""
    smaller = program.write_back(bench.model)
    assert isinstance(smaller, ResNet)
    images = next(iter(bench.test))[0]
    with torch.no_grad():
        expected, found = program(images), smaller(images)
    difference: float = ((expected - found).abs().max() / expected.abs().max()).item()
    assert difference <= WRITE_BACK_TOLERANCE, f"the written-back class is off by {difference:.2g}"
    return difference


def exported_row(name: str, program: fx.Program, accuracy: float, out: Path) -> Row:
    """A row with the ONNX file, checked at several batch sizes."""
    file = fx.export.to_onnx(program, out / f"{name.replace(' ', '-')}.onnx")
    result = fx.export.check(file, program)
    assert result.max_error <= result.tolerance, str(result)
    report = program.report
    return Row(
        name, file.path, report.flops.after, report.flops.ratio, report.params.after, accuracy,
        file.bytes, result.max_error,
    )  # fmt: skip


def timed(rows: Sequence[Row], rounds: int) -> tuple[list[Row], Any]:
    """The rows with their median latencies for one image on one thread, taken in turn."""
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    files = {row.name: row.file for row in rows}
    result = fx.export.benchmark(files, rounds=rounds, inputs=[image])
    return [replace(row, **medians(result, row.name)) for row in rows], result


def run(settings: Settings) -> list[Row]:
    """Everything, with its table."""
    start = time.perf_counter()
    settings.out.mkdir(parents=True, exist_ok=True)
    bench = prepared(settings)
    rows = [dense_row(bench)]
    CONSOLE.print(f"dense: {rows[0].accuracy:.2f} %")
    shares = [(share, False) for share in settings.budgets]
    for share, inside in [*shares, *((share, True) for share in settings.inside)]:
        rows.append(compressed_row(bench, share, inside=inside))
        CONSOLE.print(
            f"{rows[-1].name}: {rows[-1].pruned:.2f} % pruned, {rows[-1].accuracy:.2f} % tuned"
        )
    rows, latency = timed(rows, settings.rounds)
    seconds = time.perf_counter() - start
    notes = [
        f"Top-1 on the first {settings.test} CIFAR-10 test images; recalibrated on "
        f"{min(settings.images, settings.recalibration * settings.batch)} training images without "
        f"labels, tuned for {settings.epochs} epoch(s) on {settings.images} with them (SGD, rate "
        f"{settings.lr:g}, batch {settings.batch}, seed {settings.seed}).",
        "`inside`: only the channels inside blocks go, the residual stages keep their widths.",
        f"Medians for one image on one thread of onnxruntime, {settings.rounds} rounds in turn on "
        f"{latency.machine.cpu}{spelled_noise(latency)}; the ratio is that of CPU times, with its "
        "95 % interval. Its kernels work on blocks of 16 channels, which is all a layer of the "
        "first stage has.",
        f"The whole run took {seconds / 60:.1f} minutes, {time.process_time() / 60:.1f} of CPU.",
    ]
    table = tabled(
        f"{settings.checkpoint} at several FLOP budgets",
        ("model", *COLUMNS),
        [row.cells() for row in rows],
    )
    facts = {
        "settings": {k: v for k, v in asdict(settings).items() if k not in ("data", "out")},
        "rows": [asdict(row) | {"file": row.file.name} for row in rows],
        "latency": latency.to_dict(),
        "seconds": seconds,
    }
    written([table], facts, settings.out / "table", notes)
    return rows


def parsed(arguments: Sequence[str] | None = None) -> Settings:
    """The settings of a command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, default=default_data(), help="folder of the data pack")
    add("--out", type=Path, default=Path("out/cifar10_resnet"), help="where all files go")
    add("--checkpoint", default="cifar10_resnet56_optA", help="or cifar10_resnet20_optA")
    add("--budgets", type=float, nargs="+", default=[0.75, 0.5, 0.35], help="shares of the FLOPs")
    add("--inside", type=float, nargs="*", default=[0.5], help="the same, sparing the shortcuts")
    add("--allocation", choices=("global", "uniform"), default="global", help="see fx.Budget")
    add("--epochs", type=int, default=1, help="of fine-tuning")
    add("--images", type=int, default=10_000, help="training images, of 10,000")
    add("--test", type=int, default=10_000, help="test images, of 10,000")
    add("--batch", type=int, default=100, help="training images in a batch")
    add("--lr", type=float, default=0.02, help="the highest learning rate")
    add("--recalibration", type=int, default=20, help="batches for BatchNorm's statistics")
    add(
        "--round-to", default="auto", help="widths are multiples of this, or of what a target likes"
    )
    add("--rounds", type=int, default=100, help="of the latency benchmark")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="one budget, few images: does it run?")
    options = vars(parser.parse_args(arguments))
    if options.pop("quick"):
        options |= {"budgets": [0.5], "inside": [], "images": 500, "test": 500, "rounds": 10}
    lists = {name: tuple(options[name]) for name in ("budgets", "inside")}
    return Settings(**options | lists)


if __name__ == "__main__":
    run(parsed())
