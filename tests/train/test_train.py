from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import models
from fxcompress.capture import capture
from fxcompress.errors import FxCompressError
from fxcompress.task import Task
from fxcompress.train import Progress, Trainer, evaluate, recalibrate

DTYPE = torch.float64


class Noisy(nn.Module):
    """BatchNorm, which differs between training and evaluation, and dropout, which draws."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(F.relu(self.norm(self.first(x)))))  # type: ignore[no-any-return]


def task(batches: int = 4, size: int = 8) -> Task:
    generator = torch.Generator().manual_seed(3)
    weights = torch.randn(4, 3, generator=generator, dtype=DTYPE)
    data = []
    for _ in range(batches):
        inputs = torch.randn(size, 4, generator=generator, dtype=DTYPE)
        data.append((inputs, (inputs @ weights).argmax(1)))
    return Task(data, F.cross_entropy, lambda out, y: (out.argmax(1) == y).double().mean().item())


def net() -> nn.Module:
    return models.randomize(Noisy()).to(DTYPE)


def captured() -> nn.Module:
    return capture(net(), (torch.zeros(2, 4, dtype=DTYPE),)).module


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_captured_module_learns(optimizer: Any) -> None:
    module, data = captured(), task()
    before = evaluate(module, data)

    losses = Trainer(epochs=20, lr=0.02, optimizer=optimizer).fit(module, data)

    assert losses[-1] < losses[0]
    assert evaluate(module, data) > max(before, 0.6)
    assert not module.training


def test_a_captured_module_trains_exactly_like_the_model_it_was() -> None:
    model, module = net(), captured()
    recipe = Trainer(epochs=2, lr=0.1, weight_decay=0.01, seed=5)

    assert recipe.fit(model, task()) == recipe.fit(module, task())
    for name, value in module.state_dict().items():
        if name.endswith("num_batches_tracked"):  # a captured module counts none
            continue
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-12, atol=1e-12)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_generator_alone() -> None:
    first, second, other = captured(), captured(), captured()
    drawn = torch.get_rng_state()

    Trainer(seed=1).fit(first, task())
    Trainer(seed=1).fit(second, task())
    Trainer(seed=2).fit(other, task())

    assert torch.equal(torch.get_rng_state(), drawn)
    pairs = zip(state(first).values(), state(second).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(state(first)["last.weight"], state(other)["last.weight"])


def test_the_rate_rises_and_falls() -> None:
    recipe = Trainer(epochs=10, lr=1.0, warmup=2)
    rates = [recipe.rate(epoch / 4) for epoch in range(41)]

    assert rates.index(max(rates)) == 8
    assert rates[:9] == sorted(rates[:9])
    assert rates[8:] == sorted(rates[8:], reverse=True)
    assert rates[-1] == pytest.approx(0)
    assert Trainer(epochs=10, lr=0.3, schedule="constant").rate(7.5) == 0.3


def test_progress_counts_every_batch() -> None:
    seen: list[Progress] = []
    Trainer(epochs=2).fit(captured(), task(batches=3), seen.append)

    assert [(now.epoch, now.batch) for now in seen] == [(e, b) for e in (1, 2) for b in (1, 2, 3)]
    assert all(now.batches == 3 and now.epochs == 2 for now in seen)


@pytest.mark.parametrize("make", [net, captured])
def test_recalibrated_statistics_are_those_of_the_data(make: Any) -> None:
    module, data = make(), task(batches=2, size=16)
    before, example = state(module), torch.randn(5, 4, dtype=DTYPE)

    renewed = recalibrate(module, data)

    weight, bias = before["first.weight"], before["first.bias"]
    features = [inputs @ weight.T + bias for inputs, _ in data.data]
    mean = torch.stack([f.mean(0) for f in features]).mean(0)
    variance = torch.stack([f.var(0) for f in features]).mean(0)
    after = state(module)
    assert renewed == 2
    torch.testing.assert_close(after["norm.running_mean"], mean)
    torch.testing.assert_close(after["norm.running_var"], variance)
    assert torch.equal(after["first.weight"], weight)
    # The mode is as it was: evaluation, which draws nothing.
    assert torch.equal(module(example), module(example))
    assert not module.training


def test_recalibrating_again_changes_nothing() -> None:
    module, data = captured(), task()
    recalibrate(module, data)
    once = state(module)
    recalibrate(module, data)

    assert all(
        torch.equal(a, b) for a, b in zip(once.values(), state(module).values(), strict=True)
    )


def test_recalibration_may_stop_early_and_needs_no_norm() -> None:
    data = task(batches=3)
    first, short = captured(), captured()
    recalibrate(first, data, batches=1)
    recalibrate(short, Task(list(data.data)[:1]))

    pairs = zip(state(first).values(), state(short).values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert recalibrate(nn.Linear(4, 3, dtype=DTYPE), data) == 0


def test_evaluation_weighs_batches_by_size_and_keeps_the_mode() -> None:
    sizes = Task([(torch.ones(1, 4), 0), (torch.ones(3, 4), 1)], metric=lambda _, label: label)
    module = nn.Linear(4, 3)

    assert evaluate(module, sizes) == pytest.approx(0.75)
    assert module.training


def test_a_task_says_how_the_model_is_called() -> None:
    data = Task(
        [({"x": torch.full((2, 4), 3.0)}, None)],
        metric=lambda out, _: out.mean().item(),
        forward=lambda model, inputs: model(inputs["x"]),
    )
    assert evaluate(nn.Identity(), data) == 3.0


@pytest.mark.parametrize(
    ("recipe", "data", "message"),
    [
        (Trainer(), Task([(torch.ones(2, 4, dtype=DTYPE), 0)]), "has no loss"),
        (Trainer(), Task([], F.cross_entropy), "data are empty"),
        (Trainer(lr=1e30, clip=None, epochs=9), task(), "lower lr"),
    ],
)
def test_what_cannot_be_trained_is_refused(recipe: Trainer, data: Task, message: str) -> None:
    with pytest.raises(FxCompressError, match=message):
        recipe.fit(captured(), data)


def test_frozen_parameters_and_senseless_recipes_are_refused() -> None:
    with pytest.raises(FxCompressError, match="requires a gradient"):
        Trainer().fit(captured().requires_grad_(False), task())
    with pytest.raises(FxCompressError, match="epochs must be an int in"):
        Trainer(epochs=0)
    with pytest.raises(FxCompressError, match="no metric"):
        evaluate(captured(), Task([]))


def test_a_loss_that_hangs_on_nothing_trained_is_refused() -> None:
    """The norm here is computed and never used."""

    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.norm(x)
            return self.head(x)  # type: ignore[no-any-return]

    net = Unused()
    net.head.requires_grad_(False)
    with pytest.raises(FxCompressError, match="training: the loss depends on no parameter"):
        Trainer(epochs=1).fit(net, Task([(torch.ones(3, 4), torch.zeros(3, 2))], F.mse_loss))
