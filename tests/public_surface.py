"""Everything public that takes arguments, each with arguments that it takes.

`surface` is read from the packages themselves; `VALID` has to keep up with it.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import fxcompress as fx
from fxcompress import loaders, stats, train
from fxcompress.budget import Sizing
from fxcompress.edit.codecs import Int8PerRow
from fxcompress.passes import elimination
from fxcompress.report import Report
from fxcompress.stats import Read
from public_program import Net, images, program, task

PACKAGES = {
    "fx": fx,
    "passes": fx.passes,
    "export": fx.export,
    "stats": stats,
    "elimination": elimination,
    "loaders": loaders,
    "train": train,
}

RESULTS = {
    "fx.Program", "fx.Sensitivity", "export.BenchmarkResult", "export.CheckResult",
    "export.EngineFile", "export.EngineTiming", "export.OnnxFile", "export.ParsedNetwork",
    "stats.Features", "stats.Gradients", "stats.Moments", "stats.Paired",
    "elimination.Elimination", "elimination.Scores", "loaders.Loaded", "train.Context",
    "train.Progress",
}  # fmt: skip
"""Classes that only the package itself makes; their methods are tried all the same."""


def group() -> Any:
    return next(group for group in program().groups if not group.frozen)


def _node() -> Any:
    return program().module.graph.find_nodes(op="output")[0].all_input_nodes[0]


@cache
def _read() -> str:
    """The name of a node that a layer reads."""
    return str(next(iter(stats.moments(program(), [group()])[group()].each)).value)


def _axes() -> Any:
    return program().analysis.coupling.axes[_read()]


def _vectors() -> elimination.Vectors:
    return elimination.Vectors.of_rows(torch.arange(12.0).reshape(4, 3).sin())


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """For files that are only read; it goes with the process."""
    return tempfile.TemporaryDirectory()


@cache
def _saved() -> Path:
    path = Path(_folder().name) / "saved.fxc"
    program().save(path)
    return path


@cache
def _onnx() -> Path:
    path = Path(_folder().name) / "saved.onnx"
    fx.export.to_onnx(small(), path)
    return path


@cache
def _array() -> str:
    path = Path(_folder().name) / "x.npy"
    np.save(path, images().numpy())
    return str(path)


@cache
def small() -> fx.export.Example:
    """For exports, which take long."""
    return fx.export.Example(nn.Linear(3, 2), (torch.ones(2, 3),))


@dataclass(frozen=True)
class Entry:
    """A public callable.

    Attributes:
        name: Its place: ``fx.compile``, ``fx.Program.group``.
        call: Takes the arguments.
        valid: Arguments that it takes, made anew.
        parameters: Those that may be given.
    """

    name: str
    call: Callable[..., Any]
    valid: Callable[[Path], Mapping[str, Any]]
    parameters: Mapping[str, inspect.Parameter]


Valid = Callable[[Path], Mapping[str, Any]]
VALID: dict[str, Valid] = {
    "fx.Budget": lambda _: {"flops": 0.5},
    "fx.Pipeline": lambda _: {"passes": [fx.passes.FoldBatchNorm()]},
    "fx.Recipe": lambda _: {},
    "fx.Recipe.from_dict": lambda _: {"data": {"FoldBatchNorm": {}}},
    "fx.Recipe.from_yaml": lambda _: {"text": "FoldBatchNorm: {}"},
    "fx.Recipe.parse": lambda _: {"text": "FoldBatchNorm()"},
    "fx.Offset": lambda _: {"weight": "mid.weight", "value": torch.zeros(8)},
    "fx.Plan": lambda _: {"edits": ()},
    "fx.Project": lambda _: {"group": group(), "encode": torch.tensor([0, 1])},
    "fx.Reparametrize": lambda _: {"parameter": "mid.weight", "module": nn.Identity()},
    "fx.Replace": lambda _: {"parameter": "mid.weight", "value": torch.zeros(8, 4)},
    "fx.Store": lambda _: {
        "parameter": "mid.weight", "codec": Int8PerRow(),
        "parts": Int8PerRow().encode(torch.ones(8, 4)),
    },
    "fx.Task": lambda _: {"data": [images()]},
    "fx.TrainableProject": lambda _: {
        "group": group(), "encode": nn.Identity(), "decode": nn.Identity()
    },
    "fx.apply": lambda _: {"program": program(), "one": fx.passes.MagnitudePruning(ratio=0.5)},
    "fx.axis_rule": lambda _: {},
    "fx.compile": lambda _: {"model": nn.Linear(3, 4), "args": (torch.ones(2, 3),)},
    "fx.explain": lambda _: {"program": program(), "first": "up.weight"},
    "fx.load": lambda _: {"path": _saved()},
    "fx.sensitivity": lambda _: {
        "program": program(), "method": fx.passes.MagnitudePruning(ratio=0.5), "ratios": (0.5,)
    },
    "fx.Program.draw": lambda folder: {"path": folder / "a.svg", "group": "up"},
    "fx.Program.explain": lambda _: {"first": "up.weight"},
    "fx.Program.group": lambda _: {"name": group().name},
    "fx.Program.save": lambda folder: {"path": folder / "b.fxc"},
    "fx.Program.with_values": lambda _: {"values": {"head.bias": torch.zeros(3)}},
    "fx.Program.write_back": lambda _: {"model": Net()},
    "fx.Sensitivity.plot": lambda folder: {"path": folder / "a.svg"},
    "fx.Report.from_dict": lambda _: {"data": program().report.to_dict()},
    "fx.Report.to_html": lambda folder: {"path": folder / "a.html"},
    "fx.Report.to_json": lambda _: {},
    "passes.StructuredPass": lambda _: {"criterion": fx.passes.Magnitude(), "ratio": 0.5},
    "passes.progressive": lambda _: {"pass_": fx.passes.MagnitudePruning(ratio=0.5), "steps": 2},
    "export.Example": lambda _: {"module": nn.Linear(2, 2), "args": (torch.ones(1, 2),)},
    "export.benchmark": lambda _: {
        "entries": {"a": program()}, "rounds": 2, "warmup": 0, "inputs": [images()]
    },
    "export.build_engine": lambda folder: {"path": _onnx(), "engine_path": folder / "e"},
    "export.check": lambda _: {"path": _onnx(), "program": small(), "samples": 1},
    "export.parse": lambda _: {"path": _onnx()},
    "export.time_engine": lambda folder: {"engine": folder / "e"},
    "export.to_onnx": lambda folder: {"program": small(), "path": folder / "a.onnx"},
    "stats.Read": lambda _: {"value": _read()},
    "stats.Wanted": lambda _: {"value": _read(), "statistic": stats.Range()},
    "stats.collect": lambda _: {"program": program(), "wanted": []},
    "stats.gradients": lambda _: {"program": program()},
    "stats.aligned": lambda _: {"entries": torch.ones(1, 2, 3, 4), "gram": "units"},
    "stats.moments": lambda _: {"program": program(), "groups": [group()]},
    "stats.observe": lambda _: {"program": program(), "taps": {}},
    "stats.paired_moments": lambda _: {
        "program": program(), "other": program().module, "group": group(), "reads": [Read(_read())],
        "gram": "units",
    },
    "stats.places_of": lambda _: {"axes": _axes(), "factor": group().factor},
    "stats.require_data": lambda _: {"program": program(), "who": "a test"},
    "stats.unit_signals": lambda _: {
        "value": torch.ones(2, 4), "axes": _axes(), "factor": group().factor
    },
    "stats.window_of": lambda _: {"node": _node()},
    "elimination.Vectors": lambda _: {"gram": torch.eye(3, dtype=torch.float64)},
    "elimination.Vectors.of_gram": lambda _: {"gram": torch.eye(3, dtype=torch.float64)},
    "elimination.Vectors.of_rows": lambda _: {"rows": torch.eye(3, dtype=torch.float64)},
    "elimination.Elimination.factors": lambda _: {"share": 0.5},
    "elimination.Elimination.kept": lambda _: {},
    "elimination.arc_cosine": lambda _: {"gram": torch.eye(3, dtype=torch.float64)},
    "elimination.eliminate": lambda _: {"vectors": _vectors(), "steps": 1, "lam": 1e-3},
    "elimination.inverse": lambda _: {"gram": torch.eye(3, dtype=torch.float64), "lam": 1e-3},
    "elimination.scores": lambda _: {"rows": torch.eye(3, dtype=torch.float64), "lam": 1e-3},
    "loaders.load_model": lambda _: {"spec": "torch.nn:Identity", "inputs": ["2x4"]},
    "loaders.load_task": lambda _: {"spec": _array(), "program": program()},
    "loaders.parse_inputs": lambda _: {"specs": ["2x4"]},
    "train.Context.note": lambda _: {"text": "a note"},
    "train.Context.once": lambda _: {"name": "it", "make": lambda: {"a": torch.ones(2)}},
    "train.Context.read": lambda _: {"name": "it"},
    "train.Context.write": lambda _: {"name": "it", "tensors": {"a": torch.ones(2)}},
    "train.Recover": lambda _: {},
    "train.Trainer": lambda _: {},
    "train.Trainer.fit": lambda _: {"module": Net(), "task": task()},
    "train.Trainer.rate": lambda _: {"epoch": 0.5},
    "train.call": lambda _: {"module": Net().eval(), "task": task(), "inputs": images()},
    "train.evaluate": lambda _: {"module": Net(), "task": task()},
    "train.recalibrate": lambda _: {"module": Net(), "task": task()},
}  # fmt: skip

HOLDERS: dict[str, Callable[[], Any]] = {
    "fx.Recipe": lambda: fx.Recipe,
    "fx.Program": program,
    "fx.Sensitivity": lambda: fx.sensitivity(
        program(), fx.passes.MagnitudePruning(ratio=0.5), (0.5,)
    ),
    "fx.Report": lambda: Report(model="net"),
    "elimination.Vectors": lambda: elimination.Vectors,
    "elimination.Elimination": lambda: elimination.eliminate(_vectors(), 1, 1e-3),
    "train.Context": lambda: train.Context(print, 0, Path(_folder().name)),
    "train.Trainer": train.Trainer,
}
"""Objects whose methods are public."""


@cache
def surface() -> dict[str, Entry]:
    """Every public callable by name.

    Raises:
        KeyError: Nobody says what arguments one takes.
    """
    return {name: _entry(name, call) for name, call in _callables()}


def _callables() -> Iterator[tuple[str, Callable[..., Any]]]:
    for prefix, package in PACKAGES.items():
        for each in package.__all__:
            value, name = getattr(package, each), f"{prefix}.{each}"
            if isinstance(value, type):
                if _is_made_by_users(name, value):
                    yield name, value
            elif inspect.isfunction(value):
                yield name, value
    for holder, make in HOLDERS.items():
        made = make()
        for each, method in inspect.getmembers(made, inspect.ismethod):
            if not each.startswith("_") and inspect.signature(method).parameters:
                yield f"{holder}.{each}", method


def _is_made_by_users(name: str, value: type) -> bool:
    protocol = getattr(value, "_is_protocol", False)
    made = is_dataclass(value) and not protocol and not inspect.isabstract(value)
    return made and name not in RESULTS


def _entry(name: str, call: Callable[..., Any]) -> Entry:
    parameters = dict(inspect.signature(call).parameters)
    if name in VALID:
        return Entry(name, call, VALID[name], parameters)
    if not name.startswith("passes."):
        raise KeyError(f"{name} is public and has no entry in VALID: what does it take?")
    sized = isinstance(call, type) and issubclass(call, Sizing)
    return Entry(name, call, lambda _: {"ratio": 0.5} if sized else {}, parameters)
