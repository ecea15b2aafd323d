"""Constants added to what linear layers give: into a bias, a norm's running mean, or a new bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxcompress.axes.expressions import Expr
from fxcompress.canonicalize.norms import normed_maps
from fxcompress.edit.base import Edit, Stage
from fxcompress.edit.context import Context
from fxcompress.edit.proof import Proof
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.lazy import device_of_values
from fxcompress.graph.metadata import TensorMeta
from fxcompress.graph.parameters import find_tensor, names_of
from fxcompress.graph.schema import set_argument
from fxcompress.layers.maps import LinearMap
from fxcompress.layers.uses import only_multiplies

Maps = Sequence[LinearMap]


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
        taker = taker_of(context.before, context.maps, self.weight)
        size = taker.outputs(context).size
        if self.value.shape != (size,):
            raise PlanError(
                f"the offset of {self.weight} has shape {tuple(self.value.shape)}, "
                f"expected {(size,)}"
            )
        if not bool(torch.isfinite(self.value).all()):
            raise PlanError(f"the offset of {self.weight} has entries that are not finite")

    def apply(self, context: Context) -> None:
        taker = taker_of(context.before, context.maps, self.weight)
        if taker.bias is not None:
            context.replace(taker.bias, context.value(taker.bias) + self.value)
        elif taker.mean is not None:
            context.replace(taker.mean, context.value(taker.mean) - self.value)
        elif (name := bias_name(self.weight)) in context.made:  # by another offset of the plan
            context.replace(name, context.value(name) + self.value.to(context.value(name)))
        else:
            self._make_bias(context, taker)

    def proof(self, context: Context) -> Proof:
        """The constant is added after each call of the layer, in the dense graph."""
        return Proof(
            kind="offset",
            rank=30,
            words=("added offsets",),
            rounded=True,
            constants=((self.weight, self.value.detach()),),
        )

    def _make_bias(self, context: Context, taker: Taker) -> None:
        """Give the layer a bias, which trains where the weight does."""
        weight, outputs = context.tensor(self.weight), taker.outputs(context)
        name = bias_name(self.weight)
        value = self.value.detach().to(device_of_values(weight.device), weight.dtype)
        context.make(name, nn.Parameter(value, requires_grad=weight.requires_grad), (outputs,))
        nodes = {node.name: node for node in context.module.graph.nodes}
        for one in taker.maps:
            with context.module.graph.inserting_before(nodes[one.node]):
                source = context.module.graph.get_attr(name)
            source.meta["val"] = TensorMeta((outputs.size,), weight.dtype)
            set_argument(nodes[one.node], str(one.addend), source)


@dataclass(frozen=True)
class Taker:
    """What takes a constant that is added to what the maps of a weight give.

    Attributes:
        maps: All uses of the weight.
        bias: The bias that takes it, if there is one.
        mean: The running mean of the norm that takes it where there is none. A bias has to be made
            where there is neither.
    """

    maps: tuple[LinearMap, ...]
    bias: str | None
    mean: str | None

    def outputs(self, context: Context) -> Expr:
        """The axis of what the maps give that runs over their outputs."""
        first = self.maps[0]
        assert first.output_axis is not None
        return context.coupling.axes[first.node][first.output_axis]


def refuses_offset(module: CapturedModule, maps: Maps, weight: str) -> str | None:
    """Why no constant can be added to what the layer with this weight gives; None if one can."""
    try:
        taker_of(module, maps, weight)
    except PlanError as error:
        return str(error)
    return None


def taker_of(module: CapturedModule, maps: Maps, weight: str) -> Taker:
    """What takes a constant that is added to what the layer with this weight gives.

    Args:
        module: As it is before a plan.
        maps: Its linear maps.
        weight: Name of the weight.

    Raises:
        PlanError: Nothing can take it.
    """
    own = tuple(one for one in maps if one.weight == weight)
    if not own or not all(map(_takes, own)) or not only_multiplies(module, own):
        raise PlanError(
            f"{weight} is not the weight of linear layers alone, so nothing can take an "
            "offset; leave the layer out with exclude=, or use a method without a bias shift"
        )
    given = [one.bias for one in own if one.added is not None]
    biases = set(given)
    if len(biases) > 1 or None in biases or (biases and len(given) < len(own)):
        raise PlanError(f"the calls of {weight} do not share one bias to add an offset to")
    if biases:
        return Taker(own, _own_bias(module, str(biases.pop()), own), None)
    norms = {pair.weight: pair.mean for pair in normed_maps(module)[0]}
    if weight not in norms and find_tensor(module, bias_name(weight)) is not None:
        raise PlanError(f"{weight} has no bias, and the name {bias_name(weight)} is taken")
    return Taker(own, None, norms.get(weight))


def bias_name(weight: str) -> str:
    """What the bias is called that a weight without one gets."""
    return ".".join((*weight.split(".")[:-1], "bias"))


def _takes(one: LinearMap) -> bool:
    """Whether the operator can add a constant to each output of this map."""
    return one.plain and one.addend is not None and one.output_axis is not None


def _own_bias(module: CapturedModule, name: str, maps: Maps) -> str:
    """The bias, which nothing but these maps may read."""
    reads = [node for node in module.graph.find_nodes(op="get_attr") if node.target == name]
    readers = {user.name for node in reads for user in node.users}
    if len(names_of(module)[name]) > 1 or not readers.issubset(one.node for one in maps):
        raise PlanError(f"{name}, which an offset would go into, is read elsewhere too")
    return name
