"""Parse ONNX files with TensorRT or TensorRT-RTX, and build engines from them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from fxcompress.arguments import AnyPath, Count, checked
from fxcompress.errors import ExportError
from fxcompress.export.onnx.write import OnnxFile, describe
from fxcompress.export.runtimes.tensorrt_library import TensorRt, load_library, parsed
from fxcompress.files.write import file_target, write_bytes

Library = Literal["tensorrt", "tensorrt_rtx"]
Shape = tuple[int, ...]
Profile = tuple[Shape, Shape, Shape]

# Sizes of a varying first dimension, the batch, when none are given: smallest, usual, largest.
DEFAULT_BATCH = (1, 8, 32)


@dataclass(frozen=True)
class ParsedNetwork:
    """What the parser made of an ONNX file; -1 stands for a varying dimension."""

    library: str
    version: str
    layers: int
    inputs: Mapping[str, Shape]
    outputs: Mapping[str, Shape]


@dataclass(frozen=True)
class EngineFile:
    """A built engine. ``notes`` are the builder's own lines about sparsity."""

    path: Path
    library: str
    version: str
    bytes: int
    sparse: bool
    compute_capability: int | None
    shapes: Mapping[str, Profile]
    build_seconds: float
    notes: tuple[str, ...]

    def __fspath__(self) -> str:
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "path": str(self.path)}


@checked(ExportError)
def parse(path: AnyPath, *, library: Library | None = None) -> ParsedNetwork:
    """Let TensorRT's parser read an ONNX file: will it take the model?

    Raises:
        ExportError: It will not; the parser's errors and their nodes are listed.
    """
    session = parsed(describe(path), load_library(library))
    network = session.network
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    outputs = [network.get_output(place) for place in range(network.num_outputs)]
    return ParsedNetwork(
        library=session.trt.__name__,
        version=session.trt.__version__,
        layers=network.num_layers,
        inputs={tensor.name: tuple(tensor.shape) for tensor in inputs},
        outputs={tensor.name: tuple(tensor.shape) for tensor in outputs},
    )


@checked(ExportError)
def build_engine(
    path: AnyPath,
    engine_path: AnyPath,
    *,
    sparse: bool = False,
    shapes: Mapping[str, Profile] | None = None,
    compute_capability: Count | None = None,
    library: Library | None = None,
) -> EngineFile:
    """Build an engine from an ONNX file and write it in one step.

    Args:
        path: The ONNX file; its precision is the engine's.
        engine_path: Where to write.
        sparse: Let the builder use 2:4 sparse kernels where the weights allow them.
        shapes: For each varying input its smallest, usual and largest shape. By default a varying
            first dimension goes from 1 to 32; any other must be given here.
        compute_capability: Build for this kind of GPU, e.g. ``89`` (TensorRT-RTX only).
        library: ``"tensorrt"`` or ``"tensorrt_rtx"``.

    Raises:
        ExportError: The parser or the builder refuses; their errors are in the message.
        WriteError: The file cannot be written; what was there is as it was.
    """
    target, file = file_target(engine_path), describe(path)
    session = parsed(file, load_library(library))
    profiles = _profiles(session.network, shapes or {})
    config = _config(session, profiles, sparse, compute_capability)
    start = time.perf_counter()
    plan = session.builder.build_serialized_network(session.network, config)
    if plan is None:
        raise ExportError(f"{session.title} cannot build {file.path}: {session.errors()}")
    write_bytes(target, plan)
    return EngineFile(
        path=target,
        library=session.trt.__name__,
        version=session.trt.__version__,
        bytes=target.stat().st_size,
        sparse=sparse,
        compute_capability=compute_capability,
        shapes=profiles,
        build_seconds=time.perf_counter() - start,
        notes=tuple(text.strip() for _, text in session.messages if "sparsity" in text.lower()),
    )


def plan_of(file: OnnxFile, trt: Any) -> bytes:
    """The engine that a library builds from a file by default.

    Raises:
        ExportError: The parser or the builder refuses.
    """
    session = parsed(file, trt)
    config = _config(session, _profiles(session.network, {}), sparse=False, capability=None)
    plan = session.builder.build_serialized_network(session.network, config)
    if plan is None:
        raise ExportError(f"{session.title} cannot build {file.path}: {session.errors()}")
    return bytes(plan)


def _profiles(network: Any, given: Mapping[str, Profile]) -> dict[str, Profile]:
    inputs = {
        tensor.name: tuple(tensor.shape)
        for tensor in map(network.get_input, range(network.num_inputs))
    }
    unknown = sorted(set(given) - set(inputs))
    if unknown:
        raise ExportError(f"shapes names {unknown}; the inputs are {sorted(inputs)}")
    varying = {name: shape for name, shape in inputs.items() if -1 in shape}
    profiles = {
        name: given[name] if name in given else _default_profile(name, shape)
        for name, shape in varying.items()
    }
    for name, profile in profiles.items():
        _must_fit(name, varying[name], profile)
    return profiles


def _default_profile(name: str, shape: Shape) -> Profile:
    if -1 in shape[1:]:
        raise ExportError(
            f"input {name!r} of shape {shape} varies in more than its first dimension; pass "
            f"shapes={{{name!r}: (smallest, usual, largest)}}"
        )
    small, usual, large = ((size, *shape[1:]) for size in DEFAULT_BATCH)
    return small, usual, large


def _must_fit(name: str, declared: Shape, profile: Profile) -> None:
    for shape in profile:
        if len(shape) != len(declared) or any(
            wanted not in (-1, size) for wanted, size in zip(declared, shape, strict=True)
        ):
            raise ExportError(f"shape {shape} does not fit input {name!r}, which is {declared}")
    if any(sorted(sizes) != list(sizes) for sizes in zip(*profile, strict=True)):
        raise ExportError(
            f"the shapes of input {name!r} must grow from smallest to largest: {profile}"
        )


def _config(
    session: TensorRt, profiles: Mapping[str, Profile], sparse: bool, capability: int | None
) -> Any:
    trt, config = session.trt, session.builder.create_builder_config()
    if sparse:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if profiles:
        profile = session.builder.create_optimization_profile()
        for name, (small, usual, large) in profiles.items():
            profile.set_shape(name, small, usual, large)
        config.add_optimization_profile(profile)
    if capability is not None:
        known = getattr(trt, "ComputeCapability", None)
        members = known.__members__ if known else {}
        if f"SM{capability}" not in members:
            targets = [int(name[2:]) for name in members if name.startswith("SM")]
            raise ExportError(
                f"{session.title} cannot build for compute capability {capability}; "
                f"it can for {targets or 'the GPU it runs on only'}"
            )
        config.num_compute_capabilities = 1
        config.set_compute_capability(members[f"SM{capability}"], 0)
    return config
