"""Values of nodes over a task's data, and data that are refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from calibrated import close, data, program, whole
from fxcompress.errors import PlanError
from fxcompress.program import Program
from fxcompress.stats import gradients, moments, observe, require_data
from fxcompress.task import Task, as_task

# ---- values


def test_observed_values_are_those_of_the_model_in_evaluation() -> None:
    found = program()
    found.module.train()
    seen: list[Tensor] = []

    count = observe(found, {"linear": lambda value: seen.append(value.clone())})

    assert count == 8
    assert found.module.training
    found.module.eval()
    close(torch.cat(seen), found.module(whole(found)[0]))


def test_a_number_of_samples_cuts_the_last_batch() -> None:
    seen: list[int] = []
    assert observe(program(), {"linear": lambda v: seen.append(len(v))}, samples=6) == 6
    assert seen == [5, 1]


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.layer(x) * scale  # type: ignore[no-any-return]


def test_batches_may_name_the_inputs_and_the_labels() -> None:
    x, scale, labels = torch.randn(4, 4), torch.ones(4, 3), torch.randint(3, (4,))
    batch = {"x": x, "scale": scale, "labels": labels}
    found = fx.compile(
        Named(), kwargs={"x": x, "scale": scale}, task=Task([batch], F.cross_entropy)
    )
    assert gradients(found).mean["layer.weight"].shape == (3, 4)
    assert found.task is not None
    assert observe(found, {}) == 4


def test_batches_alone_are_a_task() -> None:
    model, args, _ = models.build("mlp")
    assert observe(fx.compile(model, args, task=[args[0]]), {}) == len(args[0])


@pytest.mark.parametrize("task", [torch.zeros(3, 4), 3, "data", {"x": torch.zeros(2)}])
def test_what_is_no_data_is_refused(task: Any) -> None:
    with pytest.raises(PlanError, match=r"holds no batches; give a loader"):
        as_task(task)


# ---- bad data


class Once:
    """Says it has more batches than it gives."""

    def __init__(self, batches: list[Any], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def with_task(task: Any) -> Program:
    return replace(program(), task=task)


PAIR = data(4, 3, 8, 6)
BAD: dict[str, tuple[Any, str]] = {
    "no task": (None, r"Method looks at data and there are none; pass task="),
    "empty": (Task([], F.cross_entropy), r"the task's data are empty"),
    "a generator": (Task((p for p in [PAIR]), F.cross_entropy), r"generator can be.*list\(data\)"),
    "ends early": (Task(Once([PAIR], 3), F.cross_entropy), r"end after 1 of 3 batches"),
    "no loss": (Task([PAIR]), r"Method needs a loss; pass task=Task\(data, loss"),
    "no labels": (Task([PAIR[0]], F.cross_entropy), r"needs labels, and batch 1 of the data"),
    "not finite": (Task([PAIR], lambda out, y: out.sum() * torch.nan), r"the loss is nan"),
    "a vector": (Task([PAIR], lambda out, y: out.sum(1)), r"one number.*gives \(4,\)"),
    "detached": (Task([PAIR], lambda out, y: out.detach().sum()), r"depends on no parameter"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_are_refused_in_words(case: str) -> None:
    task, words = BAD[case]
    with pytest.raises(PlanError, match=words):
        gradients(with_task(task), who="Method")


def test_a_forward_pass_that_draws_is_refused() -> None:
    task = Task([PAIR], F.cross_entropy, forward=lambda net, x: net(x + torch.randn_like(x)))
    with pytest.raises(PlanError, match=r"two runs on the same batch differ.*seed it"):
        observe(with_task(task), {})

    def seeded(net: Any, x: Tensor) -> Any:
        generator = torch.Generator().manual_seed(0)
        return net(x + torch.randn(x.shape, generator=generator, dtype=x.dtype))

    assert observe(with_task(Task([PAIR], forward=seeded)), {}) == 4


def test_names_that_are_no_nodes_or_parameters_are_refused() -> None:
    with pytest.raises(PlanError, match=r"nowhere, which are no nodes"):
        observe(program(), {"nowhere": lambda value: None})
    with pytest.raises(PlanError, match=r"parameters names nowhere: no parameter"):
        gradients(program(), ["nowhere"])


def test_values_that_are_not_finite_are_named() -> None:
    found = with_task(Task([torch.full((2, 3, 8, 6), torch.inf, dtype=torch.float64)]))
    with pytest.raises(PlanError, match=r"not finite|differ by"):
        moments(found, [found.group("first.0")])


def test_data_are_needed_before_anything_runs() -> None:
    with pytest.raises(PlanError, match=r"FLAP looks at data"):
        require_data(with_task(None), "FLAP")
