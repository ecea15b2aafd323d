"""Which kind of group a width is, and that a pass asked for one kind leaves all others alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.budget import Limits
from fxcompress.errors import BudgetError
from fxcompress.passes import MagnitudePruning
from fxcompress.program import Program
from models import randomize
from programs import program
from seeded import once

FIVE = ("heads", "qk", "vo", "mlp", "residual")
IDS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))


class Logits(nn.Module):
    """A language model that gives its logits alone, so that no hidden state is an output."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(**dict.fromkeys(self.names, ids)).logits  # type: ignore[no-any-return]


def _gpt2(hf: Any) -> nn.Module:
    config = hf.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=4, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return Logits(hf.GPT2LMHeadModel(config), "input_ids")


def _llama(heads: int) -> Callable[[Any], nn.Module]:
    def make(hf: Any) -> nn.Module:
        config = hf.LlamaConfig(
            vocab_size=50, hidden_size=32, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=heads, head_dim=8, use_cache=False,
        )  # fmt: skip
        return Logits(hf.LlamaForCausalLM(config), "input_ids")

    return make


def _bert(hf: Any) -> nn.Module:
    config = hf.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=40,
    )  # fmt: skip
    return Logits(hf.BertForMaskedLM(config), "input_ids")


def _t5(hf: Any) -> nn.Module:
    config = hf.T5Config(
        vocab_size=50, d_model=32, d_kv=8, d_ff=40, num_layers=2, num_heads=4, use_cache=False
    )
    return Logits(hf.T5ForConditionalGeneration(config), "input_ids", "decoder_input_ids")


NETS = {
    "gpt2": _gpt2,
    "llama": _llama(4),
    "llama, 2 key heads": _llama(2),
    "llama, 1 key head": _llama(1),
    "bert": _bert,
    "t5": _t5,
}


@once
def transformer(name: str) -> Program:
    hf = pytest.importorskip("transformers", reason="needs the extra [models]")
    torch.manual_seed(0)
    return fx.compile(NETS[name](hf).eval().double(), (IDS,))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dim", FIVE)
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_each_dim_of_a_transformer_is_pruned_on_request_and_only_it(name: str, dim: str) -> None:
    dense = transformer(name)
    own = {g.name for g in dense.groups if g.kind == dim and not g.frozen}
    assert own
    small = fx.apply(dense, MagnitudePruning(ratio=0.5, dims=(dim,), round_to=1))
    changed = {g.name for g in small.report.groups if g.units.before != g.units.after}
    assert changed == own
    assert small.report.checks[-1].ok
    assert small.report.params.after < small.report.params.before


@pytest.mark.parametrize("name", ["fused_attention", "chunked_attention", "interleaved_attention"])
def test_attention_is_known_however_it_is_written(name: str) -> None:
    kinds = {g.kind: g.units for g in program(name).groups if not g.frozen}
    assert kinds == {"residual": 10, "heads": 5, "qk": 4, "vo": 4}


class ChannelAttention(nn.Module):
    """Channels attend to channels: what is contracted first are positions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.kv, self.out = nn.Linear(6, 6), nn.Linear(6, 12), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        k, v = self.kv(x).split(6, -1)
        weights = torch.softmax(self.q(x).transpose(1, 2) @ k, -1)
        return self.out(v @ weights.transpose(1, 2))  # type: ignore[no-any-return]


def test_channels_that_attend_to_each_other_are_no_mlp() -> None:
    found = fx.compile(randomize(ChannelAttention()), (torch.randn(2, 5, 6),))
    assert {group.kind for group in found.groups} == {"channels"}


class Odd(nn.Module):
    """Widths that look like another kind than they are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.narrow = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 7, 1)
        self.up, self.down = nn.Linear(7, 9), nn.Linear(9, 11)
        self.rnn, self.head = nn.GRU(11, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.narrow(F.relu(self.conv(x)))).flatten(2).transpose(1, 2)
        y = self.up(x)
        y = y * torch.sigmoid(y) + 0.1 * y.pow(3)  # a sum, but of one value's functions
        return self.head(self.rnn(self.down(y))[0][:, -1])  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export, of recurrent layers
def test_kinds_follow_what_maps_do_and_not_how_functions_are_spelled() -> None:
    found = fx.compile(randomize(Odd()), (torch.randn(2, 3, 6, 6),))
    kinds = {g.units: g.kind for g in found.groups if not g.frozen}
    assert kinds[5] == "channels"  # a window writes it
    assert kinds[7] == "mlp"  # between two maps of one position
    assert kinds[9] == "mlp"
    assert kinds[11] == "mlp"
    assert kinds[6] == "channels"  # reads itself


@pytest.mark.parametrize(
    ("dims", "words"),
    [("neurons", "dims='neurons'.*'heads' \\(1\\)"), (("mlp",), "dims='mlp'.*'residual' \\(1\\)")],
)
def test_a_dim_that_the_model_has_not_is_refused_with_those_it_has(dims: Any, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        MagnitudePruning(ratio=0.5, dims=dims).plan(program("fused_attention"))


def test_no_dims_are_all_dims() -> None:
    assert Limits(dims=None).dims == Limits().dims == ()
    assert Limits(dims="mlp").dims == ("mlp",)
    found = program("fused_attention")
    every = tuple({group.kind for group in found.groups})
    some = MagnitudePruning(ratio=0.5, dims=every).plan(found)
    assert some.widths == MagnitudePruning(ratio=0.5).plan(found).widths
