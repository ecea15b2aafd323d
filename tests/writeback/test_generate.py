"""Language models of transformers, smaller and in their own class: they generate, and they are
saved and loaded with the numbers they had.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from models import randomize

transformers = pytest.importorskip("transformers")

TOKENS: Any = {
    "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "use_cache": False,
}  # fmt: skip


class Logits(nn.Module):
    """A model without its other outputs: as an output, the encoder's state would keep its width."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor | None = None) -> Tensor:
        more = {} if decoder_input_ids is None else {"decoder_input_ids": decoder_input_ids}
        return self.model(input_ids=input_ids, **more).logits  # type: ignore[no-any-return]


def _tokens(length: int, seed: int) -> Tensor:
    return torch.randint(3, 50, (2, length), generator=torch.Generator().manual_seed(seed))


def _gpt2() -> Any:
    options: Any = {"n_positions": 32, "n_embd": 40, "n_layer": 2, "n_head": 5}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**options, **TOKENS))


def _llama() -> Any:
    options: Any = {"hidden_size": 40, "num_hidden_layers": 2, "intermediate_size": 56}
    heads: Any = {"num_attention_heads": 10, "num_key_value_heads": 5}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**options, **heads, **TOKENS))


def _t5() -> Any:
    options: Any = {"d_model": 40, "d_kv": 8, "d_ff": 56, "num_layers": 2, "num_heads": 5}
    config = transformers.T5Config(decoder_start_token_id=0, **options, **TOKENS)
    return transformers.T5ForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {"gpt2": _gpt2, "llama": _llama, "t5": _t5}
WIDTHS: dict[str, dict[str, int]] = {
    "gpt2": {"n_embd": 24, "n_head": 3},
    "llama": {"hidden_size": 24, "intermediate_size": 34, "num_key_value_heads": 3},
    "t5": {"d_model": 24, "d_ff": 34, "num_heads": 3, "d_kv": 8},
}
DIMS = ("heads", "mlp", "residual")


def built(name: str) -> tuple[Logits, dict[str, Tensor]]:
    """A model, and inputs of which the last is what it goes on with."""
    torch.manual_seed(0)
    model = MODELS[name]()
    randomize(model)
    inputs = {"input_ids": _tokens(9, 1)}
    if name == "t5":
        inputs["decoder_input_ids"] = _tokens(6, 2)
    return Logits(model).eval(), inputs


def pruned(name: str, **options: Any) -> tuple[Any, dict[str, Tensor], fx.Program]:
    """The library's model with 40 % of its units gone, inputs, and the program that it holds."""
    dense, inputs = built(name)
    method = fx.passes.MagnitudePruning(ratio=0.4, round_to=1, **options)
    free: Any = {key: {0: "batch", 1: f"{key}_length"} for key in inputs}
    program = fx.compile(dense, (), inputs, passes=[method], dynamic=free)
    return program.write_back(dense).model, inputs, program


@pytest.mark.parametrize("name", ["gpt2", "llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_generation_goes_on_as_the_graph_does(name: str) -> None:
    model, inputs, program = pruned(name, dims=DIMS)
    assert type(model) is type(built(name)[0].model)
    prompt = inputs["input_ids"]
    generate: Any = model.generate
    with_cache, without = (
        generate(prompt, max_new_tokens=6, do_sample=False, use_cache=use, eos_token_id=None)
        for use in (True, False)
    )
    assert torch.equal(with_cache, without)
    start = torch.zeros(2, 1, dtype=torch.long) if name == "t5" else prompt
    assert torch.equal(with_cache, _greedy(program, inputs, start, 6))


def _greedy(program: fx.Program, inputs: dict[str, Tensor], written: Tensor, steps: int) -> Tensor:
    """The likeliest token after another, by a program that takes any length."""
    for _ in range(steps):
        logits = program(**inputs | {[*inputs][-1]: written})
        written = torch.cat([written, logits[:, -1:].argmax(-1)], 1)
    return written


@pytest.mark.parametrize("name", ["gpt2", "llama", pytest.param("t5", marks=pytest.mark.slow)])
def test_saved_and_loaded_it_computes_the_same(name: str, tmp_path: Path) -> None:
    model, inputs, program = pruned(name, dims=DIMS, uniform_across_layers=True)
    assert {key: getattr(model.config, key) for key in WIDTHS[name]} == WIDTHS[name]
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert sum(p.numel() for p in loaded.parameters()) == program.cost().params
    torch.testing.assert_close(loaded(**inputs).logits, program(**inputs), rtol=1e-4, atol=1e-5)
    assert torch.equal(loaded(**inputs).logits, model(**inputs).logits)


def test_widths_that_no_configuration_describes_do_not_load(tmp_path: Path) -> None:
    """Layers of different widths run in memory; a saved model must not load as another one."""
    dense, inputs = built("gpt2")
    program = fx.compile(dense, (), inputs)
    first = fx.passes.MagnitudePruning(ratio=0.4, round_to=1, include="*.h.0.mlp.*", dims="mlp")
    model: Any = fx.apply(program, first).write_back(dense).model
    assert model.generate(inputs["input_ids"], max_new_tokens=2).shape[1] <= 11
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="mismatch"):
        type(model).from_pretrained(tmp_path)
