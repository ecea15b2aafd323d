"""IPPRO on small nets: every array of the reference, out of values, gradients and criterion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.passes.ippro.injection import by_graph, by_hooks
from fxcompress.passes.ippro.method import PROscore
from fxcompress.passes.ippro.scores import Filters
from fxcompress.passes.ippro.targets import Target, find_targets
from fxcompress.program import Program
from fxcompress.stats import gradients
from fxcompress.task import Task
from references import Arrays, close, read

Collect = Callable[..., Any]
COLLECT = pytest.mark.parametrize("collect", [by_graph, by_hooks])

# ---- convolution, norm, ReLU


class Channels(nn.Module):
    """Convolution, norm, ReLU, mean over positions, linear.

    A norm that is not affine leaves the filter to the convolution. It computes the same with the
    statistics for which 1/s' = g/s and mean' = mean - b s/g, with g above zero.
    """

    def __init__(self, arrays: Arrays, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1, bias=False)
        eps = float(arrays["eps"])
        self.norm = nn.BatchNorm2d(5, eps=eps, affine=affine)
        self.head = nn.Linear(5, 3)
        spread = (arrays["running_var"] + eps).sqrt() / arrays["gamma"]
        mean, variance = arrays["running_mean"], arrays["running_var"]
        if not affine:
            mean, variance = mean - arrays["beta"] * spread, spread.square() - eps
        values = {
            "conv.weight": arrays["Wc"], "head.weight": arrays["Wl"], "head.bias": arrays["bl"],
            "norm.weight": arrays["gamma"], "norm.bias": arrays["beta"],
            "norm.running_mean": mean, "norm.running_var": variance,
        }  # fmt: skip
        own = self.double().state_dict()
        self.load_state_dict({k: v for k, v in values.items() if k in own}, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def channels(shared: Path) -> Arrays:
    return read(shared, "ippro_conv_bn_relu")


def compiled(arrays: Arrays, net: nn.Module) -> Program:
    """In two batches. The loss of the reference is a sum over its 8 samples; ours are means."""
    batches = list(zip(arrays["X"].split(5), arrays["y"].split(5), strict=True))
    task = Task(batches, lambda output, labels: 8 * F.cross_entropy(output, labels))
    return fx.compile(net.eval(), (arrays["X"],), task=task)


def target_of(found: Program, name: str) -> Target:
    (target,) = find_targets(found, found.group(name))
    return target


def test_the_net_has_the_reference_outputs_and_gradients(channels: Arrays) -> None:
    found = compiled(channels, Channels(channels))
    logits = found(channels["X"]).detach()
    close(logits, channels["logits"])
    close(F.cross_entropy(logits, channels["y"], reduction="sum"), channels["loss"])
    names = {"conv.weight": "grad_Wc", "norm.weight": "grad_gamma", "norm.bias": "grad_beta"}
    mean = gradients(found, list(names)).mean
    for name, key in names.items():
        close(mean[name], channels[key])


def test_value_and_gradient_at_the_activation_are_the_reference_ones(channels: Arrays) -> None:
    found = compiled(channels, Channels(channels))
    (place,) = target_of(found, "conv").places
    seen: list[tuple[Tensor, Tensor]] = []
    gradients(found, [], {(place.input, place.output): lambda *both: seen.append(both)})
    values, grads = zip(*seen, strict=True)
    close(torch.cat(values).detach(), channels["x_act"])
    close(torch.cat(grads) / len(channels["X"]), channels["grad_a"])


@COLLECT
@pytest.mark.parametrize("target", ["bn", "conv"])
def test_filters_and_their_signals_are_the_reference_ones(
    channels: Arrays, target: str, collect: Collect
) -> None:
    found = compiled(channels, Channels(channels, target == "bn"))
    layer = filters_of(found, target_of(found, "conv"), collect)
    close(layer.value[0, :, 0], channels[f"{target}_F"])
    close(layer.grad[0, :, 0], channels[f"{target}_gradF"])
    close(layer.signal[0, :, 0], channels["dD"])
    if target == "bn":  # scale and shift enter in one piece where the ReLU lets them through
        close(layer.taylor[0, :, 0], channels["dD_pos"])
        close((layer.signal - layer.taylor)[0, :, 0], channels["dD_neg"])


def filters_of(found: Program, target: Target, collect: Collect) -> Filters:
    mean, signals = collect(found, [target], target.names)
    parts = [signals[target.group, place] for place in target.places]
    return target.filters(found, mean.mean, sum(parts) if parts else None)


@pytest.mark.parametrize("injection", ["graph", "hook"])
@pytest.mark.parametrize("target", ["bn", "conv"])
def test_channels_have_the_reference_scores(
    channels: Arrays, target: str, injection: Literal["graph", "hook"]
) -> None:
    found = compiled(channels, Channels(channels, target == "bn"))
    group = found.group("conv")
    for lam, wanted in zip(channels["lambdas"], channels[f"{target}_proscore"], strict=True):
        close(PROscore(lam=float(lam), injection=injection).score(found, group)[0], wanted)
    close(PROscore(form="slope").score(found, group)[0], channels[f"{target}_slope"])


def test_a_channel_scaled_up_keeps_only_its_scale_free_score(channels: Arrays) -> None:
    """Norm times c, what reads it by c: the net computes the same."""
    scale = channels["rescale_c"]
    own = {"gamma": scale * channels["gamma"], "beta": scale * channels["beta"],
           "Wl": channels["Wl"] / scale}  # fmt: skip
    found, other = (compiled(channels, Channels(each)) for each in (channels, channels | own))
    close(other(channels["X"]), found(channels["X"]))
    group = other.group("conv")
    score = PROscore(lam=0.01).score(other, group)[0]
    close(score, channels["rescaled_proscore_lam0.01"])
    free = PROscore(lam=0.01, scale_free=True)
    close(free.score(other, group)[0], channels["scalefree_rescaled_lam0.01"])
    close(free.score(found, found.group("conv"))[0], channels["scalefree_lam0.01"])
    assert not torch.allclose(score, channels["bn_proscore"][2])  # of the same step, 0.01


# ---- attention


class Attention(nn.Module):
    def __init__(self, arrays: Arrays) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 6) for _ in range(3))
        self.o = nn.Linear(6, 6, bias=False)
        self.double()
        weights = {f"{n}.weight": arrays[f"W{n}"] for n in "qkvo"}
        self.load_state_dict(weights | {f"{n}.bias": arrays[f"b{n}"] for n in "qkv"})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(2, (2, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        heads = F.scaled_dot_product_attention(q, k, v)
        return self.o(heads.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def attention(shared: Path) -> Arrays:
    return read(shared, "ippro_attention")


@pytest.fixture(scope="module")
def attending(attention: Arrays) -> Program:
    task = Task(
        [(attention["X"], attention["target"])],
        lambda output, wanted: (output - wanted).square().sum(),
    )
    return fx.compile(Attention(attention).eval(), (attention["X"],), task=task)


def test_attention_has_the_reference_loss(attention: Arrays, attending: Program) -> None:
    assert attending.task is not None
    assert attending.task.loss is not None
    loss = attending.task.loss(attending(attention["X"]), attention["target"])
    close(loss.detach(), attention["loss"])


@COLLECT
@pytest.mark.parametrize("name", ["q", "k", "v"])
def test_rows_of_heads_are_the_reference_ones(
    attention: Arrays, attending: Program, name: str, collect: Collect
) -> None:
    """Filter, its gradient with the bias last, the place on the cone, and the score there."""
    layer = row_of(attending, name, collect)
    close(layer.value, torch.cat([attention[f"W{name}"], attention[f"b{name}"][:, None]], 1))
    close(layer.grad, attention[f"{name}_gradF"])
    close(layer.gain, attention[f"{name}_m"])
    close(1 / layer.gain - 1, attention[f"{name}_D"])
    close(layer.gain * layer.taylor, attention[f"{name}_dD"])
    scores = layer.proscore(0.01)
    close(scores, attention[f"{name}_proscore_lam0.01"])
    close(scores.reshape(2, 3).mean(0), attention[f"{name}_proscore_head_avg"])


def row_of(found: Program, name: str, collect: Collect) -> Filters:
    """The filters of one layer, over both heads."""
    for group in found.groups:
        for target in [] if group.frozen else find_targets(found, group):
            if target.producer.weight == f"{name}.weight" and group.kind in ("qk", "vo"):
                layer = filters_of(found, target, collect)
                value, grad = layer.value.flatten(0, 2), layer.grad.flatten(0, 2)
                return Filters(value, grad, torch.zeros(6), layer.bare)
    raise AssertionError(name)


def test_groups_of_heads_have_the_reference_scores(attention: Arrays, attending: Program) -> None:
    groups = {group.kind: group for group in attending.groups if group.kind in ("qk", "vo")}
    each, mean = PROscore(lam=0.01), PROscore(lam=0.01, cells="mean")
    close(each.score(attending, groups["qk"]).flatten(), attention["qk_joint"])
    close(each.score(attending, groups["vo"]).flatten(), attention["v_proscore_lam0.01"])
    both = (attention["q_proscore_head_avg"] + attention["k_proscore_head_avg"]) / 2
    for kind, wanted in (("qk", both), ("vo", attention["v_proscore_head_avg"])):
        for head in mean.score(attending, groups[kind]):
            close(head, wanted)
