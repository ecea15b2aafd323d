"""The state of torch that surrounds a call: set aside for as long as this package works.

Inference mode, ``no_grad``, autocast, a default device and a default dtype belong to the caller's
own code. Every public entry is `sealed`: inside, they are as in a fresh process, so that results
do not depend on where the entry is called from; afterwards they are as before.

torch.export and torch.onnx patch torch itself while they run, so only one thread of a process may
be in them, or run a model whose flags are set for them: `EXCLUSIVE`.
"""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

EXCLUSIVE = threading.RLock()
"""Held while torch.export or torch.onnx runs, and while flags of the user's model are set."""

_FRESH_DTYPE = torch.float32
_FRESH_DEVICE = torch.device("cpu")


def sealed(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function independent of the state of torch around its call."""

    @functools.wraps(function)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        with fresh_state():
            return function(*args, **kwargs)

    return within


@contextmanager
def fresh_state() -> Iterator[None]:
    """Gradients on, no inference mode, no autocast, float32 on the CPU by default."""
    with ExitStack() as stack:
        stack.enter_context(_DTYPE.held())
        if torch.get_default_device() != _FRESH_DEVICE:
            stack.enter_context(_FRESH_DEVICE)
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(mode=False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        for kind in _device_types():
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def young_heap() -> Iterator[None]:
    """Let the garbage collector look at what is made inside, not at all that was there before.

    An export makes so many objects that the collector would go over the whole process several
    times. Objects that somebody else has frozen stay so.
    """
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _device_types() -> tuple[str, ...]:
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


class _DefaultDtype:
    """The default dtype is one for all threads: the first to enter sets it, the last puts it back.

    A lock held for the whole time would let only one thread compile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before = _FRESH_DTYPE

    @contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._before = torch.get_default_dtype()
                if self._before != _FRESH_DTYPE:
                    torch.set_default_dtype(_FRESH_DTYPE)
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside and self._before != _FRESH_DTYPE:
                    torch.set_default_dtype(self._before)


_DTYPE = _DefaultDtype()
