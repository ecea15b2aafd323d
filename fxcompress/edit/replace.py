"""New values of a parameter, of the same shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.edit.base import ParameterEdit
from fxcompress.edit.context import Context
from fxcompress.edit.proof import Proof
from fxcompress.edit.zeros import Masks, Pattern, Zeros
from fxcompress.errors import PlanError
from fxcompress.graph.lazy import device_of_values


@dataclass(frozen=True, eq=False)
class Replace(ParameterEdit):
    """`parameter` gets new values of the same shape; `mask` is True where they may be non-zero, and
    adheres to `pattern` where one is given.

    Values are replaced before units are projected, so a plan may do both to one parameter.
    """

    value: Tensor
    mask: Tensor | None = None
    pattern: Pattern | None = None

    @property
    def values(self) -> Mapping[str, Tensor]:
        return {self.parameter: self.value}

    @property
    def masks(self) -> Masks:
        return {} if self.mask is None else {self.parameter: Zeros(self.mask, self.pattern)}

    def check(self, context: Context) -> None:
        shape = context.tensor(self.parameter).shape
        for what, value in (("new value", self.value), ("mask", self.mask)):
            if value is not None and value.shape != shape:
                raise PlanError(
                    f"{self.parameter}: the {what} has shape {tuple(value.shape)}, "
                    f"the parameter {tuple(shape)}"
                )
        if not bool(torch.isfinite(self.value).all()):
            raise PlanError(f"{self.parameter}: new value has entries that are not finite")
        if self.mask is not None and bool((self.value[~self.mask.bool()] != 0).any()):
            raise PlanError(f"{self.parameter}: the new value is not zero where the mask says so")

    def apply(self, context: Context) -> None:
        context.replace(self.parameter, self.value)
        context.replaced.add(self.parameter)

    def proof(self, context: Context) -> Proof:
        """The dense graph reads the new value, and the program holds it to the last bit."""
        old = context.tensor(self.parameter)
        value = self.value.detach().to(device_of_values(old.device), old.dtype)
        values = dict.fromkeys(context.names[self.parameter], value)
        return Proof(
            kind="replaced",
            rank=10,
            words=("replaced values",),
            reads=values,
            holds=values,
            masks=self.masks,
        )
