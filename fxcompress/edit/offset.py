"""Constants added to what linear layers give: into a bias, a norm's running mean, or a new bias."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from fxcompress.analysis.coupling import Coupling
from fxcompress.axes.expressions import Axes
from fxcompress.canonicalize.norms import MAPS, normed_maps
from fxcompress.edit.plan import Offset
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import TensorMeta, parameter_of
from fxcompress.graph.parameters import Names, find_tensor, names_of, replace_tensor, set_tensor
from fxcompress.graph.schema import arguments, packet_of

_WEIGHT, _BIAS = 1, 2


def add_offset(module: CapturedModule, coupling: Coupling, edit: Offset) -> dict[str, Axes]:
    """Add the constant in place.

    Returns:
        The axes of the bias that had to be made, by its name; nothing where there was one.

    Raises:
        PlanError: The weight belongs to no layer that can take it, or the shape is wrong.
    """
    calls, names = _calls(module, edit.weight), names_of(module)
    bias, mean = _held(module, names, edit.weight, calls)
    if bias is not None:
        _check(edit, _tensor(module, bias))
        replace_tensor(module, names, bias, _tensor(module, bias) + edit.value)
        return {}
    if mean is not None:
        _check(edit, _tensor(module, mean))
        replace_tensor(module, names, mean, _tensor(module, mean) - edit.value)
        return {}
    return _made(module, coupling, calls, edit)


def refuses_offset(module: CapturedModule, weight: str) -> str | None:
    """Why no constant can be added to what the layer with this weight gives; None if one can."""
    try:
        _held(module, names_of(module), weight, _calls(module, weight))
    except PlanError as error:
        return str(error)
    return None


def _held(
    module: CapturedModule, names: Names, weight: str, calls: list[fx.Node]
) -> tuple[str | None, str | None]:
    """The bias that takes a constant, or else the running mean; neither where one must be made."""
    given = [bias for call in calls if (bias := _bias(call)) is not None]
    biases = {parameter_of(bias) for bias in given}
    if len(biases) > 1 or None in biases or (biases and len(given) < len(calls)):
        raise PlanError(f"the calls of {weight} do not share one bias to add an offset to")
    if biases:
        return _own_bias(module, names, str(biases.pop()), calls), None
    norms = {pair.weight: pair.mean for pair in normed_maps(module)[0]}
    if weight not in norms and find_tensor(module, _bias_name(weight)) is not None:
        raise PlanError(f"{weight} has no bias, and the name {_bias_name(weight)} is taken")
    return None, norms.get(weight)


def _bias_name(weight: str) -> str:
    return ".".join((*weight.split(".")[:-1], "bias"))


def _calls(module: CapturedModule, weight: str) -> list[fx.Node]:
    sources = [n for n in module.graph.find_nodes(op="get_attr") if n.target == weight]
    calls = [user for source in sources for user in source.users]
    if not calls or any(_weight(call) not in sources for call in calls):
        raise PlanError(
            f"{weight} is not the weight of linear layers alone, so nothing can take an "
            "offset; leave the layer out with exclude=, or use a method without a bias shift"
        )
    return calls


def _weight(call: fx.Node) -> object:
    """The operand that is the weight, if the call is one that can add a bias to its product."""
    if packet_of(call) == "aten::addmm":
        named = arguments(call)
        return named["mat2"] if named["beta"] == named["alpha"] == 1 else None
    return call.args[_WEIGHT] if packet_of(call) in MAPS else None


def _bias(call: fx.Node) -> object:
    place = 0 if packet_of(call) == "aten::addmm" else _BIAS
    return call.args[place] if len(call.args) > place else None


def _own_bias(module: CapturedModule, names: Names, name: str, calls: list[fx.Node]) -> str:
    """The bias, which nothing but these calls may read."""
    readers = {
        u for n in module.graph.find_nodes(op="get_attr") if n.target == name for u in n.users
    }
    if len(names[name]) > 1 or not readers.issubset(calls):
        raise PlanError(f"{name}, which an offset would go into, is read elsewhere too")
    return name


def _made(
    module: CapturedModule, coupling: Coupling, calls: list[fx.Node], edit: Offset
) -> dict[str, Axes]:
    """Give the layer a bias."""
    weight = _tensor(module, edit.weight)
    dim = -1 if packet_of(calls[0]) == "aten::linear" else 1 - weight.dim()
    expr = coupling.axes[calls[0].name][dim]
    if edit.value.shape != (expr.size,):
        raise PlanError(_shaped(edit, (expr.size,)))
    name = _bias_name(edit.weight)
    bias = nn.Parameter(edit.value.to(weight), requires_grad=weight.requires_grad)
    set_tensor(module, name, bias)
    for call in calls:
        with module.graph.inserting_before(call):
            source = module.graph.get_attr(name)
        source.meta["val"] = TensorMeta((expr.size,), weight.dtype)
        call.args = (*call.args[:_BIAS], source, *call.args[_BIAS + 1 :])
    return {name: (expr,)}


def _check(edit: Offset, old: Tensor) -> None:
    if edit.value.shape != old.shape:
        raise PlanError(_shaped(edit, tuple(old.shape)))
    if not bool(torch.isfinite(edit.value).all()):
        raise PlanError(f"the offset of {edit.weight} has entries that are not finite")


def _shaped(edit: Offset, shape: tuple[int, ...]) -> str:
    return f"the offset of {edit.weight} has shape {tuple(edit.value.shape)}, expected {shape}"


def _tensor(module: CapturedModule, name: str) -> Tensor:
    value = find_tensor(module, name)
    if value is None:
        raise PlanError(f"the program has no parameter or buffer {name!r}")
    return value.detach()
