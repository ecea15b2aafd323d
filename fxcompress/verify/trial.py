"""One run of all that a proof compares: a reference, the new program, and what is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxcompress.errors import VerificationError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.precision import in_double
from fxcompress.graph.state import run_alone
from fxcompress.report import NOT_RUN, Check
from fxcompress.verify.compare import distance, drawn, is_blank, is_incomparable, is_vacuous

_INCOMPARABLE = (
    "the dense graph has no finite output on the example inputs, so none was compared; give other "
    "inputs"
)


class Reference(Protocol):
    """The dense graph with a plan carried out on it in another way than the rewriter does."""

    @property
    def old(self) -> CapturedModule:
        """The dense module, in evaluation mode."""

    def __call__(
        self, new: CapturedModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        """The outputs; `new` may give the arguments of operations over changed factors."""

    def double(self, old: CapturedModule) -> Self:
        """The same in double precision, on such a copy of the dense module."""


@dataclass(frozen=True)
class Trial:
    """The programs that are run.

    Attributes:
        reference: The dense graph with the plan carried out on it.
        new: The new program, in evaluation mode.
        finalized: The new program finalised, where the plan reparametrises.
    """

    reference: Reference
    new: CapturedModule
    finalized: CapturedModule | None = None

    def double(self) -> Trial:
        """The same in double precision."""
        old, new, finalized = (
            None if module is None else in_double(module)
            for module in (self.reference.old, self.new, self.finalized)
        )
        assert old is not None
        assert new is not None
        return Trial(self.reference.double(old), new, finalized)

    @torch.no_grad()
    def __call__(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], kind: str, tolerance: float
    ) -> Check:
        """Run each once; where blank inputs give only zeros, the reference on drawn ones too.

        The check says that nothing was verified where the reference has no finite value.

        Raises:
            VerificationError: The new program does not run, or is not what it is once finalised.
        """
        wanted = self.reference(self.new, args, kwargs)
        if is_vacuous(wanted) and is_blank((args, kwargs)):
            args, kwargs = pytree.tree_map_only(Tensor, drawn, (args, dict(kwargs)))
            wanted = self.reference(self.new, args, kwargs)
        found = self._found(args, kwargs)
        gap, finite = distance(found, wanted)
        ok = finite and gap <= tolerance
        if ok and self.finalized is not None:
            self._refuse_unlike_finalized(found, args, kwargs, tolerance)
        if ok and is_incomparable(wanted):
            return Check(NOT_RUN, None, None, ok=True, compared=_INCOMPARABLE)
        return Check(kind, gap, tolerance, ok)

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
        gap, finite = distance(run_alone(self.finalized, args, kwargs), found)
        if gap > tolerance or not finite:
            raise VerificationError(
                f"finalised: the outputs of the new program differ by {gap:.3g} (relative) from "
                f"those it has once it is finalised, allowed {tolerance}; a module of the plan "
                "gives another value when it is called again, and the program was left as it was"
            )
