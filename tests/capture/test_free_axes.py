"""Which axes of a capture are free, by default and by name."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comparisons import assert_same
from fxcompress.capture import capture
from fxcompress.errors import CaptureError
from nets_captured import FixedBatch, Spread


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
        capture(nn.Linear(4, 4), (torch.ones(2, 4),), dynamic=dynamic)


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


def test_not_a_number_at_size_one_is_told_from_zero() -> None:
    interface = capture(Spread(), (torch.randn(3, 4),)).module.interface
    assert interface is not None
    assert interface.sizes["batch"].low == 2
    assert "computes otherwise at batch 1" in interface.sizes["batch"].note
