"""What an edit gives is all that the rest of the compiler asks for: a kind that nobody knows."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxcompress as fx
from edited import Just
from fxcompress.edit.base import ParameterEdit
from fxcompress.edit.context import Context
from fxcompress.edit.plan import Edit
from fxcompress.edit.proof import Proof
from fxcompress.edit.zeros import Masks, Zeros
from programs import program


@dataclass(frozen=True, eq=False)
class Scale(ParameterEdit):
    """A parameter is multiplied by a number, and its first row becomes zero for good."""

    factor: float
    applied: float | None = None  # what a faulty application multiplies by

    @property
    def masks(self) -> Masks:
        shape = program("mlp").module.get_parameter(self.parameter).shape
        mask = torch.ones(shape, dtype=torch.bool)
        mask[0] = False
        return {self.parameter: Zeros(mask)}

    def check(self, context: Context) -> None:
        if self.factor == 0:
            raise fx.PlanError(f"{self.parameter}: a factor of 0 leaves nothing")

    def apply(self, context: Context) -> None:
        scale = self.factor if self.applied is None else self.applied
        context.replace(self.parameter, self._scaled(context, scale))

    def proof(self, context: Context) -> Proof:
        value = self._scaled(context, self.factor)
        held = {self.parameter: value}
        return Proof(kind="scaled", words=("scaled values",), reads=held, holds=held)

    def _scaled(self, context: Context, factor: float) -> Tensor:
        value = context.tensor(self.parameter) * factor
        value[0] = 0
        return value


def test_a_kind_of_edit_of_ones_own_is_compiled_proved_and_saved(tmp_path: Path) -> None:
    dense = program("mlp")
    new = fx.apply(dense, Just(lambda _: [Scale("second.weight", 2.0)]))
    check = new.report.checks[-1]
    assert (check.kind, check.ok, "scaled values (1)" in check.compared) == ("scaled", True, True)
    assert new.sparsity["second.weight"] == pytest.approx(1 / 11)
    assert new.report.sparse[0].name == "second.weight"
    new.save(tmp_path / "scaled.fxc")
    loaded = fx.load(tmp_path / "scaled.fxc")
    torch.testing.assert_close(loaded(*new.args), new(*new.args), rtol=0, atol=0)
    assert loaded.sparsity == new.sparsity


def test_it_stands_beside_a_projection_and_is_cut_with_it() -> None:
    dense = program("mlp")
    kept = torch.arange(1, 7, 2)
    edits = [fx.Project(dense.group("first"), kept), Scale("second.weight", 2.0)]
    new = fx.apply(dense, Just(lambda _: edits))
    assert new.report.checks[-1].kind == "zero-masked"
    wanted = 2 * dense.module.get_parameter("second.weight").detach()[:, kept]
    torch.testing.assert_close(new.module.get_parameter("second.weight")[1:], wanted[1:])


def test_what_it_does_is_held_against_what_it_says() -> None:
    faulty = Just(lambda _: [Scale("second.weight", 2.0, applied=2.001)])
    with pytest.raises(fx.VerificationError, match=r"scaled: second\.weight"):
        fx.apply(program("mlp"), faulty)


def test_its_own_refusal_comes_before_anything_is_edited() -> None:
    with pytest.raises(fx.PlanError, match="factor of 0"):
        fx.apply(program("mlp"), Just(lambda _: [Scale("second.weight", 0.0)]))
    with pytest.raises(fx.PlanError, match="edited twice"):
        fx.apply(program("mlp"), Just(lambda _: [Scale("second.weight", 2.0)] * 2))


def _kinds(of: Any) -> set[str]:
    under = of.__subclasses__()
    return {kind.__name__ for kind in under}.union(*map(_kinds, under))


KINDS = _kinds(Edit) - {"ParameterEdit", "Scale"}


def _asks(node: ast.AST) -> bool:
    """Whether a piece of code compares something with a kind of edit."""
    named = {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    named |= {one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)}
    function = node.func if isinstance(node, ast.Call) else None
    asks = isinstance(function, ast.Name) and function.id in ("isinstance", "issubclass")
    return (asks or isinstance(node, ast.MatchClass)) and not KINDS.isdisjoint(named)


def test_nothing_outside_the_room_of_edits_asks_what_kind_one_is() -> None:
    assert {"Project", "Replace", "Store", "Offset", "Reparametrize"} <= KINDS
    assert any(map(_asks, ast.walk(ast.parse("isinstance(edit, (Offset, Replace))"))))
    root = Path(fx.__file__).parent
    files = [f for f in root.rglob("*.py") if root / "edit" not in f.parents]
    asking = [f.name for f in files if any(map(_asks, ast.walk(ast.parse(f.read_text()))))]
    assert len(files) > 200
    assert asking == []
