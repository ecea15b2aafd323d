"""Remove units in several steps, so that what is left is scored anew after each."""

from __future__ import annotations

from dataclasses import replace
from math import floor
from typing import Annotated, Any, TypeVar

from fxcompress.arguments import Interval, checked
from fxcompress.budget import Budget, Sizing
from fxcompress.errors import PlanError

P = TypeVar("P", bound=Sizing)
_DIGITS = 10**12


@checked(PlanError)
def progressive(pass_: P, steps: Annotated[int, Interval("[1, 1000]")]) -> tuple[P, ...]:
    """A pass as `steps` passes, each of which removes the same amount of the model it started from.

    Shares of a pass refer to the program it receives, so after step t of n a share s has become
    1 - (1 - s) t/n, and a ratio r removes r/n of the first units. Only the last step rounds widths;
    a limit ``max_ratio`` is spread over the steps like a ratio, so that it holds for all together;
    a step can then find its budget out of reach that one pass would have met.

    Args:
        pass_: A pass that removes units, with a ratio or a budget of shares.
        steps: How many; 1 gives the pass itself.

    Raises:
        PlanError: There are no steps, or the budget has an absolute number, of which no share is
            known before the program is.

    Example:
        >>> from fxcompress.passes import MagnitudePruning
        >>> progressive(MagnitudePruning(ratio=0.5), 2)
        (MagnitudePruning(ratio=0.25, round_to=1), MagnitudePruning(ratio=0.333333333333))
    """
    if steps == 1:
        return (pass_,)
    return tuple(_step(pass_, number, steps) for number in range(1, steps + 1))


def _step(pass_: P, number: int, steps: int) -> P:
    changes: dict[str, Any] = {"max_ratio": _spread(pass_.max_ratio, number, steps)}
    if pass_.ratio is not None:
        changes["ratio"] = round(_removed(pass_.ratio, number, steps), 12)
    if pass_.budget is not None:
        changes["budget"] = _budget(pass_.budget, number, steps)
    if number < steps:
        changes["round_to"] = 1
    return replace(pass_, **changes)


def _budget(budget: Budget, number: int, steps: int) -> Budget:
    absolute = [name for name, asked in budget.asked.items() if asked > 1]
    if absolute:
        raise PlanError(
            f"{', '.join(absolute)} of {budget!r} is an absolute number; give the share that stays"
        )
    amounts = {
        # Down, so that the product of all steps is never above what was asked.
        name: floor(_DIGITS * (1 - _removed(1 - asked, number, steps))) / _DIGITS
        for name, asked in budget.asked.items()
    }
    limits: dict[str, Any] = {"max_ratio": _spread(budget.max_ratio, number, steps)}
    if number < steps:
        limits["round_to"] = "auto"  # the pass says so once
    return budget.asking(amounts, **limits)


def _removed(share: float, number: int, steps: int) -> float:
    """The share of what step `number` receives that it removes, of `share` in all."""
    each = share / steps
    return each / (1 - each * (number - 1))


def _spread(limit: float, number: int, steps: int) -> float:
    return 1.0 if limit == 1 else _removed(limit, number, steps)
