"""Random generators that start alike in every test, and what tests share made apart from them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
T = TypeVar("T")


def seed() -> None:
    """Seed every global generator."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@contextmanager
def apart() -> Iterator[None]:
    """Seeded generators within, and those from before as they were afterwards."""
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        seed()
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


def once(function: Callable[P, T]) -> Callable[P, T]:
    """Like `functools.cache`; the value, and what the caller draws after, are the same whichever
    test calls first.
    """

    @cache
    @wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> T:
        with apart():
            return function(*args, **kwargs)

    return made  # type: ignore[return-value]
