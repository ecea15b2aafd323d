"""Put the smaller tensors into a copy of the user's model, under the names they have there."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

from fxcompress.ambient import EXCLUSIVE
from fxcompress.errors import WriteBackError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import find_tensor, in_place_of
from fxcompress.graph.sharing import shared

Model = TypeVar("Model", bound=nn.Module)


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def transplant(small: CapturedModule, original: Model, dense: CapturedModule) -> Model:
    """A copy of `original` that holds copies of the tensors of `small`, its attributes still old.

    Tensors that share keep sharing. A constant that only the graph has is left to the class, which
    computes it.

    Args:
        small: The smaller graph.
        original: The model it was made of; not changed.
        dense: The canonical graph of `original`.

    Raises:
        WriteBackError: The graph holds a tensor for which the class has no place.
    """
    result = copied(original)
    places = named_tensors(original)  # what deepcopy makes of a parameter lacks its attributes
    computed = named_tensors(dense).keys() - places.keys()
    copies: dict[int, Tensor] = {}
    for name, tensor in named_tensors(small).items():
        owner, leaf = _owner(result, name)
        if owner is None or not (name in places or _is_open(owner, leaf)):
            if name not in computed:
                raise WriteBackError(
                    f"{type(original).__name__} has no place for '{name}' {list(tensor.shape)}, "
                    "which the smaller graph holds; give the model that was compiled, "
                    "or use program.module"
                )
            continue
        if id(tensor) not in copies:
            copies[id(tensor)] = _like(tensor, places.get(name))
        setattr(owner, leaf, copies[id(tensor)])
    return result


def drop_unread(result: nn.Module, small: CapturedModule, dense: CapturedModule) -> None:
    """Replace by nothing each BatchNorm that the dense graph had and the smaller one has not."""
    read = _names_read(dense) - _names_read(small)
    for name in read:
        path, _, leaf = name.rpartition(".")
        if leaf == "running_mean" and path:
            parent, _, child = path.rpartition(".")
            setattr(result.get_submodule(parent), child, nn.Identity())


def copied(original: Model, *, share: bool = False) -> Model:
    """A deep copy; where asked, one that shares the parameters' memory until either is written to.

    Raises:
        WriteBackError: The model cannot be copied.
    """
    own = original.parameters() if share else ()
    try:
        with EXCLUSIVE:  # a capture of it in another thread sets its flags for a while
            return copy.deepcopy(original, {id(p): in_place_of(p, shared(p)) for p in own})
    except (RuntimeError, TypeError) as error:
        raise WriteBackError(
            f"{type(original).__name__} cannot be copied ({error}); remove what copy.deepcopy "
            "refuses (tensors with a history, open files), or use program.module"
        ) from error


def _names_read(module: CapturedModule) -> set[str]:
    return {str(node.target) for node in module.graph.find_nodes(op="get_attr")}


def _owner(model: nn.Module, name: str) -> tuple[nn.Module | None, str]:
    path, _, leaf = name.rpartition(".")
    try:
        return model.get_submodule(path), leaf
    except AttributeError:
        return None, leaf


def _is_open(owner: nn.Module, leaf: str) -> bool:
    """Whether the module declares this parameter but has none, or holds a plain tensor."""
    return leaf in owner._parameters or find_tensor(owner, leaf) is not None


def _like(tensor: Tensor, place: Tensor | None) -> Tensor:
    """A copy of `tensor` on the device and with the kind of the tensor whose place it takes."""
    twin = tensor.detach().clone()
    if place is None:
        return in_place_of(tensor, twin)
    twin = twin.to(place.device)
    if isinstance(tensor, nn.Parameter):
        return in_place_of(place if isinstance(place, nn.Parameter) else tensor, twin)
    return twin
