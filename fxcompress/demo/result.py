"""What the demonstration measured, and the one table it prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxcompress.export import BenchmarkResult


@dataclass(frozen=True)
class Row:
    """One of the two models.

    Attributes:
        accuracy: On the held-out images, by its ONNX file in onnxruntime.
        parameters: Numbers in parameters.
        flops: Floating-point operations for one image.
        onnx_bytes: Size of the file.
        latency_p50_ms: Median latency in onnxruntime.
        max_error: Largest relative difference between onnxruntime and torch.
    """

    accuracy: float
    parameters: int
    flops: int
    onnx_bytes: int
    latency_p50_ms: float
    max_error: float


@dataclass(frozen=True)
class DemoResult:
    """Both models, the timing in full, and where the files lie."""

    dense: Row
    compressed: Row
    latency: BenchmarkResult
    files: Mapping[str, Path]
    details: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "dense": asdict(self.dense),
            "compressed": asdict(self.compressed),
            "latency": self.latency.to_dict(),
            "files": {name: str(path) for name, path in self.files.items()},
            **self.details,
        }

    def table(self) -> Table:
        """Dense, compressed, and the change between them."""
        batch, threads = self.latency.shapes[0][0], self.latency.threads
        table = Table(title=Text("Handwritten digits, dense against compressed"))
        table.add_column("")
        for heading in (
            "accuracy",
            "parameters",
            "FLOPs / image",
            "ONNX bytes",
            f"p50, batch {batch}, {threads} thread",
            "max error",
        ):
            table.add_column(heading, justify="right")
        table.add_row("dense", *_cells(self.dense))
        table.add_row("compressed", *_cells(self.compressed), end_section=True)
        table.add_row("change", *self._changes())
        return table

    def _changes(self) -> tuple[str, ...]:
        old, new = self.dense, self.compressed
        return (
            f"{100 * (new.accuracy - old.accuracy):+.2f} points",
            f"{new.parameters / old.parameters - 1:+.1%}",
            f"{new.flops / old.flops - 1:+.1%}",
            f"{new.onnx_bytes / old.onnx_bytes - 1:+.1%}",
            f"{self._speedup.wall.value:.2f}x faster",
            "",
        )

    @property
    def _speedup(self) -> Any:
        (speedup,) = self.latency.speedups.values()
        return speedup

    def __rich__(self) -> RenderableType:
        return Group(self.table(), *(Text(line) for line in self._lines()))

    def _lines(self) -> list[str]:
        wall, cpu = self._speedup.wall, self._speedup.cpu
        folder = next(iter(self.files.values())).parent
        lines = [
            f"accuracy: onnxruntime, on {self.details['test_images']} images that training never "
            "saw; max error: onnxruntime against torch, relative",
            f"speed-up, paired, with 95 % intervals: {wall.value:.2f} [{wall.low:.2f}, "
            f"{wall.high:.2f}] by the clock, {cpu.value:.2f} [{cpu.low:.2f}, {cpu.high:.2f}] by "
            "CPU time",
            *(f"noisy: {reason}" for reason in self.latency.noise),
            f"files in {folder}: {', '.join(path.name for path in self.files.values())}",
        ]
        return lines


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.accuracy:.2%}",
        f"{row.parameters:,}",
        f"{row.flops:,}",
        f"{row.onnx_bytes:,}",
        f"{row.latency_p50_ms:.3f} ms",
        f"{row.max_error:.1e}",
    )
