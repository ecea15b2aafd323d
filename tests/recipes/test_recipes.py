"""Recipes go both ways: as the call that makes them, as plain data and as YAML."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import fxcompress as fx
from fxcompress import passes
from fxcompress.budget import Budget, Recipe
from models import build
from public_surface import surface


def instances() -> dict[str, Recipe]:
    """One of every pass, step and other recipe that is public."""
    made = {
        name: entry.call(**entry.valid(Path()))
        for name, entry in surface().items()
        if isinstance(entry.call, type) and issubclass(entry.call, Recipe)
    }
    assert len(made) > 25
    return made


NESTED: list[Recipe] = [
    passes.MagnitudePruning(0.25, p=1, roles=("produce", "affine"), include="layer1.*", round_to=1),
    passes.LAMPPruning(budget=Budget(flops=0.5, allocation="global", exclude=("a", "b:in"))),
    passes.StructuredPass(
        criterion=passes.FPGMPruning(power=2),
        reconstruction=passes.LeastSquaresPruning(lambda_rel=1e-9),
        budget=Budget(params=1000, max_ratio=0.75),
    ),
    passes.TorchPruningPass(options={"p": 1, "group_reduction": "first"}, ratio=0.5),
    passes.SliceGPT(ratio=0.3, dims=None),
    passes.IPPRO(0.5, score="slope", lam=0.001),
    fx.Pipeline(passes=(passes.FoldBatchNorm(), passes.NMSparsity(n=1, m=2))),
    fx.Pipeline(),
]
ALL = {**instances(), **{repr(one): one for one in NESTED}}


@pytest.mark.parametrize("name", ALL)
def test_every_recipe_goes_there_and_back(name: str) -> None:
    one = ALL[name]
    assert Recipe.parse(repr(one)) == one
    assert Recipe.from_dict(json.loads(json.dumps(one.to_dict()))) == one
    assert Recipe.from_yaml(one.to_yaml()) == one
    assert type(one).parse(repr(one)) == one
    assert repr(Recipe.from_yaml(one.to_yaml())) == repr(one)


@given(st.floats(0, 0.99), st.floats(1e-300, 1e300), st.text(), st.lists(st.text(), max_size=3))
@example(0.5, 1.0, "\x85", ["\u2028", "é"])  # line breaks of Unicode, which YAML folds
def test_values_come_back_to_the_last_bit(ratio: float, lam: float, text: str, names: Any) -> None:
    one = passes.IPPRO(ratio, lam=lam, groups=(text, *names))
    assert Recipe.parse(repr(one)) == one
    assert Recipe.from_yaml(one.to_yaml()) == one


def test_another_name_is_the_same_class() -> None:
    assert Recipe.parse("Magnitude(p=1)") == passes.MagnitudePruning(p=1)


def test_several_calls_are_a_pipeline() -> None:
    both = passes.MagnitudePruning(ratio=0.5), passes.FoldBatchNorm()
    pipeline = fx.Pipeline(passes=both)
    assert Recipe.parse("MagnitudePruning(ratio=0.5), FoldBatchNorm()") == pipeline
    text = "- MagnitudePruning: {ratio: 0.5}\n- FoldBatchNorm: {}\n"
    assert Recipe.from_yaml(text) == pipeline
    assert tuple(pipeline) == both
    assert len(pipeline) == 2


def test_what_was_done_can_be_done_again(tmp_path: Path) -> None:
    model, args, kwargs = build("conv_chain")
    done = fx.compile(
        model, args, kwargs, passes=[passes.RandomPruning(ratio=0.5), passes.FoldBatchNorm()]
    )
    done.save(tmp_path / "a.fxc")
    recipe = fx.load(tmp_path / "a.fxc").recipe
    assert recipe == done.recipe
    again = fx.compile(model, args, kwargs, passes=fx.Pipeline.from_yaml(recipe.to_yaml()))
    assert again.history == done.history
    for name, value in done.module.state_dict().items():
        assert value.equal(again.module.state_dict()[name]), name


# ---- refusals


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("MagnitudPruning(ratio=0.5)", "'MagnitudPruning'; the nearest are MagnitudePruning"),
        ("MagnitudePruning(rato=0.5)", "no argument 'rato'; did you mean 'ratio'"),
        ("MagnitudePruning(ratio=2)", r"ratio must be a number in \[0, 1\)"),
        ("MagnitudePruning(0.5)", "every option needs its name"),
        ("MagnitudePruning(**{'ratio': 0.5})", "every option needs its name"),
        ("MagnitudePruning(ratio=0.25 + 0.25)", "malformed"),
        ("MagnitudePruning(ratio=0.25, ratio=0.5)", "'ratio' is given twice"),
        ("MagnitudePruning(ratio=", "was never closed"),
        ("__import__('os').system('true')", "only a class can be called"),
        ("open(file='x')", "called 'open'"),
        ("fx.passes.FoldBatchNorm()", "only a class can be called"),
        ("0.5", "is 0.5 and not a Recipe"),
        ("[0.5]", r"passes\[0\] must be a Recipe, not 0.5"),
        ("", "the text ''"),
        ("(" * 9999, "the text"),
        ("<OwnPass object at 0x7f>", "the text"),
    ],
)
def test_what_is_no_recipe_is_refused_and_never_run(text: str, words: str) -> None:
    with pytest.raises(fx.PlanError, match=words):
        Recipe.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("FoldBatchNor: {}", "the nearest are FoldBatchNorm"),
        ("FoldBatchNorm: 3", "the data of FoldBatchNorm are 3"),
        ("FoldBatchNorm: {1: 2}", "write its fields by their names"),
        ("ratio: 0.5", "called 'ratio'"),
        ("a: {}\nb: {}", "no recipe: write the name of a class"),
        ("3", "the data are 3"),
        ("{", "not YAML"),
        ("!!python/object/apply:os.system [true]", "not YAML"),
        ("Folding: {ratio: '0.5'}", "write 0.5 without quotes"),
    ],
)
def test_yaml_that_is_no_recipe_is_refused(text: str, words: str) -> None:
    with pytest.raises(fx.PlanError, match=words):
        Recipe.from_yaml(text)


def test_another_class_than_asked_is_refused() -> None:
    with pytest.raises(fx.PlanError, match="a FoldBatchNorm and not a MagnitudePruning"):
        passes.MagnitudePruning.parse("FoldBatchNorm()")


@pytest.mark.parametrize("options", [{"a": (1, 2)}, {"a": object}, {"FoldBatchNorm": {}}])
def test_what_plain_data_cannot_say_is_refused(options: dict[str, Any]) -> None:
    one = passes.TorchPruningPass(ratio=0.5, options=options)
    with pytest.raises(fx.PlanError, match=r"TorchPruningPass\.options is a mapping that plain"):
        one.to_dict()


def test_a_part_that_is_no_recipe_is_told() -> None:
    class Plain(passes.Criterion):
        def score(self, program: Any, group: Any) -> Any: ...

    one = passes.StructuredPass(criterion=Plain(), ratio=0.5)
    with pytest.raises(fx.PlanError, match=r"StructuredPass\.criterion is a Plain, which is no da"):
        one.to_dict()


def test_two_classes_of_one_name_are_told_apart() -> None:
    @dataclass(frozen=True, repr=False)
    class Twin(Recipe):
        """One of two."""

    assert Recipe.parse("Twin()") == Twin()

    class Elsewhere:
        class Twin(Recipe):
            """The other."""

    with pytest.raises(fx.PlanError, match=r"'Twin' may be .*\.Elsewhere\.Twin or .*; rename one"):
        Recipe.parse("Twin()")
