"""The tiny nets are fit to test with: seeded, random throughout, exportable at any batch size."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

from models import MODELS, build, rebatch, tensors


@pytest.mark.parametrize("name", MODELS)
def test_building_twice_gives_the_same_model(name: str) -> None:
    first, args, kwargs = MODELS[name]()
    second, again, more = MODELS[name]()

    assert not first.training
    torch.testing.assert_close(dict(first.state_dict()), dict(second.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(first(*args, **kwargs), second(*again, **more), rtol=0, atol=0)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_matters_and_none_is_constant(name: str) -> None:
    model, args, kwargs = build(name)
    out = tensors(model(*args, **kwargs))
    sum((t * torch.randn_like(t)).sum() for t in out).backward()  # type: ignore[union-attr]

    for key, value in model.named_parameters():
        assert value.grad is not None, key
        assert value.grad.abs().max() > 0, key
        assert value.numel() == 1 or value.std() > 0, key


@pytest.mark.parametrize("name", MODELS)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    model, args, kwargs = build(name)
    batch = {0: torch.export.Dim("batch")}
    shapes = pytree.tree_map_only(torch.Tensor, lambda _: batch, (args, kwargs))
    arguments = [*shapes[0], *shapes[1].values()]
    names = ["x"] if len(arguments) == 1 else ["left", "right", "scale"]
    names = ["tokens"] if name == "tied_language_model" else names
    program = torch.export.export(
        model, args, kwargs, dynamic_shapes=dict(zip(names, arguments, strict=True))
    )

    other, more = rebatch((args, kwargs), 3)
    torch.testing.assert_close(program.module()(*other, **more), model(*other, **more))
