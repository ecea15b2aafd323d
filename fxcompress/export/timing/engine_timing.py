"""Time a TensorRT engine on a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch

from fxcompress.arguments import AnyPath, Interval, checked
from fxcompress.errors import ExportError
from fxcompress.export.runtimes.protocol import runtime_for
from fxcompress.export.runtimes.tensorrt import EngineFile, Library, Shape
from fxcompress.export.runtimes.tensorrt_library import load_library
from fxcompress.export.runtimes.tensorrt_session import EngineSession
from fxcompress.export.timing.statistics import Spread, spread


@dataclass(frozen=True)
class EngineTiming:
    """Latency of an engine on a GPU, in milliseconds, without transfers to and from it."""

    library: str
    device: str
    shapes: Mapping[str, Shape]
    rounds: int
    latency: Spread

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@checked(ExportError)
def time_engine(
    engine: EngineFile | AnyPath,
    *,
    shapes: Mapping[str, Shape] | None = None,
    rounds: Annotated[int, Interval("[1, 1000000]")] = 100,
    warmup: Annotated[int, Interval("[0, 1000000]")] = 10,
    library: Library | None = None,
) -> EngineTiming:
    """Time an engine between CUDA events, with its tensors on the GPU all along.

    Args:
        engine: What `build_engine` gave or wrote.
        shapes: Of the varying inputs; by default the usual ones of the engine's profile.
        rounds: Timed runs.
        warmup: Untimed runs before them.
        library: The one that built the engine, if only its path is given.

    Raises:
        ExportError: There is no GPU for it, or the library does not take the engine.
    """
    if not torch.cuda.is_available():
        raise ExportError(
            f"timing {os.fspath(engine)} needs an NVIDIA GPU and a CUDA build of torch, and "
            "torch.cuda.is_available() is False; fxcompress.export.benchmark times on the CPU"
        )
    named = engine.library if isinstance(engine, EngineFile) else library
    with runtime_for(engine, load_library(named).__name__).open(engine) as session:
        assert isinstance(session, EngineSession)
        session.bind(session.ones(shapes or {}))
        times = _event_times(session, rounds, warmup)
        return EngineTiming(
            library=session.library.title,
            device=torch.cuda.get_device_name(),
            shapes={name: tuple(tensor.shape) for name, tensor in session.bound.items()},
            rounds=rounds,
            latency=spread(times),
        )


def _event_times(session: EngineSession, rounds: int, warmup: int) -> list[float]:
    """Milliseconds of each run between two events on one stream."""
    stream = session.stream
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(rounds)
    ]
    for _ in range(warmup):
        session.enqueue()
    stream.synchronize()
    for start, end in events:
        start.record(stream)
        session.enqueue()
        end.record(stream)
    stream.synchronize()
    return [start.elapsed_time(end) for start, end in events]
