"""Write a smaller graph back into the user's own class: smaller parameters, mended attributes.

The result is only handed out when it computes what the graph computes, at the example's sizes and
at others where an axis is free.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import nn

from fxcompress.capture import DynamicSpec
from fxcompress.errors import WriteBackError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import READ_LAZILY, is_lazy
from fxcompress.graph.metadata import dynamic_dims, is_tensor
from fxcompress.writeback.attributes import decisions
from fxcompress.writeback.configs import mend_configs
from fxcompress.writeback.evidence import gather
from fxcompress.writeback.gate import Gate, beside
from fxcompress.writeback.layers import calls_of_layers, mend_layer, readers_of_tensors
from fxcompress.writeback.reads import dense_graph
from fxcompress.writeback.refusal import explain
from fxcompress.writeback.resolve import resolve
from fxcompress.writeback.transplant import drop_unread, transplant

__all__ = ["write_back"]

Model = TypeVar("Model", bound=nn.Module)


def write_back(
    module: CapturedModule, original: Model, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Model:
    """A new instance of the class of `original` that computes what `module` does.

    Args:
        module: What passes made of the capture of `original`, finalised.
        original: The dense model. It is not changed.
        args: Example inputs by position.
        kwargs: Example inputs by name.

    Returns:
        A copy of `original` with the parameters of `module` and attributes to match; device, modes
        and ``requires_grad`` are those of `original`.

    Raises:
        WriteBackError: The class cannot hold the smaller parameters; the message names the
            attribute or line.
    """
    _refuse_lazy(module)
    _refuse_reparametrized(module)
    _refuse_other_kinds(original)
    given = beside((tuple(args), dict(kwargs)), original)
    dynamic = _dynamic(module)
    dense, read = dense_graph(original, given, dynamic)
    result = transplant(module, original, dense)
    drop_unread(result, module, dense)
    layers = _mend_layers(result, dense, module)
    evidence = gather(dense, module)
    found = decisions(result, evidence, layers)
    gate = Gate(module, *given)
    outcome = resolve(result, gate, found, read, dynamic)
    if not outcome.ok:
        raise WriteBackError(explain(result, original, outcome, module, evidence, dynamic, given))
    return mend_configs(result, original, gate, dynamic)


def _refuse_lazy(module: CapturedModule) -> None:
    if is_lazy(module):
        raise WriteBackError(f"the values of the program's parameters {READ_LAZILY}")


def _refuse_reparametrized(module: CapturedModule) -> None:
    for node in module.graph.find_nodes(op="call_module"):
        raise WriteBackError(
            f"a parameter is still read through the module '{node.target}'; "
            "call program.finalize() first"
        )


def _refuse_other_kinds(original: object) -> None:
    if not isinstance(original, nn.Module):
        raise WriteBackError(
            f"cannot write into a {type(original).__name__}; "
            "give the torch.nn.Module that was compiled"
        )


def _dynamic(module: CapturedModule) -> DynamicSpec:
    """What to ask of a capture so that it is as free as `module`."""
    inputs = (node for node in module.graph.find_nodes(op="placeholder") if is_tensor(node))
    free = {index: sorted(dynamic_dims(node)) for index, node in enumerate(inputs)}
    axes = {axis for some in free.values() for axis in some}
    if not axes:
        return None
    if axes == {0}:
        return "batch"
    # One name for each axis of one size would tie what the model may leave untied.
    return {
        index: {axis: f"size_{index}_{axis}" for axis in some}
        for index, some in free.items()
        if some
    }


def _mend_layers(
    result: nn.Module, dense: CapturedModule, module: CapturedModule
) -> list[nn.Module]:
    """Mend torch's own layers; gives those back whose class is known."""
    own, readers = calls_of_layers(result, dense, module), readers_of_tensors(result, module)
    known = []
    for layer in result.modules():
        weight = vars(layer)["_parameters"].get("weight")
        if mend_layer(layer, own.get(layer) or readers.get(id(weight), {})):
            known.append(layer)
    return known
