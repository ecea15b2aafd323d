"""Configurations in the manner of Hugging Face, whose fields describe every layer at once.

They are mended where all layers agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from torch import nn

from fxcompress.capture import DynamicSpec
from fxcompress.graph.parameters import find_tensor
from fxcompress.writeback.gate import Gate
from fxcompress.writeback.rebuilt import made_to_load, rebuilt

Model = TypeVar("Model", bound=nn.Module)
Change = tuple[Any, str, int]
"""A configuration, a field of it, and the field's old value."""
_HEAD_WIDTHS = ("d_kv", "head_dim")


def mend_configs(result: Model, original: nn.Module, gate: Gate, dynamic: DynamicSpec) -> Model:
    """Set the fields of each ``config`` that follow a size, where the layers agree on the new one.

    Where they do not, no such configuration describes the model, and the field is left alone:
    loading has to fail then. So it has where a model built anew from the configuration would
    compute something else that no weights can make good.

    Returns:
        `result`, or a model that computes the same with other weights and can be loaded.
    """
    changed = list(_mend(result, original))
    if not changed:
        return result
    if not gate.measure(result).ok:
        _restore(changed)  # the forward reads a field, and means something else by it
        return result
    twin = rebuilt(result)
    if twin is None or gate.measure(twin).ok:
        return result
    if adopted := made_to_load(result, twin, gate, dynamic):
        return adopted
    _restore([change for change in changed if change[1] in _HEAD_WIDTHS])
    twin = rebuilt(result)
    if twin is not None and not gate.measure(twin).ok:
        _restore(changed)
    return result


def _restore(changed: list[Change]) -> None:
    for config, field, old in changed:
        setattr(config, field, old)


def _mend(result: nn.Module, original: nn.Module) -> Iterator[Change]:
    """Set the fields; gives each one that changes, with its old value."""
    seen: set[int] = set()
    for path, module in result.named_modules():
        config = vars(module).get("config")
        if config is None or id(config) in seen or not hasattr(config, "to_dict"):
            continue
        seen.add(id(config))
        changes = _changes(module, original.get_submodule(path))
        for field, kinds in _FIELDS.items():
            value = getattr(config, field, None)
            if isinstance(value, int) and not isinstance(value, bool):
                news = {new for kind in kinds for old, new in changes[kind] if old == value}
                if len(news) == 1 and news != {value}:
                    setattr(config, field, news.pop())
                    yield config, field, value


_FIELDS: Mapping[str, tuple[str, ...]] = {
    "d_model": ("embedding",),
    "dim": ("embedding",),
    "embed_dim": ("embedding",),
    "embedding_size": ("embedding",),
    "ffn_dim": ("linear",),
    "encoder_ffn_dim": ("linear",),
    "decoder_ffn_dim": ("linear",),
    "d_ff": ("linear",),
    "d_kv": ("head_dim",),
    "decoder_attention_heads": ("heads",),
    "encoder_attention_heads": ("heads",),
    "head_dim": ("head_dim",),
    "hidden_dim": ("linear",),
    "hidden_size": ("embedding",),
    "intermediate_size": ("linear",),
    "n_embd": ("embedding",),
    "n_head": ("heads",),
    "n_heads": ("heads",),
    "n_inner": ("linear",),
    "num_attention_heads": ("heads",),
    "num_heads": ("heads",),
    "num_key_value_heads": ("key_value_heads",),
}
"""Fields by name, and what they are the size of."""

_HEAD_DIM = (
    "head_dim", "attention_head_size", "head_size", "attention_head_dim", "key_value_proj_dim",
)  # fmt: skip
_QUERY = ("q_proj", "query", "q_lin", "q", "c_attn", "query_key_value", "qkv")
_KEY = ("k_proj", "key", "k_lin", "k", "c_attn", "query_key_value", "qkv")
_FUSED = ("c_attn", "query_key_value", "qkv")

Pairs = list[tuple[int, int]]


def _changes(result: nn.Module, original: nn.Module) -> Mapping[str, Pairs]:
    """Sizes before and after, by what they are the size of."""
    changes: dict[str, Pairs] = {
        kind: [] for kind in ("embedding", "linear", "head_dim", "heads", "key_value_heads")
    }
    old = dict(original.named_modules())
    for path, module in result.named_modules():
        before = old.get(path)
        if before is None:
            continue
        if isinstance(module, nn.Embedding) and isinstance(before, nn.Embedding):
            changes["embedding"].append((before.embedding_dim, module.embedding_dim))
        elif outputs := _outputs(module):
            changes["linear"].append((_outputs(before), outputs))
        for name, *pair in _heads(before, module):
            changes[name].append((pair[0], pair[1]))
    return changes


def _outputs(module: nn.Module) -> int:
    for name in ("out_features", "nf"):
        value: Any = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return 0


def _heads(before: nn.Module, after: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Width and number of heads of an attention module that says how wide a head is."""
    dims = [_attribute(module, _HEAD_DIM) for module in (before, after)]
    if not all(dims):
        return
    yield "head_dim", dims[0], dims[1]
    for kind, names in (("heads", _QUERY), ("key_value_heads", _KEY)):
        for name in names:
            if find_tensor(after, f"{name}.weight") is not None:
                rows = [_outputs(module.get_submodule(name)) for module in (before, after)]
                parts = 3 if name in _FUSED else 1
                if all(row % (parts * dim) == 0 for row, dim in zip(rows, dims, strict=True)):
                    old, new = (row // (parts * dim) for row, dim in zip(rows, dims, strict=True))
                    yield kind, old, new
                break


def _attribute(module: nn.Module, names: tuple[str, ...]) -> int:
    for name in names:
        value = getattr(module, name, None)
        if isinstance(value, int):
            return value
    return 0
