"""Widths are rounded to what hardware likes, within what was said."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxcompress.budget.rounding import AUTO, TARGETS, multiple_of, nearest, rounded, step_of
from fxcompress.errors import BudgetError

SPANS = st.sampled_from([1, 2, 3, 4, 6, 12, 32, 64])


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    """(plain, units, least) with least ≤ plain ≤ units."""
    units = draw(st.integers(1, 600))
    plain = draw(st.integers(1, units))
    return plain, units, draw(st.integers(1, plain))


@given(sizes(), SPANS)
def test_auto_takes_the_largest_multiple_that_changes_the_width_by_an_eighth(
    size: tuple[int, int, int], span: int
) -> None:
    plain, units, least = size
    width, multiple = rounded(plain, units, least, span, "auto")

    if plain == units:
        assert (width, multiple) == (units, 0)
        return
    assert least <= width <= units
    assert width * span % multiple == 0
    assert 8 * abs(width - plain) * span <= plain * span
    for larger in (m for m in AUTO if m > multiple):
        multiples = [w for w in range(least, units + 1) if w * span % larger == 0]
        assert all(8 * abs(w - plain) > plain for w in multiples)


@given(sizes(), SPANS, st.integers(1, 70))
def test_a_number_gives_its_nearest_multiple_or_leaves_the_group_whole(
    size: tuple[int, int, int], span: int, number: int
) -> None:
    plain, units, least = size
    width, _ = rounded(plain, units, least, span, number)
    multiples = [w for w in range(least, units + 1) if w * span % number == 0]

    if plain == units or not multiples:
        assert width == units
    else:
        assert width in multiples
        assert abs(width - plain) == min(abs(w - plain) for w in multiples)


@given(sizes(), SPANS)
def test_one_turns_rounding_off(size: tuple[int, int, int], span: int) -> None:
    plain, units, least = size
    assert rounded(plain, units, least, span, 1)[0] == plain


@given(st.integers(1, 64), SPANS)
def test_a_step_is_the_fewest_units_that_make_the_multiple(multiple: int, span: int) -> None:
    step = step_of(multiple, span)
    assert [n for n in range(1, step + 1) if n * span % multiple == 0] == [step]


def test_of_two_equally_near_multiples_the_wider_is_taken() -> None:
    assert nearest(72, units=128, least=1, step=16) == 80


@pytest.mark.parametrize("target", TARGETS)
def test_targets_stand_for_numbers(target: str) -> None:
    assert multiple_of(target) == TARGETS[target]


@pytest.mark.parametrize("wrong", [0, -4, True, 2.5, "ort", "Auto"])
def test_other_roundings_are_refused(wrong: object) -> None:
    with pytest.raises(BudgetError, match=r"round_to=.*ort-cpu"):
        multiple_of(wrong)  # type: ignore[arg-type]
