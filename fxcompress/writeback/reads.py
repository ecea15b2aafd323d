"""Which attributes a forward reads: only those decide whether a model computes the right thing."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from fxcompress.capture import DynamicSpec, capture
from fxcompress.errors import CaptureError
from fxcompress.graph.state import forked
from fxcompress.writeback.gate import evaluating

logger = logging.getLogger(__name__)


def attributes_read(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], dynamic: DynamicSpec
) -> frozenset[tuple[str, str]]:
    """The (module path, attribute) pairs that running and exporting `model` read."""
    twin = copy.deepcopy(model)
    found: set[tuple[str, str]] = set()
    for path, module in list(twin.named_modules()):
        module.__class__ = _listening(type(module), path, found)
    with torch.no_grad(), evaluating(twin), forked(twin):
        twin(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs)))
    try:
        capture(twin, args, kwargs, dynamic)  # some classes take another way when they are traced
    except CaptureError:
        # The model itself is captured elsewhere; only the listening can be at fault here, and the
        # export at the end judges the result.
        logger.debug("%s cannot be exported while its attributes are watched", type(model).__name__)
    return frozenset(found)


def _listening(cls: type[nn.Module], path: str, found: set[tuple[str, str]]) -> type[nn.Module]:
    """A subclass that notes what is read."""

    def noting(self: nn.Module, name: str) -> Any:
        found.add((path, name))
        return cls.__getattribute__(self, name)

    names = {"__getattribute__": noting, "__module__": cls.__module__}
    return type(cls.__name__, (cls,), names)
