"""Random chains of element-wise ops, constants, views and writes in place: where a group is said
to be exact, cutting its units is zeroing their parameters in the user's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.program import Program
from models import normal, randomize
from selection import RandomSelection
from unshielded import MAKES_SOMETHING, WIDTH, Read

ROUNDING = 1e-10  # float64: a few dozen operations in another order
NUMBERS = {"Scalar": float, "number": float, "float": float, "int": int}


def _is_candidate(op: OpOverload) -> bool:
    """Element-wise, one tensor in and out at least, other arguments tensors or numbers."""
    schema = op._schema
    kinds = [str(one.type) for one in schema.arguments if not one.has_default_value()]
    written = any(one.alias_info and one.alias_info.is_write for one in schema.arguments)
    named = schema.name.startswith("aten::_") or "out" in op._overloadname.split("_")
    return (
        torch.Tag.pointwise in op.tags
        and not (written or named or torch.Tag.nondeterministic_seeded in op.tags)
        and [str(one.type) for one in schema.returns] == ["Tensor"]
        and kinds[:1] == ["Tensor"]
        and all(kind in ("Tensor", *NUMBERS, "Optional[number]") for kind in kinds)
        and not any(word in schema.name for word in ("bitwise", "backward", "special", "copysign"))
    )


def _overloads() -> list[OpOverload]:
    packets = (getattr(torch.ops.aten, name) for name in dir(torch.ops.aten))
    ops = (
        getattr(packet, name)
        for packet in packets
        if hasattr(packet, "overloads")
        for name in packet.overloads()
    )
    return sorted(filter(_is_candidate, ops), key=str)


OPS = _overloads()
WRITES: Sequence[Callable[[Tensor, float], Any]] = (
    lambda t, c: t.add_(c),
    lambda t, c: t.mul_(c),
    lambda t, c: t.clamp_(min=c),
    lambda t, c: t.fill_(c),
    lambda t, c: t.relu_(),
    lambda t, c: t.cos_(),
    lambda t, c: t.masked_fill_(t < c, c),
    lambda t, c: t.copy_(t.detach().clone().sub(c)),
)
VIEWS: Sequence[Callable[[Tensor], Tensor]] = (
    lambda t: t.view(-1, 2, WIDTH // 2),
    lambda t: t.reshape(t.shape),
    lambda t: F.dropout(t, 0.5, training=False),
    lambda t: F.dropout(t, 0.5, training=False, inplace=True),
    lambda t: t.contiguous(),
    lambda t: t.to(torch.float64),
    lambda t: t.type_as(t),
    lambda t: t.mT,
    lambda t: t[:, :2],
    lambda t: t.split([2, WIDTH - 2], 1)[1],
    lambda t: t.chunk(2, 1)[0],
    lambda t: t.unbind(0)[0],
    lambda t: t.unsqueeze(1).expand(-1, 3, -1),
    lambda t: t.flatten(1),
    lambda t: t.detach(),
)


@dataclass(frozen=True)
class Step:
    """One thing that a chain does: ``apply`` an op, ``view`` a value, or ``write`` to one."""

    kind: str
    which: int
    operands: tuple[int, ...]
    numbers: tuple[float, ...]


class Chain(nn.Module):
    """Two layers, steps on what they give, and readers that no weight shields."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, WIDTH), nn.Linear(4, WIDTH)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.register_buffer("table", torch.linspace(-1.0, 1.0, WIDTH))
        self.head = nn.Linear(WIDTH, 3)
        self.steps = tuple(steps)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        constant = torch.full((WIDTH,), 0.5, dtype=x.dtype)
        pool = [self.first(x), self.second(x), self.scale, self.table, constant]
        seen: list[Tensor] = []
        for step in self.steps:
            self._do(step, pool, seen)
        wide = [value for value in pool if value.dim() == 2]
        sums = [value.to(x.dtype).sum(-1) for value in wide]
        rest = [value.to(x.dtype).sum((0, -1)) for value in seen if value.dim() > 1]
        return (self.head(wide[-1].to(x.dtype)), *sums, *rest, *(v.sum(0) for v in seen))[:12]

    def _do(self, step: Step, pool: list[Tensor], seen: list[Tensor]) -> None:
        value = pool[step.operands[0] % 2 if step.kind != "apply" else step.operands[0] % len(pool)]
        if step.kind == "view":
            seen.append(VIEWS[step.which % len(VIEWS)](value))
        elif step.kind == "write":
            targets = [value, *seen]
            target = targets[step.operands[1] % len(targets)]
            if min(target.stride()) > 0:  # an expanded value has no memory of its own
                WRITES[step.which % len(WRITES)](target, step.numbers[0])
        else:
            pool.append(_applied(OPS[step.which % len(OPS)], step, pool))


def _applied(op: OpOverload, step: Step, pool: list[Tensor]) -> Tensor:
    numbers, operands = iter(step.numbers * 4), iter(step.operands * 4)
    given: list[Any] = []
    for argument in op._schema.arguments:
        kind = str(argument.type)
        if argument.has_default_value() and kind not in NUMBERS and kind != "Optional[number]":
            break
        if kind == "Tensor":
            given.append(pool[next(operands) % len(pool)])
        else:
            number = next(numbers)
            given.append(int(number) if kind == "int" else number)
    out: Tensor = op(*given)
    return out.to(torch.float64) + pool[0] * 0 if out.dim() == 1 else out.to(torch.float64)


steps = st.lists(
    st.builds(
        Step,
        st.sampled_from(("apply", "apply", "view", "write")),
        st.integers(0, 10_000),
        st.tuples(*[st.integers(0, 9)] * 3),
        st.tuples(*[st.sampled_from((-1.5, -1.0, -0.25, 0.0, 0.5, 1.0, 2.0))] * 3),
    ),
    min_size=1,
    max_size=5,
)


def parameters_zeroed(model: nn.Module, program: Program) -> nn.Module:
    """The user's model with the units' entries zero in parameters, and in nothing else."""
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name in program.kept.keys() & named.keys():
            for dim, index in enumerate(program.kept[name]):
                if index is not None:
                    gone = torch.ones(named[name].shape[dim], dtype=torch.bool)
                    gone[index] = False
                    named[name].index_fill_(dim, gone.nonzero().flatten(), 0)
    return model


def check(chain: Sequence[Step], seed: int) -> None:
    # Autograd forbids writing to the pieces of a split.
    model, x = randomize(Chain(chain)).double().requires_grad_(False), normal(2, 4).double()
    try:
        with torch.no_grad():
            model(x.clone())
    except (RuntimeError, NotImplementedError, TypeError):
        assume(False)  # an op that these operands do not suit
    program = fx.compile(model, (x,))
    fx.apply(program, RandomSelection(seed))  # each group is cut, and proved
    exact = fx.apply(program, RandomSelection(seed, exact_only=True))
    with torch.no_grad():
        wanted = parameters_zeroed(model, exact)(x.clone())
        found = exact(x.clone())
    for a, b in zip(found, wanted, strict=True):
        assume(bool(torch.isfinite(b).all()))
        scale = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=ROUNDING * scale)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(chain=steps, seed=st.integers(0, 99))
def test_what_is_said_to_be_exact_is_the_model_with_zeroed_parameters(
    chain: list[Step], seed: int
) -> None:
    check(chain, seed)


MAKES_NOTHING: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh": lambda h: F.hardtanh(h, -0.5, 2.0),
    "clamp": lambda h: h.clamp(min=-1.0),
    "threshold": lambda h: F.threshold(h, -0.5, 3.0),
    "sin": torch.sin,
    "zeros": lambda h: h + torch.zeros(WIDTH, dtype=h.dtype),
    "power": lambda h: h**3,
    "where": lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
    "division": lambda h: h / torch.full((WIDTH,), 2.0, dtype=h.dtype),
}


@pytest.mark.parametrize("name", MAKES_SOMETHING)
def test_a_sum_over_what_masking_does_not_make_zero_is_not_exact(name: str) -> None:
    assert not _exact(MAKES_SOMETHING[name])


@pytest.mark.parametrize("name", MAKES_NOTHING)
def test_a_sum_over_zeros_is_exact(name: str) -> None:
    assert _exact(MAKES_NOTHING[name])


def _exact(function: Callable[[Tensor], Tensor]) -> bool:
    # Autograd forbids writing to the pieces of a split.
    model = randomize(Read(function)).double().requires_grad_(False)
    program = fx.compile(model, (normal(2, 4).double(),))
    own = [g for g in program.groups if g.name.partition(":")[2] != "in"]
    return all(group.exact for group in own)


def _written(view: Callable[[Tensor], Tensor], first: bool) -> Callable[[Tensor], Tensor]:
    def function(h: Tensor) -> Tensor:
        h = h + 0
        other = view(h)
        (h if first else other).add_(1.0)
        return (other if first else h).flatten(1)

    return function


ALIASES = {
    "slice": lambda h: h[:, :4],
    "dropout": lambda h: F.dropout(h, 0.5, training=False),
    "split": lambda h: h.split([2, 4], 1)[1],
    "chunk": lambda h: h.chunk(2, 1)[0],
    "reshape": lambda h: h.reshape(-1, 2, 3),
    "contiguous": lambda h: h.contiguous(),
    "to": lambda h: h.to(torch.float64),
    "type_as": lambda h: h.type_as(h),
    "transposed": lambda h: h.mT.mT,
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("name", ALIASES)
def test_a_write_reaches_every_alias(name: str, first: bool) -> None:
    assert not _exact(_written(ALIASES[name], first))
