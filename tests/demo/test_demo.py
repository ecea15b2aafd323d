from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor

import fxcompress
from fxcompress.demo import QUICK, DemoResult, Settings, run
from fxcompress.demo.digits import accuracy, digits
from fxcompress.demo.network import ResidualNet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def result(folder: Path) -> DemoResult:
    return run(folder, replace(QUICK, rounds=3))


def test_no_test_image_is_trained_on() -> None:
    data = digits()
    train = {tuple(image.flatten().tolist()) for image in data.train.data.images}  # type: ignore[attr-defined]
    test = {tuple(image.flatten().tolist()) for image in data.test_images}

    assert len(train) + len(test) == 1797
    assert not train & test


def test_the_split_and_the_order_follow_the_seed() -> None:
    first, same, other = digits(0), digits(0), digits(1)

    def batch(data: object) -> Tensor:
        return next(iter(data.train.data))[0]  # type: ignore[attr-defined, no-any-return]

    assert torch.equal(first.test_images, same.test_images)
    assert torch.equal(batch(first), batch(same))
    assert not torch.equal(first.test_images, other.test_images)


def test_every_epoch_shows_every_image_once_in_another_order() -> None:
    data = digits(batch=100).train.data
    epochs = [torch.cat([labels for _, labels in data]) for _ in range(2)]

    assert len(data) == 14  # type: ignore[arg-type]
    assert torch.equal(epochs[0].sort().values, epochs[1].sort().values)
    assert not torch.equal(epochs[0], epochs[1])


def test_the_compressed_net_costs_at_most_half(result: DemoResult) -> None:
    dense, small = result.dense, result.compressed

    assert small.flops <= 0.5 * dense.flops
    assert small.parameters < dense.parameters
    assert small.onnx_bytes < dense.onnx_bytes
    assert max(dense.max_error, small.max_error) < 1e-4
    assert dense.parameters == sum(p.numel() for p in ResidualNet().parameters())


def test_accuracies_are_those_of_the_files_on_held_out_images(
    result: DemoResult, folder: Path
) -> None:
    program, data = fxcompress.load(folder / "compressed.fxc"), digits(QUICK.seed)
    with torch.no_grad():
        expected = accuracy(program(data.test_images), data.test_labels)

    assert result.compressed.accuracy == pytest.approx(expected, abs=0.005)
    assert result.compressed.accuracy > 0.5  # of ten classes, after two short epochs


def test_the_files_are_there(result: DemoResult, folder: Path) -> None:
    found = json.loads((folder / "results.json").read_text())

    assert {path.name for path in folder.iterdir()} == set(result.files)
    assert found["dense"]["parameters"] == result.dense.parameters
    assert found["settings"]["epochs"] == QUICK.epochs
    onnx.checker.check_model(folder / "dense.onnx")
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_the_table_has_three_rows(result: DemoResult) -> None:
    table = result.table()

    assert table.row_count == 3
    assert [str(column.header) for column in table.columns][1:4] == [
        "accuracy",
        "parameters",
        "FLOPs",
    ]


@pytest.mark.slow
def test_in_full_it_loses_little_and_gains_speed(tmp_path: Path) -> None:
    full = run(tmp_path, Settings())

    assert full.dense.accuracy > 0.97
    assert full.compressed.accuracy > full.dense.accuracy - 0.02
    assert full.details["accuracy_before_recovery"] < full.compressed.accuracy
