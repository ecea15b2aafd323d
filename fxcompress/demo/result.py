"""What the demonstration measured, and the one table it prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxcompress.export import BenchmarkResult
from fxcompress.report.tables import table


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
        """Dense, compressed, and the change between them; it fits into 80 columns."""
        figures = (">accuracy", ">parameters", ">FLOPs", ">ONNX bytes", ">p50 ms", ">max error")
        made = table("Handwritten digits, dense against compressed", "", *figures)
        made.padding = (0, 0, 0, 1)
        made.add_row("dense", *_cells(self.dense))
        made.add_row("compressed", *_cells(self.compressed), end_section=True)
        made.add_row("change", *self._changes())
        return made

    def _changes(self) -> tuple[str, ...]:
        old, new = self.dense, self.compressed
        return (
            f"{100 * (new.accuracy - old.accuracy):+.2f} pt",
            f"{new.parameters / old.parameters - 1:+.1%}",
            f"{new.flops / old.flops - 1:+.1%}",
            f"{new.onnx_bytes / old.onnx_bytes - 1:+.1%}",
            f"{self._speedup.wall.value:.2f}x",
            "",
        )

    @property
    def _speedup(self) -> Any:
        (speedup,) = self.latency.speedups.values()
        return speedup

    def __rich__(self) -> RenderableType:
        legend = Table.grid(padding=(0, 2, 0, 0))
        for word, meaning in self._legend():
            legend.add_row(Text(word), Text(meaning))
        return Group(self.table(), legend)

    def _legend(self) -> Iterator[tuple[str, str]]:
        wall, cpu = self._speedup.wall, self._speedup.cpu
        batch, threads = self.latency.shapes[0][0], self.latency.threads
        images = self.details["test_images"]
        yield "accuracy", f"of the ONNX file in onnxruntime, on {images} images held out"
        yield "FLOPs", "of one image"
        yield "p50 ms", f"in onnxruntime, batch {batch}, {threads} thread, both in turn"
        yield (
            "change",
            f"of p50: median of paired ratios, {wall.low:.2f} to {wall.high:.2f}; by CPU time "
            f"{cpu.value:.2f}, {cpu.low:.2f} to {cpu.high:.2f} (95 % intervals)",
        )
        yield "max error", "of onnxruntime against torch, relative"
        yield from (("noisy", reason) for reason in self.latency.noise)
        folder = next(iter(self.files.values())).parent
        yield "files", f"in {folder}: {', '.join(path.name for path in self.files.values())}"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.accuracy:.2%}",
        f"{row.parameters:,}",
        f"{row.flops:,}",
        f"{row.onnx_bytes:,}",
        f"{row.latency_p50_ms:.3f}",
        f"{row.max_error:.1e}",
    )
