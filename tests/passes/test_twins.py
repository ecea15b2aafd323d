"""Units that come in equal pairs are merged without loss, whatever reads them, or left whole."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.layers.units import units_on
from fxcompress.passes import Folding, ProjectivePruning
from fxcompress.program import Program
from models import normal, randomize
from nets_readers import READERS, doubled_up

ROUNDING = 1e-12  # float64
RIDGE = 1e-9  # the method solves with a ridge of 1e-11, where twins have coefficients 1 - O(ridge)
WRITERS = ("produce", "table", "affine")


def twin_program(name: str) -> Program:
    net = doubled_up(randomize(READERS[name]())).double()
    return fx.compile(net, (normal(2, 7, 5).double(),))


def of_twins(program: Program) -> tuple[str, ...]:
    """The groups whose units are equal in pairs; heads, or the groups of a convolution, of twin
    channels need not be.
    """
    return tuple(
        group.name
        for group in program.groups
        if not group.frozen and group.units % 2 == 0 and are_twins(program, group)
    )


def are_twins(program: Program, group: ChannelGroup) -> bool:
    """Whether everything that writes or scales the units is equal for neighbours."""
    coupling, state = program.analysis.coupling, program.module.state_dict()
    rows = [
        units_on(coupling.parameters[s.parameter], s.dim, group.factor, group.over).read(
            state[s.parameter]
        )
        for s in group.sites
        if s.role in WRITERS
    ]
    return all(torch.equal(each[:, 0::2], each[:, 1::2]) for each in rows)


def lost(program: Program, small: Program) -> float:
    with torch.no_grad():
        wanted, found = program(*program.args), small(*program.args)
    return float((found - wanted).abs().max() / wanted.abs().max())


METHODS: dict[str, tuple[Folding | ProjectivePruning, float]] = {
    "folding": (Folding(ratio=0.5, round_to=1), ROUNDING),
    "folding effective rows": (Folding(ratio=0.5, round_to=1, rows="effective"), ROUNDING),
    "folding by ward": (Folding(ratio=0.5, round_to=1, linkage="ward"), ROUNDING),
    "projective": (
        ProjectivePruning(
            ratio=0.5, round_to=1, lam=1e-11, reconstruction="linear", exact_only=True
        ),
        RIDGE,
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_every_net_has_twins(name: str) -> None:
    """The law below is not empty."""
    found = of_twins(twin_program(name))
    assert bool(found) == (name != "output"), found
    if name == "groups alike":
        assert found == ("up:channels.2",)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", READERS)
def test_twins_are_merged_without_loss_or_left_whole(name: str, method: str) -> None:
    one, tolerance = METHODS[method]
    program = twin_program(name)
    twins = of_twins(program)
    if not twins:
        return  # an output of the model
    try:
        small = fx.apply(program, replace(one, groups=twins))
    except fx.BudgetError as error:
        if "no group may lose a unit" not in str(error):
            raise
        return
    whole = [note for note in small.report.passes[-1].notes if "whole" in note or "only" in note]
    assert whole or small.report.params.after < small.report.params.before
    if not any("only selected" in note for note in whole):
        assert lost(program, small) <= tolerance
