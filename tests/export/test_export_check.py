from __future__ import annotations

import json
import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
import models
from fxcompress.errors import ExportError, VerificationError
from fxcompress.export import CheckResult, Example, check, to_onnx
from fxcompress.export.checks import blame
from fxcompress.export.checks.compare import Tolerance, distances
from fxcompress.export.onnx.exportable import inputs_of
from fxcompress.export.onnx.extremes import Extremes
from fxcompress.export.onnx.samples import drawn
from fxcompress.export.runtimes.onnxruntime import OnnxRuntime
from fxcompress.export.runtimes.protocol import Source
from nets_stateful import Shifting

BATCHED = ({0: "batch"},)
LOOSE = Tolerance(1e-4, 1e-8)


class Lookup(nn.Module):
    """Integer indices, a mask and floats: what random inputs must not spoil."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4)

    def forward(self, index: Tensor, mask: Tensor, x: Tensor) -> Tensor:
        rows: Tensor = self.table(index) * mask[..., None]
        return rows.sum(1) + x


def linear(seed: int = 0) -> Example:
    layer = models.randomize(nn.Linear(4, 3), seed)
    return Example(layer, (models.normal(2, 4),), {}, BATCHED)


def lookup() -> Example:
    index = torch.tensor([[0, 5, 2], [1, 1, 3]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    dynamic = ({0: "batch"}, {0: "batch"}, {0: "batch"})
    return Example(models.randomize(Lookup()), (index, mask, models.normal(2, 4)), {}, dynamic)


def failed(path: Path, program: Example, **options: Any) -> CheckResult:
    result = check(path, program, raise_on_failure=False, **options)
    assert not result.ok
    return result


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return to_onnx(linear(), tmp_path_factory.mktemp("onnx") / "linear.onnx").path


def test_a_sound_file_agrees_on_several_inputs(file: Path) -> None:
    result = check(file, linear())
    assert result.ok
    assert [checked.label for checked in result.inputs] == ["example", "random", "random, batch=3"]
    assert result.max_error < 1e-6 < result.tolerance
    assert "agrees with" in str(result)


def test_indices_and_masks_stay_valid(tmp_path: Path) -> None:
    program = lookup()
    assert check(to_onnx(program, tmp_path / "a.onnx"), program, samples=5).ok


def test_random_inputs_keep_dtypes_ranges_and_follow_the_seed() -> None:
    inputs = inputs_of(lookup())
    index, mask, x = drawn(inputs, {"batch": 50}, seed=1)
    assert (int(index.min()), int(index.max())) == (0, 5)
    assert [t.dtype for t in (index, mask, x)] == [t.dtype for t in inputs.tensors]
    assert {len(t) for t in (index, mask, x)} == {50}
    assert torch.equal(mask[:2], inputs.tensors[1])
    assert x.min() >= inputs.tensors[2].min()
    assert x.max() <= inputs.tensors[2].max()
    assert not torch.equal(x, drawn(inputs, {"batch": 50}, seed=2)[2])
    assert torch.equal(x, drawn(inputs, {"batch": 50}, seed=1)[2])


@pytest.mark.parametrize(("size", "other"), [(1, 2), (2, 3), (3, 2), (64, 63)])
def test_other_sizes_differ_and_avoid_one(size: int, other: int) -> None:
    program = Example(nn.Identity(), (torch.zeros(size, 2),), {}, BATCHED)
    assert Extremes(inputs_of(program), None).neighbours() == {"batch": other}


def test_a_constant_example_still_gives_random_inputs() -> None:
    program = Example(nn.Identity(), (torch.zeros(8, 8),))
    (fresh,) = drawn(inputs_of(program), {}, seed=0)
    assert fresh.std() > 0.1


def test_a_file_of_other_weights_is_found_out(file: Path) -> None:
    with pytest.raises(
        VerificationError, match=r"(?s)example: output is off by .*guilty is the file"
    ) as e:
        check(file, linear(seed=1))
    assert str(file) in str(e.value)


def test_rounding_is_called_numerics(file: Path) -> None:
    assert failed(file, linear(), rtol=0.0, atol=0.0).blame is blame.NUMERICS


def shift(patch: pytest.MonkeyPatch, wrong: set[bool]) -> None:
    """Outputs are off by one in sessions that do, or do not, optimise."""
    opened = OnnxRuntime.open

    @contextmanager
    def shifted(self: Any, source: Source, *, threads: int = 1, optimize: bool = True) -> Any:
        with opened(self, source, threads=threads, optimize=optimize) as session:
            if optimize in wrong:
                named = session.named
                off = lambda found: {name: y + 1 for name, y in named(found).items()}  # noqa: E731
                patch.setattr(session, "named", off)
            yield session

    patch.setattr(OnnxRuntime, "open", shifted)


def test_a_runtimes_optimiser_can_be_guilty(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift(monkeypatch, {True})
    assert failed(file, linear()).blame == blame.optimiser_of(OnnxRuntime())


def test_onnxscripts_optimiser_can_be_guilty(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoiled(program: Example, path: Path, **options: Any) -> Any:
        return to_onnx(linear(seed=0 if options.get("optimize") is False else 1), path, **options)

    monkeypatch.setattr("fxcompress.export.checks.blame.to_onnx", spoiled)
    wrong = to_onnx(linear(seed=1), tmp_path / "wrong.onnx").path
    assert failed(wrong, linear()).blame is blame.ONNXSCRIPT


def test_the_exporter_can_be_guilty(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift(monkeypatch, {True, False})
    assert failed(file, linear()).blame is blame.EXPORTER


def test_a_program_that_no_longer_exports_is_named(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ExportError("no")

    monkeypatch.setattr("fxcompress.export.checks.blame.to_onnx", refuse)
    assert failed(file, linear(seed=1)).blame is blame.REFUSED


def test_a_file_that_fails_at_another_batch_is_wrong(tmp_path: Path) -> None:
    program = linear()
    static = Example(program.module, program.args)
    result = failed(to_onnx(static, tmp_path / "a.onnx").path, program)
    assert [checked.ok for checked in result.inputs] == [True, True, False]
    assert "onnxruntime fails on" in str(result)
    assert result.blame is blame.WRONG_FILE


def test_results_are_json(file: Path) -> None:
    good = check(file, linear()).to_dict()
    bad = failed(file, Example(nn.Linear(4, 7), (models.normal(2, 4),))).to_dict()
    for result in (good, bad):
        assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert bad["max_relative_error"] is None
    assert "shape (2, 3) instead of (2, 7)" in bad["inputs"][0]["outputs"][0]["problem"]


def test_zero_outputs_are_pointed_out(tmp_path: Path) -> None:
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    program = Example(layer, (models.normal(2, 4),), {}, BATCHED)
    result = check(to_onnx(program, tmp_path / "a.onnx"), program)
    assert result.ok
    assert "output is zero on every input" in result.notes[0]


def test_a_model_that_writes_to_its_input_is_compared_on_what_it_was_given(tmp_path: Path) -> None:
    program = fx.compile(Shifting(), (models.normal(3, 4),))
    (given,) = (value.clone() for value in program.args)
    file = to_onnx(program, tmp_path / "shifting.onnx").path
    assert check(file, program).ok
    assert torch.equal(program.args[0], given)


def test_a_missing_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no ONNX file"):
        check(tmp_path / "missing.onnx", linear())
    (tmp_path / "text.onnx").write_text("not a model at all")
    with pytest.raises(ExportError, match="is not an ONNX model"):
        check(tmp_path / "text.onnx", linear())


def test_another_number_of_inputs_is_refused(file: Path) -> None:
    with pytest.raises(ExportError, match=r"takes 1 inputs .* given 3 tensors"):
        check(file, lookup())


def test_no_samples_are_refused(file: Path) -> None:
    with pytest.raises(ExportError, match="samples must be an int"):
        check(file, linear(), samples=0)


def test_a_dtype_without_kernels_is_explained(tmp_path: Path) -> None:
    layer = nn.Conv2d(2, 3, 3).double()
    program = Example(layer, (models.normal(2, 2, 5, 5).double(),))
    with pytest.raises(ExportError, match="every operator in float32 only"):
        check(to_onnx(program, tmp_path / "a.onnx"), program)


def test_half_precision_has_its_own_tolerance(tmp_path: Path) -> None:
    program = Example(models.randomize(nn.Linear(4, 3)).half(), (models.normal(2, 4).half(),))
    assert check(to_onnx(program, tmp_path / "a.onnx"), program).tolerance == 1e-2


def test_nan_weights_are_named(tmp_path: Path) -> None:
    program = linear()
    with torch.no_grad():
        program.module.bias[0] = math.nan  # type: ignore[operator]
    result = failed(to_onnx(program, tmp_path / "a.onnx").path, program)
    assert "module itself gives NaN" in str(result)


@pytest.mark.parametrize(
    ("wanted", "found", "problem"),
    [
        ([1.0, 2.0], [1.0, math.nan], "1 of 2 entries are NaN"),
        ([1.0, math.nan], [1.0, math.nan], "module itself gives NaN"),
        ([1.0, 2.0], [1.0, math.inf], "infinite"),
        ([1.0, -math.inf], [1.0, math.inf], "infinite"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "shape"),
    ],
)
def test_what_cannot_be_equal_is_infinitely_far(
    wanted: list[float], found: list[float], problem: str
) -> None:
    arrays = {"y": np.array(found, dtype=np.float32)}
    (error,) = distances({"y": torch.tensor(wanted)}, arrays, LOOSE)
    assert not error.ok
    assert error.relative == math.inf
    assert problem in str(error.problem)


def test_equal_infinities_are_equal() -> None:
    wanted = torch.tensor([1.0, -math.inf])
    (error,) = distances({"y": wanted}, {"y": wanted.numpy()}, LOOSE)
    assert (error.ok, error.relative) == (True, 0.0)


def test_integers_must_be_equal_and_dtypes_too() -> None:
    wanted = torch.tensor([1, 2, 3, 4])
    (off,) = distances({"y": wanted}, {"y": np.array([1, 2, 3, 5])}, LOOSE)
    assert (off.ok, off.relative, off.problem) == (False, 0.25, "1 of 4 entries differ")
    (narrow,) = distances({"y": wanted}, {"y": wanted.numpy().astype(np.int32)}, LOOSE)
    assert "dtype" in str(narrow.problem)


def test_the_relative_error_is_of_the_largest_magnitude() -> None:
    wanted = torch.tensor([10.0, 0.0])
    (error,) = distances({"y": wanted}, {"y": np.array([10.0, 0.5], dtype=np.float32)}, LOOSE)
    assert error.relative == pytest.approx(0.05)
    assert error.absolute == pytest.approx(0.5)


def test_missing_outputs_are_an_error() -> None:
    (error,) = distances({"a": torch.ones(1), "b": torch.ones(1)}, {"a": np.ones(1)}, LOOSE)
    assert "the module has 2 outputs, the file 1" in str(error.problem)


def test_an_edited_file_is_found_out(file: Path, tmp_path: Path) -> None:
    model = onnx.load(file)
    weight = model.graph.initializer[0]
    edited = onnx.numpy_helper.to_array(weight) * 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(edited, weight.name))
    onnx.save(model, tmp_path / "edited.onnx")
    assert failed(tmp_path / "edited.onnx", linear()).blame is blame.WRONG_FILE
