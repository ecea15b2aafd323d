"""Every public callable, every parameter, values that it cannot take: a success or one error of
ours that names the argument. What is public is read from the packages.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import fxcompress as fx
from bad_values import BAD
from fxcompress.arguments import Checked
from fxcompress.arguments.calls import kinds
from public_program import program
from public_surface import Entry, surface

NEVER = {"True", "numpy flag", "nan", "inf", "class", "module class", "object", "complex", "bytes"}
"""Values that nothing takes but what takes anything, and flags."""
OPEN = re.compile(r"\b(Any|object|bool|Pass|Criterion|Reconstruction|Exportable)\b")
CALLABLE = {"function", "module"}
SLOW = ("export.", "fx.compile")

ENTRIES = surface()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parameters() -> Iterator[tuple[str, str]]:
    for name, entry in ENTRIES.items():
        for parameter in entry.parameters:
            yield name, parameter


def refusal(entry: Entry, parameter: str, value: Any, folder: Path) -> str | None:
    """The message if the value is refused, None if it is taken; any other error goes on."""
    arguments = dict(entry.valid(folder))
    variadic = entry.parameters[parameter].kind is inspect.Parameter.VAR_POSITIONAL
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # matplotlib's, of letters that a font has not
        try:
            if variadic:
                entry.call(value)
            else:
                entry.call(**{**arguments, parameter: value})
        except fx.FxCompressError as error:
            return str(error)
    return None


def is_named(parameter: str, value: Any, message: str) -> bool:
    """Whether the message has the argument's name, or the text that was given."""
    values = value if isinstance(value, list | tuple | set) else [value]
    texts = [str(each) for each in values if isinstance(each, str | Path)]
    words = [parameter.strip("_"), *map(repr, texts), *texts]
    return any(word in message for word in words)


@pytest.mark.parametrize("name", [name for name in ENTRIES if not name.startswith(SLOW)])
def test_a_bad_argument_is_refused_by_name(name: str, tmp_path: Path) -> None:
    entry, wrong = ENTRIES[name], []
    for parameter, found in entry.parameters.items():
        for label, make in BAD.items():
            if "Callable" in str(found.annotation) and label in CALLABLE:
                continue  # what a function of the user's raises is its own matter
            value = make()
            message = refusal(entry, parameter, value, tmp_path)
            if message is None and label in NEVER and not OPEN.search(str(found.annotation)):
                wrong.append(f"{parameter} takes {label}")
            if message is not None and not is_named(parameter, value, message):
                wrong.append(f"{parameter}, {label}: {message}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", [name for name in ENTRIES if name.startswith(SLOW)])
def test_a_value_of_no_type_is_refused_at_once(name: str, tmp_path: Path) -> None:
    entry = ENTRIES[name]
    for parameter, found in entry.parameters.items():
        for label in sorted(NEVER):
            if OPEN.search(str(found.annotation)) and label not in ("object", "class", "complex"):
                continue
            value = BAD[label]()
            message = refusal(entry, parameter, value, tmp_path)
            if "Any" not in str(found.annotation):
                assert message is not None, f"{parameter} takes {label}"
            assert message is None or is_named(parameter, value, message), message


LEAVES = st.sampled_from(sorted(BAD)).map(lambda label: BAD[label]())
NESTED = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from(["abc", "labels", "", 0, -1]), inner, max_size=2)
    ),
    max_leaves=6,
)
QUICK = [(name, one) for name, one in parameters() if not name.startswith(SLOW)]


@given(st.sampled_from(QUICK), NESTED)
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_nested_values_are_taken_or_refused(place: tuple[str, str], value: Any) -> None:
    entry, parameter = ENTRIES[place[0]], place[1]
    assume(not callable(value) or "Callable" not in str(entry.parameters[parameter].annotation))
    folder = Path.cwd()
    message = refusal(entry, parameter, value, folder)
    assert message is None or is_named(parameter, value, message), message


@pytest.mark.parametrize("name", ENTRIES)
def test_a_misspelt_argument_is_told_with_the_nearest(name: str, tmp_path: Path) -> None:
    entry = ENTRIES[name]
    first = next(iter(entry.parameters), "anything")
    if entry.parameters and entry.parameters[first].kind is inspect.Parameter.VAR_POSITIONAL:
        return
    wrong = f"{first}x"
    with pytest.raises(fx.FxCompressError, match=f"no argument '{wrong}'"):
        entry.call(**{**entry.valid(tmp_path), wrong: 1})


@pytest.mark.parametrize("name", ENTRIES)
def test_every_annotation_is_checked(name: str) -> None:
    """Names in annotations exist at run time: one that does not would let anything pass."""
    call: Any = ENTRIES[name].call
    found = kinds(inspect.unwrap(getattr(call, "__func__", call)))
    for parameter, each in ENTRIES[name].parameters.items():
        assert found[parameter] is not Any or each.annotation in ("Any", Any), parameter


def test_a_pass_of_ones_own_is_checked_for_nothing() -> None:
    import own_pass

    with pytest.raises(fx.PlanError, match="OwnPass: share must be a number in"):
        own_pass.OwnPass(share=2)
    with pytest.raises(fx.PlanError, match="OwnPass has no argument 'shar'; did you mean 'share'"):
        own_pass.OwnPass(shar=0.5)  # type: ignore[call-arg]


def test_recipes_are_what_they_were() -> None:
    """The check hands on what it took, so that the repr of a recipe is the call that makes it."""
    for name, entry in ENTRIES.items():
        if name.startswith("passes.") and isinstance(entry.call, type):
            made = entry.call(**entry.valid(Path()))
            assert isinstance(made, Checked)
            assert eval(repr(made), {**vars(fx.passes)}) == made
            assert get_type_hints(type(made), include_extras=True)


def test_nothing_was_changed_by_all_that() -> None:
    assert program().history == ()
