"""Runs `coverage_worker.work`, one process a model, and keeps what it sends as lines of JSON."""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any

import psutil

Records = dict[str, dict[str, dict[str, Any]]]
"""For each model and part, the figures."""

STUCK = 20  # a process that does not compute either is given up after so many times its limit


class Runs:
    """Figures in a file of JSON lines; the last line of a model and part counts.

    Processes are forked from a server that has imported torch once, with one thread each. Several
    models may be measured at once, from threads.
    """

    def __init__(self, path: Path, zoo: Path, limits: Mapping[str, float]) -> None:
        self.path, self.zoo, self.limits = path, zoo, limits
        self.records: Records = {}
        self.lock = Lock()
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                self._note(json.loads(line))
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["coverage_worker"])

    def missing(self, name: str, parts: Sequence[str], again: bool) -> list[str]:
        """The parts of a model that are not known yet; with `again` those that failed too."""
        known = self.records.get(name, {})
        return [p for p in parts if p not in known or (again and "failed" in known[p])]

    def measure(self, name: str, parts: Sequence[str]) -> Mapping[str, Any]:
        """Run the parts and keep what they find; one that ends its process costs only itself."""
        left = list(parts)
        while left:
            left = self._in_a_process(name, left)
        return self.records[name]

    def _in_a_process(self, name: str, parts: list[str]) -> list[str]:
        """Run parts in a new process until one ends it; gives those that were not begun."""
        from coverage_worker import work

        here, there = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(name, self.zoo, list(parts), there))
        process.start()
        there.close()
        for position, part in enumerate(parts, 1):
            figures, ended = self._received(here, process, self.limits[part])
            self._write({"model": name, "part": part} | figures)
            if ended:
                return parts[position:]
        process.join(10)
        if process.is_alive():
            process.kill()
        process.join()
        return []

    def _received(
        self, here: Connection, process: Any, limit: float
    ) -> tuple[dict[str, Any], bool]:
        """The figures that come next, or why none come any more; and whether the process ended."""
        start, busy = time.monotonic(), _cpu_seconds(process)
        try:
            while _cpu_seconds(process) - busy < limit and time.monotonic() - start < STUCK * limit:
                if here.poll(1):
                    return here.recv(), False
            reason = "TimeLimit", f"took longer than {limit:.0f} CPU seconds"
        except EOFError:
            process.join()
            reason = "Died", f"the process ended with code {process.exitcode}"
        process.kill()
        process.join()
        wall = round(time.monotonic() - start, 1)
        return {"failed": reason[0], "says": reason[1], "wall": wall}, True

    def _write(self, record: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._note(record)

    def _note(self, record: Mapping[str, Any]) -> None:
        figures = {key: value for key, value in record.items() if key not in ("model", "part")}
        self.records.setdefault(record["model"], {})[record["part"]] = figures


def _cpu_seconds(process: Any) -> float:
    """What a process has computed so far; nothing once it has ended."""
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)
