from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxcompress.capture import Captured, capture
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule, aten
from fxcompress.graph.parameters import find_tensor
from models import MODELS, build, rebatch, tensors


def assert_same(left: object, right: object) -> None:
    """The same structure, the same bits."""
    assert type(left) is type(right)
    torch.testing.assert_close(left, right, rtol=0, atol=0)


@dataclass
class Pair:
    left: Tensor
    right: Tensor


torch.export.register_dataclass(Pair)


class Nested(nn.Module):
    """Lists, dicts and a dataclass, in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, pair: Pair, *, parts: dict[str, list[Tensor]]) -> dict[str, Any]:
        y = self.linear(pair.left) + pair.right + parts["a"][0]
        return {"pair": Pair(y, -y), "list": [y, (parts["a"][1],)]}


class Frozen(nn.Module):
    """A part runs without gradients, and inside it a part with them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
            with torch.enable_grad():
                h = h * 2
        return self.head(h)  # type: ignore[no-any-return]


class Casting(nn.Module):
    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.linear, self.enabled = nn.Linear(4, 4), enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return self.linear(x)  # type: ignore[no-any-return]


class Asserting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch._assert_async((x > -1e9).all())
        return x.to(torch.float32) + torch.tensor([1.0, 2.0])


class Holder(nn.Module):
    """Names that no forward needs, buffers of both kinds, a constant, tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.unused = nn.Linear(7, 7)
        self.second.weight = self.first.weight
        self.second.bias.requires_grad_(False)
        self.register_buffer("shift", torch.ones(3))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.plain = torch.full((3,), 2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) + self.get_buffer("shift")
        return x * self.get_buffer("scratch") * self.plain


class FixedBatch(nn.Module):
    """Accepts the batch it was written for, in one of two ways that torch.export tells apart."""

    def __init__(self, batch: int, by_view: bool) -> None:
        super().__init__()
        self.linear, self.batch, self.by_view = nn.Linear(4, 4), batch, by_view

    def forward(self, x: Tensor) -> Tensor:
        if self.by_view:
            return self.linear(x.view(self.batch, 4))  # type: ignore[no-any-return]
        return self.linear(x) * float(x.shape[0] == self.batch)  # type: ignore[no-any-return]


class Deciding(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Overriding(nn.Module):
    """A user's own train(), which keeps a part frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def train(self, mode: bool = True) -> Overriding:
        super().train(mode)
        self.frozen.train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.norm(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", MODELS)
def test_captures_compute_what_the_model_computes(name: str) -> None:
    model, args, kwargs = build(name)
    module = capture(model, args, kwargs).module
    assert_same(module(*args, **kwargs), model(*args, **kwargs))
    for batch in (1, 3):
        more, named = rebatch((args, kwargs), batch)
        assert_same(module(*more, **named), model(*more, **named))


@pytest.mark.parametrize("name", MODELS)
def test_state_and_model_stay_as_they_are(name: str) -> None:
    model, args, kwargs = build(name)
    model.train()
    before = copy.deepcopy(model.state_dict())
    module = capture(model, args, kwargs).module
    assert all(part.training for part in model.modules())
    assert list(module.state_dict()) == list(before)
    for name, value in module.state_dict(keep_vars=True).items():
        mine = find_tensor(model, name)
        assert mine is not None
        assert value.data_ptr() != mine.data_ptr()
        assert isinstance(value, nn.Parameter) is isinstance(mine, nn.Parameter)
    module.train()(*args, **kwargs)
    assert_same(model.state_dict(), before)


@pytest.mark.parametrize("name", MODELS)
def test_captures_train_and_export_again(name: str) -> None:
    model, args, kwargs = build(name)
    module = capture(model, args, kwargs).module.train()
    sum(output.square().sum() for output in tensors(module(*args, **kwargs))).backward()  # type: ignore[union-attr]
    used = {node.target for node in module.graph.find_nodes(op="get_attr")}
    missing = [n for n, p in module.named_parameters() if p.grad is None and n in used]
    assert not missing
    module.eval()
    again = torch.export.export(module, args, kwargs, strict=False).module()
    assert_same(again(*args, **kwargs), module(*args, **kwargs))


def test_a_batch_of_one_is_repeated_so_that_the_axis_can_be_free() -> None:
    captured = capture(nn.Linear(4, 2), (torch.randn(1, 4),))
    assert captured.dynamic == ({0: "batch"},)
    assert captured.args[0].shape == (2, 4)
    assert torch.equal(captured.args[0][0], captured.args[0][1])
    assert captured.source == "Linear"


def test_inputs_of_another_size_than_the_batch_keep_it() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
            return x * scale + y

    captured = capture(Scaled(), (torch.randn(3, 4), torch.randn(4), torch.randn(3, 4)))
    assert captured.dynamic == ({0: "batch"}, {}, {0: "batch"})
    assert captured.module(torch.ones(5, 4), torch.ones(4), torch.ones(5, 4)).shape == (5, 4)


@pytest.mark.parametrize("dynamic", [None, "none", {}])
def test_every_size_can_be_fixed(dynamic: Any) -> None:
    captured = capture(nn.Linear(4, 2), (torch.randn(1, 4),), dynamic=dynamic)
    assert captured.dynamic == ({},)
    assert captured.args[0].shape == (1, 4)


@pytest.mark.parametrize("key", [0, "args[0]"])
def test_axes_are_free_by_name(key: int | str) -> None:
    model, x = nn.Linear(4, 2), torch.randn(1, 6, 4)
    captured = capture(model, (x,), dynamic={key: {0: "batch", 1: "length"}})
    assert captured.dynamic == ({0: "batch", 1: "length"},)
    assert captured.module(torch.randn(5, 9, 4)).shape == (5, 9, 2)


def test_axes_may_be_named_in_a_dict_of_strings_or_of_numbers() -> None:
    """As much for the type checker as for the capture."""
    by_name: dict[str, dict[int, str]] = {"args[0]": {1: "length"}}
    by_number: dict[int, dict[int, str]] = {0: {1: "length"}}
    model, args = nn.Linear(4, 2), (torch.randn(1, 6, 4),)
    assert capture(model, args, dynamic=by_name).dynamic == ({1: "length"},)
    assert capture(model, args, dynamic=by_number).dynamic == ({1: "length"},)


@pytest.mark.parametrize("by_view", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_model_that_fixes_its_batch_is_captured_for_that_batch(
    batch: int, by_view: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = FixedBatch(batch, by_view), torch.randn(batch, 4)
    with caplog.at_level(logging.WARNING, logger="fxcompress"):
        captured = capture(model, (x,))
    assert captured.dynamic == ({},)
    assert captured.args[0].shape == x.shape
    assert_same(captured.module(x), model(x))


def test_nested_inputs_and_outputs_keep_their_types() -> None:
    model = Nested()

    def example(batch: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        x = torch.randn(4, batch, 4)
        return (Pair(x[0], x[1]),), {"parts": {"a": [x[2], x[3]]}}

    args, kwargs = example(1)
    captured = capture(model, args, kwargs)
    assert captured.dynamic == ({0: "batch"},) * 4
    args, kwargs = example(5)
    expected, got = model(*args, **kwargs), captured.module(*args, **kwargs)
    assert isinstance(got["pair"], Pair)
    assert_same(got["pair"].left, expected["pair"].left)
    assert_same(got["list"], expected["list"])


def test_arguments_that_are_no_tensors_are_kept() -> None:
    class Choosing(nn.Module):
        def forward(self, x: Tensor, twice: bool, note: str | None = None) -> Tensor:
            return x * 2 if twice else x

    captured = capture(Choosing(), (torch.ones(2), True), {"note": None})
    assert captured.module(torch.ones(3), True, note=None).sum() == 6
    assert len(captured.dynamic) == 1


def test_tied_unused_and_constant_tensors() -> None:
    model = Holder()
    module = capture(model, (torch.randn(2, 3),)).module
    assert list(module.state_dict()) == list(model.state_dict())
    assert module.get_parameter("first.weight") is module.get_parameter("second.weight")
    assert not module.get_parameter("second.bias").requires_grad
    assert dict(module.named_buffers()).keys() == {"shift", "scratch", "plain"}
    x = torch.randn(4, 3)
    assert_same(module(x), model(x))


def test_names_that_share_memory_but_no_object_are_tied_as_well() -> None:
    model = Holder()
    model.second.weight = nn.Parameter(model.first.weight.detach())
    module = capture(model, (torch.randn(2, 3),)).module
    assert module.get_parameter("first.weight") is module.get_parameter("second.weight")


def test_assertions_and_regions_are_gone() -> None:
    for model, x in ((Asserting(), torch.randn(2, 2)), (Frozen(), torch.randn(2, 4))):
        module = capture(model, (x,)).module
        targets = {str(node.target) for node in module.graph.nodes}
        assert not any("assert" in target or "wrap_with" in target for target in targets)
        assert not list(module.graph.find_nodes(op="call_module"))
        assert_same(module(x), model(x))


def test_a_region_without_gradients_still_has_none() -> None:
    model, x = Frozen(), torch.randn(3, 4)
    module = capture(model, (x,)).module
    for part in (model, module):
        part(x).sum().backward()
    mine = {name: p.grad is not None for name, p in module.named_parameters()}
    assert mine == {name: p.grad is not None for name, p in model.named_parameters()}
    assert mine == {"body.weight": False, "body.bias": False} | {
        "head.weight": True,
        "head.bias": True,
    }


def test_autocast_is_inlined_when_off_and_refused_when_on() -> None:
    x = torch.randn(2, 4)
    model = Casting(False)
    assert_same(capture(model, (x,)).module(x), model(x))
    with pytest.raises(CaptureError, match=r"autocast.*model\.to"):
        capture(Casting(True), (x,))


def test_writes_in_place_survive() -> None:
    class Writing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x * 1
            y[:, 0].zero_()
            return y.relu_()

    x = torch.randn(3, 4)
    module = capture(Writing(), (x,)).module
    assert_same(module(x), Writing()(x))
    assert any(node.target is aten.relu_.default for node in module.graph.nodes)


def test_the_modes_of_the_modules_are_restored_one_by_one() -> None:
    model = Overriding().train()
    model.frozen.eval()
    modes = [part.training for part in model.modules()]
    capture(model, (torch.randn(2, 4),))
    assert [part.training for part in model.modules()] == modes


def _exported(training: bool) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)).train(training)
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(model, (torch.randn(3, 4),), dynamic_shapes=shapes)


def _saved(program: torch.export.ExportedProgram, folder: Path) -> Path:
    torch.export.save(program, folder / "model.pt2")
    return folder / "model.pt2"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("how", ["program", "file", "str"])
def test_exported_programs_bring_their_inputs(how: str, training: bool, tmp_path: Path) -> None:
    program = _exported(training)
    path = _saved(program, tmp_path)
    model: Mapping[str, Any] = {"program": program, "file": path, "str": str(path)}
    captured: Captured = capture(model[how])
    assert captured.dynamic == ({0: "batch"},)
    x = torch.randn(5, 4)
    expected = _exported(False).module()(x)
    assert_same(captured.module(x), expected)
    captured.module.train()
    assert not torch.equal(captured.module(x), expected)


def test_graph_modules_of_all_kinds_are_captured() -> None:
    x = torch.randn(3, 4)
    exported, traced = _exported(False).module(), torch.fx.symbolic_trace(nn.Linear(4, 2))
    for module in (exported, traced):
        captured = capture(module, (x,))
        assert isinstance(captured.module, CapturedModule)
        assert_same(captured.module(x), module(x))


def test_a_capture_is_captured_again_and_keeps_its_mode() -> None:
    model, args, kwargs = build("reused_module")
    once = capture(model, args, kwargs).module.train()
    twice = capture(once, args, kwargs).module
    assert once.training
    assert_same(twice(*args, **kwargs), model(*args, **kwargs))


def _not_a_number() -> nn.Module:
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight[1, 2] = float("nan")
        linear.bias[0] = float("inf")
    return nn.Sequential(linear)


X = torch.ones(2, 4)
REFUSALS: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "control flow": (
        Deciding,
        (X,),
        r"Deciding with .*\n(.*\n)*.*test_capture.py.*\n.*torch.where",
    ),
    "wrong shape": (lambda: nn.Linear(5, 4), (X,), r"Linear with inputs \(args\[0\]: \[2, 4\]"),
    "no inputs": (lambda: nn.Linear(4, 4), (), r"no example inputs.*e\.g\."),
    "no tensor": (lambda: nn.Linear(4, 4), (3,), r"no example inputs"),
    "a bare tensor": (lambda: nn.Linear(4, 4), X, r"tuple.*Tensor.*\(x,\)"),
    "other dtype": (lambda: nn.Linear(4, 4), (X.double(),), r"args\[0\] is.*float64.*float32"),
    "other device": (lambda: nn.Linear(4, 4), (X.to("meta"),), r"args\[0\] is meta.*cpu"),
    "not finite": (_not_a_number, (X,), r"0\.(weight|bias) .*1 value.* NaN or infinite"),
    "lazy": (lambda: nn.LazyLinear(4), (X,), r"weight has no shape yet.*once"),
    "a class": (lambda: nn.Linear, (X,), r"the class Linear; call it"),
    "a list": (lambda: [nn.Linear(4, 4)], (X,), r"a list; give a torch.nn.Module"),
    "no file": (lambda: "missing.pt2", (), r"no file missing.pt2"),
    "no program": (lambda: __file__, (), r"test_capture.py is not an exported program"),
}


@pytest.mark.parametrize(("make", "args", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_say_what_where_and_what_to_do(
    make: Callable[[], Any], args: Any, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(make(), args)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"y": {0: "n"}}, r"'y'; the tensor inputs are args\[0\]"),
        ({1: {0: "n"}}, r"input 1"),
        ({0: {2: "n"}}, r"axis 2 of args\[0\].*\[2, 4\]"),
        ({0: {1: "n"}}, r"refused Linear(.*\n)*.*fewer free axes"),
        ("batches", r"'batches' means nothing"),
    ],
)
def test_free_axes_that_cannot_be_are_refused(dynamic: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(nn.Linear(4, 4), (X,), dynamic=dynamic)


def test_a_dynamic_axis_needs_an_example_of_two() -> None:
    with pytest.raises(CaptureError, match=r"size 1.*size 2 or more"):
        capture(nn.Linear(4, 4), (torch.ones(2, 1, 4),), dynamic={0: {1: "length"}})


def _tiny_llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=30,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    return model


def test_outputs_of_transformers_keep_their_class_and_their_cache() -> None:
    model, tokens = _tiny_llama(), torch.arange(5).unsqueeze(0)
    captured = capture(model, (), {"input_ids": tokens, "use_cache": True})
    inputs = {"input_ids": torch.arange(15).view(3, 5), "use_cache": True}
    expected, got = model(**inputs), captured.module(**inputs)
    assert type(got) is type(expected)
    assert_same(got.logits, expected.logits)
    assert type(got.past_key_values) is type(expected.past_key_values)
    for mine, theirs in zip(got.past_key_values, expected.past_key_values, strict=True):
        assert_same(mine, theirs)


def test_two_axes_are_free_at_once() -> None:
    model, tokens = _tiny_llama(), torch.arange(5).unsqueeze(0)
    axes = {0: "batch", 1: "length"}
    captured = capture(model, (), {"input_ids": tokens}, dynamic={"input_ids": axes})
    assert captured.dynamic == (axes,)
    longer = torch.arange(27).view(3, 9)
    assert_same(captured.module(input_ids=longer).logits, model(input_ids=longer).logits)


def test_attention_is_captured_in_parts_also_where_torch_would_fuse_it() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).requires_grad_(False)
    before = torch.backends.mha.get_fastpath_enabled()
    x = torch.randn(2, 5, 8)
    with torch.no_grad():
        module = capture(model, (x,)).module
    assert torch.backends.mha.get_fastpath_enabled() is before
    assert not any("_transformer_encoder" in str(node.target) for node in module.graph.nodes)
    assert any(node.target is aten.layer_norm.default for node in module.graph.nodes)


def test_a_refused_model_is_left_in_its_mode() -> None:
    model = Deciding().train()
    with pytest.raises(CaptureError):
        capture(model, (X,))
    assert model.training
