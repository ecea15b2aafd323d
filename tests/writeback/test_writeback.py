"""The user's own class, smaller, computes what the graph does, or an error says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.errors import WriteBackError
from fxcompress.passes import FoldBatchNorm, MagnitudePruning, NMSparsity
from models import MODELS, build, normal
from real_models import built
from selection import RandomSelection
from written_back import Keep, assert_same, assert_written_back

HARD_CODED = {
    "chunked_attention",
    "fused_attention",
    "interleaved_attention",
    "multi_query_attention",
    "padded_residual",
    "rotary_grouped_attention",
    "siblings",
}
"""Nets whose forward names sizes as literals."""


@pytest.mark.parametrize("name", sorted(MODELS.keys() - HARD_CODED))
def test_the_class_computes_what_the_graph_does(name: str) -> None:
    model, args, kwargs = build(name)
    program = fx.compile(model, args, kwargs, passes=[RandomSelection(seed=3)])
    result = assert_written_back(model, program)
    assert sum(p.numel() for p in result.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", sorted(HARD_CODED))
def test_a_hard_coded_size_is_named_by_its_line(name: str) -> None:
    model, args, kwargs = build(name)
    program = fx.compile(model, args, kwargs, passes=[RandomSelection(seed=3)])
    with pytest.raises(WriteBackError, match=r"nets_\w+\.py:\d+ in .*: .*|program\.module"):
        program.write_back(model)
    assert_same(program(*args, **kwargs), program(*args, **kwargs))


@pytest.mark.parametrize("name", ["timm_vit", "bert", "gpt2", "llama"])
def test_library_classes_take_it(name: str) -> None:
    model, args, kwargs = built(name)
    program = fx.compile(model, args, kwargs, passes=[RandomSelection(seed=1)])
    assert_written_back(model, program)


def test_torchs_attention_takes_what_it_can_say() -> None:
    model, args, kwargs = built("vit")
    halved = Keep(lambda group: None if group.kind == "heads" else group.units // 2)
    result = assert_written_back(model, fx.compile(model, args, kwargs, passes=[halved]))
    attention = next(m for m in result.modules() if isinstance(m, nn.MultiheadAttention))
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (24, 3, 8)

    narrow = Keep(lambda group: group.units // 2 if group.kind in ("qk", "vo") else None)
    program = fx.compile(model, args, kwargs, passes=[narrow])
    with pytest.raises(WriteBackError, match=r"self_attention' \(MultiheadAttention\)"):
        program.write_back(model)


def test_modes_flags_and_ties_stay_as_in_the_model() -> None:
    model, args, kwargs = build("tied_language_model")
    program = fx.compile(model, args, kwargs, passes=[RandomSelection()])
    model.train()
    model.get_submodule("norm").eval()
    model.get_parameter("up.weight").requires_grad_(False)
    result = program.write_back(model)
    assert [m.training for m in result.modules()] == [m.training for m in model.modules()]
    assert not result.get_parameter("up.weight").requires_grad
    assert result.get_parameter("head.weight") is result.get_parameter("embed.weight")
    assert all(value.is_leaf for value in result.parameters())


def test_folded_norms_leave_the_class() -> None:
    model, args, kwargs = build("conv_chain")
    program = fx.compile(model, args, kwargs, passes=[RandomSelection(), FoldBatchNorm()])
    result = assert_written_back(model, program)
    assert isinstance(result.get_submodule("first.1"), nn.Identity)
    assert result.get_parameter("first.0.bias") is not None


def test_masks_are_folded_on_the_way() -> None:
    model, args, kwargs = build("grouped_conv")
    program = fx.compile(model, args, kwargs, passes=[NMSparsity(n=2, m=4, trainable=True)])
    assert_written_back(model, program)


def test_single_precision_has_its_own_tolerance() -> None:
    model, args, kwargs = build("convnext_block", torch.float32)
    program = fx.compile(model, args, kwargs, passes=[MagnitudePruning(ratio=0.5)])
    result = program.write_back(model)
    torch.testing.assert_close(result(*args), program(*args), rtol=1e-4, atol=1e-5)


def test_a_loaded_program_writes_back_too(tmp_path: Any) -> None:
    model, args, kwargs = build("group_norm")
    fx.compile(model, args, kwargs, passes=[RandomSelection()]).save(tmp_path / "small.fxc")
    assert_written_back(model, fx.load(tmp_path / "small.fxc"))


def test_the_configuration_follows_where_layers_agree() -> None:
    model, args, kwargs = built("llama")
    program = fx.compile(model, args, kwargs, passes=[RandomSelection()])
    config: Any = program.write_back(model).config
    assert (config.hidden_size, config.intermediate_size) == (20, 28)
    assert vars(model)["config"].hidden_size == 40


def test_a_configuration_builds_the_same_model_or_none(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    model, args, kwargs = built("llama")
    model.float()

    def saved(count: Callable[[ChannelGroup], int | None]) -> Any:
        result: Any = fx.compile(model, args, kwargs, passes=[Keep(count)]).write_back(model)
        result.save_pretrained(tmp_path)
        return result

    result = saved(lambda group: None if group.kind in ("qk", "vo") else group.units // 2)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**kwargs).logits, result(**kwargs).logits)
    tokens = result.generate(kwargs["input_ids"], max_new_tokens=3, do_sample=False)
    assert tokens.shape == (2, 12)

    # Scale and rotary table were made for wider heads, which a new model would not know.
    saved(lambda group: group.units // 2)
    with pytest.raises(RuntimeError, match="mismatch"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path)


def test_another_model_is_refused() -> None:
    model, args, kwargs = build("mlp")
    program = fx.compile(model, args, kwargs, passes=[RandomSelection()])
    with pytest.raises(WriteBackError, match="dense"):
        program.write_back(build("conv_chain")[0])
    with pytest.raises(WriteBackError, match=r"no place for 'first\.weight'"):
        program.write_back(nn.Sequential(nn.Linear(5, 3)).double())
    with pytest.raises(WriteBackError, match="model must be a Module, not 'mlp'"):
        program.write_back("mlp")  # type: ignore[type-var]


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.twice = self.linear.weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = Holder()
    program = fx.compile(model, (normal(2, 5),))
    with pytest.raises(WriteBackError, match=r"Holder cannot be copied"):
        program.write_back(model)
