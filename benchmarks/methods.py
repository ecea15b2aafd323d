"""The structured methods that the tables compare, by the name that the tables give them.

Each takes what every method takes: ``ratio=`` or ``budget=``, and limits such as ``include=``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from fxcompress import passes

Method = Callable[..., Any]

METHODS: Mapping[str, Method] = {
    "random": passes.RandomPruning,
    "magnitude L1": partial(passes.MagnitudePruning, p=1),
    "magnitude L2": partial(passes.MagnitudePruning, p=2),
}
