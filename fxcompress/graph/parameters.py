"""Parameters and buffers of a module, under all the names they have."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import FxCompressError
from fxcompress.graph.lazy import Held, LazyValue, attach, lazy_value, value_of

Names = Mapping[str, frozenset[str]]

_DIGESTED = 2**22
"""Bytes that are read at a time."""


def names_of(module: nn.Module) -> Names:
    """Every name of each parameter and buffer: tied ones have several."""
    found: dict[int, set[str]] = {}
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in tensors:
        found.setdefault(id(tensor), set()).add(name)
    return {name: frozenset(found[id(tensor)]) for name, tensor in tensors}


def has_values(module: nn.Module) -> bool:
    """Whether every parameter and buffer has values, in memory or lazily; on the meta device there
    are only lazy ones.
    """
    tensors = (*module.parameters(), *module.buffers())
    return not any(t.is_meta and lazy_value(t) is None for t in tensors)


def state_digest(module: nn.Module) -> str:
    """``sha256:`` and the SHA-256 of names, dtypes, shapes and values of ``module.state_dict()``.

    A module and its captured graph have the same. It is empty where there are no values. Lazy ones
    are read one tensor at a time.
    """
    state = module.state_dict(keep_vars=True)
    if any(tensor.is_meta and lazy_value(tensor) is None for tensor in state.values()):
        return ""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        plain = value_of(tensor).cpu().resolve_conj().resolve_neg().contiguous()
        for part in plain.reshape(-1).view(torch.uint8).split(_DIGESTED):
            found.update(part.clone().numpy().data)  # NumPy's view of it would end sharing
    return f"sha256:{found.hexdigest()}"


def replace_tensor(module: nn.Module, names: Names, name: str, value: Tensor) -> None:
    """Put `value` in the place of a parameter or buffer, under every name it has.

    A parameter stays one, as `in_place_of` says; a buffer stays persistent or not. In the place of
    a lazy value a new one is held in memory.
    """
    old = tensor_called(module, name)
    home = old.device if lazy_value(old) is None else value.device
    new = in_place_of(old, value.to(home, old.dtype))
    for other in names[name]:
        set_tensor(module, other, new, persistent=_persistent(module, other))


def _persistent(module: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf not in module.get_submodule(owner)._non_persistent_buffers_set


def in_place_of(old: Tensor, value: Tensor) -> Tensor:
    """`value` as what `old` is: of its class, with its attributes and its order of axes in memory.

    Args:
        old: A parameter, of any subclass, or a buffer. What stands in for a lazy one is lazy too,
            and stays on the meta device.
        value: Of any shape; its memory is shared where it is laid out like `old` already.
    """
    lazy = _lazily(old, value)
    new = _laid_out(old, value.detach() if lazy is None else value.detach().to("meta"))
    if isinstance(old, nn.Parameter):
        kind = type(old) if issubclass(type(old), nn.Parameter) else nn.Parameter
        # The constructor of a subclass may ask for more than a tensor.
        new = torch.Tensor._make_subclass(kind, new, old.requires_grad)
    vars(new).update(vars(old))
    return new if lazy is None else attach(new, lazy)


def _lazily(old: Tensor, value: Tensor) -> LazyValue | None:
    """What the elements of `value` are in the place of a lazy tensor; None if `old` is none."""
    before, after = lazy_value(old), lazy_value(value)
    if after is not None or before is None:
        return after
    if value.is_meta:  # a copy of `old`; copies lose attributes
        assert value.shape == old.shape
        return before
    return Held(value.detach().cpu())


def _laid_out(old: Tensor, value: Tensor) -> Tensor:
    """The value with its axes in memory in the order of `old`, as ``channels_last`` has them."""
    if old.ndim != value.ndim or old.is_contiguous():
        return value.contiguous()
    order = sorted(range(old.ndim), key=lambda dim: old.stride()[dim], reverse=True)
    if not old.permute(order).is_contiguous():
        return value.contiguous()
    back = [order.index(dim) for dim in range(old.ndim)]
    return value.permute(order).contiguous().permute(back)


def tensor_of(module: nn.Module, node: fx.Node) -> Tensor:
    """The parameter or buffer that a ``get_attr`` node reads.

    Raises:
        FxCompressError: The node reads no tensor of this module.
    """
    value = find_tensor(module, str(node.target)) if node.op == "get_attr" else None
    if value is None:
        raise FxCompressError(
            f"node '{node.name}' ({node.op} of {node.target}) reads no parameter or buffer; "
            "ask only for nodes that `parameter_of` has a name for"
        )
    return value


def read_tensor(module: nn.Module, name: str) -> Tensor:
    """The values of a parameter or buffer, detached: read now if they are lazy, see `graph.lazy`.

    Raises:
        FxCompressError: The module has none of this name.
    """
    return value_of(tensor_called(module, name))


def tensor_called(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of this name, itself.

    Raises:
        FxCompressError: The module has none of this name.
    """
    value = find_tensor(module, name)
    if value is None:
        raise FxCompressError(
            f"there is no parameter or buffer {name!r}; module.state_dict() has their names"
        )
    return value


def find_tensor(module: nn.Module, name: str) -> Tensor | None:
    """The parameter or buffer of this name, or None."""
    prefix, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(prefix)
    except AttributeError:
        return None
    value = getattr(owner, leaf, None)
    return value if isinstance(value, Tensor) else None


def set_tensor(module: nn.Module, name: str, value: Tensor, *, persistent: bool = True) -> None:
    """Register a parameter or buffer under a dotted name, making the modules on the way.

    A tensor of that name is replaced where it stands in the order of names. An `nn.Parameter` stays
    one, anything else is a buffer.
    """
    *path, leaf = name.split(".")
    owner = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(value, nn.Parameter):
        owner._buffers.pop(leaf, None)
        owner.register_parameter(leaf, value)
    else:
        owner._parameters.pop(leaf, None)
        owner.register_buffer(leaf, value, persistent=persistent)
