"""The allocation that keeps the most score under a budget, by integer programming.

Every family chooses one of its widths: a binary variable for each. Costs are polynomials in the
widths. A power of one width is linear in the choices of its family. A product of a width w and a
rest r becomes linear with one more variable z for each choice k of the family, z_k = x_k · r, which
holds exactly where Σ_k z_k = r and low · x_k ≤ z_k ≤ high · x_k for bounds of r; products of more
widths repeat the trick. A table over the widths of one family is linear in its choices; over
several it takes a variable for each combination of choices, which sum to each family's own: that
of the chosen ones is then 1 and all others are 0. Widths are taken as shares of whole families: all
numbers are small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import csr_array

from fxcompress.budget.polynomial import Form, Monomial, Tabulated
from fxcompress.errors import BudgetError

SECONDS = 120
"""How long the solver may take for one answer."""
CUTS = 50
"""Answers that may be refused because they fit within the solver's tolerance only."""

Row = dict[int, float]


@dataclass(frozen=True)
class Choice:
    """What a family may choose: ascending widths, and the score it keeps with each."""

    widths: tuple[int, ...]
    values: tuple[float, ...]


def most_score(
    choices: Sequence[Choice],
    limits: Sequence[tuple[Form, int]],
    fits: Callable[[tuple[int, ...]], bool],
) -> tuple[int, ...]:
    """The widths of largest total score.

    Args:
        choices: What each family may choose; its largest width is the whole family.
        limits: Forms in the widths, and the most that each may be.
        fits: Whether widths are within the limits for certain; solvers have tolerances.

    Raises:
        BudgetError: No choice fits, or the solver was not done in time.
    """
    program = _Program(choices)
    for form, most in limits:
        program.limit(form, most)
    for _ in range(CUTS):
        widths = program.solved()
        if fits(widths):
            return widths
        program.forbid(widths)
    raise BudgetError(
        f"allocation='exact' found {CUTS} answers that meet the budget only within the solver's "
        "tolerance; change the budget a little"
    )


@dataclass
class _Program:
    """Variables are numbered: first the choices of all families, then the products."""

    choices: Sequence[Choice]
    start: list[int] = field(default_factory=list)
    count: int = 0
    rows: list[tuple[Row, float, float]] = field(default_factory=list)
    products: dict[tuple[int, Monomial], int] = field(default_factory=dict)
    joint: dict[Monomial, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for choice in self.choices:
            self.start.append(self._new(len(choice.widths)))
            own = range(self.start[-1], self.count)
            self.rows.append((dict.fromkeys(own, 1.0), 1.0, 1.0))

    def _new(self, number: int) -> int:
        self.count += number
        return self.count - number

    def limit(self, form: Form, most: int) -> None:
        """The form may be `most` at the largest."""
        row: Row = {}
        room = float(most)
        for table in form.tables:
            for column, value in self._tabulated(table).items():
                row[column] = row.get(column, 0.0) + value
        for monomial, coefficient in form.polynomial.items():
            scale = coefficient * float(np.prod([self._whole(f) for f in monomial]))
            if not monomial:
                room -= scale
            for column, value in self._share(monomial).items() if monomial else ():
                row[column] = row.get(column, 0.0) + scale * value
        size = max(abs(room), max(row.values(), default=1.0), 1.0)
        self.rows.append(({c: v / size for c, v in row.items()}, -np.inf, room / size))

    def _tabulated(self, table: Tabulated) -> Row:
        """The value of a table, linear in the variables."""
        start = self._joint(table.families)
        widths = product(*(self.choices[family].widths for family in table.families))
        values = (table.value(dict(zip(table.families, own, strict=True))) for own in widths)
        return {start + place: float(value) for place, value in enumerate(values)}

    def _joint(self, families: Monomial) -> int:
        """The first of the variables for the combinations of what families choose, the choices of
        the last family varying fastest.
        """
        if len(families) == 1:
            return self.start[families[0]]
        if families not in self.joint:
            counts = [len(self.choices[family].widths) for family in families]
            places = list(product(*map(range, counts)))
            start = self.joint[families] = self._new(len(places))
            for position, family in enumerate(families):
                for k in range(counts[position]):
                    own = [start + n for n, at in enumerate(places) if at[position] == k]
                    row = dict.fromkeys(own, 1.0) | {self.start[family] + k: -1.0}
                    self.rows.append((row, 0.0, 0.0))
        return self.joint[families]

    def forbid(self, widths: Sequence[int]) -> None:
        """These widths are no answer."""
        chosen = [
            start + choice.widths.index(width)
            for start, choice, width in zip(self.start, self.choices, widths, strict=True)
        ]
        self.rows.append((dict.fromkeys(chosen, 1.0), -np.inf, len(chosen) - 1.0))

    def _whole(self, family: int) -> int:
        return self.choices[family].widths[-1]

    def _shares(self, family: int, power: int) -> list[float]:
        return [(w / self._whole(family)) ** power for w in self.choices[family].widths]

    def _share(self, monomial: Monomial) -> Row:
        """A product of widths, as shares of the whole families, linear in the variables."""
        pivot = min(set(monomial), key=lambda f: (len(self.choices[f].widths), f))
        rest = tuple(family for family in monomial if family != pivot)
        start = self._product(pivot, rest) if rest else self.start[pivot]
        shares = self._shares(pivot, monomial.count(pivot))
        return {start + k: share for k, share in enumerate(shares)}

    def _product(self, pivot: int, rest: Monomial) -> int:
        """The first of the variables z_k = x_k · rest."""
        if (pivot, rest) not in self.products:
            whole = self._share(rest)
            number = len(self.choices[pivot].widths)
            start = self.products[pivot, rest] = self._new(number)
            total = dict.fromkeys(range(start, start + number), 1.0)
            self.rows.append((total | {c: -v for c, v in whole.items()}, 0.0, 0.0))
            low = float(np.prod([self._shares(family, 1)[0] for family in rest]))
            for k in range(number):
                z, x = start + k, self.start[pivot] + k
                self.rows.append(({z: 1.0, x: -1.0}, -np.inf, 0.0))
                self.rows.append(({z: 1.0, x: -low}, 0.0, np.inf))
        return self.products[pivot, rest]

    def solved(self) -> tuple[int, ...]:
        """The widths of largest score.

        Raises:
            BudgetError: There are none, or not in time.
        """
        values = [value for choice in self.choices for value in choice.values]
        binary = len(values)
        objective = np.zeros(self.count)
        objective[:binary] = -np.array(values) / max(np.abs(values).max(), 1e-300)
        result = milp(
            objective,
            integrality=(np.arange(self.count) < binary).astype(int),
            bounds=Bounds(0, 1),
            constraints=self._constraints(),
            options={"time_limit": SECONDS, "mip_rel_gap": 0.0},
        )
        chosen = self._chosen(result)
        return tuple(
            choice.widths[int(np.argmax(chosen[start : start + len(choice.widths)]))]
            for start, choice in zip(self.start, self.choices, strict=True)
        )

    def _constraints(self) -> LinearConstraint:
        data = [value for row, _, _ in self.rows for value in row.values()]
        columns = [column for row, _, _ in self.rows for column in row]
        starts = np.cumsum([0, *(len(row) for row, _, _ in self.rows)])
        matrix = csr_array((data, columns, starts), shape=(len(self.rows), self.count))
        lower, upper = [low for _, low, _ in self.rows], [high for _, _, high in self.rows]
        return LinearConstraint(matrix, lower, upper)

    def _chosen(self, result: OptimizeResult) -> NDArray[np.float64]:
        if result.status == 0:
            return np.asarray(result.x)
        sizes = f"{len(self.choices)} families, {sum(len(c.widths) for c in self.choices)} widths"
        if result.status == 1:
            gap = f", {result.mip_gap:.2%} from proven" if result.x is not None else ""
            raise BudgetError(
                f"allocation='exact' was not done in {SECONDS} s ({sizes}{gap}); give fewer widths "
                "to choose from with round_to= or uniform_across_layers=, or use "
                "allocation='global'"
            )
        raise BudgetError(f"allocation='exact' finds no widths ({sizes}): {result.message}")
