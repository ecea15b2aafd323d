from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from fxcompress.errors import PlanError
from fxcompress.layers.weights import consumers
from fxcompress.program import Program
from fxcompress.stats import gradients, moments, observe, require_data, unit_signals
from fxcompress.task import Task, as_task

# float64, the same sums in another order
close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


def data(count: int, *shape: int, classes: int = 4, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(classes, (count,), generator=generator)


def cut(pair: tuple[Tensor, Tensor], *sizes: int) -> list[tuple[Tensor, Tensor]]:
    return list(zip(*(each.split(sizes) for each in pair), strict=True))


def program(name: str = "conv_chain", sizes: tuple[int, ...] = (5, 3)) -> Program:
    model, args, kwargs = models.build(name)
    batches = cut(data(sum(sizes), *args[0].shape[1:]), *sizes)
    return fx.compile(model, args, kwargs, task=Task(batches, F.cross_entropy))


def whole(found: Program) -> tuple[Tensor, Tensor]:
    assert found.task is not None
    inputs, labels = zip(*found.task.data, strict=True)
    return torch.cat(inputs), torch.cat(labels)


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


# ---- gradients


@pytest.mark.parametrize("name", ["conv_chain", "projected_residual", "flatten_head"])
def test_gradients_are_those_of_the_whole_data_at_once(name: str) -> None:
    found = program(name)
    model, _, _ = models.build(name)
    inputs, labels = whole(found)
    F.cross_entropy(model(inputs), labels).backward()

    result = gradients(found)

    assert result.samples == 8
    assert all(parameter.grad is None for parameter in found.module.parameters())
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None
        close(result.mean[key], parameter.grad)


def test_gradients_leave_the_user_s_parameters_alone() -> None:
    found = program()
    for number, parameter in enumerate(found.module.parameters()):
        parameter.requires_grad_(number % 2 == 0)
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    before = [(p.requires_grad, p.grad, p.clone()) for p in found.module.parameters()]
    gradients(found, squares=True)
    for parameter, (required, grad, value) in zip(found.module.parameters(), before, strict=True):
        assert parameter.requires_grad is required
        assert parameter.grad is grad
        assert torch.equal(parameter, value)


def test_squares_are_of_the_gradients_of_single_samples() -> None:
    found = program()
    model, _, _ = models.build("conv_chain")
    inputs, labels = whole(found)
    total = {key: torch.zeros_like(value) for key, value in model.named_parameters()}
    for x, y in zip(inputs, labels, strict=True):
        model.zero_grad()
        F.cross_entropy(model(x[None]), y[None]).backward()
        for key, parameter in model.named_parameters():
            assert parameter.grad is not None
            total[key] += parameter.grad.square() / len(inputs)

    result = gradients(found, squares=True)

    for key, square in total.items():
        close(result.square[key], square)
    plain = gradients(found)
    close(result.mean["head.weight"], plain.mean["head.weight"])


@pytest.mark.parametrize("name", ["conv_chain", "projected_residual"])
def test_a_tap_gets_the_value_and_its_gradient_also_before_it_is_overwritten(name: str) -> None:
    """With F the rows of a map without a bias and g at its output, Σ g·output = ⟨F, ∂L/∂F⟩."""
    found = program(name)
    pairs = {
        node.name: str(node.args[1])
        for node in found.module.graph.nodes
        if "conv2d" in str(node.target)
    }
    sums = dict.fromkeys(pairs, torch.zeros(()))

    def tap(key: str, value: Tensor, grad: Tensor) -> None:
        sums[key] = sums[key] + (value * grad).sum()

    taps: Any = {key: lambda v, g, key=key: tap(key, v, g) for key in pairs}
    result = gradients(found, taps=taps)

    by_node = {node.name: str(node.target) for node in found.module.graph.nodes}
    for key, weight in pairs.items():
        parameter = by_node[weight]
        inner = (result.mean[parameter] * found.module.get_parameter(parameter)).sum()
        close(sums[key] / result.samples, inner)


def test_taps_work_where_no_parameter_is_asked_for() -> None:
    found, seen = program(), []
    result = gradients(found, (), {("relu", "relu_1"): lambda v, g: seen.append((v, g))})
    assert not result.mean
    assert [(len(v), len(g)) for v, g in seen] == [(5, 5), (3, 3)]
    assert all(v.shape[1] == 6 and g.shape[1] == 10 for v, g in seen)


# ---- moments


@pytest.mark.parametrize("name", ["conv_chain", "flatten_head", "projected_residual"])
def test_moments_do_not_depend_on_how_the_data_are_cut_or_ordered(name: str) -> None:
    found = program(name, (5, 3))
    pair = whole(found)
    order = torch.randperm(8)
    shuffled = cut((pair[0][order], pair[1][order]), 1, 6, 1)
    groups = [group for group in found.groups if consumers(found, group)]

    first = moments(found, groups)
    again = replace(found, task=Task(shuffled))
    second = moments(again, [again.group(group.name) for group in groups])

    for group in groups:
        for part in ("gram", "mean", "variance", "covariance"):
            close(getattr(first[group], part), getattr(second[again.group(group.name)], part))


def test_every_position_of_a_map_is_a_sample() -> None:
    found = program()
    group = found.group("first.0")
    seen: list[Tensor] = []
    observe(found, {"relu": lambda value: seen.append(value.clone())})
    rows = torch.cat(seen).movedim(1, 0).flatten(1)

    result = moments(found, [group])[group]

    assert result.count == rows.shape[1] == 8 * 8 * 6
    close(result.gram[0], rows @ rows.T / result.count)
    close(result.mean[0], rows.mean(1))
    close(result.variance[0], rows.var(1))
    close(result.covariance[0], rows.cov(correction=0))


def test_positions_of_a_flattened_map_are_samples_and_places() -> None:
    found = program("flatten_head")
    group = found.group("conv")
    seen: list[Tensor] = []
    observe(found, {"view": lambda value: seen.append(value.clone())})
    value = torch.cat(seen).reshape(8, 6, 6)  # samples, channels, positions
    rows = value.permute(1, 0, 2).reshape(6, -1)

    result = moments(found, [group])[group]
    places = moments(found, [group], gram="places")[group]

    close(result.gram[0], rows @ rows.T / 48)
    assert result.features is not None
    close(result.features.mean[0], value.mean(0))
    close(result.features.variance[0], value.var(0))
    flat = value.flatten(1)
    close(places.gram[0], flat.T @ flat / 8)
    close(places.variance[0], flat.var(0))


@pytest.mark.parametrize("name", ["mlp", "fused_attention", "rotary_grouped_attention"])
def test_the_columns_of_a_consumer_stand_as_its_inputs_do(name: str) -> None:
    """Summed over cells, units and places, columns times signals are the consumer's output."""
    model, args, kwargs = models.build(name)
    found = fx.compile(model, args, kwargs, task=[args[0]])
    axes = found.analysis.coupling.axes
    kept: dict[str, Tensor] = {}
    taps: Any = {key: lambda value, key=key: kept.update({key: value.clone()}) for key in axes}
    observe(found, taps)
    checked = 0
    for group in found.groups:
        for one in (c for c in consumers(found, group) if c.node.startswith("linear")):
            value = unit_signals(kept[one.value], axes[one.value], group.factor, group.over)
            weight = found.module.get_parameter(one.weight)
            held = found.analysis.axes(one.weight)
            columns = unit_signals(weight, held, group.factor, group.over, one.site.dim)
            assert columns.shape[:3] == value.shape[:3]
            out = torch.einsum("cupo,cups->so", columns, value)
            expected = F.linear(kept[one.value], weight).flatten(0, -2)
            close(out, expected)
            checked += 1
    assert checked


def test_queries_and_keys_have_no_moments() -> None:
    model, args, kwargs = models.build("fused_attention")
    found = fx.compile(model, args, kwargs, task=[args[0]])
    with pytest.raises(PlanError, match=r"no layer reads group qkv:qk \(qk\)"):
        moments(found, [found.group("qkv:qk")], who="least squares")


# ---- bad data


class Once:
    """Says it has more batches than it gives."""

    def __init__(self, batches: list[Any], length: int) -> None:
        self.batches, self.length = batches, length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class Restless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


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
