"""Capture a model whose values lie in a checkpoint and are read one tensor at a time.

The model is captured on the meta device. Each parameter and buffer of the captured module then has
a lazy value: the tensor of its name in the checkpoint. What no checkpoint holds, the buffers that
are not persistent, keeps the values it has in the model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxcompress.capture import Captured, DynamicSpec, Source, capture
from fxcompress.capture.binding import bind
from fxcompress.capture.checkpoint import open_checkpoint
from fxcompress.capture.inputs import Inputs, widen
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import in_place_of

_Given = tuple[Sequence[Any], dict[str, Any]]


def capture_lazily(
    model: Source,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    dynamic: DynamicSpec,
    finish: Callable[[CapturedModule], CapturedModule] | None,
    weights: Path,
) -> Captured:
    """Capture a model without its values, which are to be those of a checkpoint.

    Args:
        model: A module. Its parameters need no values; on the meta device they take no memory.
        args: Example inputs, with values.
        kwargs: Example inputs by keyword, with values.
        dynamic: As `capture` takes it.
        finish: As `capture` takes it.
        weights: A ``.safetensors`` file, or a folder of them.

    Returns:
        The captured module, on the meta device with lazy values, and the example inputs with
        theirs.

    Raises:
        CaptureError: As `capture`; or the checkpoint and the model do not fit, tensor by tensor.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(
            f"weights={str(weights)!r} are for a torch.nn.Module, not for a "
            f"{type(model).__name__}, which brings its own"
        )
    entries = open_checkpoint(weights)
    given = (args, dict(kwargs or {}))
    _refuse_no_values(given)
    captured = capture(_on_meta(model), *_inputs_on_meta(given), dynamic, finish)
    bind(captured.module, model, entries, weights)
    args, kwargs = _as_captured(captured, given, dynamic)
    return replace(captured, args=tuple(args), kwargs=kwargs)


def _on_meta(model: nn.Module) -> nn.Module:
    """A copy on the meta device, unless the model lies there as it is."""
    tensors = (*model.parameters(), *model.buffers())
    if all(tensor.is_meta for tensor in tensors):
        return model
    twins = {id(tensor): in_place_of(tensor, tensor.detach().to("meta")) for tensor in tensors}
    return copy.deepcopy(model, twins)  # with a twin in the place of every tensor


def _inputs_on_meta(inputs: _Given) -> _Given:
    moved: _Given = pytree.tree_map_only(Tensor, lambda value: value.detach().to("meta"), inputs)
    return moved


def _refuse_no_values(inputs: _Given) -> None:
    if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in pytree.tree_leaves(inputs)):
        raise CaptureError(
            "with weights= the example inputs need values, which there are none of on the meta "
            "device; a program is saved with the ranges of its inputs, and checked on them"
        )


def _as_captured(captured: Captured, given: _Given, dynamic: DynamicSpec) -> Inputs:
    """The example inputs with values, repeated where those of the capture were."""
    own: Any = pytree.tree_map_only(Tensor, lambda value: value.detach().clone(), given)
    wide: Inputs = widen(own, dynamic) if captured.single else own
    return wide
