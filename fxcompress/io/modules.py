"""Small modules that may stand in a saved graph: their classes say how to make them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import nn

from fxcompress.errors import FxCompressError, LoadError
from fxcompress.graph.captured import CapturedModule
from fxcompress.io.values import Encoder, Json


@runtime_checkable
class Saveable(Protocol):
    """A module that a few plain values make again; its tensors are saved with the others."""

    def config(self) -> Mapping[str, Any]:
        """What `from_config` needs: numbers, strings, lists, dtypes."""
        ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A module like the one that gave `config`; its tensors are filled in afterwards."""
        ...


class _Registry:
    classes: ClassVar[dict[str, type[nn.Module]]] = {}


M = TypeVar("M", bound=type[nn.Module])


def saveable(cls: M) -> M:
    """Class decorator: let modules of this class be part of a saved program.

    The class has the two methods of `Saveable`.
    """
    _Registry.classes[_name(cls)] = cls
    return cls


def dump_modules(module: CapturedModule, encoder: Encoder) -> list[Json]:
    """The modules that the graph calls: name, class name and configuration.

    Raises:
        FxCompressError: A class is not `saveable`, or a node holds a graph of its own.
    """
    found: dict[str, Json] = {}
    for node in module.graph.nodes:
        target = str(node.target)
        if node.op == "call_module" and target not in found:
            found[target] = _dump_module(target, module.get_submodule(target), encoder)
        elif node.op == "get_attr" and _holds_a_module(module, target):
            raise FxCompressError(
                f"node '{node.name}' holds a graph of its own ({target}), which no file "
                "can hold; keep such a program as ONNX with fxcompress.export.to_onnx"
            )
    return list(found.values())


def _dump_module(target: str, child: nn.Module, encoder: Encoder) -> Json:
    name = _name(type(child))
    if name not in _Registry.classes or not isinstance(child, Saveable):
        raise FxCompressError(
            f"'{target}' is a {type(child).__name__}, which a file cannot hold; decorate its class "
            "with fxcompress.io.saveable to save it as it is, or fold it into a plain parameter "
            "with program.finalize() and save that"
        )
    config = encoder.encode(dict(child.config()), f"the configuration of '{target}'")
    return {"name": target, "kind": name, "config": config}


def make_module(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A new module of a registered class."""
    cls = _Registry.classes.get(name)
    if cls is None:
        raise LoadError(
            f"the program holds a {name}, which is not known here; "
            "import the module that defines it first"
        )
    assert issubclass(cls, Saveable)
    with torch.device("meta"):  # whatever sizes the file names, they take no memory
        made = cls.from_config(config)
    assert isinstance(made, nn.Module)
    return made


def _name(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _holds_a_module(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
