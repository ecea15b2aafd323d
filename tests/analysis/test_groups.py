"""What the analysis finds: names, kinds, cells, frozen reasons, and why things move together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

import fxcompress as fx
from fxcompress.edit.plan import Plan, Project
from fxcompress.program import Program
from models import build
from programs import PRUNABLE
from selection import RandomSelection


def program(name: str, **options: object) -> Program:
    model, args, kwargs = build(name)
    return fx.compile(model, args, kwargs, **options)  # type: ignore[arg-type]


def table(found: Program) -> dict[str, tuple[int, int, str]]:
    return {g.name: (g.units, g.cells, g.kind) for g in found.groups if not g.frozen}


def test_a_residual_stream_is_one_group_and_the_inner_width_another() -> None:
    assert table(program("projected_residual")) == {
        "stem.0": (6, 1, "channels"),
        "up.0": (9, 1, "channels"),
        "down.0": (10, 1, "residual"),
        "inner.0": (7, 1, "channels"),
    }


def test_zero_padded_channels_are_groups_of_their_own() -> None:
    sizes = sorted(g.units for g in program("padded_residual").groups if not g.frozen)
    assert sizes == [3, 3, 6, 12]


def test_heads_keep_query_key_and_value_dims_apart() -> None:
    kinds = {g.kind: (g.units, g.cells) for g in program("fused_attention").groups if not g.frozen}
    assert kinds["heads"] == (5, 1)
    assert kinds["qk"] == (4, 5)
    assert kinds["vo"] == (4, 5)


def test_rotary_pairs_leave_together_in_every_head() -> None:
    groups = program("rotary_grouped_attention").groups
    rotary = next(g for g in groups if g.kind == "qk")
    assert rotary.cells == 1
    assert {site.parameter for site in rotary.sites} >= {"q_proj.weight", "k_proj.weight"}


def test_cells_of_a_grouped_convolution_may_differ() -> None:
    assert any(g.cells == 3 and g.units == 4 for g in program("grouped_conv").groups)


def test_inputs_and_outputs_are_frozen_with_the_reason() -> None:
    reasons = {g.name: g.frozen for g in program("mlp").groups if g.frozen}
    assert "an input of the model" in str(reasons["first:in"])
    assert "an output of the model" in str(reasons["head"])


def test_a_norm_over_the_units_makes_them_inexact() -> None:
    exact = {g.name: g.exact for g in program("swiglu").groups if not g.frozen}
    assert exact == {"enter": False, "gate": True}


def test_multi_query_heads_and_both_kinds_of_their_dims_are_groups() -> None:
    groups = {g.kind: g for g in program("multi_query_attention").groups if "qkv" in g.name}
    assert {(g.units, g.cells) for g in groups.values() if g.kind != "heads"} == {(4, 2)}
    assert {"qk", "vo", "heads"} <= groups.keys()
    assert not any(group.frozen for group in groups.values())


def test_explain_tells_every_reason_once_with_all_its_nodes() -> None:
    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.head = torch.nn.Linear(5, 6), torch.nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.enter(x)
            return self.head(x.flip(-1) + x.roll(1, -1) + x.cumsum(-1))  # type: ignore[no-any-return]

    (group,) = (g for g in fx.compile(Twice(), (torch.ones(2, 5),)).groups if g.name == "enter")
    assert group.frozen == group.reasons[0]
    lines = [line for line in group.explain().splitlines() if "frozen" in line]
    assert "  frozen: reordered by index (at flip), also at roll" in lines
    assert len(lines) == len({line.partition(" (at")[0] for line in lines}) > 1


def test_a_channel_shuffle_ties_the_halves_it_interleaves() -> None:
    held = [{site.parameter for site in g.sites} for g in program("channel_shuffle").groups]
    assert any(names >= {"stem.0.weight", "leave.0.weight", "tail.0.weight"} for names in held)


def test_what_does_not_line_up_is_frozen_and_says_where() -> None:
    reasons = [g.frozen for g in program("entangled_sum").groups if g.frozen]
    assert any("entangled" in words and "add" in words for words in reasons)


def test_pins_freeze_and_unknown_pins_are_refused() -> None:
    pinned = program("mlp", pin=["second.weight"])
    assert [g.name for g in pinned.groups if not g.frozen] == []
    with pytest.raises(fx.PlanError, match=r"second\.weight"):
        program("mlp", pin=["secnd.weight"])


def test_a_pin_may_name_what_a_pass_takes_away_or_another_name_of_it() -> None:
    folded = program("conv_chain", pin=["first.1.weight"], passes=[fx.passes.FoldBatchNorm()])
    assert folded.groups
    tied = program("tied_language_model")
    names = [n for n, _ in tied.module.named_parameters(remove_duplicate=False)]
    shared = {n for n in names if tied.module.get_parameter(n).shape[0] == 17}
    assert len(shared) == 2
    for name in shared:
        pinned = program("tied_language_model", pin=[name])
        assert any("pinned" in str(g.frozen) for g in pinned.groups)


def test_explain_names_the_operations_between_two_layers() -> None:
    words = fx.explain(program("projected_residual"), "down.0.weight", "outer.0.weight")
    assert "10 units" in words
    assert "aten::add" in words


def test_explain_says_when_nothing_ties_two_layers() -> None:
    words = fx.explain(program("mlp"), "first.weight", "head.weight")
    assert "do not move together" in words


def test_explain_offers_the_nearest_names() -> None:
    with pytest.raises(fx.PlanError, match=r"first\.weight"):
        fx.explain(program("mlp"), "frist.weight", "head.weight")


def test_every_group_explains_itself() -> None:
    for group in program("token_classifier").groups:
        assert group.name in group.explain()
        assert not group.frozen or group.frozen in group.explain()


# ---- names last


@dataclass(frozen=True)
class Cut:
    """Keep the first units of the groups that are named."""

    widths: tuple[tuple[str, int], ...]

    def plan(self, program: Program) -> Plan:
        wanted = dict(self.widths)
        return Plan(
            tuple(
                Project(group, torch.arange(wanted[group.name]))
                for group in program.groups
                if group.name in wanted
            )
        )


def test_siblings_keep_their_names_when_one_is_cut_to_a_single_unit() -> None:
    small = program("siblings")
    first, second, third = (g.name for g in small.groups if g.units in (3, 4, 6))
    for cut in (Cut(((first, 1),)), Cut(((third, 2),)), Cut(((second, 2),))):
        small = fx.apply(small, cut)
    widths = {g.name: (g.units.before, g.units.after) for g in small.report.groups}
    assert (widths[first], widths[second], widths[third]) == ((3, 1), (4, 2), (6, 2))
    assert {g.name for g in small.groups} >= {second, third}
    assert first not in {g.name for g in small.groups}


@pytest.mark.parametrize("name", PRUNABLE)
def test_the_report_credits_every_group_with_what_it_lost(name: str) -> None:
    small = program(name)
    known = {group.name for group in small.groups}
    for seed in (1, 2):
        small = fx.apply(small, RandomSelection(seed, share=0.4), verify=False)
        now = {group.name: group.units for group in small.groups}
        assert now.keys() <= known
        for change in small.report.groups:
            assert change.units.after == now.get(change.name, 1), change.name


def test_names_survive_a_file(tmp_path: Path) -> None:
    dense = program("siblings")
    first, _, third = (g.name for g in dense.groups if g.units in (3, 4, 6))
    fx.apply(dense, Cut(((first, 1),))).save(tmp_path / "small.fxc")
    loaded = fx.load(tmp_path / "small.fxc")
    again = fx.apply(loaded, Cut(((third, 2),)))
    assert {g.name: g.units.after for g in again.report.groups}[third] == 2
