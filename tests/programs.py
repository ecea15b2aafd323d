"""Compiled tiny nets, each made once for all tests: a program is never changed."""

from __future__ import annotations

from torch import nn

import fxcompress as fx
from fxcompress.edit.plan import Plan
from fxcompress.program import Program
from models import MODELS, build
from seeded import once

PRUNABLE = sorted(MODELS)


@once
def program(name: str) -> Program:
    model, args, kwargs = build(name)
    return fx.compile(model, args, kwargs)


def shares(found: Program, plan: Plan) -> dict[str, float]:
    """What the plan keeps, as shares of the program's own cost."""
    return found.cost(plan.widths).share(found.cost())


def count(module: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
