"""Small modules that may stand in a saved graph: their classes say how to make them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxcompress.errors import FxCompressError, LoadError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.saveable import Saveable as Saveable
from fxcompress.graph.saveable import is_saveable, kind_of, make
from fxcompress.graph.saveable import saveable as saveable
from fxcompress.io.values import Encoder, Json

if TYPE_CHECKING:
    from fxcompress.io.replay import Call


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
    if not is_saveable(child):
        raise FxCompressError(
            f"'{target}' is a {type(child).__name__}, which a file cannot hold; decorate its class "
            "with fxcompress.io.saveable to save it as it is, or fold it into a plain parameter "
            "with program.finalize() and save that"
        )
    assert isinstance(child, Saveable)
    config = encoder.encode(dict(child.config()), f"the configuration of '{target}'")
    return {"name": target, "kind": kind_of(type(child)), "config": config}


def make_module(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A new module of a registered class.

    Raises:
        LoadError: No class of this name is registered, or it is none of modules.
    """
    with torch.device("meta"):  # whatever sizes the file names, they take no memory
        made = make(name, config)
    if not isinstance(made, nn.Module):
        raise LoadError(f"{name} is no module that a graph can call; the manifest is damaged")
    return made


def check_call(module: nn.Module, call: Call) -> None:
    """Check that a small module gives what the file says: a tensor like the one it takes, or what
    it gives when it is run.

    Args:
        module: As `make_module` gave it, on the meta device.
        call: What the file says of its call.

    Raises:
        LoadError: It gives something else.
    """
    taken = [ref.value for ref in call.args]
    if taken == [call.value]:
        return
    inputs = [torch.empty(t.shape, dtype=getattr(torch, t.dtype), device="meta") for t in taken]
    value, said = module(*inputs), call.value
    given = (list(value.shape), str(value.dtype).removeprefix("torch."))
    if given != (getattr(said, "shape", None), getattr(said, "dtype", None)):
        raise LoadError(
            f"node '{call.name}' reads a parameter of {given[0]} {given[1]}, and the manifest says "
            f"{said}; the two belong to different programs"
        )


def _holds_a_module(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
