"""Constants added to what linear layers give: into a bias, a norm's running mean, or a new bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from fxcompress.axes.expressions import Expr
from fxcompress.canonicalize.norms import MAPS, normed_maps
from fxcompress.edit.base import Edit, Stage
from fxcompress.edit.context import Context
from fxcompress.edit.proof import Proof
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import TensorMeta, parameter_of
from fxcompress.graph.parameters import Names, find_tensor, names_of
from fxcompress.graph.schema import arguments, packet_of

_WEIGHT, _BIAS = 1, 2


@dataclass(frozen=True, eq=False)
class Offset(Edit):
    """A constant that is added to what the linear layer with this weight gives, in all its calls.

    It goes into the layer's bias, into the BatchNorm that alone reads the layer where there is no
    bias, or into a new bias.

    Attributes:
        weight: Name of the layer's weight: of a linear map or a convolution.
        value: Shape (outputs,), before any projection of the plan.
    """

    stage: ClassVar[Stage] = Stage.CONSTANTS

    weight: str
    value: Tensor

    @property
    def target(self) -> str:
        return self.weight

    def check(self, context: Context) -> None:
        size = self._outputs(context).size
        if self.value.shape != (size,):
            raise PlanError(
                f"the offset of {self.weight} has shape {tuple(self.value.shape)}, "
                f"expected {(size,)}"
            )
        if not bool(torch.isfinite(self.value).all()):
            raise PlanError(f"the offset of {self.weight} has entries that are not finite")
        _held(context.module, context.names, self.weight)

    def apply(self, context: Context) -> None:
        bias, mean = _held(context.module, context.names, self.weight)
        if bias is not None:
            context.replace(bias, context.value(bias) + self.value)
        elif mean is not None:
            context.replace(mean, context.value(mean) - self.value)
        else:
            self._make_bias(context)

    def proof(self, context: Context) -> Proof:
        """The constant is added after each call of the layer, in the dense graph."""
        return Proof(
            kind="offset",
            rank=30,
            words=("added offsets",),
            rounded=True,
            constants=((self.weight, self.value.detach()),),
        )

    def _outputs(self, context: Context) -> Expr:
        """The axis of what the layer gives that runs over its outputs: the last one of a linear
        map, the channels of a convolution.
        """
        call = _calls(context.module, self.weight)[0]
        return context.coupling.axes[call.name][1 - context.tensor(self.weight).dim()]

    def _make_bias(self, context: Context) -> None:
        """Give the layer a bias, which trains where the weight does."""
        weight, outputs = context.tensor(self.weight), self._outputs(context)
        name = _bias_name(self.weight)
        value = self.value.detach().to(weight.device, weight.dtype)
        context.make(name, nn.Parameter(value, requires_grad=weight.requires_grad), (outputs,))
        for call in _calls(context.module, self.weight):
            with context.module.graph.inserting_before(call):
                source = context.module.graph.get_attr(name)
            source.meta["val"] = TensorMeta((outputs.size,), weight.dtype)
            call.args = (*call.args[:_BIAS], source, *call.args[_BIAS + 1 :])


def refuses_offset(module: CapturedModule, weight: str) -> str | None:
    """Why no constant can be added to what the layer with this weight gives; None if one can."""
    try:
        _held(module, names_of(module), weight)
    except PlanError as error:
        return str(error)
    return None


def weight_of(call: fx.Node) -> object:
    """The operand that is the weight, if the call is one that can add a bias to its product."""
    if packet_of(call) == "aten::addmm":
        named = arguments(call)
        return named["mat2"] if named["beta"] == named["alpha"] == 1 else None
    return call.args[_WEIGHT] if packet_of(call) in MAPS else None


def _held(module: CapturedModule, names: Names, weight: str) -> tuple[str | None, str | None]:
    """The bias that takes a constant, or else the running mean; neither where one must be made."""
    calls = _calls(module, weight)
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
    if not calls or any(weight_of(call) not in sources for call in calls):
        raise PlanError(
            f"{weight} is not the weight of linear layers alone, so nothing can take an "
            "offset; leave the layer out with exclude=, or use a method without a bias shift"
        )
    return calls


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
