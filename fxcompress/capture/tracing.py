"""Run torch.export on a module, in evaluation mode, with as much of the batch free as it allows."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.capture.inputs import DynamicSpec, Inputs, axis_requests, lost_batches, widen
from fxcompress.capture.refusals import explain_refusal
from fxcompress.errors import CaptureError
from fxcompress.graph import CapturedModule

_log = logging.getLogger(__name__)

_TALKATIVE = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
    "torch.export.pt2_archive._package",
)
"""Loggers that print the traceback of an error which is then raised as well."""


def trace(model: nn.Module, inputs: Inputs, dynamic: DynamicSpec) -> tuple[ExportedProgram, Inputs]:
    """Export the model and give the inputs it was exported with.

    A model that fixes its batch is exported with the inputs as given and every size fixed.
    """
    wide = widen(inputs, dynamic)
    if dynamic != "batch":
        return _export(model, wide, dynamic), wide
    try:
        program = _export(model, wide, dynamic)
        reason = "the model fixed the size itself" if lost_batches(program, inputs) else None
    except CaptureError as error:
        reason = str(error)
    if reason is None:
        return program, wide
    fixed = _export(model, inputs, None)
    _log.warning("%s is captured for one batch size only: %s", type(model).__name__, reason)
    return fixed, inputs


def _export(model: nn.Module, inputs: Inputs, dynamic: DynamicSpec) -> ExportedProgram:
    _register_caches(model)
    # torch.export leaves marks on the tensors it is given, and reads them the next time.
    args, kwargs = inputs = pytree.tree_map_only(Tensor, Tensor.clone, inputs)
    with _evaluating(model), _whole_attention(), quiet():
        try:
            shapes = axis_requests(model, inputs, dynamic)
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes, strict=False)
        except CaptureError:
            raise
        except Exception as error:  # whatever the model and torch's own machinery raise
            raise CaptureError(explain_refusal(model, inputs, error)) from error


def _register_caches(model: nn.Module) -> None:
    """Let torch take apart the caches that transformers' models take and return."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return
    pretrained = [
        part for part in model.modules() if isinstance(part, transformers.PreTrainedModel)
    ]
    if pretrained:
        # Older releases lack the exporters; then torch.export names the class it does not know.
        with suppress(ImportError):
            from transformers.exporters import exporter_dynamo

            exporter_dynamo.register_cache_pytrees_for_model(pretrained[0])


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back what torch prints about an error that it raises too, unless TORCH_LOGS asks for it.

    What was printed without an error is printed afterwards.
    """
    if "TORCH_LOGS" in os.environ:
        yield
        return
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    printed = io.StringIO()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stderr(printed):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    sys.stderr.write(printed.getvalue())


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode, and every module back as it was.

    Only the flags are set: torch's exported modules refuse ``eval()``, users override it.
    """
    modes = [(part, part.training) for part in model.modules()]
    captured = [(part, mode) for part, mode in modes if isinstance(part, CapturedModule)]
    for part, _ in modes:
        part.training = False
    for part, _ in captured:
        part.eval()
    try:
        yield
    finally:
        for part, mode in captured:
            part.train(mode)
        for part, mode in modes:
            part.training = mode


@contextmanager
def _whole_attention() -> Iterator[None]:
    """Keep torch's fused inference kernel for attention out: it has no gradient."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
