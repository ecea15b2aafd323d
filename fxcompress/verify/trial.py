"""One run of all that a proof compares: references, the new program, and what is made of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.errors import VerificationError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.state import run_alone
from fxcompress.report import Check
from fxcompress.verify.compare import distance, drawn, is_vacuous
from fxcompress.verify.reference import Reference


@dataclass(frozen=True)
class Trial:
    """The programs that are run.

    Attributes:
        reference: The dense graph with the plan carried out on it.
        new: The new program, in evaluation mode.
        zeroed: The dense graph with zeros in its parameters, where that is a proof.
        finalized: The new program finalised, where the plan reparametrises.
    """

    reference: Reference
    new: CapturedModule
    zeroed: CapturedModule | None = None
    finalized: CapturedModule | None = None

    def double(self) -> Trial:
        """The same in double precision."""
        old, new, zeroed, finalized = (
            None if module is None else copy.deepcopy(module).double()
            for module in (self.reference.old, self.new, self.zeroed, self.finalized)
        )
        assert old is not None
        assert new is not None
        return Trial(self.reference.double(old), new, zeroed, finalized)

    @torch.no_grad()
    def __call__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: str, tolerance: float
    ) -> Check:
        """Run each at most once; the second proof only where the first one holds.

        Raises:
            VerificationError: The new program does not run, or is not what it is once finalised.
        """
        wanted = self.reference(self.new, args, kwargs)
        if is_vacuous(wanted):
            args, kwargs = pytree.tree_map_only(Tensor, drawn, (args, dict(kwargs)))
            wanted = self.reference(self.new, args, kwargs)
        found = self._found(args, kwargs)
        gap, finite = distance(found, wanted)
        ok, zeroed = finite and gap <= tolerance, None
        if ok and self.zeroed is not None:
            zeroed = _gap(self.zeroed, found, args, kwargs)
            ok = zeroed <= tolerance
        if ok and self.finalized is not None:
            self._refuse_unlike_finalized(found, args, kwargs, tolerance)
        return Check(kind, gap, tolerance, ok, zeroed_error=zeroed)

    def _found(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        try:
            return run_alone(self.new, args, kwargs)
        except RuntimeError as error:
            raise VerificationError(
                f"the new program does not run: {error}; this is a fault in an axis rule or in the "
                "pass, and the program was left as it was"
            ) from error

    def _refuse_unlike_finalized(
        self, found: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], tolerance: float
    ) -> None:
        assert self.finalized is not None
        gap = _gap(self.finalized, found, args, kwargs)
        if gap > tolerance:
            raise VerificationError(
                f"finalised: the outputs of the new program differ by {gap:.3g} (relative) from "
                f"those it has once it is finalised, allowed {tolerance}; a module of the plan "
                "gives another value when it is called again, and the program was left as it was"
            )


def _gap(
    module: CapturedModule, found: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> float:
    """How far `module` is from what the new program gave, wherever that is finite."""
    gap, finite = distance(run_alone(module, args, kwargs), found)
    return gap if finite else float("inf")
