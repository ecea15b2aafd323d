"""`Recipe`: a dataclass that is its own description, as a call, as plain data and as YAML; and
`Pipeline`, several in order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Self, TypeVar

from fxcompress.arguments import Checked, checked, shown
from fxcompress.errors import PlanError, RecipeError
from fxcompress.recipes import known
from fxcompress.recipes.data import encoded, recipe_of
from fxcompress.recipes.text import dumped, loaded, parsed

Other = TypeVar("Other", bound="Recipe")


@dataclass(frozen=True, repr=False)
class Recipe(Checked):
    """A dataclass whose repr is the call that makes it again, with the defaults left out.

    It takes what the annotations of its fields say, and refuses everything else. For every recipe
    ``p``: ``Recipe.parse(repr(p)) == p``, ``Recipe.from_dict(p.to_dict()) == p`` and
    ``Recipe.from_yaml(p.to_yaml()) == p``.

    Example:
        >>> from fxcompress.passes import MagnitudePruning
        >>> one = MagnitudePruning(ratio=0.5)
        >>> one.to_dict()
        {'MagnitudePruning': {'ratio': 0.5}}
        >>> Recipe.parse("MagnitudePruning(ratio=0.5)") == one
        True
    """

    def __init_subclass__(cls, alias: str | None = None, **kwargs: Any) -> None:
        """Make the class known by its name, and by an older one it may have."""
        super().__init_subclass__(**kwargs)
        known.register(cls, filter(None, (cls.__name__, alias)))

    def __repr__(self) -> str:
        given = ", ".join(f"{name}={value!r}" for name, value in self.given().items())
        return f"{type(self).__name__}({given})"

    def given(self) -> dict[str, Any]:
        """The fields that are not as by default, those that a call may give by position first."""
        own = sorted(fields(self), key=lambda each: each.kw_only is True)
        return {each.name: getattr(self, each.name) for each in own if self._given(each.name)}

    def check(self) -> None:
        """Refuse what no program could make right, before any work; by default nothing.

        Raises:
            PlanError: An option is missing.
        """

    def made(self, kind: type[Other], **options: Any) -> Other:
        """A recipe of another kind from the options of the same names, and those given."""
        names = {each.name for each in fields(kind)} - options.keys()
        return kind(**{name: getattr(self, name) for name in names}, **options)

    def to_dict(self) -> dict[str, Any]:
        """The class's name, and the fields that are not as by default: plain data for JSON.

        Raises:
            PlanError: A field holds what is no data.
        """
        name = type(self).__name__
        fields = {key: encoded(each, f"{name}.{key}") for key, each in self.given().items()}
        return {name: fields}

    @classmethod
    @checked(PlanError)
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The recipe that `to_dict` came from, of this class.

        Raises:
            RecipeError: The data are no recipe, or a name is unknown.
            PlanError: A class refuses a value.
        """
        return cls._own(recipe_of(data), "data")

    def to_yaml(self) -> str:
        """`to_dict` as YAML text."""
        return dumped(self.to_dict())

    @classmethod
    @checked(PlanError)
    def from_yaml(cls, text: str) -> Self:
        """The recipe that `to_yaml` came from; a list of recipes is a `Pipeline`.

        Raises:
            RecipeError: As `from_dict`, or the text is not YAML.
        """
        return cls._own(loaded(text), "text")

    @classmethod
    @checked(PlanError)
    def parse(cls, text: str) -> Self:
        """The recipe of which this is the repr; nothing that the text says is run.

        Several calls with commas between them are a `Pipeline`.

        Raises:
            RecipeError: As `from_dict`, or the text is no such call.
        """
        return cls._own(parsed(text), "text")

    @classmethod
    def _own(cls, read: Any, what: str) -> Self:
        found = Pipeline(passes=tuple(read)) if isinstance(read, list | tuple) else read
        if not isinstance(found, cls):
            raise RecipeError(
                f"the {what} is {shown(found)} and not a {cls.__name__}; "
                "Recipe.parse, from_dict and from_yaml take all of them"
            )
        return found

    def _given(self, name: str) -> bool:
        own = next(each for each in fields(self) if each.name == name)
        default = own.default if own.default_factory is MISSING else own.default_factory()
        return bool(default is MISSING or getattr(self, name) != default)


@dataclass(frozen=True, repr=False)
class Pipeline(Recipe, Sequence[Any]):
    """Passes and steps in order, as ``compile(model, args, passes=...)`` takes them.

    What was done to a program is one, `Program.recipe`, and can be done to another.

    Attributes:
        passes: The recipes.
    """

    passes: tuple[Recipe, ...] = ()

    def __len__(self) -> int:
        return len(self.passes)

    def __getitem__(self, index: Any) -> Any:
        return self.passes[index]


@encoded.register
def _(value: Recipe, place: str = "it") -> dict[str, Any]:
    return value.to_dict()


known.register(Recipe, ("Recipe",))
