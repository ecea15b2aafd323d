"""Write a program to an ONNX file with torch's dynamo exporter."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import onnx
import torch
from torch import Tensor, nn

from fxcompress.ambient import sealed
from fxcompress.arguments import AnyPath, Interval, checked
from fxcompress.capture.tracing import quiet
from fxcompress.errors import ExportError
from fxcompress.export.onnx.exportable import (
    Exportable,
    Inputs,
    inference_module,
    inputs_of,
    run_module,
)
from fxcompress.export.onnx.handover import handed_over, keeps_free
from fxcompress.export.onnx.names import named_outputs
from fxcompress.export.onnx.reason import essential_reason
from fxcompress.export.onnx.samples import resized
from fxcompress.export.onnx.stamp import is_data_of, locations_of, metadata_of, read_metadata, stamp
from fxcompress.files.write import file_target, written


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file holds, as read back from the file.

    Attributes:
        path: The file.
        opset: Its operator set.
        bytes: Its size, with weights that lie beside it.
        inputs: Their names.
        outputs: Their names.
        dynamic: The named dimensions of inputs and outputs.
        metadata: How it was made: ``fxcompress.version``, ``.recipe``, ``.parent`` (a digest of the
            dense weights) and the sizes before and after; empty if it was not made here.
    """

    path: Path
    opset: int
    bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic: Mapping[str, Mapping[int, str]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __fspath__(self) -> str:
        return str(self.path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "path": str(self.path),
            "opset": self.opset,
            "bytes": self.bytes,
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "dynamic": {name: dict(dims) for name, dims in self.dynamic.items()},
            "metadata": dict(self.metadata),
        }


@checked(ExportError)
@sealed
def to_onnx(
    program: Exportable,
    path: AnyPath,
    *,
    opset: Annotated[int, Interval("[1, 1000]")] = 20,
    optimize: bool = True,
) -> OnnxFile:
    """Export a program, in evaluation mode, and write it in one step.

    Inputs carry the names of the model's own arguments, outputs the keys of what it returns, and
    weights their own names. The file appears only once it is whole and `onnx.checker` accepts it;
    weights above what one protobuf holds go into ``<path>.<digest>.data`` beside it. It holds how
    it was made (see `OnnxFile`), and no path or stack trace.

    Args:
        program: A compiled program, or an `Example`. It is not changed.
        path: Where to write. An existing file is replaced; missing folders are made.
        opset: The operator set asked for; one that torch cannot deliver is refused.
        optimize: Fold constants and batch norms with onnxscript's optimiser.

    Returns:
        What the file holds: its operator set, size, names and dynamic dimensions.

    Raises:
        ExportError: torch cannot export the program.
        WriteError: The file cannot be written; what was there is as it was.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from fxcompress.export import Example
        >>> program = Example(nn.Linear(4, 2), (torch.zeros(2, 4),), dynamic=({0: "batch"},))
        >>> with TemporaryDirectory() as folder:
        ...     file = to_onnx(program, Path(folder) / "linear.onnx")
        >>> file.opset, file.inputs, file.outputs, file.dynamic
        (20, ('input',), ('output',), {'input': {0: 'batch'}, 'output': {0: 'batch'}})
    """
    target = file_target(path)
    inputs = inputs_of(program)
    with _quiet(), inference_module(program) as module:
        outputs = tuple(run_module(module, inputs, inputs.tensors))
        converted = _handed_over(module, inputs, outputs, opset, optimize)
        if converted is None:
            traced = _traced(module, inputs)
            converted = _converted(traced, inputs, outputs, opset, optimize)
    _write(converted, target, metadata_of(program))
    # Weights lie beside the file itself, which is where runtimes that get a link do not look.
    return describe(target if Path(path).is_symlink() else path)


def describe(path: str | os.PathLike[str]) -> OnnxFile:
    """Read what an ONNX file holds, without its weights.

    Raises:
        ExportError: There is no such file, or it is not an ONNX model.
    """
    file = Path(path)
    if not file.is_file():
        raise ExportError(f"there is no ONNX file {file}; write one with fxcompress.export.to_onnx")
    try:
        model = onnx.load(file, load_external_data=False)
        opset = next(
            entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")
        )
    except Exception as error:  # protobuf's own errors share no base with OSError
        raise ExportError(f"{file} is not an ONNX model: {essential_reason(error)}") from error
    sizes = [
        part.stat().st_size
        for part in (file, *map(file.parent.joinpath, sorted(locations_of(model))))
    ]
    weights = {tensor.name for tensor in model.graph.initializer}
    feeds = [value for value in model.graph.input if value.name not in weights]
    dims = {value.name: _named_dims(value) for value in (*feeds, *model.graph.output)}
    return OnnxFile(
        path=file,
        opset=opset,
        bytes=sum(sizes),
        inputs=tuple(value.name for value in feeds),
        outputs=tuple(value.name for value in model.graph.output),
        dynamic={name: named for name, named in dims.items() if named},
        metadata=read_metadata(model),
    )


def _named_dims(value: onnx.ValueInfoProto) -> dict[int, str]:
    shape = value.type.tensor_type.shape.dim
    return {place: dim.dim_param for place, dim in enumerate(shape) if dim.dim_param}


class _Flat(nn.Module):
    """A module that takes and returns flat tensors, under the weight names of the one it wraps.

    The exporter refuses results that are plain numbers and leaves gaps for ``None``; here only
    tensors pass. The wrapped module is held out of torch's sight and its state is shared, so that
    weights keep their own names instead of ``module.``-prefixed ones.
    """

    def __init__(self, module: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self._parameters = module._parameters
        self._buffers = module._buffers
        self._modules = module._modules
        self._non_persistent_buffers_set = module._non_persistent_buffers_set
        self.training = module.training

        def run(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
            args, kwargs = inputs.arguments(tensors)
            return tuple(named_outputs(module(*args, **kwargs)).values())

        self._run = run

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return self._run(tensors)


def _handed_over(
    module: nn.Module, inputs: Inputs, outputs: Sequence[str], opset: int, optimize: bool
) -> torch.onnx.ONNXProgram | None:
    """Convert the program's own graph. None where only a trace tells enough: where the graph does
    not, or where a dimension came out fixed, which torch.export refuses in words.
    """
    graph = handed_over(module, inputs)
    if graph is None:
        return None
    converted = _converted(graph, inputs, outputs, opset, optimize)
    return converted if keeps_free(graph, inputs) else None


def _traced(module: nn.Module, inputs: Inputs) -> torch.export.ExportedProgram:
    """Trace with named dimensions.

    torch.onnx could trace by itself, but where a dimension turns out fixed it would go on with a
    static one and say nothing. A dimension of size 1 would be taken for a constant, so it is
    widened to 2.
    """
    sizes = {label: max(2, size) for label, size in inputs.sizes().items()}
    tensors = tuple(resized(inputs, sizes))
    shapes: tuple[Any, ...] = _dynamic_shapes(inputs)
    interface = getattr(module, "interface", None)
    if interface is not None and any(
        one.equals and one.equals not in interface.sizes for one in interface.sizes.values()
    ):
        # Of dimensions that follow from others torch finds the relation itself, or refuses.
        free = torch.export.Dim.DYNAMIC
        shapes = tuple(named and dict.fromkeys(named, free) for named in shapes)
    try:
        return torch.export.export(_Flat(module, inputs), tensors, dynamic_shapes=(shapes,))
    except Exception as error:  # torch.export raises whatever the traced code raised
        raise ExportError(f"torch.export refuses the program: {essential_reason(error)}") from error


def _dynamic_shapes(inputs: Inputs) -> tuple[dict[int, torch.export.Dim] | None, ...]:
    dims = {label: torch.export.Dim(label) for label in inputs.sizes()}
    return tuple(
        {place: dims[label] for place, label in named.items()} or None for named in inputs.dynamic
    )


def _converted(
    traced: torch.export.ExportedProgram,
    inputs: Inputs,
    outputs: Sequence[str],
    opset: int,
    optimize: bool,
) -> torch.onnx.ONNXProgram:
    try:
        converted = torch.onnx.export(
            traced,
            verbose=False,
            input_names=inputs.names,
            output_names=outputs,
            dynamic_shapes=_dynamic_shapes(inputs),  # for the names: the trace calls them s26
            opset_version=opset,
            optimize=optimize,
        )
    except Exception as error:
        raise ExportError(
            f"torch.onnx cannot convert the program: {essential_reason(error)}"
        ) from error
    assert converted is not None
    got = converted.model.opset_imports[""]
    if got != opset:
        raise ExportError(
            f"opset {opset} was asked for, but torch's exporter only reached opset {got}; "
            "nothing was written; ask for one from 18 to 26"
        )
    return converted


def _write(converted: torch.onnx.ONNXProgram, target: Path, metadata: Mapping[str, str]) -> None:
    parts = is_data_of(target)
    with written(target, lambda name: parts.fullmatch(name) is not None) as draft:
        converted.save(draft)
        stamp(draft, metadata)
        try:
            onnx.checker.check_model(draft)
        except onnx.checker.ValidationError as error:
            raise ExportError(f"onnx.checker refuses the exported file: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and log lines back; its errors still come."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
