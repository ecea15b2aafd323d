"""SliceGPT: turning a stream changes nothing, cutting it follows the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.plan import Plan
from fxcompress.edit.rewrite import rewrite
from fxcompress.errors import PlanError
from fxcompress.passes import PrincipalAxes, SliceGPT
from fxcompress.passes.slicegpt.method import sliced
from fxcompress.program import Program
from models import build, normal, randomize

WIDTH, TOKENS = 8, 11


class SpelledOut(nn.Module):
    """An RMS norm as many models write it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        square = x.to(torch.float64).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(square + 1e-6)).to(x.dtype)


class Stream(nn.Module):
    """Blocks of a gated MLP on a residual stream, with every kind of RMS norm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.norms = nn.ModuleList(
            [nn.RMSNorm(WIDTH, eps=1e-6), SpelledOut(WIDTH),
             nn.RMSNorm(WIDTH, eps=1e-6, elementwise_affine=False)]
        )  # fmt: skip
        self.gate = nn.ModuleList(nn.Linear(WIDTH, 5) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(5, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for norm, gate, down in zip(self.norms, self.gate, self.down, strict=False):
            x = x + down(nn.functional.silu(gate(norm(x))))
        logits: Tensor = self.head(self.norms[2](x))
        return logits


def _tokens(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(TOKENS, (batch, 6), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stream() -> Program:
    net = randomize(Stream()).double()
    return fx.compile(net, (_tokens(),), task=[_tokens(4, 1), _tokens(2, 2)])


def _cut(found: Program, basis: Tensor) -> Any:
    (group,) = (group for group in found.groups if group.kind == "residual")
    plan = Plan(sliced(found, group, basis))
    return rewrite(found.module, found.analysis.coupling, plan).module


def test_turning_a_stream_changes_nothing(stream: Program) -> None:
    (group,) = (group for group in stream.groups if group.kind == "residual")
    plan = Plan(PrincipalAxes().edits(stream, group, torch.arange(WIDTH)))
    turned = rewrite(stream.module, stream.analysis.coupling, plan).module
    tokens = _tokens(5, 3)
    torch.testing.assert_close(turned(tokens), stream(tokens), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(
        turned.get_parameter("embed.weight"), stream.module.get_parameter("embed.weight")
    )


@given(st.integers(0, 2**30))
def test_any_rotation_will_do(stream: Program, seed: int) -> None:
    basis = torch.linalg.qr(normal(WIDTH, WIDTH, seed=seed).double()).Q
    tokens = _tokens(2, 4)
    torch.testing.assert_close(_cut(stream, basis)(tokens), stream(tokens), rtol=1e-10, atol=1e-10)


def test_axes_in_which_nothing_lies_can_be_cut_without_loss(stream: Program) -> None:
    """A stream in a subspace keeps its norm divisor, so nothing shows (but for a share of eps)."""
    net = Stream()
    randomize(net).double()
    axes = torch.linalg.qr(normal(WIDTH, 5, seed=7).double()).Q
    with torch.no_grad():
        net.embed.weight.copy_(net.embed.weight @ axes @ axes.mT)
        for down in net.down:
            assert isinstance(down, nn.Linear)
            down.weight.copy_(axes @ axes.mT @ down.weight)
            down.bias.copy_(axes @ axes.mT @ down.bias)
    found = fx.compile(net, (_tokens(),), task=[_tokens(4, 1)])
    small = fx.apply(found, SliceGPT(ratio=3 / 8, round_to=1))
    assert small.module.get_parameter("embed.weight").shape == (TOKENS, 5)
    tokens = _tokens(5, 3)
    torch.testing.assert_close(small(tokens), found(tokens), rtol=1e-4, atol=1e-4)


def test_what_is_left_follows_the_formula(shared: Path) -> None:
    with np.load(shared / "golden" / "slicegpt.npz") as arrays:
        golden = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    width, kept, eps = 6, int(golden["k"]), 1e-5

    class Fused(nn.Module):
        def __init__(self, eps: float) -> None:
            super().__init__()
            self.enter = nn.Linear(width, width, bias=False)
            self.norm, self.reader = nn.RMSNorm(width, eps=eps), nn.Linear(width, 5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.reader(self.norm(self.enter(x)))
            return y

    def cut(count: int) -> Tensor:
        net = Fused(eps * width / count).double()  # of which count / width is left
        with torch.no_grad():
            net.enter.weight.copy_(torch.eye(width))
            net.norm.weight.copy_(golden["ln_gamma"])
            net.reader.weight.copy_(golden["W_fused"] / golden["ln_gamma"])
            net.reader.bias.copy_(golden["b_fused"])
        found = fx.compile(net, (golden["X_centered"],))
        plan = Plan(sliced(found, found.group("enter"), golden["Q"][:, :count]))
        small = rewrite(found.module, found.analysis.coupling, plan).module
        result: Tensor = small(golden["X_centered"])
        return result

    close = {"rtol": 1e-9, "atol": 1e-10}
    torch.testing.assert_close(cut(width), golden["out_rotated"], **close)  # type: ignore[arg-type]
    torch.testing.assert_close(cut(kept), golden["out_sliced_div_d"], **close)  # type: ignore[arg-type]


def test_axes_are_ranked_by_their_variance(stream: Program) -> None:
    (group,) = (group for group in stream.groups if group.kind == "residual")
    score = PrincipalAxes().score(stream, group)
    assert bool((score.diff() <= 0).all())
    count = 3 * 6 * 6  # norms, stories, tokens: every sample of mean square one
    torch.testing.assert_close(score.sum(), torch.tensor(float(count * WIDTH)).double())


def test_a_budget_is_met(stream: Program) -> None:
    small = fx.apply(stream, SliceGPT(budget=fx.Budget(params=0.6)))
    assert small.report.params.ratio <= 0.6
    assert repr(SliceGPT(ratio=0.5)) == "SliceGPT(ratio=0.5)"


# ---- refusals


def test_a_tied_head_is_refused_with_the_way_out() -> None:
    net = Stream()
    randomize(net)
    net.head.weight = net.embed.weight
    found = fx.compile(net, (_tokens(),), task=[_tokens()])
    with pytest.raises(PlanError, match=r"both writes and reads the stream.*untie it"):
        SliceGPT(ratio=0.5).plan(found)


def test_without_data_there_are_no_axes(stream: Program) -> None:
    found = fx.compile(randomize(Stream()), (_tokens(),))
    with pytest.raises(PlanError, match="SliceGPT looks at data and there are none"):
        SliceGPT(ratio=0.5).plan(found)


def test_what_is_no_stream_is_refused() -> None:
    model, args, _ = build("mlp")
    found = fx.compile(model, args, task=[args[0]])
    with pytest.raises(PlanError, match="looks at its units one by one"):
        SliceGPT(ratio=0.5, dims=()).plan(found)


def test_a_llama_of_transformers_is_turned() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=TOKENS, hidden_size=16, intermediate_size=10, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False, use_cache=False,
    )  # fmt: skip
    net = randomize(transformers.LlamaForCausalLM(config)).double()
    found = fx.compile(net, (), {"input_ids": _tokens()}, task=[{"input_ids": _tokens(4, 1)}])
    (group,) = (group for group in found.groups if group.kind == "residual")
    plan = Plan(PrincipalAxes().edits(found, group, torch.arange(16)))
    turned = rewrite(found.module, found.analysis.coupling, plan).module
    expected = found(input_ids=_tokens(2, 5))[0]
    # Its norms compute in float32, whatever the weights are.
    torch.testing.assert_close(turned(input_ids=_tokens(2, 5))[0], expected, rtol=1e-5, atol=1e-5)
    small = fx.apply(found, SliceGPT(ratio=0.25, round_to=1))
    assert small.module.get_parameter("lm_head.weight").shape == (TOKENS, 12)
