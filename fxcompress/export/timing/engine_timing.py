"""Time a TensorRT engine on a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from fxcompress.arguments import AnyPath, Interval, checked
from fxcompress.errors import ExportError
from fxcompress.export.runtimes.tensorrt import EngineFile, Library, Shape
from fxcompress.export.runtimes.tensorrt_library import load_library, logged
from fxcompress.export.timing.statistics import Spread, spread

_DTYPES = {
    "BF16": torch.bfloat16,
    "BOOL": torch.bool,
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
}


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
    trt = load_library(engine.library if isinstance(engine, EngineFile) else library)
    session = logged(trt)
    runtime = trt.Runtime(session.logger)
    loaded = runtime.deserialize_cuda_engine(_plan(engine))
    if loaded is None:
        raise ExportError(f"{session.title} cannot load {os.fspath(engine)}: {session.errors()}")
    context = loaded.create_execution_context()
    tensors = _bound(trt, loaded, context, shapes or {})
    times = _event_times(context, rounds, warmup)
    if times is None:
        raise ExportError(f"{session.title} cannot run {os.fspath(engine)}: {session.errors()}")
    return EngineTiming(
        library=session.title,
        device=torch.cuda.get_device_name(),
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        rounds=rounds,
        latency=spread(times),
    )


def _plan(engine: EngineFile | str | os.PathLike[str]) -> bytes:
    try:
        return Path(engine).read_bytes()
    except OSError as error:
        raise ExportError(f"cannot read the engine {os.fspath(engine)}: {error}") from error


def _bound(trt: Any, engine: Any, context: Any, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """Give every input and output of an engine a tensor on the GPU."""
    names = [engine.get_tensor_name(place) for place in range(engine.num_io_tensors)]
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            _set_shape(engine, context, name, shapes.get(name))
    tensors = {}
    for name in names:
        dtype = _DTYPES[engine.get_tensor_dtype(name).name]
        shape = tuple(context.get_tensor_shape(name))
        # Ones: a valid index, and a mask that hides nothing.
        tensors[name] = torch.ones(shape, dtype=dtype, device="cuda")
        context.set_tensor_address(name, tensors[name].data_ptr())
    return tensors


def _set_shape(engine: Any, context: Any, name: str, wanted: Shape | None) -> None:
    declared = tuple(engine.get_tensor_shape(name))
    usual = engine.get_tensor_profile_shape(name, 0)[1] if -1 in declared else declared
    if not context.set_input_shape(name, wanted or tuple(usual)):
        raise ExportError(f"the engine does not take shape {wanted} for its input {name!r}")


def _event_times(context: Any, rounds: int, warmup: int) -> list[float] | None:
    """Milliseconds of each run between two events on one stream; ``None`` if a run is refused."""
    stream = torch.cuda.Stream()
    events = [
        (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
        for _ in range(rounds)
    ]
    torch.cuda.synchronize()  # the tensors were filled on another stream
    accepted = [context.execute_async_v3(stream.cuda_stream) for _ in range(warmup)]
    stream.synchronize()
    for start, end in events:
        start.record(stream)
        accepted.append(context.execute_async_v3(stream.cuda_stream))
        end.record(stream)
    stream.synchronize()
    return [start.elapsed_time(end) for start, end in events] if all(accepted) else None
