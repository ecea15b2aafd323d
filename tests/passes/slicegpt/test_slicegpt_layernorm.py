"""SliceGPT under LayerNorms: they stay, and take the narrower stream's mean out themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Plan
from fxcompress.edit.rewrite import rewrite
from fxcompress.errors import PlanError
from fxcompress.export import check, to_onnx
from fxcompress.passes import PrincipalAxes, SliceGPT
from fxcompress.passes.slicegpt.axes import even, mean_first, principal_axes
from fxcompress.passes.slicegpt.method import sliced
from fxcompress.program import Program
from models import normal, randomize
from nets_sequence import attend
from programs import program
from references import close

WIDTH, TOKENS, LENGTH = 8, 11, 6
EXACT = {"rtol": 1e-10, "atol": 1e-10}  # float64, a few dozen products one after another


class Block(nn.Module):
    """Attention and an MLP, each behind a norm, with biases all over."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * 4, bias=False), nn.Linear(4, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.before(x)).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in parts)
        x = x + self.out(attend(q, k, v))
        return x + self.down(F.gelu(self.up(self.between(x))))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Tokens and places from tables, two blocks, and a last norm before the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.start = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm: nn.Module = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, TOKENS)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place(torch.arange(LENGTH)) + self.start
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def tokens(batch: int = 3, seed: int = 0) -> Tensor:
    return torch.randint(TOKENS, (batch, LENGTH), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def transformer() -> Program:
    net = randomize(Transformer()).double()
    return fx.compile(net, (tokens(),), task=[tokens(4, 1), tokens(2, 2)])


def stream_of(found: Program) -> ChannelGroup:
    (group,) = (group for group in found.groups if group.kind == "residual")
    return group


def rewritten(found: Program, edits: Sequence[Any]) -> Any:
    return rewrite(found.module, found.analysis.coupling, Plan(tuple(edits))).module


# ---- nothing cut


def test_turning_a_stream_under_layer_norms_changes_nothing(transformer: Program) -> None:
    group = stream_of(transformer)
    turned = rewritten(transformer, PrincipalAxes().edits(transformer, group, torch.arange(WIDTH)))
    x = tokens(5, 3)
    torch.testing.assert_close(turned(x), transformer(x), **EXACT)  # type: ignore[arg-type]
    before = transformer.module.get_parameter("embed.weight")
    assert not torch.allclose(turned.get_parameter("embed.weight"), before)
    for norm in ("blocks.0.before", "blocks.1.between", "norm"):
        # Sums of eight numbers below 1.
        close(turned.get_parameter(f"{norm}.weight").detach(), torch.ones(WIDTH).double())
        assert not turned.get_parameter(f"{norm}.bias").any()


def test_a_stream_under_norms_of_both_kinds_is_turned() -> None:
    net = Transformer()
    net.norm = nn.RMSNorm(WIDTH, eps=1e-6)
    found = fx.compile(randomize(net).double(), (tokens(),), task=[tokens(4, 1)])
    turned = rewritten(found, PrincipalAxes().edits(found, stream_of(found), torch.arange(WIDTH)))
    x = tokens(5, 3)
    torch.testing.assert_close(turned(x), found(x), **EXACT)  # type: ignore[arg-type]


@given(st.integers(0, 2**30))
def test_any_rotation_with_the_mean_for_its_first_axis_will_do(
    transformer: Program, seed: int
) -> None:
    rest = torch.linalg.qr(normal(WIDTH - 1, WIDTH - 1, seed=seed).double()).Q
    axes = mean_first(WIDTH) @ torch.block_diag(torch.ones(1, 1).double(), rest)
    turned = rewritten(transformer, sliced(transformer, stream_of(transformer), axes))
    x = tokens(2, 4)
    torch.testing.assert_close(turned(x), transformer(x), **EXACT)  # type: ignore[arg-type]


# ---- axes


@given(st.integers(1, 12))
def test_the_axis_of_the_mean_comes_first_and_is_swapped_back(size: int) -> None:
    turn = mean_first(size)
    close(turn[:, 0], torch.full((size,), size**-0.5, dtype=torch.float64))
    close(turn @ turn, torch.eye(size).double())
    close(turn, turn.mT)


@given(st.integers(2, 9), st.integers(0, 2**30), st.data())
def test_units_that_are_equal_stay_equal(size: int, seed: int, data: st.DataObject) -> None:
    """In as many axes as are left, with lengths and angles as before."""
    rows = normal(3 * size, size, seed=seed).double()
    values, axes = principal_axes(rows.mT @ rows, centred=True)
    kept = data.draw(st.integers(1, size))
    basis = even(axes[:, :kept])
    assert basis is not None
    close(basis.mT @ basis, torch.eye(kept).double())
    shrunk = basis.sum(0).abs()
    close(shrunk, torch.full((kept,), (size / kept) ** 0.5, dtype=torch.float64))
    assert bool((values.diff() <= 1e-9 * values[0]).all())  # rounding of equal ones


def test_axes_under_layer_norms_are_ranked_by_variance(transformer: Program) -> None:
    group = stream_of(transformer)
    score = PrincipalAxes().score(transformer, group)[0]
    assert bool((score.diff() <= 0).all())
    count = 5 * 6 * LENGTH  # norms, stories, tokens: every sample of variance one
    close(score[1:].sum(), torch.tensor(float(count * WIDTH)).double())


# ---- the pass


def test_axes_under_layer_norms_in_which_nothing_lies_are_cut_without_loss() -> None:
    """But for a share of eps; the mean over units is one of the axes that stay."""
    net = randomize(Transformer()).double()
    free = torch.linalg.qr(normal(WIDTH, 4, seed=7).double()).Q
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name in ("embed.weight", "place.weight", "start"):
                value.copy_(value @ free @ free.mT)
            elif name.endswith(("out.weight", "down.weight", "out.bias", "down.bias")):
                value.copy_(free @ free.mT @ value)
    found = fx.compile(net, (tokens(),), task=[tokens(4, 1)])
    small = fx.apply(found, SliceGPT(ratio=3 / 8, round_to=1))
    assert small.module.get_parameter("embed.weight").shape == (TOKENS, 5)
    assert small.module.get_parameter("norm.bias").shape == (5,)
    x = tokens(5, 3)
    torch.testing.assert_close(small(x), found(x), rtol=1e-4, atol=1e-4)


def test_a_cut_transformer_is_verified_and_exports(tmp_path: Path) -> None:
    """Its norms are LayerNorms in the file too."""
    found = fx.compile(randomize(Transformer()), (tokens(),), task=[tokens(4, 1)])
    small = fx.apply(found, SliceGPT(budget=fx.Budget(params=0.7)))
    assert small.report.params.ratio <= 0.7
    assert small.report.checks[-1].ok
    to_onnx(small, tmp_path / "small.onnx")
    assert check(tmp_path / "small.onnx", small).ok
    nodes = onnx.load(tmp_path / "small.onnx").graph.node
    assert [node.op_type for node in nodes].count("LayerNormalization") == 5


def test_a_gpt2_of_transformers_is_turned_cut_and_written_back() -> None:
    """Its layers are sums of a bias and a product."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=TOKENS, n_embd=16, n_layer=2, n_head=4, n_positions=LENGTH, use_cache=False,
        tie_word_embeddings=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    net = randomize(transformers.GPT2LMHeadModel(config)).eval().double()
    found = fx.compile(net, (), {"input_ids": tokens()}, task=[{"input_ids": tokens(4, 1)}])
    turned = rewritten(found, PrincipalAxes().edits(found, stream_of(found), torch.arange(16)))
    x = tokens(2, 5)
    expected = found(input_ids=x).logits
    torch.testing.assert_close(turned(input_ids=x).logits, expected, **EXACT)  # type: ignore[arg-type]
    small = fx.apply(found, SliceGPT(ratio=0.25, round_to=1))
    back = small.write_back(net)
    assert back.get_parameter("transformer.ln_f.bias").shape == (12,)
    close(back(input_ids=x).logits, small(input_ids=x).logits)


# ---- refusals


def test_a_norm_after_a_block_is_refused() -> None:
    """Its gain would have to go into the stream."""

    class After(nn.Module):
        def __init__(self, norm: type[nn.Module]) -> None:
            super().__init__()
            self.enter, self.up, self.down = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 8)
            self.norm, self.head = norm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.enter(x))
            return self.head(x + self.down(F.relu(self.up(x))))  # type: ignore[no-any-return]

    for norm in (nn.LayerNorm, nn.RMSNorm):
        found = fx.compile(randomize(After(norm)), (torch.randn(2, 5),), task=[torch.randn(9, 5)])
        with pytest.raises(PlanError, match=r"only a linear map can take up its gain"):
            SliceGPT(ratio=0.5).plan(found)


def test_without_the_axis_of_the_mean_a_stream_is_refused(transformer: Program) -> None:
    with pytest.raises(PlanError, match=r"rank the axes by PrincipalAxes"):
        PrincipalAxes().edits(transformer, stream_of(transformer), torch.tensor([2, 3, 5]))


def test_a_head_that_is_the_embedding_is_refused() -> None:
    with pytest.raises(PlanError, match=r"both writes and reads the stream.*untie it"):
        SliceGPT(ratio=0.5).plan(program("tied_language_model"))


@pytest.mark.parametrize("computed", [True, False])
def test_norms_that_are_not_over_the_stream_with_its_own_gain_are_refused(computed: bool) -> None:
    class Odd(nn.Module):
        """A norm whose gain the graph computes, or that runs over the stream beside itself."""

        def __init__(self) -> None:
            super().__init__()
            self.enter, self.more = nn.Linear(5, 8), nn.Linear(5, 8)
            self.gain, self.wide = nn.Parameter(torch.ones(8)), nn.LayerNorm(16)
            self.head = nn.Linear(8 if computed else 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.enter(x) + self.more(x)
            normed = self.wide(torch.cat([y, y], 1))
            if computed:
                normed = F.layer_norm(y, (8,), 1 + self.gain)
            return self.head(normed)  # type: ignore[no-any-return]

    found = fx.compile(randomize(Odd()), (torch.randn(2, 5),), task=[torch.randn(9, 5)])
    with pytest.raises(PlanError, match="looks at its units one by one"):
        SliceGPT(ratio=0.5).plan(found)
