"""Things known by their names, which users may add to."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, Protocol, TypeVar

from fxcompress.errors import FxCompressError


class Named(Protocol):
    """What has a name."""

    @property
    def name(self) -> str:
        """It is known by this."""


T = TypeVar("T", bound=Named)


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names, in the order in which they became known.

    Args:
        what: What the things are, in the singular, for messages.
        plural: The same in the plural.
        error: Raised where a name is not known.
        known: What is known from the start.
    """

    def __init__(
        self, what: str, plural: str, error: type[FxCompressError], known: Iterable[T] = ()
    ) -> None:
        self._what, self._plural, self._error = what, plural, error
        self._known = {one.name: one for one in known}

    def add(self, one: T) -> T:
        """Make one known; another of the same name is replaced."""
        self._known[one.name] = one
        return one

    def remove(self, name: str) -> None:
        """Forget one.

        Raises:
            FxCompressError: There is none, of the registry's class of errors.
        """
        self[name]
        del self._known[name]

    def __getitem__(self, name: str) -> T:
        if name in self._known:
            return self._known[name]
        near = difflib.get_close_matches(name, self._known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise self._error(
            f"no {self._what} is called {name!r}{hint}; "
            f"the {self._plural} are {', '.join(self._known)}"
        )

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
