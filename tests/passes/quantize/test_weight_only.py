"""Weight-only quantisation, end to end: bytes, proof, file, ONNX, and what later passes may do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
from fxcompress.edit.codecs import Int8PerRow
from fxcompress.graph.through import read_value
from fxcompress.io.modules import check_call, make_module
from fxcompress.io.replay import Call
from fxcompress.io.schema import TensorValue
from fxcompress.passes import MagnitudePruning, NMSparsity, WeightOnlyQuantization
from fxcompress.program import Program
from fxcompress.report import Change, Report
from fxcompress.verify import verify
from models import MODELS, build
from programs import program

QUANTIZE = WeightOnlyQuantization()
nets = pytest.mark.parametrize("name", MODELS)
X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution, a transposed one, a bias-free and a tied linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.mid = nn.Linear(4, 32, bias=False)
        self.again = nn.Linear(32, 32)
        self.tied = nn.Linear(32, 32)
        self.tied.weight = self.again.weight
        self.head = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.conv(x).relu()).relu().mean((2, 3))
        out: Tensor = self.head(self.tied(self.again(self.mid(x)).relu()).relu())
        return out


def dense(dtype: torch.dtype = torch.float32) -> Program:
    torch.manual_seed(0)
    return fx.compile(Net().eval().to(dtype), (X.to(dtype),))


def stored(*passes: Any, dtype: torch.dtype = torch.float32) -> Program:
    found = dense(dtype)
    for one in (*passes, QUANTIZE):
        found = fx.apply(found, one)
    return found


def quantizable(found: Program) -> bool:
    try:
        return bool(QUANTIZE.plan(found).edits)
    except fx.PlanError:
        return False


@nets
def test_predicted_and_counted_bytes_are_equal_and_the_proof_holds(name: str) -> None:
    model, args, kwargs = build(name, torch.float32)
    found = fx.compile(model, args, kwargs)
    if not quantizable(found):
        pytest.skip("nothing in it is worth storing")
    plan = QUANTIZE.plan(found)
    new = fx.apply(found, QUANTIZE)
    predicted = found.cost.keeping(plan.stored)(plan.widths)
    assert predicted == new.cost()
    assert new.report.bytes.after == predicted.bytes < found.cost().bytes
    assert new.report.params.after == found.cost().params
    tensors = {id(t): t for t in (*new.module.parameters(), *new.module.buffers())}
    assert predicted.bytes == sum(t.nbytes for t in tensors.values())
    assert new.report.checks[-1].kind == "decoded"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_decoded_value_is_within_half_a_step_and_keeps_zeros(
    dtype: torch.dtype, axis: int
) -> None:
    draw = torch.Generator().manual_seed(axis)
    value = torch.randn(5, 6, 7, generator=draw).mul(10.0 ** torch.arange(-6, 1)).to(dtype)
    value[:, 2] = 0
    value.select(axis, 1).zero_()  # a row of zeros
    codec = Int8PerRow(axis)
    parts = codec.encode(value)
    found = codec.decode(parts)
    assert (found.shape, found.dtype) == (value.shape, dtype)
    assert bool(((found.double() - value.double()).abs() <= codec.bound(parts)).all())
    assert not found[value == 0].any()
    assert parts["scales"][1] == 1
    assert codec.bytes(value.shape, dtype) == sum(part.nbytes for part in parts.values())
    again = codec.encode(found)
    assert torch.equal(again["codes"], parts["codes"])


def test_a_program_reads_what_the_codec_decodes() -> None:
    found, new = dense(), stored()
    for name in ("conv.weight", "mid.weight", "head.weight"):
        weight = found.module.get_parameter(name).detach()
        codec = Int8PerRow()
        value = read_value(new.module, name)
        assert value is not None
        torch.testing.assert_close(value, codec.decode(codec.encode(weight)), rtol=0, atol=0)
    keeper: Any = new.module.get_submodule("up.weight")
    assert keeper.codec.axis == 1  # a transposed convolution has its outputs there


def test_a_tied_weight_is_stored_once_and_stays_tied() -> None:
    new = stored()
    assert new.module.get_submodule("again.weight") is new.module.get_submodule("tied.weight")
    final = new.finalize().module
    assert final.get_parameter("again.weight") is final.get_parameter("tied.weight")


def test_finalize_gives_floats_that_train_and_the_same_outputs() -> None:
    new = stored()
    final = new.finalize()
    torch.testing.assert_close(final(X), new(X), rtol=0, atol=0)
    assert final.module.state_dict().keys() == dense().module.state_dict().keys()
    assert final.report.bytes.after == dense().cost().bytes
    final(X).sum().backward()
    assert all(p.grad is not None for p in final.module.parameters())


def test_a_file_holds_codes_and_gives_them_back(tmp_path: Path) -> None:
    new = stored(NMSparsity(include="head.weight"))
    new.save(tmp_path / "small.fxc")
    dense().save(tmp_path / "dense.fxc")
    loaded = fx.load(tmp_path / "small.fxc")
    torch.testing.assert_close(loaded(X), new(X), rtol=0, atol=0)
    assert loaded.module.get_buffer("mid.weight.codes").dtype == torch.int8
    assert loaded.cost() == new.cost()
    assert loaded.sparsity == new.sparsity == {"head.weight": 0.5}
    torch.testing.assert_close(loaded.finalize()(X), new(X), rtol=0, atol=0)
    assert "head.weight" in loaded.finalize().sparsity


def test_a_damaged_form_is_refused() -> None:
    """A codec that is none, and a value of another shape than the graph reads."""
    codec: dict[str, Any] = {"codec": "fxcompress.edit.codecs.Int8PerRow", "settings": {"axis": 0}}
    parts = {"codes": [[4, 3], torch.int8], "scales": [[4], torch.float32]}
    kind = "fxcompress.edit.store.Encoded"
    made = make_module(kind, {**codec, "parts": parts, "trains": True})
    check_call(made, call([4, 3]))
    with pytest.raises(fx.LoadError, match="different programs"):
        check_call(made, call([3, 4]))
    nested = {"codec": kind, "settings": {**codec, "parts": {}, "trains": True}}
    with pytest.raises(fx.LoadError, match="no codec"):
        make_module(kind, {**nested, "parts": {}, "trains": True})
    with pytest.raises(fx.LoadError, match="no module"):
        make_module(codec["codec"], codec["settings"])


def call(shape: list[int]) -> Call:
    said = TensorValue(shape=shape, dtype="float32", dynamic=[])
    return Call("call_module", "weight", "weight", (), {}, said)


def test_the_report_lists_what_is_kept_in_another_form() -> None:
    new = stored()
    (row,) = [one for one in new.report.stored if one.name == "head.weight"]
    assert (row.form, row.bytes) == ("INT8 per row", Change(1024, 256 + 32))
    assert "head.weight: INT8 per row, 288 of 1,024 bytes" in str(new)
    assert Report.from_dict(new.report.to_dict()) == new.report
    assert new.finalize().report.stored == ()


def test_onnx_has_int8_weights_and_onnxruntime_agrees(tmp_path: Path) -> None:
    new = stored()
    small = fx.export.to_onnx(new, tmp_path / "small.onnx")
    big = fx.export.to_onnx(dense(), tmp_path / "dense.onnx")
    assert small.bytes < big.bytes
    model = onnx.load(tmp_path / "small.onnx")
    kinds = {one.name: one.data_type for one in model.graph.initializer}
    assert kinds["head.weight.codes"] == onnx.TensorProto.INT8
    assert sum(n.op_type == "DequantizeLinear" for n in model.graph.node) == 5
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx")
    (got,) = session.run(None, {"x": X.numpy()})
    np.testing.assert_allclose(got, new(X).detach().numpy(), rtol=1e-4, atol=1e-6)
    assert fx.export.check(tmp_path / "small.onnx", new).ok


class Stacked(nn.Module):
    """Weights of (inputs, outputs) on stacked vectors, which onnxruntime fuses."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 96) / 8)
        self.head = nn.Linear(96, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head((x @ self.weight).relu())
        return out


def test_products_that_onnxruntime_fuses_are_checked_in_float(tmp_path: Path) -> None:
    torch.manual_seed(0)
    new = fx.compile(Stacked().eval(), (torch.randn(2, 5, 64),), passes=[QUANTIZE])
    kept: Any = new.module.get_submodule("weight")
    assert kept.codec.axis == 1
    fx.export.to_onnx(new, tmp_path / "stacked.onnx")
    assert fx.export.check(tmp_path / "stacked.onnx", new).ok


def test_a_later_pass_may_not_shrink_what_is_stored() -> None:
    new = stored()
    assert "finalize" in str(new.group("mid").frozen)
    with pytest.raises(fx.PlanError, match="kept in another form"):
        fx.apply(new, Just(lambda p: [fx.Replace("mid.weight", torch.zeros(32, 4))]))
    with pytest.raises(fx.PlanError, match="finds no weight"):
        fx.apply(new, QUANTIZE)
    shrunk = fx.apply(new.finalize(), MagnitudePruning(ratio=0.5))
    assert shrunk.report.params.after < new.report.params.after


def test_written_back_the_class_holds_decoded_floats() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    new = fx.compile(net, (X,), passes=[QUANTIZE])
    torch.testing.assert_close(new.write_back(net)(X), new(X), rtol=1e-5, atol=1e-6)


@dataclass(frozen=True)
class Just:
    edits: Callable[[Program], Any]

    def plan(self, found: Program) -> fx.Plan:
        return fx.Plan(tuple(self.edits(found)))


def edited(change: Callable[[dict[str, Tensor]], object]) -> Just:
    """The first layer stored as parts that `change` has spoilt."""

    def edits(found: Program) -> list[fx.Store]:
        codec = Int8PerRow()
        parts = codec.encode(found.module.get_parameter("first.weight"))
        change(parts)
        return [fx.Store("first.weight", codec, parts)]

    return Just(edits)


def test_parts_that_are_not_those_of_the_weight_are_refused() -> None:
    found = program("mlp")
    with pytest.raises(fx.VerificationError, match="from what it was"):
        fx.apply(found, edited(lambda parts: parts["codes"].add_(3)))
    with pytest.raises(fx.PlanError, match="decodes to"):
        fx.apply(found, edited(lambda parts: parts.update(codes=parts["codes"][:, 1:])))
    with pytest.raises(fx.PlanError, match="decodes to"):
        fx.apply(found, edited(lambda parts: parts["scales"].fill_(torch.nan)))
    with pytest.raises(fx.PlanError, match="bytes"):
        fx.apply(found, edited(lambda parts: parts.update(more=torch.zeros(1))))


def test_a_code_that_changes_in_the_program_fails_the_proof() -> None:
    found = program("mlp")
    plan = WeightOnlyQuantization(include="head.weight").plan(found)
    new = fx.apply(found, Just(lambda _: plan.edits))
    faulty = copy.deepcopy(new.module)
    faulty.get_buffer("head.weight.codes")[0, 0] += 1
    with pytest.raises(fx.VerificationError, match=r"head\.weight\.codes"):
        verify(found.module, faulty, found.analysis.coupling, plan, found.args, found.kwargs)


def test_globs_and_what_cannot_be_stored_are_told() -> None:
    with pytest.raises(fx.BudgetError, match="nearest"):
        WeightOnlyQuantization(include="haed.weight").plan(dense())
    some = WeightOnlyQuantization(exclude=("conv.*", "up.*")).plan(dense())
    assert {"mid.weight", "head.weight"} < {edit.target for edit in some.edits}
    assert len(some.edits) == 3
    broken = dense()
    with torch.no_grad():
        broken.module.get_parameter("mid.weight")[0, 0] = torch.inf
    with pytest.raises(fx.PlanError, match="not finite"):
        QUANTIZE.plan(broken)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_stored_too(dtype: torch.dtype) -> None:
    new = stored(dtype=dtype)
    assert new.report.checks[-1].ok
    assert new(X.to(dtype)).dtype == dtype
