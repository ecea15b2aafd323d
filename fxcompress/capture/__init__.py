"""Capture a model as a graph of ATen operators.

A model comes as `nn.Module`, `fx.GraphModule`, `ExportedProgram` or ``.pt2`` file, and leaves as a
`CapturedModule` with the same parameters: their memory is one until either is written to, so that
nothing done to the capture changes the model, nor the other way round.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.ambient import sealed
from fxcompress.capture.assemble import assemble
from fxcompress.capture.functions import own_backwards
from fxcompress.capture.habits import note_norms
from fxcompress.capture.inputs import BATCH, Axes, AxisNames, DynamicSpec, Inputs, labelled
from fxcompress.capture.ones import admit_ones
from fxcompress.capture.refusals import (
    mismatch,
    refuse_bad_weights,
    refuse_lazy_values,
    refuse_uninitialized,
)
from fxcompress.capture.sources import opened
from fxcompress.capture.tracing import trace
from fxcompress.errors import CaptureError, InputError
from fxcompress.graph.captured import CapturedModule
from fxcompress.interface import Interface

__all__ = ["Captured", "DynamicSpec", "Source", "capture"]

_log = logging.getLogger(__name__)

Source = nn.Module | ExportedProgram | str | Path


@dataclass(frozen=True)
class Captured:
    """A captured model and the inputs it was captured with.

    Attributes:
        module: The graph module, in evaluation mode.
        args: Positional example inputs, detached copies.
        kwargs: Keyword example inputs, detached copies.
        dynamic: For each tensor among the flattened inputs, the axes that may vary, with names.
        source: What was captured, for people.
        single: Whether the batch given was one example: the inputs here hold it twice.
        notes: In which ways the module will not train as the model does.
    """

    module: CapturedModule
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dynamic: tuple[Axes, ...]
    source: str
    single: bool = False
    notes: tuple[str, ...] = ()


@sealed
def capture(
    model: Source,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic: DynamicSpec = "batch",
    finish: Callable[[CapturedModule], CapturedModule] | None = None,
    *,
    trust: bool = False,
) -> Captured:
    """Capture what a model computes in evaluation mode, as a graph with parameters of its own.

    Args:
        model: A module, an exported program, or the path of a ``.pt2`` file. It is not changed.
        args: Example inputs, as ``model(*args, **kwargs)`` takes them; lists, dicts and registered
            dataclasses may hold the tensors. An exported program brings its own if none are given.
        kwargs: Example inputs by keyword.
        dynamic: ``"batch"`` leaves the first axis of every input free that has the common batch
            size there, as far as the model allows, and repeats a batch of one to see it;
            ``None`` or ``"none"`` fixes every size; a mapping
            ``{input index or name: {axis: name}}`` frees exactly those axes, or fails.
            An exported program is dynamic where it was exported so.
        finish: Applied to the graph before it is compared with the model at sizes of one.
        trust: Open a ``.pt2`` file even where it holds pickles or compiled libraries. Such a file
            is code, as a Python file is: open none that you would not run.

    Returns:
        The captured module with its inputs; its ``dynamic`` tells which axes came out free.

    Raises:
        CaptureError: The model, its weights or its inputs cannot be captured; the message says why
            and what to try.

    Example:
        >>> captured = capture(nn.Linear(4, 2), (torch.randn(1, 4),))
        >>> captured.dynamic
        ({0: 'batch'},)
        >>> captured.module(torch.randn(7, 4)).shape
        torch.Size([7, 2])
    """
    given = _detached(_tuple_of(args), dict(kwargs or {}))
    names = dict(dynamic.items()) if isinstance(dynamic, Mapping) else {}
    # The first export of a process keeps the frames it was called from: none has the capture.
    with own_backwards() as functions:
        if isinstance(model, nn.Module):
            return _noted(_of_module(model, given, dynamic, names, finish), functions, model)
        return _noted(_of_program(*opened(model, trust), given, names, finish), functions, None)


def _noted(captured: Captured, functions: Mapping[type, str], model: nn.Module | None) -> Captured:
    """The capture with notes on how it will not train as the model does."""
    notes = (*functions.values(), *note_norms(captured.module, model))
    for note in notes:
        _log.warning("%s: %s", captured.source, note)
    return replace(captured, notes=notes)


def _of_program(
    program: ExportedProgram,
    source: str,
    given: Inputs,
    names: AxisNames,
    finish: Callable[[CapturedModule], CapturedModule] | None,
) -> Captured:
    if not any(given) and program.example_inputs is not None:
        given = _detached(*program.example_inputs)
    _require_tensors(given)
    module = _assembled(program, given, names, finish, None)
    module.interface = admit_ones(program.module(check_guards=False), module, given)
    return Captured(module, *given, labelled(module.interface, given, bool(names)), source)


def _of_module(
    model: nn.Module,
    given: Inputs,
    dynamic: DynamicSpec,
    names: AxisNames,
    finish: Callable[[CapturedModule], CapturedModule] | None,
) -> Captured:
    _require_tensors(given)
    refuse_uninitialized(model)
    refuse_lazy_values(model)
    plain = _trainable(model)
    traced = trace(plain, given, dynamic)
    return _of_trace(type(model).__name__, plain, given, *traced, dynamic, names, finish)


def _of_trace(
    source: str,
    model: nn.Module,
    given: Inputs,
    program: ExportedProgram,
    inputs: Inputs,
    dynamic: DynamicSpec,
    names: AxisNames,
    finish: Callable[[CapturedModule], CapturedModule] | None,
) -> Captured:
    module = _assembled(program, inputs, names, finish, model)
    interface = admit_ones(model, module, inputs)
    single = _shapes(given) != _shapes(inputs)
    reason = _excluded(interface) if single else None
    if reason is not None:
        _refuse_repetition(model, dynamic, reason)
        program, inputs = trace(model, given, None)
        single, module = False, _assembled(program, inputs, names, finish, model)
        interface = replace(_interface(module), note=reason)
    module.interface = interface
    axes = labelled(interface, inputs, bool(names))
    return Captured(module, *inputs, axes, source, single)


def _assembled(
    program: ExportedProgram,
    inputs: Inputs,
    names: AxisNames,
    finish: Callable[[CapturedModule], CapturedModule] | None,
    model: nn.Module | None,
) -> CapturedModule:
    """The module of an exported program, with its interface; the inputs go with it."""
    from fxcompress.capture.guards import interface_of  # sympy is slow to import

    refuse_bad_weights(program)
    module = assemble(program, model)
    module.interface = interface_of(program, module, names)
    try:
        module.interface.check(*inputs)
    except InputError as error:
        raise CaptureError(f"the inputs do not go with the exported program: {error}") from error
    if finish is None:
        module.recompile()
    else:
        module = finish(module)
    _refuse_mismatch(module, inputs)
    return module


def _interface(module: CapturedModule) -> Interface:
    assert module.interface is not None
    return module.interface


def _excluded(interface: Interface) -> str | None:
    """Why a batch of one, which was repeated, is not what the graph computes."""
    return next((one.note for one in interface.sizes.values() if one.note), None)


def _refuse_repetition(model: nn.Module, dynamic: DynamicSpec, reason: str) -> None:
    """Say that the example of one is captured as it is; raise if an axis was asked for by name."""
    if dynamic != BATCH:
        raise CaptureError(
            f"dynamic={dynamic!r} frees an axis of size 1, but {reason}: "
            "give an example of two there, or leave the axis fixed"
        )
    _log.warning("%s is captured for one batch size only: %s", type(model).__name__, reason)


def _trainable(model: nn.Module) -> nn.Module:
    """The model, or a copy of one made in inference mode, whose tensors no gradient may see."""
    tensors = (*model.parameters(), *model.buffers())
    return copy.deepcopy(model) if any(map(Tensor.is_inference, tensors)) else model


def _shapes(inputs: Inputs) -> list[torch.Size]:
    return [leaf.shape for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]


def _refuse_mismatch(module: CapturedModule, inputs: Inputs) -> None:
    """Raise if the inputs do not go with the parameters, which torch.export does not always see.

    A model may convert its inputs itself, so that only a call tells.
    """
    difference = mismatch(module, inputs)
    if difference is None:
        return
    try:
        with torch.no_grad():
            module(*inputs[0], **inputs[1])
    except (RuntimeError, TypeError) as error:
        raise CaptureError(f"the model does not run on these inputs: {difference}") from error


def _detached(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Inputs:
    copies: Inputs = pytree.tree_map_only(
        Tensor, lambda value: value.detach().clone(), (args, kwargs)
    )
    return copies


def _tuple_of(args: Sequence[Any]) -> tuple[Any, ...]:
    if isinstance(args, list | tuple):
        return tuple(args)
    raise CaptureError(
        f"example inputs come as a tuple, as in model(*args), not as a {type(args).__name__}; "
        "write (x,) for one tensor, and give a dict of inputs as kwargs"
    )


def _require_tensors(inputs: Inputs) -> None:
    if not any(isinstance(value, Tensor) for value in pytree.tree_leaves(inputs)):
        raise CaptureError(
            "no example inputs: there is no tensor in args or kwargs; "
            "give them as the model takes them, e.g. (torch.randn(2, 3, 224, 224),)"
        )
