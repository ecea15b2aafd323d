"""Parameters that are kept in another form: codes and scales, say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxcompress.edit.base import ParameterEdit
from fxcompress.edit.codecs import Codec, Parts
from fxcompress.edit.context import Context
from fxcompress.edit.proof import Proof
from fxcompress.errors import LoadError, PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import set_tensor
from fxcompress.graph.saveable import kind_of, make, saveable
from fxcompress.graph.through import keeps, same_tensors


@dataclass(frozen=True, eq=False)
class Store(ParameterEdit):
    """`parameter` is kept as the tensors of a codec, and the graph reads ``codec.decode(parts)``.

    The parts are buffers ``<parameter>.<part>``; nothing is left of the parameter. It does not
    train any more and its sizes stay, until `Program.finalize` makes a plain parameter of what is
    decoded.

    Attributes:
        parameter: A floating-point parameter.
        codec: How it is kept.
        parts: As ``codec.encode`` gives them.
    """

    resizes: ClassVar[bool] = False

    codec: Codec
    parts: Mapping[str, Tensor]

    @property
    def stored(self) -> Mapping[str, int]:
        return {self.parameter: sum(part.nbytes for part in self.parts.values())}

    def check(self, context: Context) -> None:
        old = context.tensor(self.parameter)
        if not isinstance(old, nn.Parameter):
            raise PlanError(f"{self.parameter} is a buffer; only parameters can be stored")
        readers = [
            user
            for node in context.module.graph.find_nodes(op="get_attr")
            if node.target in context.names[self.parameter]
            for user in node.users
        ]
        if not readers or any(user.op == "call_module" for user in readers):
            raise PlanError(
                f"{self.parameter} is not read by the graph, or through a module; finalize the "
                "program first, or store another parameter"
            )
        value = self.codec.decode(self.parts)
        if value.shape != old.shape or value.dtype != old.dtype or not value.isfinite().all():
            raise PlanError(
                f"{self.parameter}: {self.codec} decodes to {list(value.shape)} {value.dtype}, "
                f"finite or not; the parameter is {list(old.shape)} {old.dtype}; give what its "
                "encode gave"
            )
        predicted = self.codec.bytes(old.shape, old.dtype)
        if self.stored[self.parameter] != predicted:
            raise PlanError(
                f"{self.parameter}: the parts take {self.stored[self.parameter]} bytes, "
                f"and {self.codec} says {predicted}; mend its `bytes`"
            )

    def apply(self, context: Context) -> None:
        old = context.tensor(self.parameter)
        names = context.names[self.parameter]
        kept = Encoded(self.codec, self.parts, trains=old.requires_grad)
        for name in sorted(names):
            prefix, _, leaf = name.rpartition(".")
            owner = context.module.get_submodule(prefix)
            del owner._parameters[leaf]
            owner.add_module(leaf, kept)
        for node in context.module.graph.find_nodes(op="get_attr"):
            if node.target in names:
                with context.module.graph.inserting_before(node):
                    call = context.module.graph.call_module(str(node.target))
                call.meta = dict(node.meta)
                node.replace_all_uses_with(call)
                context.module.graph.erase_node(node)
        context.renamed()

    def proof(self, context: Context) -> Proof:
        """The dense graph reads the decoded value, which lies within the codec's bound of what the
        parameter was; the parts are those of the plan.
        """
        names = context.names[self.parameter]
        value, bound = self.codec.decode(self.parts), self.codec.bound(self.parts)
        return Proof(
            kind="decoded",
            rank=15,
            words=("decoded values",),
            rounded=True,
            reads=dict.fromkeys(names, value),
            holds={f"{n}.{part}": tensor for n in names for part, tensor in self.parts.items()},
            bounds={self.parameter: bound},
        )


@saveable
class Encoded(nn.Module):
    """A parameter kept as the tensors of a codec; a call of it gives the decoded value.

    Attributes:
        codec: How it is kept.
        trains: Whether the parameter trained.
    """

    def __init__(self, codec: Codec, parts: Parts, *, trains: bool) -> None:
        super().__init__()
        self.codec, self.trains = codec, trains
        for name, part in parts.items():
            self.register_buffer(name, part.detach())

    def forward(self) -> Tensor:
        return self.codec.decode(dict(self.named_buffers()))

    def config(self) -> Mapping[str, Any]:
        return {
            "codec": kind_of(type(self.codec)),
            "settings": dict(self.codec.config()),
            "parts": {name: [list(p.shape), p.dtype] for name, p in self.named_buffers()},
            "trains": self.trains,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Encoded:
        codec = make(config["codec"], config["settings"])
        if not isinstance(codec, Codec):
            raise LoadError(f"{config['codec']} is no codec; the manifest is damaged")
        parts = {n: torch.empty(shape, dtype=kind) for n, (shape, kind) in config["parts"].items()}
        return cls(codec, parts, trains=config["trains"])


def unpack(module: CapturedModule, name: str) -> None:
    """Put a plain parameter where one is kept, under every name it has; in place."""
    kept = module.get_submodule(name)
    assert isinstance(kept, Encoded)
    with torch.no_grad():
        value = nn.Parameter(kept().detach().clone(), requires_grad=kept.trains)
    every = module.named_modules(remove_duplicate=False)
    names = {other for other, one in every if isinstance(one, Encoded) and same_tensors(one, kept)}
    for other in names:
        module.delete_submodule(other)
        set_tensor(module, other, value)
    for node in [n for n in module.graph.find_nodes(op="call_module") if keeps(n)]:
        if node.target in names:
            with module.graph.inserting_before(node):
                source = module.graph.get_attr(str(node.target))
            source.meta = dict(node.meta)
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)
