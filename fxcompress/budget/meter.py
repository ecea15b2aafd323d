"""The quantities of a budget while widths change one at a time.

Only what a family occurs in is counted anew, so that a walk of single steps over all families costs
what one evaluation of everything does, whatever the number of layers.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from math import prod

from fxcompress.budget.polynomial import Form, Monomial, Tabulated

_Power = tuple[int, int, Monomial]
"""A coefficient, the exponent of a family's width, and the numbers of the other families."""


@dataclass(eq=False)
class Meter:
    """One form at widths that change.

    Attributes:
        form: What is counted.
        widths: Of every family; changed by `move` only.
    """

    form: Form
    widths: list[int]
    total: int = field(init=False)
    _powers: dict[int, list[_Power]] = field(init=False)
    _tables: dict[int, list[Tabulated]] = field(init=False)

    def __post_init__(self) -> None:
        self.total = self.form.value(self.widths)
        self._powers, self._tables = defaultdict(list), defaultdict(list)
        for monomial, coefficient in self.form.polynomial.items():
            for number in set(monomial):
                others = tuple(other for other in monomial if other != number)
                power = len(monomial) - len(others)
                self._powers[number].append((coefficient, power, others))
        for table in self.form.tables:
            for number in table.families:
                self._tables[number].append(table)

    def after(self, number: int, width: int) -> int:
        """The total if family `number` had another width."""
        old = self.widths[number]
        total = self.total
        for coefficient, power, others in self._powers[number]:
            change = int(width**power - old**power)
            total += coefficient * change * prod(self.widths[n] for n in others)
        for table in self._tables[number]:
            widths = {n: self.widths[n] for n in table.families}
            total += table.value(widths | {number: width}) - table.value(widths)
        return total

    def move(self, number: int, width: int) -> None:
        """Give family `number` another width."""
        self.total = self.after(number, width)
        self.widths[number] = width
