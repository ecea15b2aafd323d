"""What a function of the user's returns: ``package.module:factory`` or ``file.py:factory``."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fxcompress.errors import LoadError
from fxcompress.loaders.inputs import Arguments

Made = tuple[nn.Module, Arguments]


def from_factory(spec: str) -> Made:
    """Call a factory; it returns the model, ``(model, args)`` or ``(model, args, kwargs)``.

    Raises:
        LoadError: As `called`, or it returns something else.
    """
    made = called(spec)
    match made:
        case nn.Module():
            return made, ((), {})
        case [nn.Module() as model, tuple() | list() as args]:
            return model, (tuple(args), {})
        case [nn.Module() as model, tuple() | list() as args, dict() as kwargs]:
            return model, (tuple(args), kwargs)
    raise LoadError(
        f"{spec} returned {_shape_of(made)}; it must return a model, (model, args) or "
        "(model, args, kwargs), with args a tuple of example inputs"
    )


def called(spec: str) -> Any:
    """What ``package.module:function`` or ``file.py:function`` returns, called without arguments.

    Raises:
        LoadError: There is no such file, module or function, or it fails.
    """
    place, _, name = spec.rpartition(":")
    if not place or not name.isidentifier():
        raise LoadError(
            f"{spec!r} names no function; write package.module:factory or file.py:factory"
        )
    is_file = place.endswith(".py")
    with _first_on_path(Path(place).resolve().parent if is_file else Path.cwd()):
        module = _import_file(Path(place)) if is_file else _import_module(place)
        function = _function(module, name, spec)
        try:
            return function()
        except (Exception, SystemExit) as error:
            raise LoadError(f"calling {spec} without arguments failed: {_said(error)}") from error


def functions_of(path: Path) -> list[str]:
    """The public functions and classes of a Python file, without running it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []
    kinds = (ast.FunctionDef, ast.ClassDef)
    names = [node.name for node in tree.body if isinstance(node, kinds)]
    return [name for name in names if not name.startswith("_")]


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise LoadError(f"there is no file {path}; give the path of a Python file")
    # Under a name of its own: the file may be called as a package that is installed.
    name = f"_fxcompress_user_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and pickling look their module up
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise LoadError(f"running {path} failed: {_said(error)}") from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise LoadError(f"importing {name} failed: {_said(error)}") from error
        raise LoadError(
            f"there is no module {error.name!r} here or installed; for a file write file.py:factory"
        ) from error
    except (Exception, SystemExit) as error:
        raise LoadError(f"importing {name} failed: {_said(error)}") from error


def _function(module: ModuleType, name: str, spec: str) -> Callable[[], Any]:
    function = getattr(module, name, None)
    if callable(function):
        return function  # type: ignore[no-any-return]
    names = [key for key, value in vars(module).items() if callable(value) and key[0] != "_"]
    near = get_close_matches(name, names, n=3, cutoff=0.0)
    raise LoadError(f"{spec!r}: no function {name!r} there; the nearest are {', '.join(near)}")


def _shape_of(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__


def _said(error: BaseException) -> str:
    """An error with the user's line it comes from."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    code = f" ({last.tb_frame.f_code.co_filename}:{last.tb_lineno})" if last else ""
    return f"{type(error).__name__}: {error}{code}"


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Let modules that lie beside the user's be imported; the search path is as before after."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
