"""The machine a benchmark ran on, and how busy others kept it meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import psutil

from fxcompress.export.runtimes.protocol import Runtime

_TICKS = 0.02  # seconds: the kernel counts in hundredths, at both ends


@dataclass(frozen=True)
class Machine:
    """What a latency depends on besides the model."""

    cpu: str
    cores: int
    system: str
    versions: dict[str, str]


@dataclass(frozen=True)
class Load:
    """How busy the machine was during a run.

    ``others`` counts the cores that other processes kept busy. Unlike the load average it leaves
    out this process and does not lag by a minute, so that training just before a benchmark does
    not look like a busy machine.
    """

    average_before: float
    average_after: float
    others: float


class LoadMeter:
    """Measure the load between its making and `read`."""

    def __init__(self) -> None:
        self._average = os.getloadavg()[0]
        self._start = time.perf_counter()
        self._busy = _busy_seconds()
        self._own = time.process_time()

    def read(self) -> Load:
        """The load since the meter was made."""
        elapsed = time.perf_counter() - self._start
        others = _busy_seconds() - self._busy - (time.process_time() - self._own) - _TICKS
        return Load(self._average, os.getloadavg()[0], max(0.0, others / elapsed))


def this_machine(runtimes: Iterable[Runtime] = ()) -> Machine:
    """The machine, and the versions of torch, numpy and these runtimes."""
    versions = {name: version(name) for name in ("torch", "numpy")}
    versions |= {runtime.name: runtime.version() for runtime in runtimes}
    return Machine(_cpu_model(), available_cores(), platform.platform(), versions)


def available_cores() -> int:
    """The cores this process may run on, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _busy_seconds() -> float:
    """Seconds of all cores not idle since the machine started, stolen ones included."""
    times = psutil.cpu_times()
    # A virtual machine's share is in `user` already, so it must not be counted again.
    idle = ("idle", "iowait", "guest", "guest_nice")
    return float(sum(times) - sum(getattr(times, field, 0.0) for field in idle))


def _cpu_model() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
