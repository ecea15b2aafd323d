"""Give the tensors of a captured module the values that a checkpoint has under their names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from fxcompress.capture.checkpoint import Entry, Stored
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import Held, LazyValue, attach, lazy_value
from fxcompress.graph.parameters import find_tensor, names_of

_SHOWN = 5


def bind(
    module: CapturedModule, model: nn.Module, entries: Mapping[str, Entry], weights: Path
) -> None:
    """Give every tensor of the module, under all its names, its lazy value.

    Raises:
        CaptureError: A tensor is missing or unexpected, or has another shape or type.
    """
    persistent = module.state_dict().keys()
    wrong: list[str] = []
    for tensor, names in _tensors(module):
        found = [entries[name] for name in names if name in entries]
        if found:
            wrong += _unlike(tensor, found)
            attach(tensor, Stored.whole(found[0]))
        elif _lacks_values(tensor) and persistent.isdisjoint(names):
            attach(tensor, _own(model, names))
    missing = [name for tensor, (name, *_) in _tensors(module) if _lacks_values(tensor)]
    wrong += _absent("the checkpoint lacks", [name for name in missing if name in persistent])
    wrong += _absent("the model lacks", sorted(entries.keys() - names_of(module).keys()))
    if wrong:
        raise CaptureError(
            f"the weights at {weights} are not those of {type(model).__name__}: {'; '.join(wrong)}"
        )
    if missing:
        raise CaptureError(
            f"{_listed(missing)} of {type(model).__name__} lie on the meta device without values, "
            "and a checkpoint holds neither buffers that are not persistent nor numbers that a "
            "forward writes out; build the part of the model that makes such a buffer on the CPU, "
            "and make a buffer of such a number (lifted_tensor_…)"
        )


def _tensors(module: nn.Module) -> Iterator[tuple[Tensor, list[str]]]:
    """Every tensor once, with all its names."""
    for first, names in names_of(module).items():
        own = sorted(names)
        tensor = find_tensor(module, first)
        if first == own[0] and tensor is not None:
            yield tensor, own


def _lacks_values(tensor: Tensor) -> bool:
    return tensor.is_meta and lazy_value(tensor) is None


def _own(model: nn.Module, names: list[str]) -> LazyValue | None:
    """The value that a buffer, which no checkpoint holds, has in the model."""
    values = (find_tensor(model, name) for name in names)
    own = next((value for value in values if value is not None and not value.is_meta), None)
    return None if own is None else Held(own.detach().cpu().clone())


def _unlike(tensor: Tensor, found: list[Entry]) -> Iterator[str]:
    """In what the entries of a tensor's names differ from it, and from one another."""
    for entry in found:
        if (entry.shape, entry.dtype) != (tuple(tensor.shape), tensor.dtype):
            yield (
                f"'{entry.name}' is {list(entry.shape)} {entry.dtype} in the checkpoint and "
                f"{list(tensor.shape)} {tensor.dtype} in the model"
            )
            return
    first, *others = (Stored.whole(entry) for entry in found)
    for other in others:
        if not first.read().equal(other.read()):
            yield (
                f"'{first.entry.name}' and '{other.entry.name}' are one tensor in the model and "
                "two in the checkpoint"
            )


def _absent(words: str, names: Sequence[str]) -> list[str]:
    return [f"{words} {_listed(names)}"] if names else []


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more
