"""Which weights a method is about that leaves sizes alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from fxcompress.budget.options import Globs
from fxcompress.budget.scope import check_globs, matches
from fxcompress.recipes import Recipe


@dataclass(frozen=True, kw_only=True, repr=False)
class WeightGlobs(Recipe):
    """Weights by their names.

    Attributes:
        include: Globs on parameter names; empty for all weights.
        exclude: Globs on parameter names.
    """

    include: Globs = ()
    exclude: Globs = ()

    def __post_init__(self) -> None:
        for name in ("include", "exclude"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))

    def check_globs(self, names: Iterable[str]) -> None:
        """Refuse a glob that matches none of these names.

        Raises:
            BudgetError: With the nearest names there are.
        """
        check_globs((*self.include, *self.exclude), names)

    def meant(self, names: Collection[str]) -> bool:
        """Whether a weight of these names is included and not excluded."""
        included = not self.include or any(matches(glob, names) for glob in self.include)
        return included and not any(matches(glob, names) for glob in self.exclude)
