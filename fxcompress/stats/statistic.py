"""What is summed over data, so that shares of the data can be summed apart and put together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from fxcompress.errors import PlanError

Batch = TypeVar("Batch", contravariant=True)


class Statistic(ABC, Generic[Batch]):
    """Something known of data that is gathered batch by batch.

    Two of the same kind that have seen two parts of the data merge into that of the whole: exactly
    where the sums are exact, else to the rounding of float64.
    """

    @abstractmethod
    def update(self, batch: Batch) -> None:
        """Take one more batch into account."""

    @abstractmethod
    def merge(self, other: Self) -> None:
        """Take all into account that another has seen; the other stays as it is."""

    @abstractmethod
    def state_dict(self) -> dict[str, Tensor]:
        """All that has been gathered."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, instead of what has been gathered here."""


class Sums(Statistic[Batch]):
    """Sums over samples.

    Attributes:
        sums: By name; none before the first batch.
        count: How many samples they are over.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, name: str, value: Tensor, dtype: torch.dtype = torch.float64) -> None:
        """Add to a sum, which is kept in `dtype`; the value is not needed afterwards."""
        if name in self.sums:
            self.sums[name].add_(value)
        else:
            self.sums[name] = value.to(dtype)

    def merge(self, other: Self) -> None:
        for name, value in other.sums.items():
            self.add(name, value.clone(), value.dtype)
        self.count += other.count

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.sums, "count": torch.tensor(self.count)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sums = {name: value.clone() for name, value in state.items() if name != "count"}
        self.count = int(state["count"])


class Several(Statistic[Batch]):
    """A statistic of several, whose states have its parts' names before them.

    Attributes:
        parts: By name.
    """

    def __init__(self, parts: Mapping[str, Statistic[Tensor]]) -> None:
        self.parts = dict(parts)

    def merge(self, other: Self) -> None:
        for name, part in self.parts.items():
            part.merge(other.parts[name])

    def state_dict(self) -> dict[str, Tensor]:
        own = {name: part.state_dict() for name, part in self.parts.items()}
        return {
            f"{name}.{key}": value for name, state in own.items() for key, value in state.items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        keys = [key.partition(".") for key in state]
        if {name for name, _, _ in keys} != self.parts.keys():
            raise PlanError(
                f"the state of a statistic has {', '.join(sorted({k[0] for k in keys}))}; this one "
                f"is made of {', '.join(self.parts)}: load it into one made in the same way"
            )
        for name, part in self.parts.items():
            part.load_state_dict({key: state[f"{n}.{key}"] for n, _, key in keys if n == name})
