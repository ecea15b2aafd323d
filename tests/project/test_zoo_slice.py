"""A slice of the zoo: models of every family and every kind of operator, with half of their units
gone. `benchmarks/coverage.py` runs the whole zoo.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fxcompress as fx
import torchvision_shim
from fxcompress.capture import capture
from models import cast, tensors
from selection import RandomSelection, zero_masked

TOLERANCE = 1e-10
NO_DOUBLE = ("hf/mixtral",)
"""Their own code calls a kernel that takes no double precision; torch.export takes another one."""
PACKAGES = {"tv": "torchvision", "tvseg": "torchvision", "tvvid": "torchvision",
            "timm": "timm", "hf": "transformers"}  # fmt: skip

QUICK = (
    "toy/lstmcls", "toy/bilstm2", "toy/grucls", "toy/textlstm", "toy/textcnn", "toy/unet",
    "toy/unetup", "toy/pointnet", "toy/dgcnn", "toy/shuffle", "toy/einsumattn", "toy/nhwc",
    "toy/spacetodepth", "toy/channelslice", "toy/maxout", "toy/bilinear", "toy/denseblock",
    "toy/prelunet", "toy/weightnormnet", "toy/spacesoftmax", "toy/resnetpad", "toy/concatsplit",
    "toy/split3", "toy/pixelshufflenet", "toy/torchencoder", "toy/customscale",
    "hf/llama", "hf/gpt_neox", "hf/gpt2", "hf/mixtral", "hf/wav2vec2", "hf/clip",
    "hf/detr_like_vitdet",
)  # fmt: skip
"""In `make test`: a minute on one core."""

LONG = (
    "tv/shufflenet_v2_x0_5", "tv/regnet_x_400mf", "tv/swin_v2_t", "tvvid/s3d", "tvvid/r2plus1d_18",
    "timm/halonet26t", "timm/lambda_resnet26t", "timm/bat_resnext26ts", "timm/convit_tiny",
    "timm/convnextv2_atto", "timm/crossvit_9_240", "timm/dla60_res2net", "timm/dpn48b",
    "timm/efficientformerv2_s0", "timm/efficientvit_m0", "timm/eva02_tiny_patch14_224",
    "timm/focalnet_tiny_srf", "timm/ghostnetv3_050", "timm/hiera_tiny_224", "timm/levit_128s",
    "timm/mixer_s32_224", "timm/mixnet_s", "timm/mobilevitv2_050", "timm/nf_regnet_b0",
    "timm/poolformer_s12", "timm/res2next50", "timm/resnest14d", "timm/tnt_s_patch16_224",
    "timm/vit_relpos_small_patch16_224", "timm/volo_d1_224", "timm/xcit_nano_12_p16_224",
    "tv/maxvit_t", "tv/mobilenet_v2", "tv/mobilenet_v3_small", "timm/convformer_s18",
    "timm/convmixer_768_32", "timm/convnext_zepto_rms", "timm/deepseek_vit_412m",
    "timm/resnet50_clip", "timm/sedarknet21",
    "hf/whisper", "hf/segformer", "hf/falcon", "hf/gemma", "hf/roberta", "hf/gpt_neo",
    "hf/mistral", "hf/cohere",
)  # fmt: skip
"""In `make test-zoo`: with those above, every operator that the graphs of the zoo hold."""


@pytest.fixture(scope="session")
def zoo(shared: Path) -> ModuleType:
    """The module that builds the models; it would declare torchvision's operators again."""
    folder = shared / "zoo"
    if not (folder / "zoo.py").is_file():
        pytest.skip(f"no zoo in {shared}")
    sys.modules.setdefault("tvstub", torchvision_shim)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("zoo")
    finally:
        sys.path.remove(str(folder))


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.filterwarnings("ignore")  # of the models' own code
def test_half_of_a_model_is_exact(zoo: ModuleType, name: str) -> None:
    _holds(zoo, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
@pytest.mark.filterwarnings("ignore")
def test_half_of_a_larger_model_is_exact(zoo: ModuleType, name: str) -> None:
    _holds(zoo, name)


def _holds(zoo: ModuleType, name: str) -> None:
    package = PACKAGES.get(name.partition("/")[0])
    if package is not None:
        pytest.importorskip(package)
    model, *given = zoo.build(name, 2)
    model = model.double()
    args, kwargs = cast(tuple(given), torch.float64)
    dense = fx.compile(model, args, kwargs)

    every = RandomSelection(seed=1)
    small = fx.apply(dense, every)  # with its own proof, norms included
    assert small.report.verification is not None
    assert small.report.verification.ok
    predicted = dense.cost(every.plan(dense).widths)
    assert small.cost() == predicted
    assert predicted.params == sum(p.numel() for p in small.module.parameters())

    three = cast(zoo.inputs(name, 3, 3), torch.float64)
    two = pytree.tree_map_only(Tensor, lambda value: value[:2], three)
    if all(0 in axes for axes in dense.dynamic):
        larger, lesser = (tensors(small(*a, **k)) for a, k in (three, two))
        for a, b in zip(larger, lesser, strict=True):
            _same(a[tuple(slice(size) for size in b.shape)], b)

    if any(group.exact and not group.frozen for group in dense.groups):
        exact = fx.apply(dense, RandomSelection(seed=2, exact_only=True), verify=False)
        if name in NO_DOUBLE:
            model = capture(model, args, kwargs).module
        reference = zero_masked(model, exact)
        for a, k in (three, two) if 0 in dense.dynamic[0] else ((args, kwargs),):
            for x, y in zip(tensors(exact(*a, **k)), tensors(reference(*a, **k)), strict=True):
                _same(x, y)


def _same(found: Tensor, expected: Tensor) -> None:
    finite = expected[expected.isfinite()].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE * scale, equal_nan=True)
