"""Write a captured module to a file without pickle, and read it back without the original class.

A path that ends in ``.fxc`` or ``.safetensors`` is one safetensors file with the manifest in its
header; any other is a directory of ``fxcompress.json`` and the two files it names, whose names end
in a digest of their content: ``model-….safetensors`` (the state dict) and ``extras-….safetensors``
(everything else).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxcompress.errors import LoadError
from fxcompress.files.tensors import Part
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import value_of
from fxcompress.graph.parameters import set_tensor
from fxcompress.io.files import Digests, program_target, storable, write
from fxcompress.io.graphs import check_graph, dump_graph, load_graph
from fxcompress.io.interfaces import dump_interface, load_interface
from fxcompress.io.modules import Saveable, check_call, dump_modules, make_module, saveable
from fxcompress.io.programs import packed, unpacked
from fxcompress.io.reading import EXTRA, read
from fxcompress.io.values import Decoder, Encoder, Json

if TYPE_CHECKING:
    from fxcompress.io.saved import SavedProgram
    from fxcompress.io.schema import Manifest, Owned, Tied

__all__ = [
    "Saveable",
    "load_module",
    "load_program",
    "packed",
    "program_target",
    "save_module",
    "saveable",
    "unpacked",
]


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
    graph = dump_graph(module, encoder)
    modules = dump_modules(module, encoder)
    user = encoder.encode(dict(manifest), "the manifest")
    data = {
        "torch": torch.__version__,
        "graph": graph,
        "modules": modules,
        "interface": dump_interface(module.interface, encoder),
        "training": module.training,
        "user": user,
    }
    extras = encoder.tensors

    def described(digests: Digests) -> dict[str, Json]:
        return {
            **data,
            "tensors": [entry.describe(digests) for entry in entries],
            "extras": {name: _describe(extras[name], digests[EXTRA + name]) for name in extras},
        }

    own = [entry for entry in entries if entry.alias_of is None]
    weights = {entry.name: entry.part for entry in own if entry.persistent}
    others = {entry.name: entry.part for entry in own if not entry.persistent}
    others |= {EXTRA + name: _part(name, tensor) for name, tensor in extras.items()}
    write(Path(path), described, weights, others)


def load_module(
    path: str | Path, allow: Collection[str] = ()
) -> tuple[CapturedModule, dict[str, Any]]:
    """Read what `save_module` wrote: the module, on the CPU, and the manifest.

    Nothing that the file says is run or imported: the whole manifest is checked before the first
    node is made.

    Args:
        path: What was saved to.
        allow: Namespaces (``"myops"``) or names of operators that the graph may call beside those
            that only compute.

    Raises:
        LoadError: The path holds no program, a damaged one, one of another version, or one that
        does what a program may not; the message says what and where.
    """
    with _told(path):
        return _assemble(*read(Path(path)), allow)


def load_program(
    path: str | Path, allow: Collection[str] = ()
) -> tuple[CapturedModule, SavedProgram]:
    """As `load_module`, with a manifest that is that of a program."""
    from fxcompress.io.saved import SavedProgram, check_saved  # pydantic is slow to import

    with _told(path):
        module, manifest = _assemble(*read(Path(path)), allow)
        saved = SavedProgram.model_validate(manifest)
        check_saved(module, saved)
        return module, saved


@contextmanager
def _told(path: str | Path) -> Iterator[None]:
    """Whatever a damaged manifest makes torch, pydantic or Python say, as one error of ours."""
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        raise LoadError(
            f"the manifest in {path} is damaged ({type(error).__name__}: {str(error)[:300]}); "
            "save the program again"
        ) from error


def _assemble(
    manifest: Manifest, tensors: Mapping[str, Tensor], allow: Collection[str]
) -> tuple[CapturedModule, dict[str, Any]]:
    from fxcompress.io.replay import check_values

    home = torch.device("cpu")
    own = {entry.name: tensors[_owner(entry)] for entry in manifest.tensors}
    calls = check_graph(manifest, allow)
    check_values(calls, own)
    extras = {name: tensors[EXTRA + name] for name in manifest.extras}
    decoder = Decoder(extras, home=home)
    module = CapturedModule(nn.Module(), fx.Graph())
    for entry in manifest.modules:
        _add_submodule(module, entry.name, make_module(entry.kind, decoder.decode(entry.config)))
    for call in calls:
        if call.op == "call_module":
            check_call(module.get_submodule(str(call.target)), call)
    _register(module, manifest, own)
    module.graph = load_graph(manifest.graph, calls, home)
    module.interface = load_interface(manifest.interface, module.graph, decoder)
    module.graph.lint()
    module.recompile()
    # The nodes carry their own flags; this is the modules' only.
    for child in module.modules():
        child.training = manifest.training
    return module, decoder.decode(manifest.user)


def _owner(entry: Owned | Tied) -> str:
    return str(getattr(entry, "alias_of", entry.name))


def _register(module: nn.Module, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Register every tensor; tied names get one and the same.

    Raises:
        LoadError: A small module lacks a tensor, or has another one than its class makes.
    """
    made: dict[str, Tensor] = {}
    wanted = dict(_tables(module))
    for entry in manifest.tensors:
        first = _owner(entry)
        if first not in made:
            made[first] = _parameter(tensors[first], entry)
        like = wanted.pop(entry.name, None)
        if like is not None and (like.shape, like.dtype) != (made[first].shape, made[first].dtype):
            raise LoadError(f"'{entry.name}' does not fit its module; the manifest is damaged")
        set_tensor(module, entry.name, made[first], persistent=entry.persistent)
    if wanted:
        raise LoadError(f"the manifest has no tensor '{next(iter(wanted))}', which a module needs")


def _parameter(tensor: Tensor, entry: Owned | Tied) -> Tensor:
    if getattr(entry, "parameter", False):
        return nn.Parameter(tensor, getattr(entry, "requires_grad", True))
    return tensor


def _tables(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


class _Entry:
    """A parameter or buffer under one of its names."""

    def __init__(self, name: str, tensor: Tensor, persistent: bool, alias_of: str | None) -> None:
        self.name = name
        self.tensor = tensor
        self.persistent = persistent
        self.alias_of = alias_of

    @property
    def part(self) -> Part:
        """What is written of it."""
        return _part(self.name, self.tensor)

    def describe(self, digests: Digests) -> Json:
        if self.alias_of is not None:
            return {"name": self.name, "alias_of": self.alias_of, "persistent": self.persistent}
        return {
            **_describe(self.tensor, digests[self.name]),
            "name": self.name,
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


def _part(name: str, tensor: Tensor) -> Part:
    return storable(tensor, lambda: value_of(tensor), name)


def _describe(tensor: Tensor, digest: str) -> Json:
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "stride": list(tensor.stride()),
        "digest": digest,
    }


def _add_submodule(module: nn.Module, name: str, child: nn.Module) -> None:
    *path, leaf = name.split(".")
    owner = module
    for part in path:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    owner.add_module(leaf, child)
