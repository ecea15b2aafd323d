"""The whole way in a minute: train a small net, halve its FLOPs, recover, export, check, time.

The images come with scikit-learn, so that there is nothing to fetch. A quarter of them is held out
and used for nothing but the accuracies that are reported.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

from fxcompress.arguments import Checked, Count, Interval
from fxcompress.budget import Budget
from fxcompress.compiler import compile
from fxcompress.demo.digits import Digits, accuracy, digits
from fxcompress.demo.network import ResidualNet
from fxcompress.demo.result import DemoResult, Row
from fxcompress.export import BenchmarkResult, CheckResult, OnnxFile, benchmark, check, to_onnx
from fxcompress.export.runtimes import runtime_for
from fxcompress.files.write import file_target, write_text
from fxcompress.passes import MagnitudePruning
from fxcompress.program import Program
from fxcompress.task import Task
from fxcompress.train import Progress, Trainer, evaluate

__all__ = ["QUICK", "DemoResult", "Settings", "run"]

Tell = Callable[[str, float | None], None]
"""Told what is going on, and which share of it is done where that is known."""


@dataclass(frozen=True)
class Settings(Checked):
    """How much of everything.

    Attributes:
        epochs: To train the dense net.
        recovery: Epochs after compression.
        flops: The share that stays.
        batch: Images in one timed call.
        rounds: Timed calls of each model.
        seed: For the split, the weights and the order of the images.
    """

    epochs: Count = 12
    recovery: Count = 4
    flops: Annotated[float, Interval("(0, 1]")] = 0.5
    batch: Count = 16
    rounds: Annotated[int, Interval("[2, 1000000]")] = 200
    seed: Annotated[int, Interval("[0, 4294967296)")] = 0


QUICK = Settings(epochs=2, recovery=1, rounds=20)
"""To see that it works, not how well."""


def run(out: str | Path, settings: Settings = Settings(), tell: Tell | None = None) -> DemoResult:
    """Run the demonstration and write its files to a directory.

    Args:
        out: Gets ``dense.onnx``, ``compressed.onnx``, ``compressed.fxc``, ``report.html`` and
            ``results.json``.
        settings: `Settings()` takes well under a minute on two cores, `QUICK` a few seconds.
        tell: Called as work goes on.

    Raises:
        VerificationError: A file does not compute in onnxruntime what torch does.
        WriteError: A file cannot be written.
    """
    said, folder = tell or _silent, Path(out)
    for place in _places(folder).values():
        file_target(place)  # before minutes of work
    clock, start = _Clock(), time.perf_counter()
    with _one_thread():
        data = digits(settings.seed)
        with clock("train"):
            net = _trained(data, settings, said)
        with clock("compress"):
            dense, small = _compiled(net, data, settings, said)
        fresh = evaluate(small.module, data.test)
        with clock("recover"):
            recipe = Trainer(epochs=settings.recovery, lr=0.02, seed=settings.seed)
            _fit(recipe, small.module, data.train, "recover", said)
        with clock("export"):
            said("export to ONNX and check in onnxruntime", None)
            files, checks = _exported({"dense": dense, "compressed": small}, folder, settings)
        with clock("time"):
            timed = _timed(files, data, settings, said)
    details = {
        "accuracy_before_recovery": fresh,
        "test_images": len(data.test_labels),
        "settings": asdict(settings),
        "report": small.report.to_dict(),
        "checks": {name: result.to_dict() for name, result in checks.items()},
        "seconds": {**clock.seconds, "all": time.perf_counter() - start},
    }
    rows = {
        name: _row(program, files[name], checks[name], timed, data)
        for name, program in (("dense", dense), ("compressed", small))
    }
    result = DemoResult(**rows, latency=timed, files=_places(folder), details=details)
    _write(result, small, folder)
    return result


def _trained(data: Digits, settings: Settings, tell: Tell) -> nn.Module:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(settings.seed)
        net = ResidualNet()
    warmup = min(1.0, settings.epochs / 4)
    recipe = Trainer(epochs=settings.epochs, lr=0.1, warmup=warmup, seed=settings.seed)
    _fit(recipe, net, data.train, "train", tell)
    return net


def _fit(recipe: Trainer, net: nn.Module, task: Task, name: str, tell: Tell) -> None:
    def forward(now: Progress) -> None:
        share = (now.epoch - 1 + now.batch / (now.batches or 1)) / now.epochs
        tell(f"{name}, {now.epochs} epochs", share)

    recipe.fit(net, task, forward)


def _compiled(
    net: nn.Module, data: Digits, settings: Settings, tell: Tell
) -> tuple[Program, Program]:
    """The dense program and the compressed one; each has parameters of its own."""
    tell(f"compress to {settings.flops:.0%} of the FLOPs and verify", None)
    example = (data.test_images[: settings.batch],)
    half = MagnitudePruning(budget=Budget(flops=settings.flops))
    dense = compile(net, example, seed=settings.seed)
    return dense, compile(net, example, passes=[half], seed=settings.seed)


def _exported(
    programs: Mapping[str, Program], folder: Path, settings: Settings
) -> tuple[dict[str, OnnxFile], dict[str, CheckResult]]:
    files = {name: to_onnx(one, folder / f"{name}.onnx") for name, one in programs.items()}
    checks = {name: check(files[name], one, seed=settings.seed) for name, one in programs.items()}
    return files, checks


def _timed(
    files: Mapping[str, OnnxFile], data: Digits, settings: Settings, tell: Tell
) -> BenchmarkResult:
    return benchmark(
        {name: file.path for name, file in files.items()},
        rounds=settings.rounds,
        inputs=[data.test_images[: settings.batch]],
        seed=settings.seed,
        progress=lambda done, rounds: tell("time both, in turn", done / rounds),
    )


def _row(
    program: Program, file: OnnxFile, checked: CheckResult, timed: BenchmarkResult, data: Digits
) -> Row:
    cost, name = program.cost(), file.path.stem
    latency = next(timing.wall.p50 for timing in timed.timings if timing.name == name)
    return Row(
        accuracy=accuracy(_answers(file, data.test_images), data.test_labels),
        parameters=cost.params,
        flops=cost.flops // len(program.args[0]),
        onnx_bytes=file.bytes,
        latency_p50_ms=latency,
        max_error=checked.max_error,
    )


def _answers(file: OnnxFile, images: Tensor) -> Tensor:
    with runtime_for(file).open(file) as session:
        (answers,) = session.run([images]).values()
    return torch.from_numpy(answers)


def _places(folder: Path) -> dict[str, Path]:
    names = ("dense.onnx", "compressed.onnx", "compressed.fxc", "report.html", "results.json")
    return {name: folder / name for name in names}


def _write(result: DemoResult, small: Program, folder: Path) -> None:
    small.save(folder / "compressed.fxc")
    small.report.to_html(folder / "report.html")
    text = json.dumps(result.to_dict(), indent=2)
    write_text(folder / "results.json", text + "\n")


class _Clock:
    """Seconds of the stages, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


@contextmanager
def _one_thread() -> Iterator[None]:
    """Convolutions of 8 x 8 pixels are too small to share: more threads would wait for each other.

    On a machine that is busy otherwise, two threads were seen to take seven times the CPU time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _silent(_text: str, _share: float | None) -> None:
    """Say nothing."""
