"""Time models against each other on the CPU, honestly.

All entries are timed in one process, in turn, back and forth (A B, B A, …), each timed call after
an untimed one of the same entry that brings its weights back into the cache. So a busy moment
falls on all of them, and ratios are taken round by round.

A result is called noisy if an entry got less than 0.9 of the CPU time that its threads could have
used while it ran, or if other processes kept more than half of the cores busy that the benchmark
left free (more than a quarter of one where it left none).
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn

from fxcompress.ambient import sealed
from fxcompress.arguments import Count, Interval, Seed, checked
from fxcompress.errors import ExportError
from fxcompress.export.onnx.exportable import Exportable
from fxcompress.export.onnx.names import unique_names
from fxcompress.export.runtimes.protocol import (
    Runtime,
    Session,
    made_up,
    runtime_called,
    runtime_for,
)
from fxcompress.export.timing.latency import BenchmarkResult, Timing
from fxcompress.export.timing.machine import Load, LoadMeter, available_cores, this_machine

Entry = str | os.PathLike[str] | Exportable | nn.Module
Call = Callable[[], Any]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Racer:
    """An entry, and the runtime that runs it."""

    source: Entry
    runtime: Runtime


@checked(ExportError)
@sealed
def benchmark(
    entries: Mapping[str, Entry] | Sequence[Entry],
    *,
    rounds: Annotated[int, Interval("[2, 1000000]")] = 50,
    warmup: Annotated[int, Interval("[0, 1000000]")] = 5,
    threads: Count = 1,
    inputs: Sequence[Tensor] | None = None,
    seed: Seed = 0,
    progress: Progress | None = None,
    runtimes: Sequence[str] | None = None,
) -> BenchmarkResult:
    """Time files and modules in their runtimes; the first entry is the one to beat.

    Args:
        entries: By name, or a sequence of files, which are called after themselves.
        rounds: How often each entry is timed.
        warmup: Untimed runs of each before that.
        threads: Threads of each runtime; torch's own setting comes back after.
        inputs: The tensors all entries are run on. By default those of the first program among
            them; of the first file otherwise, at size 1 where a dimension may vary.
        seed: For made-up inputs and for the bootstrap.
        progress: Called with the rounds done and their number, outside what is timed.
        runtimes: Names of runtimes (see `fxcompress.export.runtimes`): each entry is run by all of
            them that take it, and with more than one is called after both. By default a file is run
            by onnxruntime, a program or module by torch in evaluation mode.

    Returns:
        Spreads, CPU times and paired speed-ups; its text is a table.

    Raises:
        ExportError: An entry cannot be loaded or does not take the inputs.
    """
    racers = _racers(_by_name(entries), runtimes)
    _validate(threads)
    with ExitStack() as stack:
        sessions = {
            name: stack.enter_context(racer.runtime.open(racer.source, threads=threads))
            for name, racer in racers.items()
        }
        tensors = _default_inputs(sessions, seed) if inputs is None else tuple(inputs)
        calls = {name: session.bind(tensors) for name, session in sessions.items()}
        for call in list(calls.values()) * (1 + warmup):  # once to see that it runs
            call()
        walls, cpus, load = _timed(calls, rounds, progress)
    return BenchmarkResult(
        timings=tuple(
            Timing(name, racer.runtime.name, tuple(walls[name]), tuple(cpus[name]), threads)
            for name, racer in racers.items()
        ),
        rounds=rounds,
        warmup=warmup,
        threads=threads,
        shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        seed=seed,
        machine=this_machine(racer.runtime for racer in racers.values()),
        load=load,
    )


def _racers(named: Mapping[str, Entry], runtimes: Sequence[str] | None) -> dict[str, _Racer]:
    """Who runs what, by name."""
    if runtimes is None:
        return {name: _Racer(entry, runtime_for(entry)) for name, entry in named.items()}
    pairs = [
        (name, runtime, entry)
        for name, entry in named.items()
        for runtime in _takers(entry, runtimes)
    ]
    several = len(pairs) > len(named)
    return {
        f"{name}, {runtime.name}" if several else name: _Racer(entry, runtime)
        for name, runtime, entry in pairs
    }


def _takers(entry: Entry, names: Sequence[str]) -> list[Runtime]:
    """The runtimes of these names that take an entry.

    Raises:
        ExportError: A name is not known, or none of the runtimes takes the entry.
    """
    every = [runtime_called(name) for name in names]
    return [one for one in every if one.takes(entry)] or [runtime_for(entry, n) for n in names]


def _timed(
    calls: Mapping[str, Call], rounds: int, progress: Progress | None
) -> tuple[dict[str, list[float]], dict[str, list[float]], Load]:
    """Wall and CPU milliseconds of every call, by entry, and the load meanwhile."""
    walls: dict[str, list[float]] = {name: [] for name in calls}
    cpus: dict[str, list[float]] = {name: [] for name in calls}
    forth = list(calls.items())
    meter = LoadMeter()
    with _no_garbage_collection():
        for number in range(rounds):
            for name, call in forth if number % 2 == 0 else reversed(forth):
                call()
                wall, cpu = time.perf_counter_ns(), time.process_time_ns()
                call()
                cpus[name].append((time.process_time_ns() - cpu) / 1e6)
                walls[name].append((time.perf_counter_ns() - wall) / 1e6)
            if progress:
                progress(number + 1, rounds)
    return walls, cpus, meter.read()


def _by_name(entries: Mapping[str, Entry] | Sequence[Entry]) -> dict[str, Entry]:
    if isinstance(entries, Mapping):
        named = dict(entries)
    else:
        stems = [
            Path(entry).stem if isinstance(entry, str | os.PathLike) else "torch"
            for entry in entries
        ]
        named = dict(zip(unique_names(stems), entries, strict=True))
    if not named:
        raise ExportError("there is nothing to time; pass at least one ONNX file or program")
    return named


def _default_inputs(sessions: Mapping[str, Session], seed: int) -> tuple[Tensor, ...]:
    for session in sessions.values():
        if session.example is not None:
            return session.example
    for session in sessions.values():
        if session.inputs:
            return made_up(session.inputs, seed)
    raise ExportError("plain modules do not say what they take; pass inputs=[...]")


def _validate(threads: int) -> None:
    if threads > available_cores():
        raise ExportError(f"threads={threads}: this process may use 1 to {available_cores()} cores")


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """A collection would fall on whichever entry runs just then."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
