"""A parameter that is read through a small module while it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fxcompress.edit.base import ParameterEdit
from fxcompress.edit.context import Context
from fxcompress.edit.proof import Proof
from fxcompress.edit.zeros import Masking, Masks, Zeros
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.state import evaluating

REPARAMETRIZED = "reparametrized"
"""The module that holds what parameters are read through."""


@dataclass(frozen=True, eq=False)
class Reparametrize(ParameterEdit):
    """`parameter` is read through `module` from now on, until the program is finalised.

    The module takes the parameter and returns a tensor of the same shape and dtype. Where it is
    `Masking`, its zeros are known as those of `Replace` are.
    """

    resizes: ClassVar[bool] = False

    module: nn.Module

    @property
    def masks(self) -> Masks:
        if not isinstance(self.module, Masking):
            return {}
        mask, pattern = self.module.zeros()
        return {self.parameter: Zeros(mask.detach().bool(), pattern)}

    def check(self, context: Context) -> None:
        old = context.value(self.parameter)
        sources = context.module.graph.find_nodes(op="get_attr")
        readers = [node for node in sources if node.target == self.parameter]
        if not readers:
            raise PlanError(
                f"{self.parameter} is not read by the graph, so nothing would go through the new "
                "module"
            )
        if any(user.op == "call_module" for node in readers for user in node.users):
            raise PlanError(
                f"{self.parameter} is read through a module already; finalize the program first"
            )
        with torch.no_grad():
            new = self.module(old)
        if new.shape != old.shape or new.dtype != old.dtype:
            raise PlanError(
                f"the module for {self.parameter} turns {tuple(old.shape)} {old.dtype} into "
                f"{tuple(new.shape)} {new.dtype}; it must keep shape and dtype"
            )

    def apply(self, context: Context) -> None:
        read_through(context.module, self.parameter, self.module)

    def proof(self, context: Context) -> Proof:
        """The dense graph reads what the module gives: the parameter as it is once finalised. The
        parameter itself stays as it was.
        """
        return Proof(
            kind="reparametrized",
            rank=20,
            words=("finalised values",),
            rounded=True,
            finalizes=True,
            reads={self.parameter: given(self.module, context.value(self.parameter))},
            masks=self.masks,
        )


def read_through(module: CapturedModule, parameter: str, through: nn.Module) -> None:
    """Read a parameter through a small module, wherever it is read; in place."""
    leaf = parameter.replace(".", "_")
    holder = module._modules.get(REPARAMETRIZED)
    while holder is not None and hasattr(holder, leaf):
        leaf += "_"  # a.b_c and a_b.c
    name = f"{REPARAMETRIZED}.{leaf}"
    module.add_submodule(name, through)
    sources = [n for n in module.graph.find_nodes(op="get_attr") if n.target == parameter]
    for source in sources:
        users = list(source.users)
        with module.graph.inserting_after(source):
            made = module.graph.call_module(name, (source,))
        made.meta["val"] = source.meta["val"]
        for user in users:
            user.replace_input_with(source, made)


def given(module: nn.Module, parameter: Tensor) -> Tensor:
    """What a small module gives of a parameter in evaluation mode, in memory of its own: what it
    draws or drops while it trains is no value to keep. The module stays as it is.
    """
    with evaluating(module) as called, torch.no_grad():
        value: Tensor = called(parameter)
        # It may hand the parameter itself back, or a tensor that it writes to.
        return value.detach().clone()
