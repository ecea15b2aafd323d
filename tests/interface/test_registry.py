"""Things known by names: they can be added, replaced and forgotten, and are asked for in words."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from fxcompress.arguments.registry import Registry
from fxcompress.errors import BudgetError


@dataclass(frozen=True)
class Thing:
    name: str
    value: int = 0


def test_what_is_added_is_found_in_order_and_replaced_by_name() -> None:
    known = Registry("thing", "things", BudgetError, [Thing("first"), Thing("second")])
    assert known.add(Thing("first", 1)) == Thing("first", 1)
    assert dict(known) == {"first": Thing("first", 1), "second": Thing("second")}
    assert list(known) == ["first", "second"]
    assert "second" in known
    known.remove("second")
    assert len(known) == 1
    assert "second" not in known


def test_what_is_not_known_is_told_with_the_nearest() -> None:
    known = Registry("thing", "things", BudgetError, [Thing("first")])
    with pytest.raises(BudgetError, match=r"no thing is called 'fist' \(did you mean 'first'\?\)"):
        known["fist"]
    with pytest.raises(BudgetError, match="the things are first"):
        known.remove("other")
