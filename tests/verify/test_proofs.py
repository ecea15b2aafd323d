"""Every edit has a proof: it agrees for any edit, and fails for any fault in the program."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fxcompress as fx
from fxcompress.edit.plan import Plan, Project
from fxcompress.edit.rewrite import rewrite
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import find_tensor
from fxcompress.program import Program
from fxcompress.report import Check
from fxcompress.verify import distance, verify
from models import MODELS
from programs import program
from random_plans import RandomMixing, Way
from selection import RandomSelection

ROUNDING = 1e-10  # float64: sums of a few hundred terms in another order
WAYS: tuple[Way, ...] = ("matrices", "decoded", "mixture")
nets = pytest.mark.parametrize("name", MODELS)
seeds = st.integers(0, 2**31)


def check(dense: Program, plan: Plan, module: CapturedModule) -> Check:
    coupling = dense.analysis.coupling
    return verify(dense.module, module, coupling, plan, dense.args, dense.kwargs)


@nets
@settings(max_examples=6)
@given(seed=seeds, share=st.sampled_from((0.3, 0.6, 1.0)), way=st.sampled_from(WAYS))
def test_random_matrices_are_what_the_dense_graph_gives(
    name: str, seed: int, share: float, way: Way
) -> None:
    proof = fx.apply(program(name), RandomMixing(seed, share, way)).report.checks[-1]
    assert proof.ok
    assert proof.kind == ("scattered" if way != "mixture" else proof.kind)
    assert proof.max_relative_error is not None
    assert proof.max_relative_error <= ROUNDING


def swapped(module: CapturedModule, name: str, draw: torch.Generator) -> None:
    """Two places of one axis of a tensor exchanged."""
    value = find_tensor(module, name)
    assert value is not None
    dims = [dim for dim, size in enumerate(value.shape) if size > 1]
    if dims:
        dim = dims[int(torch.randint(len(dims), (), generator=draw))]
        order = torch.arange(value.shape[dim])
        i, j = torch.randperm(len(order), generator=draw)[:2]
        order[i], order[j] = order[j].clone(), order[i].clone()
        value.data = value.data.index_select(dim, order)


def nudged(module: CapturedModule, name: str, draw: torch.Generator) -> None:
    """One entry of a tensor is a little larger."""
    value = find_tensor(module, name)
    assert value is not None
    flat = value.detach().clone().flatten()
    flat[int(torch.randint(len(flat), (), generator=draw))] += 0.1
    value.data = flat.reshape(value.shape)


def refused(dense: Program, plan: Plan, module: CapturedModule) -> bool:
    try:
        check(dense, plan, module)
    except fx.VerificationError:
        return True
    return False


def apart(dense: Program, one: CapturedModule, other: CapturedModule) -> bool:
    with torch.no_grad():
        gap, _ = distance(one(*dense.args, **dense.kwargs), other(*dense.args, **dense.kwargs))
    return gap > 1e-6  # nets end in ReLUs and norms that may hide a fault


@pytest.mark.parametrize("fault", [swapped, nudged])
@settings(max_examples=40)
@given(name=st.sampled_from(sorted(MODELS)), seed=seeds, way=st.sampled_from((*WAYS, None)))
def test_a_fault_in_any_parameter_is_refused(
    name: str, fault: Callable[..., None], seed: int, way: Way | None
) -> None:
    """By the tensor itself where its bits are known, and by the outputs wherever they change."""
    dense, draw = program(name), torch.Generator().manual_seed(seed)
    one = RandomSelection(seed) if way is None else RandomMixing(seed, way=way)
    plan = one.plan(dense)
    done = rewrite(dense.module, dense.analysis.coupling, plan)
    changed = sorted({*done.kept, *done.mixed})
    faulty = copy.deepcopy(done.module)
    fault(faulty, changed[int(torch.randint(len(changed), (), generator=draw))], draw)
    assume(apart(dense, done.module, faulty))
    assert refused(dense, plan, faulty)
    with patch("fxcompress.verify.check_values"):
        assert refused(dense, plan, faulty)


@settings(max_examples=40)
@given(name=st.sampled_from(sorted(MODELS)), seed=seeds)
def test_a_program_made_with_other_matrices_is_refused(name: str, seed: int) -> None:
    """Columns of D, or rows of E, in another order for one of the groups."""
    dense, draw = program(name), torch.Generator().manual_seed(seed)
    plan = RandomMixing(seed).plan(dense)
    edits = list(plan.edits)
    at = int(torch.randint(len(edits), (), generator=draw))
    edit = edits[at]
    assert isinstance(edit, Project)
    assert edit.decode is not None
    assume(edit.width > 1 and not torch.equal(edit.encode.mT, edit.decode))
    edits[at] = replace(edit, decode=edit.decode.roll(1, -1))
    other = rewrite(dense.module, dense.analysis.coupling, Plan(tuple(edits)))
    right = rewrite(dense.module, dense.analysis.coupling, plan)
    assume(apart(dense, right.module, other.module))
    assert not refused(dense, plan, right.module)
    assert refused(dense, plan, other.module)
