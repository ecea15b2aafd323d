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
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from fxcompress.ambient import sealed
from fxcompress.arguments import Count, Interval, Seed, checked
from fxcompress.errors import ExportError
from fxcompress.export.onnx.exportable import (
    Example,
    Exportable,
    Inputs,
    inference_module,
    inputs_of,
    run_module,
)
from fxcompress.export.onnx.names import unique_names
from fxcompress.export.onnx.samples import made_up
from fxcompress.export.onnx.write import describe
from fxcompress.export.runtimes.onnxruntime import feed_for, open_session, run_session
from fxcompress.export.timing.latency import BenchmarkResult, Timing
from fxcompress.export.timing.machine import Load, LoadMeter, available_cores, this_machine

Entry = str | os.PathLike[str] | Exportable | nn.Module
Call = Callable[[], Any]
Progress = Callable[[int, int], None]


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
) -> BenchmarkResult:
    """Time ONNX files in onnxruntime and modules in torch; the first entry is the one to beat.

    Args:
        entries: By name, or a sequence of files, which are called after themselves. A path is run
            by onnxruntime, a program or module by torch in evaluation mode.
        rounds: How often each entry is timed.
        warmup: Untimed runs of each before that.
        threads: Threads of each runtime; torch's own setting comes back after.
        inputs: The tensors all entries are run on. By default those of the first program among
            them; of the first file otherwise, at size 1 where a dimension may vary.
        seed: For made-up inputs and for the bootstrap.
        progress: Called with the rounds done and their number, outside what is timed.

    Returns:
        Spreads, CPU times and paired speed-ups; its text is a table.

    Raises:
        ExportError: An entry cannot be loaded or does not take the inputs.
    """
    named = _by_name(entries)
    _validate(threads)
    tensors = tuple(inputs) if inputs is not None else _default_inputs(named, seed)
    with ExitStack() as stack:
        stack.enter_context(_torch_threads(threads))
        stack.enter_context(torch.inference_mode())
        calls = {name: _call(entry, tensors, threads, stack) for name, entry in named.items()}
        for call in list(calls.values()) * warmup:
            call()
        walls, cpus, load = _timed(calls, rounds, progress)
    return BenchmarkResult(
        timings=tuple(
            Timing(name, _runtime(entry), tuple(walls[name]), tuple(cpus[name]), threads)
            for name, entry in named.items()
        ),
        rounds=rounds,
        warmup=warmup,
        threads=threads,
        shapes=tuple(tuple(tensor.shape) for tensor in tensors),
        seed=seed,
        machine=this_machine(),
        load=load,
    )


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


def _call(entry: Entry, tensors: Sequence[Tensor], threads: int, stack: ExitStack) -> Call:
    """A function of no arguments that runs the entry once; it has been run, so it does run."""
    if isinstance(entry, str | os.PathLike):
        session = open_session(entry, threads=threads)
        feed = feed_for(describe(entry), tensors)
        names = list(run_session(session, feed))
        return lambda: session.run(names, feed)
    program = Example(entry, tuple(tensors)) if isinstance(entry, nn.Module) else entry
    module = stack.enter_context(inference_module(program))
    shape = inputs_of(program)
    _must_fit(shape, tensors)
    args, kwargs = shape.arguments(tensors)
    run_module(module, shape, tensors)
    return lambda: module(*args, **kwargs)


def _must_fit(shape: Inputs, tensors: Sequence[Tensor]) -> None:
    if len(shape.tensors) != len(tensors):
        raise ExportError(
            f"a program takes {len(shape.tensors)} tensors ({', '.join(shape.names)}) but the "
            f"benchmark's inputs are {len(tensors)}; all entries are run on the same ones"
        )


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


def _default_inputs(named: Mapping[str, Entry], seed: int) -> tuple[Tensor, ...]:
    for entry in named.values():
        if not isinstance(entry, str | os.PathLike | nn.Module):
            return inputs_of(entry).tensors
    for entry in named.values():
        if isinstance(entry, str | os.PathLike):
            return made_up(open_session(entry).get_inputs(), seed)
    raise ExportError("plain modules do not say what they take; pass inputs=[...]")


def _validate(threads: int) -> None:
    if threads > available_cores():
        raise ExportError(f"threads={threads}: this process may use 1 to {available_cores()} cores")


def _runtime(entry: Entry) -> str:
    return "onnxruntime" if isinstance(entry, str | os.PathLike) else "torch"


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
