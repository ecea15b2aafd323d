"""The user's own class, smaller, computes what the graph does, or an error says why not."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.edit.plan import Plan, Project
from fxcompress.errors import WriteBackError
from fxcompress.passes import FoldBatchNorm, MagnitudePruning, NMSparsity
from fxcompress.program import Program
from models import MODELS, build, normal, randomize, rebatch, tensors
from nets_convolution import conv_bn, pooled
from real_models import built
from selection import RandomSelection

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


@dataclass(frozen=True)
class Keep:
    """Keep the first units of every group, as many as `count` says; None keeps all."""

    count: Callable[[ChannelGroup], int | None]

    def plan(self, program: Program) -> Plan:
        edits = []
        for group in program.groups:
            count = None if group.frozen else self.count(group)
            if count is not None:
                edits.append(Project(group, torch.arange(count)))
        return Plan(tuple(edits))


def double(model: nn.Module) -> nn.Module:
    return randomize(model).double()


def compiled(model: nn.Module, *args: Tensor, passes: Iterable[Any]) -> Program:
    return fx.compile(model, tuple(arg.double() for arg in args), passes=tuple(passes))


def assert_same(found: Any, expected: Any) -> None:
    for one, other in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def assert_written_back(model: nn.Module, program: Program) -> nn.Module:
    """Write back, and check whatever is always true of the result."""
    before = copy.deepcopy(model.state_dict())
    result = program.write_back(model)
    assert type(result) is type(model)
    assert_same(result(*program.args, **program.kwargs), program(*program.args, **program.kwargs))
    args, kwargs = rebatch((program.args, dict(program.kwargs)), 5)
    assert_same(result(*args, **kwargs), program(*args, **kwargs))
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    shared = {id(value) for value in program.module.state_dict(keep_vars=True).values()}
    assert not shared & {id(value) for value in result.state_dict(keep_vars=True).values()}
    return result


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


class Attention(nn.Module):
    """Sizes and scale are attributes; the residual stream is 12 wide, as are all heads together."""

    def __init__(self, width: int, heads: int, dims: int) -> None:
        super().__init__()
        self.heads, self.dims, self.scale = heads, dims, dims**-0.5
        self.sizes = [heads * dims] * 3
        self.qkv = nn.Linear(width, 3 * heads * dims)
        self.proj = nn.Linear(heads * dims, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part.view(b, n, self.heads, self.dims).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, -1)
        )
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        x = (weights @ v).transpose(1, 2).reshape(b, n, self.heads * self.dims)
        return self.proj(x)  # type: ignore[no-any-return]


class Unscaled(Attention):
    """The scale comes from the width of the queries."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part.view(b, n, self.heads, self.dims).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, -1)
        )
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(b, n, self.heads * self.dims))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList([attention(12, 3, 4), attention(12, 2, 6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


def test_attributes_of_the_users_classes_follow() -> None:
    model = double(Transformer())
    kept = {3: 2, 4: 3, 12: 8}  # heads and dims of the first block, the residual stream
    program = compiled(model, normal(2, 7, 5), passes=[Keep(lambda group: kept.get(group.units))])
    result = assert_written_back(model, program)
    first = result.get_submodule("blocks.0")
    assert isinstance(first, Attention)
    assert (first.heads, first.dims, first.scale) == (2, 3, 0.5)
    assert first.sizes == [6, 6, 6]
    assert (first.proj.out_features, first.proj.in_features) == (8, 6)
    assert model.get_submodule("blocks.0").sizes == [12, 12, 12]


def test_a_scale_taken_from_a_width_moves_into_the_queries() -> None:
    model = double(Transformer(Unscaled))
    kept = {4: 3}
    program = compiled(model, normal(2, 7, 5), passes=[Keep(lambda group: kept.get(group.units))])
    result = assert_written_back(model, program)
    weights = (module.get_parameter("blocks.0.qkv.weight") for module in (result, program.module))
    ratio = torch.div(*weights)
    torch.testing.assert_close(ratio[:9], torch.full_like(ratio[:9], (3 / 4) ** 0.5))
    assert torch.equal(ratio[9:], torch.ones_like(ratio[9:]))


def test_dims_that_one_attribute_cannot_hold_are_refused() -> None:
    model = double(Transformer())
    kept = iter([2])  # of the queries and keys alone
    program = compiled(
        model,
        normal(2, 7, 5),
        passes=[Keep(lambda group: next(kept, None) if group.units == 4 else None)],
    )
    with pytest.raises(WriteBackError, match=r"(?s)test_\w+.py:\d+.*'blocks.0' \(Attention\)"):
        program.write_back(model)


class Block(nn.Module):
    """The shortcut of a CIFAR ResNet: one number pads both sides."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.stride, self.pad = stride, (o - i) // 2
        self.up, self.down = conv_bn(i, o, stride=stride), conv_bn(o, o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.relu(self.up(x)))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 6), nn.Linear(14, 5)
        self.blocks = nn.Sequential(Block(6, 6, 1), Block(6, 14, 2), Block(14, 14, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.blocks(F.relu(self.stem(x)))))  # type: ignore[no-any-return]


def test_pads_follow_where_both_sides_agree() -> None:
    model = double(Padded())
    program = compiled(model, normal(2, 3, 8, 6), passes=[RandomSelection()])
    result = assert_written_back(model, program)
    assert [block.pad for block in result.get_submodule("blocks").children()] == [0, 2, 0]


def test_pads_of_two_sizes_are_refused_by_name() -> None:
    model = double(Padded())
    sizes = iter([3, 2])
    program = compiled(
        model,
        normal(2, 3, 8, 6),
        passes=[Keep(lambda group: next(sizes) if group.units == 4 else None)],
    )
    with pytest.raises(WriteBackError, match=r"(?s)blocks.1.*'pad' was 4.*2 \(.*3 \("):
        program.write_back(model)


def test_layers_say_their_new_sizes() -> None:
    model, args, kwargs = build("grouped_conv")
    program = fx.compile(model, args, kwargs, passes=[RandomSelection(seed=1)])
    result = assert_written_back(model, program)
    for layer in result.modules():
        if isinstance(layer, nn.Conv2d):
            outputs, inputs, *_ = layer.weight.shape
            assert (layer.out_channels, layer.in_channels) == (outputs, inputs * layer.groups)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.num_features == len(layer.running_mean)  # type: ignore[arg-type]
    depthwise = result.get_submodule("depthwise.0")
    assert isinstance(depthwise, nn.Conv2d)
    assert depthwise.groups == depthwise.out_channels < 12


class Convolutional(nn.Module):
    """One depthwise convolution under two names, a grouped one with standardised weights, and
    attention whose queries come from a convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.position = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.blocks = nn.ModuleList([nn.ModuleDict({"position": self.position})])
        self.grouped = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, groups=2))
        self.qkv, self.heads, self.dims = nn.Conv2d(8, 24, 1), 2, 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block["position"](self.position(x))  # type: ignore[index]
        x = self.grouped(x)
        q, k, v = (
            part.reshape(x.shape[0], self.heads, self.dims, -1).transpose(-2, -1)
            for part in self.qkv(x).chunk(3, 1)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(-2, -1)
        return self.head(y.reshape(x.shape[0], self.heads * self.dims, -1).mean(-1))  # type: ignore[no-any-return]


def test_convolutions_follow_under_any_name_with_any_weight() -> None:
    model = double(Convolutional())
    halved = Keep(lambda group: max(1, group.units // 2))
    program = compiled(model, normal(2, 3, 6, 6), passes=[halved])
    result = assert_written_back(model, program)
    assert isinstance(result.get_submodule("grouped"), nn.Conv2d)
    position = result.get_submodule("position")
    assert position is result.get_submodule("blocks.0.position")
    assert isinstance(position, nn.Conv2d)
    assert position.groups == position.out_channels < 8


def test_the_line_that_no_attribute_mends_is_named() -> None:
    """The attributes can hold the sizes up to the line that takes a width from the input."""

    class Residual(Attention):
        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            q, k, v = (
                part.view(b, n, self.heads, self.dims).transpose(1, 2)
                for part in self.qkv(x).split(self.sizes, -1)
            )
            weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
            return self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))  # type: ignore[no-any-return]

    model = double(Transformer(Residual))
    kept = {3: 2, 4: 3}
    program = compiled(model, normal(2, 7, 5), passes=[Keep(lambda group: kept.get(group.units))])
    with pytest.raises(WriteBackError, match=r"reshape\(b, n, c\)"):
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
