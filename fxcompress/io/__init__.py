"""Write a captured module to a file without pickle, and read it back without the original class.

A path that ends in ``.fxc`` or ``.safetensors`` is one safetensors file with the manifest in its
header; any other is a directory of ``fxcompress.json`` and the two files it names, whose names end
in a digest of their content: ``model-….safetensors`` (the state dict) and ``extras-….safetensors``
(everything else).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import LoadError
from fxcompress.graph import CapturedModule, set_tensor
from fxcompress.io.files import program_target, read, storable, write
from fxcompress.io.graphs import dump_graph, load_graph
from fxcompress.io.modules import Saveable, dump_modules, make_module, saveable
from fxcompress.io.values import Decoder, Encoder, Json

__all__ = ["Saveable", "load_module", "program_target", "save_module", "saveable"]

_EXTRA = "extra:"


def save_module(path: str | Path, module: CapturedModule, manifest: Mapping[str, Any]) -> None:
    """Write `module` and whatever belongs to it.

    Nothing is left behind if this fails, and what was at `path` before stays until the new file is
    whole.

    Args:
        path: A file ending in ``.fxc`` or ``.safetensors``, or a directory.
        module: Of plain operators and registered small modules.
        manifest: Numbers, strings, lists, tuples, dicts, tensors, dtypes: what `load_module` gives
            back.

    Raises:
        FxCompressError: The module or the manifest holds something that a file without code cannot.
    """
    entries = list(_entries(module))
    home = next((entry.tensor.device for entry in entries), torch.device("cpu"))
    encoder = Encoder(home)
    data = {
        "torch": torch.__version__,
        "graph": dump_graph(module, encoder),
        "modules": encoder.encode(dump_modules(module), "the modules of the graph"),
        "training": module.training,
        "tensors": [entry.describe() for entry in entries],
        "user": encoder.encode(dict(manifest), "the manifest"),
    }
    own = {entry.name: entry.tensor for entry in entries if entry.alias_of is None}
    persistent = {entry.name for entry in entries if entry.persistent}
    extras = {name: tensor for name, tensor in own.items() if name not in persistent}
    extras |= {_EXTRA + name: tensor for name, tensor in encoder.tensors.items()}
    data["extras"] = {name: _describe(tensor) for name, tensor in encoder.tensors.items()}
    write(
        Path(path),
        data,
        {name: storable(tensor) for name, tensor in own.items() if name in persistent},
        {name: storable(tensor) for name, tensor in extras.items()},
    )


def load_module(path: str | Path) -> tuple[CapturedModule, dict[str, Any]]:
    """Read what `save_module` wrote: the module, on the CPU, and the manifest.

    Raises:
        LoadError: The path holds no program, a damaged one or one of a later version; or the
        manifest does not fit the tensors: the message names the tensor and both shapes.
    """
    data, stored = read(Path(path))
    try:
        return _assemble(data, stored)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise LoadError(
            f"the manifest in {path} is damaged ({type(error).__name__}: {error}); "
            "save the program again"
        ) from error


def _assemble(data: Json, stored: Mapping[str, Tensor]) -> tuple[CapturedModule, dict[str, Any]]:
    home = torch.device("cpu")
    extras = {
        name: _restored(_EXTRA + name, entry, stored) for name, entry in data["extras"].items()
    }
    decoder = Decoder(extras, home=home)
    module = CapturedModule(nn.Module(), fx.Graph())
    for name, (kind, config) in decoder.decode(data["modules"]).items():
        _add_submodule(module, name, make_module(kind, config))
    _register(module, data["tensors"], stored)
    module.graph = load_graph(data["graph"], extras, home)
    module.graph.lint()
    module.recompile()
    # The nodes carry their own flags; this is the modules' only.
    for child in module.modules():
        child.training = bool(data["training"])
    return module, decoder.decode(data["user"])


def _register(module: nn.Module, entries: list[Json], stored: Mapping[str, Tensor]) -> None:
    """Register every tensor; tied names get one and the same."""
    made: dict[str, Tensor] = {}
    for entry in entries:
        name = entry["name"]
        if entry["alias_of"] is not None:
            made[name] = made[entry["alias_of"]]
        else:
            tensor = _restored(name, entry, stored)
            if entry["parameter"]:
                tensor = nn.Parameter(tensor, requires_grad=entry["requires_grad"])
            made[name] = tensor
        set_tensor(module, name, made[name], persistent=entry["persistent"])


class _Entry:
    """A parameter or buffer under one of its names."""

    def __init__(self, name: str, tensor: Tensor, persistent: bool, alias_of: str | None) -> None:
        self.name = name
        self.tensor = tensor
        self.persistent = persistent
        self.alias_of = alias_of

    def describe(self) -> Json:
        return {
            **_describe(self.tensor),
            "name": self.name,
            "alias_of": self.alias_of,
            "parameter": isinstance(self.tensor, nn.Parameter),
            "requires_grad": self.tensor.requires_grad,
            "persistent": self.persistent,
        }


def _entries(module: CapturedModule) -> Iterator[_Entry]:
    """Every name of every parameter and buffer, in the order of the module tree."""
    first: dict[int, str] = {}
    for path, child in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for table in (child._parameters, child._buffers):
            for leaf, tensor in table.items():
                if tensor is None:
                    continue
                name = prefix + leaf
                alias = first.setdefault(id(tensor), name)
                persistent = leaf not in child._non_persistent_buffers_set
                yield _Entry(name, tensor, persistent, None if alias == name else alias)


def _describe(tensor: Tensor) -> Json:
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "stride": list(tensor.stride()),
    }


def _restored(name: str, entry: Json, stored: Mapping[str, Tensor]) -> Tensor:
    """The stored tensor, checked against what the manifest says of it, in its old memory layout."""
    shown = name.removeprefix(_EXTRA)
    if name not in stored:
        raise LoadError(f"the manifest speaks of the tensor '{shown}', which is not in the file")
    tensor = stored[name]
    dtype = getattr(torch, entry["dtype"])
    if dtype.is_complex and tensor.ndim and tensor.shape[-1] == 2:
        tensor = torch.view_as_complex(tensor)
    if list(tensor.shape) != entry["shape"] or tensor.dtype != dtype:
        raise LoadError(
            f"the manifest does not fit the tensors: '{shown}' is {entry['shape']} {dtype} in the "
            f"manifest and {list(tensor.shape)} {tensor.dtype} in the file; "
            "the two belong to different programs"
        )
    return _laid_out(tensor, entry["stride"])


def _laid_out(tensor: Tensor, stride: list[int]) -> Tensor:
    """A copy with the given strides, where these give every element a place of its own.

    Always a copy: what safetensors gives lies in the mapped file, aligned to nothing, and sums over
    unaligned memory round differently.
    """
    expected = 1
    for dim in sorted(range(tensor.ndim), key=lambda dim: (stride[dim], tensor.shape[dim])):
        if tensor.shape[dim] != 1 and stride[dim] != expected:
            return tensor.clone()
        expected *= tensor.shape[dim]
    return torch.empty_strided(tensor.shape, stride, dtype=tensor.dtype).copy_(tensor)


def _add_submodule(module: nn.Module, name: str, child: nn.Module) -> None:
    *path, leaf = name.split(".")
    owner = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.add_module(leaf, child)
