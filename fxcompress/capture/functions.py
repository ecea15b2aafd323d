"""The functions with a backward of their own that a model calls while it is traced."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.autograd import function

from fxcompress.ambient import EXCLUSIVE


@contextmanager
def own_backwards() -> Iterator[dict[type, str]]:
    """Note every `torch.autograd.Function` that is applied by this thread, with what to tell of it.

    A trace goes into the function's forward, and its backward stays outside. Applications are seen
    where torch asks whether the function has a context to set up: a model may have kept
    ``Function.apply`` under a name of its own, which no other place would show.
    """
    found: dict[type, str] = {}
    thread = threading.get_ident()

    def asked(setup: Any) -> Any:
        kind = sys._getframe(1).f_locals["cls"]
        if threading.get_ident() == thread and kind not in found:
            found[kind] = _told(kind)
        return ask(setup)  # type: ignore[no-untyped-call]

    with EXCLUSIVE:
        ask = function._is_setup_context_defined
        function._is_setup_context_defined = asked
        try:
            yield found
        finally:
            function._is_setup_context_defined = ask


def _told(kind: type) -> str:
    try:
        place = f" ({inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]})"
    except (OSError, TypeError):  # made without a file
        place = ""
    return (
        f"{kind.__qualname__}{place} has a backward of its own, which no graph holds: in training "
        "the program's gradients are those of the operators of its forward"
    )
