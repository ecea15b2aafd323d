"""The result of a benchmark: data, judgement about noise, and a table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from rich.table import Table

from fxcompress.export.timing.machine import Load, Machine
from fxcompress.export.timing.statistics import Ratio, Spread, paired_ratio, spread
from fxcompress.report.tables import rendered, table

_ENOUGH_CPU = 0.9


@dataclass(frozen=True)
class Timing:
    """The timed calls of one entry, in milliseconds, in the order of the rounds."""

    name: str
    runtime: str
    walls: tuple[float, ...]
    cpus: tuple[float, ...]
    threads: int

    @cached_property
    def wall(self) -> Spread:
        """Where the wall times lie: the latency."""
        return spread(self.walls)

    @cached_property
    def cpu(self) -> Spread:
        """Where the CPU times of all threads together lie."""
        return spread(self.cpus)

    @property
    def cpu_share(self) -> float:
        """CPU time over what the threads could have had; far below 1, they were kept waiting."""
        return sum(self.cpus) / (sum(self.walls) * self.threads)

    @property
    def noisy(self) -> bool:
        """Whether something kept the entry from its CPU."""
        return self.cpu_share < _ENOUGH_CPU

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, without the single calls."""
        return {
            "name": self.name,
            "runtime": self.runtime,
            "n": len(self.walls),
            "wall_ms": asdict(self.wall),
            "cpu_ms": asdict(self.cpu),
            "cpu_share": self.cpu_share,
            "noisy": self.noisy,
        }


@dataclass(frozen=True)
class Speedup:
    """How many times faster an entry is than the first, by latency and by CPU time."""

    name: str
    wall: Ratio
    cpu: Ratio
    noisy: bool

    def __str__(self) -> str:
        interval = f"[{self.wall.low:.2f}, {self.wall.high:.2f}]"
        doubts = [" noisy"] if self.noisy else []
        doubts += [] if self.wall.clear else [" no clear difference"]
        return f"{self.wall.value:.2f}x {interval}" + ",".join(doubts)


@dataclass(frozen=True)
class BenchmarkResult:
    """What was measured, how, on what, and whether to believe it."""

    timings: tuple[Timing, ...]
    rounds: int
    warmup: int
    threads: int
    shapes: tuple[tuple[int, ...], ...]
    seed: int
    machine: Machine
    load: Load

    @cached_property
    def noise(self) -> tuple[str, ...]:
        """Why the result is noisy; empty if it is not."""
        reasons = [
            f"{timing.name} got only {timing.cpu_share:.2f} of the CPU time of its threads"
            for timing in self.timings
            if timing.noisy
        ]
        free = self.machine.cores - self.threads
        if self.load.others > max(0.25, free / 2):
            reasons.append(
                f"other processes kept {self.load.others:.1f} of {self.machine.cores} cores busy"
            )
        return tuple(reasons)

    @property
    def noisy(self) -> bool:
        """Whether anything disturbed the measurement."""
        return bool(self.noise)

    @cached_property
    def speedups(self) -> dict[str, Speedup]:
        """Every entry but the first against the first, with 95 % bootstrap intervals."""
        base, *others = self.timings
        return {
            other.name: Speedup(
                other.name,
                wall=paired_ratio(base.walls, other.walls, self.seed),
                cpu=paired_ratio(base.cpus, other.cpus, self.seed),
                noisy=self.noisy,
            )
            for other in others
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "timings": [timing.to_dict() for timing in self.timings],
            "speedups": [asdict(speedup) for speedup in self.speedups.values()],
            "baseline": self.timings[0].name,
            "rounds": self.rounds,
            "warmup": self.warmup,
            "threads": self.threads,
            "shapes": [list(shape) for shape in self.shapes],
            "seed": self.seed,
            "machine": asdict(self.machine),
            "load": asdict(self.load),
            "noise": list(self.noise),
            "noisy": self.noisy,
        }

    def table(self) -> Table:
        """The timings as a rich table."""
        figures = (">min", ">p50", ">p90", ">IQR", ">CPU p50")
        versus = f"against {self.timings[0].name}, 95 % interval"
        title = f"Latency in milliseconds, {self.threads} thread(s)"
        made = table(title, "model", "runtime", *figures, versus)
        for timing in self.timings:
            wall = timing.wall
            times = (wall.min, wall.p50, wall.p90, wall.iqr, timing.cpu.p50)
            speedup = str(self.speedups.get(timing.name, ""))
            made.add_row(timing.name, timing.runtime, *(f"{ms:.3f}" for ms in times), speedup)
        return made

    def __str__(self) -> str:
        versions = ", ".join(f"{name} {number}" for name, number in self.machine.versions.items())
        lines = [
            rendered(self.table()),
            f"{self.machine.cpu}, {self.machine.cores} cores; {versions}",
            f"{self.rounds} rounds in turn after {self.warmup} warm-ups, inputs "
            + ", ".join(map(str, self.shapes)),
            f"load average {self.load.average_before:.2f} before, {self.load.average_after:.2f} "
            f"after; others kept {self.load.others:.2f} cores busy",
            *(f"noisy: {reason}" for reason in self.noise),
        ]
        return "\n".join(lines)
