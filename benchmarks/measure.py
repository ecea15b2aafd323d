"""Measure one model in this process; `compile_time.py` starts one such process a figure.

    python benchmarks/measure.py time "ResNet-50"

prints a line of JSON. Times are CPU times of one thread, after a run on a tiny model that pays for
imports; the second pass over the same model finds torch's caches warm. Memory is how far the
process rose above what it held with the model loaded.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import torch
from subjects import Subject, by_position, parameters, subject, tiny

import fxcompress as fx
from fxcompress.canonicalize import canonicalize
from fxcompress.capture import capture
from fxcompress.edit.rewrite import rewrite
from fxcompress.graph.state import run_alone
from fxcompress.program import Program
from fxcompress.verify import verify

RATIO = 0.5
PRUNING = fx.passes.MagnitudePruning(ratio=RATIO)
Result = TypeVar("Result")
Stages = dict[str, float]


def timed(stages: Stages, name: str, work: Callable[[], Result]) -> Result:
    """Do something and note its CPU seconds."""
    gc.collect()
    start = time.process_time()
    result = work()
    stages[name] = time.process_time() - start
    return result


def export(made: Subject) -> Any:
    """torch.export with a free batch, as the compiler calls it."""
    free = {name: {0: torch.export.Dim.AUTO} for name in made.inputs}
    with torch.no_grad():
        return torch.export.export(
            made.model, (), dict(made.inputs), dynamic_shapes=free, strict=False
        )


def stages_of(made: Subject) -> Stages:
    """CPU seconds of torch.export and of every stage of the compiler."""
    stages: Stages = {}
    timed(stages, "export", lambda: export(made))
    captured = timed(stages, "capture", lambda: capture(made.model, (), made.inputs))
    module = timed(stages, "canonicalize", lambda: canonicalize(captured.module))
    program = Program(module, captured.args, captured.kwargs, captured.dynamic)
    timed(stages, "analysis", lambda: (program.groups, program.cost()))
    plan = timed(stages, "plan", lambda: PRUNING.plan(program))
    coupling = program.analysis.coupling
    done = timed(stages, "rewrite", lambda: rewrite(module, coupling, plan))
    with forwards_counted(stages):
        timed(
            stages,
            "verify",
            lambda: verify(module, done.module, coupling, plan, captured.args, captured.kwargs),
        )
    return stages


@contextmanager
def forwards_counted(stages: Stages) -> Iterator[None]:
    """Note how often a graph is run: compiled, or node by node."""
    interpreted = torch.fx.Interpreter.run
    with (
        patch("fxcompress.verify.trial.run_alone", side_effect=run_alone) as first,
        patch.object(torch.fx.Interpreter, "run", autospec=True, side_effect=interpreted) as second,
    ):
        yield
    stages["forwards"] = first.call_count + second.call_count


def torch_pruning_of(made: Subject) -> dict[str, Any]:
    """torch-pruning's CPU seconds for its graph and for its step, or what it says."""
    import torch_pruning as tp

    stages: Stages = {}
    try:
        pruner = timed(
            stages,
            "graph",
            lambda: tp.pruner.BasePruner(
                made.model,
                by_position(made),
                importance=tp.importance.MagnitudeImportance(p=2),
                pruning_ratio=RATIO,
                ignored_layers=list(made.ignored),
                num_heads=dict(made.num_heads),
            ),
        )
        timed(stages, "step", pruner.step)
        with torch.no_grad():
            made.model(**made.inputs)
    except Exception as error:  # whatever it stumbles over is a result
        return {**stages, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return dict(stages)


def times(name: str) -> dict[str, Any]:
    """Every stage twice, in this process."""
    stages_of(tiny())
    made = subject(name)
    cold, warm = stages_of(made), stages_of(made)
    timed(warm, "compile", lambda: compiled(made))
    return {"parameters": parameters(made), "cold": cold, "warm": warm}


def compiled(made: Subject) -> Program:
    """The whole of it, from capture to verified."""
    return fx.compile(made.model, (), made.inputs, passes=[PRUNING])


def times_of_torch_pruning(name: str) -> dict[str, Any]:
    """The same for torch-pruning, once: it prunes the model."""
    torch_pruning_of(tiny())
    return torch_pruning_of(subject(name))


def memory(name: str, work: Callable[[Subject], object]) -> dict[str, int]:
    """Bytes that the process rose by while it worked, and those of the model."""
    work(tiny())
    made = subject(name)
    before = _settled()
    kept = work(made)
    peak = _high_water()
    del kept
    return {"model": made.bytes, "before": before, "above": peak - before}


def _settled() -> int:
    """Give freed memory back, forget the high-water mark, and say what is held."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _high_water()


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


MODES: dict[str, Callable[[str], dict[str, Any]]] = {
    "time": times,
    "torch-pruning": times_of_torch_pruning,
    "memory-export": lambda name: memory(name, export),
    "memory-compile": lambda name: memory(name, compiled),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(json.dumps(MODES[sys.argv[1]](sys.argv[2])))
