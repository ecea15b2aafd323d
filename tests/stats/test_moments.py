"""Moments of units over data, whatever the batches and positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from calibrated import close, cut, program, whole
from fxcompress.errors import PlanError
from fxcompress.layers.weights import consumers
from fxcompress.stats import moments, observe, unit_signals
from fxcompress.task import Task


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
