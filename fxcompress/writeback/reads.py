"""The dense graph of a model, and the attributes that its forward reads.

Only those attributes decide whether a model computes the right thing. One export tells both: it
traces a twin of the model that notes what is read.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import nn

from fxcompress.canonicalize import canonicalize
from fxcompress.capture import DynamicSpec, capture
from fxcompress.errors import CaptureError, WriteBackError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.state import forked
from fxcompress.writeback.gate import Inputs, evaluating
from fxcompress.writeback.transplant import copied

logger = logging.getLogger(__name__)

Reads = frozenset[tuple[str, str]]
"""Pairs of a module's path and an attribute."""


def dense_graph(
    original: nn.Module, given: Inputs, dynamic: DynamicSpec
) -> tuple[CapturedModule, Reads]:
    """The canonical graph of a model, and the attributes that running and exporting it read.

    Args:
        original: Is not changed.
        given: Example inputs.
        dynamic: What to ask of torch.export.

    Raises:
        WriteBackError: The model cannot be copied, or does not take the inputs.
    """
    found: set[tuple[str, str]] = set()
    twin = _listening_twin(original, found)
    try:
        module = capture(twin, *given, dynamic).module
    except CaptureError:
        # The listening may be at fault, and the model itself be fine.
        logger.debug("%s cannot be exported while watched", type(original).__name__)
        module = _plain(original, given, dynamic)
    # Some classes take another way when they are traced, so both ways are listened to.
    with torch.no_grad(), evaluating(twin), forked(twin):
        args, kwargs = copy.deepcopy(given)
        twin(*args, **kwargs)
    return canonicalize(module), frozenset(found)


def _plain(original: nn.Module, given: Inputs, dynamic: DynamicSpec) -> CapturedModule:
    try:
        return capture(original, *given, dynamic).module
    except CaptureError as error:
        raise WriteBackError(
            f"{type(original).__name__} does not take the program's example inputs; "
            f"give the model that was compiled, dense. {error}"
        ) from error


def _listening_twin(original: nn.Module, found: set[tuple[str, str]]) -> nn.Module:
    """A copy whose modules note what is read of them."""
    twin = copied(original, share=True)
    for path, module in list(twin.named_modules()):
        module.__class__ = _listening(type(module), path, found)
    return twin


def _listening(cls: type[nn.Module], path: str, found: set[tuple[str, str]]) -> type[nn.Module]:
    """A subclass that notes what is read."""

    def noting(self: nn.Module, name: str) -> Any:
        found.add((path, name))
        return cls.__getattribute__(self, name)

    names = {"__getattribute__": noting, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), names)
