"""Gradients over data: of parameters, of single samples, of values in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import models
from calibrated import close, program, whole
from fxcompress.stats import gradients


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
