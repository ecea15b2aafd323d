"""BatchNorms that follow a linear map alone, and how they leave the graph once it does their work.

In evaluation such a norm is one more scale and shift of the map's output. A pass moves the scale
into the map's weight and leaves the norm *neutral*, with scale 1; then the norm can go.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch._ops import OpOverload

from fxcompress.graph.captured import CapturedModule, mode_of
from fxcompress.graph.metadata import TensorMeta, parameter_of, shape_of
from fxcompress.graph.norms import BatchNorm, batch_norms
from fxcompress.graph.parameters import (
    find_tensor,
    in_place_of,
    read_tensor,
    set_tensor,
    tensor_called,
)

CONVOLUTIONS = tuple(f"aten::conv{n}d" for n in (1, 2, 3))
TRANSPOSED = tuple(f"aten::conv_transpose{n}d" for n in (1, 2, 3))
MAPS = ("aten::linear", *CONVOLUTIONS, *TRANSPOSED)


@dataclass(frozen=True)
class NormedMap:
    """A linear map and the BatchNorm that alone reads it; the names of their tensors.

    Attributes:
        node: The map.
        norm: The BatchNorm.
        weight: Of the map.
        bias: Of the map, if it has one.
        scale: The norm's weight, if it has one.
        shift: The norm's bias, if it has one.
        mean: The running mean.
        variance: The running variance.
        eps: Added to the variance.
    """

    node: fx.Node
    norm: fx.Node
    weight: str
    bias: str | None
    scale: str | None
    shift: str | None
    mean: str
    variance: str
    eps: float

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors of the norm."""
        return tuple(n for n in (self.scale, self.shift, self.mean, self.variance) if n is not None)

    def affine(self, module: nn.Module) -> tuple[Tensor, Tensor]:
        """What the norm multiplies by and adds, in float64."""
        mean, variance = _double(module, self.mean), _double(module, self.variance)
        scale = (variance + self.eps).rsqrt()
        if self.scale is not None:
            scale = scale * _double(module, self.scale)
        shift = -mean * scale
        return scale, shift if self.shift is None else shift + _double(module, self.shift)


def normed_maps(module: CapturedModule) -> tuple[list[NormedMap], dict[str, str]]:
    """The norms that can be folded, and why each of the others cannot, by node name."""
    reads = _reads(module)
    found: list[NormedMap] = []
    left: dict[str, str] = {}
    for norm in batch_norms(module):
        pair = _pair(module, norm, reads)
        if isinstance(pair, str):
            left[norm.node.name] = pair
        else:
            found.append(pair)
    return found, left


def _pair(module: CapturedModule, norm: BatchNorm, reads: Counter[int]) -> NormedMap | str:
    """The norm with its map, or why there is no such pair."""
    node = norm.value
    if _name(node) not in MAPS:
        return "no linear map stands before it"
    if len(node.users) > 1:
        return f"{node.name} is read elsewhere too"
    if mode_of(norm.node):
        return "it uses the statistics of the batch"
    if _name(node) == "aten::linear" and len(shape_of(node)) != 2:
        return "it does not run over the outputs of the linear map before it"
    weight, bias = parameter_of(node.args[1]), _bias(node)
    if weight is None or norm.mean is None or norm.variance is None or bias == "":
        return "its map or its statistics are computed in the graph"
    pair = NormedMap(
        node,
        norm.node,
        weight,
        bias,
        norm.scale,
        norm.shift,
        norm.mean,
        norm.variance,
        norm.eps,
    )
    names = [weight, *pair.names] + ([bias] if bias else [])
    shared = [name for name in names if reads[id(find_tensor(module, name))] > 1]
    return f"{shared[0]} is read elsewhere too" if shared else pair


def _reads(module: CapturedModule) -> Counter[int]:
    """How often each tensor is used in the graph."""
    count: Counter[int] = Counter()
    for node in module.graph.nodes:
        if parameter_of(node) is not None:
            count[id(find_tensor(module, str(node.target)))] += len(node.users)
    return count


def _name(node: fx.Node) -> str:
    return str(node.target._schema.name) if isinstance(node.target, OpOverload) else ""


def _bias(node: fx.Node) -> str | None:
    """The name of the map's bias; None if it has none, empty if it is computed."""
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return None if bias is None else parameter_of(bias) or ""


def _double(module: nn.Module, name: str) -> Tensor:
    return read_tensor(module, name).double()


def absorb_neutral_norms(module: CapturedModule, names: Collection[str]) -> int:
    """Take norms that no longer scale out of the graph, in place, and say how many went.

    What such a norm still adds goes into the bias of the map before it, which gets one if it had
    none.

    Args:
        module: Edited in place; the caller recompiles it.
        names: Tensors that a plan has just replaced. Only norms all of whose tensors are among
            them go: a norm that is neutral by chance may yet be trained.
    """
    if not names:
        return 0
    pairs, _ = normed_maps(module)
    gone = 0
    for pair in pairs:
        scale, shift = pair.affine(module)
        if set(pair.names) <= set(names) and _is_one(scale, find_tensor(module, pair.weight)):
            _shift(module, pair, shift)
            pair.norm.replace_all_uses_with(pair.node)
            _erase(module, pair)
            gone += 1
    return gone


def _is_one(scale: Tensor, like: Tensor | None) -> bool:
    """Whether scaling by it is lost in the rounding of the weight's type."""
    assert like is not None
    return bool(((scale - 1).abs() <= 4 * torch.finfo(like.dtype).eps).all())


def _shift(module: CapturedModule, pair: NormedMap, shift: Tensor) -> None:
    weight = tensor_called(module, pair.weight)
    if pair.bias is not None:
        old = _double(module, pair.bias)
        before = tensor_called(module, pair.bias)
        set_tensor(module, pair.bias, in_place_of(before, (old + shift).to(weight.dtype)))
        return
    name = f"{pair.weight.rpartition('.')[0]}.bias".lstrip(".")
    if find_tensor(module, name) is not None:
        name = f"{pair.weight}_bias"
    bias = nn.Parameter(shift.to(weight.dtype))
    set_tensor(module, name, bias)
    with module.graph.inserting_before(pair.node):
        made = module.graph.get_attr(name)
    made.meta["val"] = TensorMeta(tuple(bias.shape), bias.dtype)
    if len(pair.node.args) > 2:
        pair.node.update_arg(2, made)
    else:
        pair.node.args = (*pair.node.args, made)


def _erase(module: CapturedModule, pair: NormedMap) -> None:
    """Erase the norm, its reads, and the module that held its tensors if nothing else is in use."""
    sources = [argument for argument in pair.norm.args[1:5] if isinstance(argument, fx.Node)]
    module.graph.erase_node(pair.norm)
    for source in dict.fromkeys(sources):
        module.graph.erase_node(source)
    owner = pair.variance.rpartition(".")[0]
    still = [str(node.target) for node in module.graph.nodes if node.op == "get_attr"]
    if owner and not any(name.startswith(f"{owner}.") for name in still):
        module.delete_submodule(owner)
