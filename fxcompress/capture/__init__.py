"""Capture a model as a graph of ATen operators.

A model comes as `nn.Module`, `fx.GraphModule`, `ExportedProgram` or ``.pt2`` file, and leaves as a `CapturedModule`
that owns copies of its parameters: the model handed in is not changed by anything done to the capture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.capture.assemble import assemble
from fxcompress.capture.inputs import Axes, DynamicSpec, axis_requests, dynamic_axes, widen
from fxcompress.capture.refusals import (
    explain_refusal,
    refuse_bad_weights,
    refuse_uninitialized,
)
from fxcompress.errors import CaptureError
from fxcompress.graph import CapturedModule

__all__ = ["Captured", "Source", "capture"]

Source = nn.Module | ExportedProgram | str | Path


@dataclass(frozen=True)
class Captured:
    """A captured model and the inputs it was captured with.

    Attributes:
        module: The graph module, in evaluation mode.
        args: Positional example inputs, detached copies.
        kwargs: Keyword example inputs, detached copies.
        dynamic: For each tensor among the flattened inputs, the axes whose size may vary and their names.
        source: What was captured, for people.
    """

    module: CapturedModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: tuple[Axes, ...]
    source: str


def capture(
    model: Source,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic: DynamicSpec = "batch",
) -> Captured:
    """Capture what a model computes in evaluation mode, as a graph that owns copies of its parameters.

    Args:
        model: A module, an exported program, or the path of a ``.pt2`` file. It is not changed.
        args: Example inputs, as ``model(*args, **kwargs)`` takes them; lists, dicts and registered dataclasses
            may hold the tensors. An exported program brings its own if none are given.
        kwargs: Example inputs by keyword.
        dynamic: ``"batch"`` leaves the first axis of every input free that has the common batch size there, as far
            as the model allows; ``None`` or ``"none"`` fixes every size; a mapping
            ``{input index or name: {axis: name}}`` frees exactly those axes. An exported program is dynamic where
            it was exported so.

    Returns:
        The captured module with its inputs. ``dynamic`` of the result tells which axes came out free.

    Raises:
        CaptureError: The model, its weights or its inputs cannot be captured; the message says why and what to try.
    """
    given = _tuple_of(args), dict(kwargs or {})
    program, given, source, baked = _export(model, *_detached(*given), dynamic)
    refuse_bad_weights(program)
    module = assemble(program, baked)
    names = dynamic if isinstance(dynamic, Mapping) else {}
    return Captured(module, *given, dynamic_axes(module.graph, names), source)


Inputs = tuple[tuple[Any, ...], dict[str, Any]]


def _export(
    model: Source, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: DynamicSpec
) -> tuple[ExportedProgram, Inputs, str, bool]:
    """The exported program, inputs that fit it, its name, and whether its mode was fixed by someone else."""
    if isinstance(model, str | Path):
        program, source = _load(Path(model)), str(model)
    elif isinstance(model, ExportedProgram):
        program, source = model, "ExportedProgram"
    elif isinstance(model, nn.Module):
        _require_inputs(args, kwargs)
        refuse_uninitialized(model)
        args, kwargs = widen(args, kwargs, dynamic)
        return (
            _export_module(model, args, kwargs, dynamic),
            (args, kwargs),
            type(model).__name__,
            False,
        )
    else:
        raise CaptureError(_not_a_model(model))
    if not (args or kwargs) and program.example_inputs is not None:
        args, kwargs = _detached(*program.example_inputs)
    _require_inputs(args, kwargs)
    return program, (args, kwargs), source, True


def _export_module(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: DynamicSpec
) -> ExportedProgram:
    with _evaluating(model), _whole_attention():
        try:
            shapes = axis_requests(model, args, kwargs, dynamic)
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except CaptureError:
            raise
        except (
            Exception
        ) as error:  # torch.export raises whatever the model and its own machinery raise
            raise CaptureError(explain_refusal(model, args, kwargs, dynamic, error)) from error


def _load(path: Path) -> ExportedProgram:
    if not path.is_file():
        raise CaptureError(
            f"there is no file {path}; give the path of a program saved with torch.export.save"
        )
    try:
        return torch.export.load(path)
    except (
        Exception
    ) as error:  # a broken archive fails in many ways: zip, json, pickle, schema version
        raise CaptureError(
            f"{path} is not an exported program ({type(error).__name__}: {str(error).splitlines()[0]}); "
            "make one with torch.export.save(torch.export.export(model, args), path)"
            if str(error)
            else f"{path} is not an exported program ({type(error).__name__}); save one with torch.export.save"
        ) from error


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and every module back as it was."""
    modes = [(module, module.training) for module in model.modules()]
    captured = [(module, mode) for module, mode in modes if isinstance(module, CapturedModule)]
    for module, _ in modes:
        module.training = False
    for module, _ in captured:
        module.eval()
    try:
        yield
    finally:
        for module, mode in captured:
            module.train(mode)
        for module, mode in modes:
            module.training = mode


@contextmanager
def _whole_attention() -> Iterator[None]:
    """Keep attention as separate operators: the fused inference kernel has no axes to analyse and no gradient."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _detached(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    def copied(value: Tensor) -> Tensor:
        return value.detach().clone()

    return (
        pytree.tree_map_only(Tensor, copied, tuple(args)),
        pytree.tree_map_only(Tensor, copied, dict(kwargs)),
    )


def _tuple_of(args: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(args, list | tuple):
        return tuple(args)
    raise CaptureError(
        f"example inputs come as a tuple, as in model(*args), not as {type(args).__name__}; "
        "write (x,) for one tensor, and give a dict of inputs as kwargs"
    )


def _require_inputs(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    if not any(isinstance(value, Tensor) for value in pytree.tree_leaves((args, kwargs))):
        raise CaptureError(
            "no example inputs: there is no tensor in args or kwargs; "
            "give inputs as the model takes them, e.g. (torch.randn(2, 3, 224, 224),)"
        )


def _not_a_model(model: object) -> str:
    kind = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
    hint = "; call it first to make a module" if callable(model) else ""
    return (
        f"cannot capture {kind}{hint}; give a torch.nn.Module, a torch.fx.GraphModule, "
        "a torch.export.ExportedProgram or the path of a .pt2 file"
    )
