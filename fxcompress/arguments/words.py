"""Values and choices in words, for messages."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sized
from difflib import get_close_matches
from typing import Any

from torch import Tensor

_LONGEST = 60
_PLAIN = (str, bytes, bool, int, float, complex, type(None))


def shown(value: object) -> str:
    """A value as a message shows it: short, and never by running much of its code."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        return f"a tensor of shape {list(value.shape)}, {kind} on {value.device}"
    if isinstance(value, os.PathLike):
        return repr(os.fspath(value))
    if isinstance(value, _PLAIN):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    empty = "empty " if isinstance(value, Sized) and _is_plain_and_empty(value) else ""
    return with_article(f"{empty}{type(value).__name__}")


def _is_plain_and_empty(value: Sized) -> bool:
    return isinstance(value, (list, tuple, dict, set, frozenset)) and not value


def with_article(noun: str) -> str:
    """The noun with *a* or *an* before it."""
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def either(words: Iterable[str]) -> str:
    """``a``, ``a or b``, ``a, b or c``; each once."""
    *most, last = dict.fromkeys(words)
    return f"{', '.join(most)} or {last}" if most else last


def nearest(name: Any, known: Iterable[object]) -> str:
    """A question for the known name that comes next to a misspelt one; empty where none does."""
    if not isinstance(name, str):
        return ""
    near = get_close_matches(name, [each for each in known if isinstance(each, str)], n=1)
    return f"did you mean {near[0]!r}?" if near else ""
