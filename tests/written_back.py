"""Programs cut by hand, written back, and what is always true of the result."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Plan, Project
from fxcompress.program import Program
from models import randomize, rebatch, tensors


@dataclass(frozen=True)
class Keep:
    """Keep the first units of every group, as many as `count` says; None keeps all."""

    count: Callable[[ChannelGroup], int | None]

    def plan(self, program: Program) -> Plan:
        edits = []
        for group in program.groups:
            count = None if group.frozen else self.count(group)
            if count is not None:
                edits.append(Project(group, torch.arange(count)))
        return Plan(tuple(edits))


def double(model: nn.Module) -> nn.Module:
    return randomize(model).double()


def compiled(model: nn.Module, *args: Tensor, passes: Iterable[Any]) -> Program:
    return fx.compile(model, tuple(arg.double() for arg in args), passes=tuple(passes))


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def assert_written_back(model: nn.Module, program: Program) -> nn.Module:
    """Write back, and check whatever is always true of the result."""
    before = copy.deepcopy(model.state_dict())
    result = program.write_back(model)
    assert type(result) is type(model)
    assert_same(result(*program.args, **program.kwargs), program(*program.args, **program.kwargs))
    args, kwargs = rebatch((program.args, dict(program.kwargs)), 5)
    assert_same(result(*args, **kwargs), program(*args, **kwargs))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    shared = {id(value) for value in program.module.state_dict(keep_vars=True).values()}
    assert not shared & {id(value) for value in result.state_dict(keep_vars=True).values()}
    return result
