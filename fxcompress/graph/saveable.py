"""What may stand in a saved program beside operators: classes that say how to make them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from fxcompress.errors import LoadError


@runtime_checkable
class Saveable(Protocol):
    """What a few plain values make again; the tensors of a module are saved with the others."""

    def config(self) -> Mapping[str, Any]:
        """What `from_config` needs: numbers, strings, lists, dtypes."""
        ...

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """One like that which gave `config`; tensors of a module are filled in afterwards."""
        ...


class _Registry:
    classes: ClassVar[dict[str, type]] = {}


C = TypeVar("C", bound=type)


def saveable(cls: C) -> C:
    """Class decorator: let what is of this class be part of a saved program: a module that the
    graph calls, or a codec.

    The class has the two methods of `Saveable`.
    """
    _Registry.classes[kind_of(cls)] = cls
    return cls


def is_saveable(value: object) -> bool:
    """Whether the class of `value` is registered and has what it takes."""
    return kind_of(type(value)) in _Registry.classes and isinstance(value, Saveable)


def kind_of(cls: type) -> str:
    """The name of a class in a file."""
    return f"{cls.__module__}.{cls.__qualname__}"


def make(kind: str, config: Mapping[str, Any]) -> Any:
    """One of a registered class.

    Raises:
        LoadError: No class of this name is registered.
    """
    cls = _Registry.classes.get(kind)
    if cls is None:
        raise LoadError(
            f"the program holds a {kind}, which is not known here; "
            "import the module that defines it first"
        )
    assert issubclass(cls, Saveable)
    return cls.from_config(config)
