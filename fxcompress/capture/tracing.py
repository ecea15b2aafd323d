"""Run torch.export on a module, in evaluation mode, with as much of the batch free as it allows."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import UnsupportedOperatorException
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from fxcompress.ambient import EXCLUSIVE
from fxcompress.capture.inputs import DynamicSpec, Inputs, axis_requests, lost_batches, widen
from fxcompress.capture.refusals import explain_refusal
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule
from fxcompress.interface import assumed

_log = logging.getLogger(__name__)

_TALKATIVE = (
    "torch._subclasses.fake_tensor",
    "torch.fx.experimental.symbolic_shapes",
    "torch.export",
    "torch.export.pt2_archive._package",
)
"""Loggers that print the traceback of an error which is then raised as well."""

_SYMBOLS = "torch.fx.experimental.symbolic_shapes"
"""Where torch defines its errors about free sizes."""
_SIZE_WORDS = re.compile(
    r"\bSym(Int|Float|Bool)\b|\bsymbolic (shapes?|sizes?)\b|[Cc]onstraints? violated|'s\d+'"
)
"""How other errors speak of a free size: by torch's own words for one, or by its symbol."""


def trace(model: nn.Module, inputs: Inputs, dynamic: DynamicSpec) -> tuple[ExportedProgram, Inputs]:
    """Export the model and give the inputs it was exported with.

    A model that fixes its batch is exported with the inputs as given and every size fixed. Any
    other error is the model's own and is raised as it is.
    """
    wide = widen(inputs, dynamic)
    if dynamic != "batch":
        return _export(model, wide, dynamic), wide
    try:
        program = _export(model, wide, dynamic)
        reason = "the model fixed the size itself" if lost_batches(program, inputs) else None
    except CaptureError as error:
        fixed, reason = _fixed_after(error, model, inputs, wide), str(error)
    else:
        if reason is None:
            return program, wide
        fixed = _export(model, inputs, None)
    _log.warning("%s is captured for one batch size only: %s", type(model).__name__, reason)
    return fixed, inputs


def _fixed_after(
    error: CaptureError, model: nn.Module, inputs: Inputs, wide: Inputs
) -> ExportedProgram:
    """The program for the batch as given, where the error was about the size of the batch.

    Raises:
        CaptureError: It was not: that error, or the one that the batch as given meets too.
    """
    fixed = _export(model, inputs, None)
    if not (_about_sizes(error.__cause__) or _refuses(model, wide)):
        raise error
    return fixed


def _about_sizes(error: BaseException | None) -> bool:
    """Whether torch reports that a size which it keeps free would have to be one number.

    So it would for an operator without a fake kernel: at fixed sizes torch runs the real one.
    """
    known = type(error).__module__ == _SYMBOLS or isinstance(error, UnsupportedOperatorException)
    return known or bool(_SIZE_WORDS.search(str(error)))


def _refuses(model: nn.Module, wide: Inputs) -> bool:
    """Whether the model fails on the repeated example with every size fixed, too."""
    try:
        _export(model, wide, None)
    except CaptureError:
        return True
    return False


def _export(model: nn.Module, inputs: Inputs, dynamic: DynamicSpec) -> ExportedProgram:
    _register_caches(model)
    # torch.export leaves marks on the tensors it is given, and reads them the next time.
    args, kwargs = inputs = pytree.tree_map_only(Tensor, Tensor.clone, inputs)
    with quiet(), evaluating(model), whole_attention(), assumed():
        try:
            shapes = axis_requests(model, inputs, dynamic)
            called = _called(model)
            return torch.export.export(called, args, kwargs, dynamic_shapes=shapes, strict=False)
        except CaptureError:
            raise
        except Exception as error:  # whatever the model and torch's own machinery raise
            raise CaptureError(explain_refusal(model, inputs, error)) from error


def _called(model: nn.Module) -> nn.Module:
    """What torch.export calls instead of running its nodes, so that a captured module's checks of
    its inputs are traced as well.
    """
    if not isinstance(model, CapturedModule):
        return model
    shell = nn.Module()
    for table in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
        setattr(shell, table, getattr(model, table))
    shell.training = model.training
    shell.forward = model.forward
    return shell


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

    What was printed without an error is printed afterwards. One thread at a time: loggers and
    streams belong to the whole process, and so does what torch patches while it exports.
    """
    with EXCLUSIVE:
        if "TORCH_LOGS" in os.environ:
            yield
        else:
            with _held_back():
                yield


@contextmanager
def _held_back() -> Iterator[None]:
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
def evaluating(model: nn.Module) -> Iterator[None]:
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
def whole_attention() -> Iterator[None]:
    """Keep torch's fused inference kernel for attention out: it has no gradient."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
