from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import models
from fxcompress.errors import ExportError
from fxcompress.export import BenchmarkResult, Example, benchmark, to_onnx
from fxcompress.export.timing import machine
from fxcompress.export.timing.latency import Timing
from fxcompress.export.timing.machine import Load, LoadMeter, this_machine
from fxcompress.export.timing.statistics import paired_ratio, spread

QUIET = Load(0.1, 0.2, 0.0)


class Recorder(nn.Module):
    """Notes its name and state at every call."""

    def __init__(self, name: str, log: list[str]) -> None:
        super().__init__()
        self.name, self.log = name, log
        self.seen: list[tuple[bool, int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.log.append(self.name)
        self.seen.append((self.training, torch.get_num_threads(), torch.is_grad_enabled()))
        return x + 1


class Clock:
    """Time that passes only while `Heavy` works, so that no load of the machine changes it."""

    def __init__(self) -> None:
        self.nanoseconds = 0

    def now(self) -> int:
        return self.nanoseconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for name in ("perf_counter_ns", "process_time_ns"):
        monkeypatch.setattr(time, name, clock.now)
    return clock


class Heavy(nn.Module):
    """Work that takes so many milliseconds."""

    def __init__(self, milliseconds: int, clock: Clock) -> None:
        super().__init__()
        self.milliseconds, self.clock = milliseconds, clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock.nanoseconds += self.milliseconds * 10**6
        return x


def result(*walls: list[float], share: float = 1.0, load: Load = QUIET) -> BenchmarkResult:
    timings = tuple(
        Timing(name, "torch", tuple(times), tuple(share * time for time in times), threads=1)
        for name, times in zip("abc", walls, strict=False)
    )
    machine = replace(this_machine(), cores=4)
    return BenchmarkResult(timings, len(walls[0]), 1, 1, ((2, 3),), 0, machine, load)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bench")
    programs = [
        Example(models.randomize(nn.Linear(8, width)), (models.normal(2, 8),), {}, ({0: "batch"},))
        for width in (8, 4)
    ]
    return [
        to_onnx(program, folder / f"{name}.onnx").path
        for name, program in zip(("dense", "small"), programs, strict=True)
    ]


def test_files_and_modules_are_timed_on_the_same_inputs(files: list[Path]) -> None:
    module = nn.Linear(8, 8)
    timed = benchmark({"dense": files[0], "torch": module}, rounds=4, inputs=[torch.ones(3, 8)])
    assert [timing.runtime for timing in timed.timings] == ["onnxruntime", "torch"]
    assert all(len(timing.walls) == 4 for timing in timed.timings)
    assert timed.shapes == ((3, 8),)
    assert module.training


def test_files_alone_are_named_after_themselves(files: list[Path]) -> None:
    timed = benchmark([*files, files[0]], rounds=2)
    assert [timing.name for timing in timed.timings] == ["dense", "small", "dense_2"]
    assert timed.shapes == ((1, 8),)


def test_a_programs_example_is_the_default_input(files: list[Path]) -> None:
    program = Example(nn.Linear(8, 2), (torch.ones(5, 8),))
    assert benchmark({"a": files[0], "b": program}, rounds=2).shapes == ((5, 8),)


def test_entries_take_turns_back_and_forth() -> None:
    log: list[str] = []
    entries = {name: Recorder(name, log) for name in "abc"}
    benchmark(entries, rounds=4, warmup=1, inputs=[torch.ones(2)])
    timed = log[-24:]
    assert "".join(timed) == "aabbccccbbaa" * 2
    assert "".join(log[:-24]) == "abcabc"  # once to see that it runs, once to warm up


def test_modules_run_for_inference_on_fixed_threads_and_come_back() -> None:
    before = torch.get_num_threads()
    module = Recorder("a", [])
    benchmark({"a": module}, rounds=2, threads=1, inputs=[torch.ones(2)])
    assert set(module.seen) == {(False, 1, False)}
    assert module.training
    assert torch.get_num_threads() == before
    assert gc.isenabled()


def test_everything_comes_back_after_an_error() -> None:
    module = nn.Linear(8, 2)
    with pytest.raises(ExportError, match="the module itself fails"):
        benchmark({"a": module}, inputs=[torch.ones(2, 7)])
    assert module.training
    assert gc.isenabled()


def test_progress_is_told_every_round() -> None:
    told: list[tuple[int, int]] = []
    benchmark(
        {"a": nn.Identity()},
        rounds=3,
        inputs=[torch.ones(1)],
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_less_work_is_faster(clock: Clock) -> None:
    entries = {"much": Heavy(12, clock), "little": Heavy(1, clock)}
    timed = benchmark(entries, rounds=20, inputs=[torch.eye(3)])
    assert timed.speedups["little"].cpu.value == pytest.approx(12)
    assert timed.speedups["little"].wall.value == pytest.approx(12)


def test_the_text_and_the_data_tell_how_it_was_measured(files: list[Path]) -> None:
    timed = benchmark(files, rounds=3, warmup=2)
    text = str(timed)
    for part in ("dense", "small", "p90", "CPU p50", "onnxruntime", "3 rounds", "load average"):
        assert part in text
    data = timed.to_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert {"wall_ms", "cpu_ms", "cpu_share", "n", "noisy"} <= set(data["timings"][0])
    assert data["machine"]["cpu"]
    assert data["machine"]["versions"]["onnxruntime"]


def test_a_clear_speedup_is_plain() -> None:
    timed = result([4.0, 4.2, 4.1, 4.3], [2.0, 2.1, 2.0, 2.2])
    assert not timed.noisy
    text = str(timed.speedups["b"])
    assert text.startswith("2.0")
    assert "noisy" not in text
    assert "no clear difference" not in text


def test_a_speedup_within_its_interval_is_not_claimed() -> None:
    timed = result([1.0, 2.0, 1.0, 2.0], [2.0, 1.0, 2.0, 1.0])
    assert "no clear difference" in str(timed)


@pytest.mark.parametrize(
    ("share", "load", "reason"),
    [
        (0.7, QUIET, "a got only 0.70 of the CPU time"),
        (1.0, Load(5.0, 5.0, 2.5), "other processes kept 2.5 of 4 cores busy"),
    ],
)
def test_noise_is_said(share: float, load: Load, reason: str) -> None:
    timed = result([4.0, 4.2], [2.0, 2.1], share=share, load=load)
    assert timed.noisy
    assert f"noisy: {reason}" in str(timed)
    assert "noisy" in str(timed.speedups["b"])
    assert timed.to_dict()["noisy"]


def test_our_own_load_is_not_noise() -> None:
    assert not result([1.0, 1.1], load=Load(3.9, 3.9, 0.3)).noisy


def test_the_meter_leaves_this_process_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """In two seconds all cores worked for five, one of which was ours."""
    passed = {"_busy_seconds": 0.0, "perf_counter": 0.0, "process_time": 0.0}
    for owner, name in zip((machine, time, time), passed, strict=True):
        monkeypatch.setattr(owner, name, partial(passed.__getitem__, name))
    meter = LoadMeter()
    passed.update({"_busy_seconds": 5.0, "perf_counter": 2.0, "process_time": 1.0})
    assert meter.read().others == pytest.approx(2.0, abs=0.1)  # but for the ticks of the counters
    passed["process_time"] = 5.0
    assert meter.read().others == 0


def test_a_ratio_is_taken_round_by_round() -> None:
    slow_moments = np.array([1.0, 10.0, 1.0, 5.0, 2.0])
    ratio = paired_ratio(list(3 * slow_moments), list(slow_moments), seed=0)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((3.0, 3.0, 3.0))


def test_the_interval_holds_the_median_and_follows_the_seed() -> None:
    draws = np.random.default_rng(0).lognormal(1.0, 0.3, size=(2, 40))
    first, second = (paired_ratio(list(draws[0]), list(draws[1]), seed) for seed in (1, 1))
    assert first == second
    assert first.low <= first.value <= first.high


def test_the_spread_is_of_quantiles() -> None:
    assert spread([5.0, 1.0, 3.0, 2.0, 4.0]) == spread([1.0, 2.0, 3.0, 4.0, 5.0])


def wrong(**options: Any) -> Callable[[], BenchmarkResult]:
    return lambda: benchmark(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (wrong(entries={}), "nothing to time"),
        (wrong(entries={"a": nn.Identity()}), "pass inputs="),
        (wrong(entries={"a": "missing.onnx"}), "cannot load missing.onnx|no ONNX file"),
        (wrong(entries={"a": nn.Identity()}, rounds=1), "rounds must be an int in"),
        (wrong(entries={"a": nn.Identity()}, threads=10_000), "may use 1 to"),
        (
            wrong(entries={"a": Example(nn.Identity(), (torch.ones(1),))}, inputs=[]),
            "takes 1 tensors",
        ),
    ],
)
def test_what_cannot_be_timed_is_refused(call: Callable[[], BenchmarkResult], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        call()


def test_inputs_that_a_file_does_not_take_are_refused(files: list[Path]) -> None:
    with pytest.raises(ExportError, match="onnxruntime fails on"):
        benchmark(files, inputs=[torch.ones(2, 7)])
    with pytest.raises(ExportError, match="takes 1 inputs"):
        benchmark(files, inputs=[torch.ones(2, 8)] * 2)
