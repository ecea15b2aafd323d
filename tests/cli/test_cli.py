"""Every command does what it says, on a net of one's own."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fxcompress
from commands import run
from fxcompress.demo.network import ResidualNet

FACTORY = """
import torch
from fxcompress.demo.network import ResidualNet

def bare():
    print("a factory that talks")
    return ResidualNet((8, 16))

def model():
    return bare(), (torch.linspace(-1, 1, 128).view(2, 1, 8, 8),)
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(FACTORY)
    return f"{tmp_path / 'nets.py'}:model"


def data(*words: object, code: int = 0) -> Any:
    """The JSON of a command; nothing else may be on stdout."""
    result = run(*words, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout)


def test_inspect_shows_every_group(net: str) -> None:
    found = data("inspect", net)
    program = fxcompress.compile(ResidualNet((8, 16)), (torch.zeros(2, 1, 8, 8),))

    assert [group["name"] for group in found["groups"]] == [g.name for g in program.groups]
    assert found["groups"][0]["sites"] == [asdict(site) for site in program.groups[0].sites]
    assert found["cost"] == program.cost().amounts
    assert found["dynamic"] == [{"0": "batch"}]


def test_inspect_prints_a_table_and_says_why_groups_are_frozen(net: str) -> None:
    short, long = run("inspect", net), run("inspect", net, "--frozen")

    assert "blocks.0.conv1" in short.stdout
    assert "--frozen shows why" in short.stdout
    assert "an output of the model" in long.stdout
    assert "an output of the model" not in short.stdout


def test_a_pinned_group_is_frozen(net: str) -> None:
    free = data("inspect", net)["groups"][0]
    held = data("inspect", net, "--pin", "stem.weight")["groups"][0]
    assert (free["frozen"], "pin" in held["frozen"]) == (None, True)


def test_explain_names_the_operation_that_ties(net: str) -> None:
    tied = run("explain", net, "stem.weight", "blocks.0.conv2.weight")
    alone = data("explain", net, "head.weight")

    assert "aten::add" in tied.stdout
    assert "head" in alone["explanation"]


def test_pictures_are_drawn_on_request(net: str, tmp_path: Path) -> None:
    every, some, ties = (tmp_path / f"{name}.svg" for name in ("every", "some", "ties"))
    assert data("inspect", net, "--svg", every)["drawing"] == str(every)
    data("inspect", net, "--svg", some, "--group", "blocks.*")
    found = data("explain", net, "stem.weight", "blocks.0.conv2.weight", "--svg", ties)
    assert found["drawing"] == str(ties)
    assert len({path.read_bytes() for path in (every, some, ties)}) == 3


def test_a_plan_predicts_what_compiling_gives_and_writes_nothing(net: str, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    planned = data("plan", net, "--flops", "0.5", "--round-to", 4)
    after = [path for path in sorted(tmp_path.rglob("*")) if "__pycache__" not in path.parts]
    assert after == before

    made = data("compile", net, "--flops", 0.5, "--round-to", 4, "-o", tmp_path / "x.fxc")
    report = made["report"]
    for name in ("flops", "params", "bytes"):
        assert planned["cost"]["after"][name] == report[name]["after"]
    widths = {group["name"]: group["after"] for group in planned["passes"][0]["groups"]}
    changes = {group["name"]: group["units"] for group in report["groups"]}
    assert widths == {n: u["after"] for n, u in changes.items() if u["after"] != u["before"]}
    assert planned["left"]["flops"] <= 0.5


def test_a_plan_of_several_passes_goes_through_all(net: str) -> None:
    planned = data("plan", net, "--ratio", 0.5, "-p", "random(seed=3)", "-p", "fold-batch-norm")
    first, second = planned["passes"]

    assert first["groups"]
    assert "seed=3" in first["repr"]
    assert second["repr"] == "FoldBatchNorm()"
    assert "2 groups" in run("plan", net, "--ratio", 0.5, "--include", "blocks.0.*").stdout


def test_a_kind_of_group_is_shown_and_may_be_asked_for(net: str) -> None:
    kinds = {group["name"]: group["kind"] for group in data("inspect", net)["groups"]}
    planned = data("plan", net, "--ratio", 0.5, "--dims", "residual")

    assert {kinds[group["name"]] for group in planned["passes"][0]["groups"]} == {"residual"}
    assert "residual" in run("inspect", net).stdout


def test_the_units_that_go_may_be_chosen_exactly(net: str) -> None:
    planned = data("plan", net, "--flops", 0.5, "--exact")

    assert "allocation='exact'" in planned["passes"][0]["repr"]
    assert planned["left"]["flops"] <= 0.5
    assert "exclude each other" in run("plan", net, "--flops", 0.5, "--exact", "--global").stderr


def test_compile_writes_what_was_asked_for(net: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    files = {name: out / name for name in ("p.fxc", "p.onnx", "w.safetensors", "r.html")}
    words = ["--onnx", files["p.onnx"], "--write-back", files["w.safetensors"]]
    out.mkdir()
    found = data(
        "compile", net, "--ratio", 0.5, "-o", files["p.fxc"], "--html", files["r.html"], *words
    )

    program = fxcompress.load(files["p.fxc"])
    weights = load_file(files["w.safetensors"])
    assert set(out.iterdir()) == set(files.values())
    assert found["check"]["ok"]
    assert found["report"]["verification"]["ok"]
    assert weights["stem.weight"].shape == program.module.state_dict()["stem.weight"].shape
    assert run("check", files["p.onnx"], files["p.fxc"]).exit_code == 0


def test_a_saved_program_goes_on_from_where_it_was(net: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.fxc", tmp_path / "second"
    run("compile", net, "--ratio", 0.5, "-o", first)
    found = data("compile", first, "--pass", "fold-batch-norm", "-o", second)

    assert found["history"] == ["MagnitudePruning(ratio=0.5)", "FoldBatchNorm()"]
    assert fxcompress.load(second)(torch.zeros(3, 1, 8, 8)).shape == (3, 10)


def test_what_history_shows_can_be_typed(net: str, tmp_path: Path) -> None:
    first, second = tmp_path / "first.fxc", tmp_path / "second.fxc"
    told = data("compile", net, "-o", str(first), "--pass", "magnitude(p=1)", "--ratio", "0.5",
                "--pass", "fold-batch-norm")["history"]  # fmt: skip
    assert told == ["MagnitudePruning(ratio=0.5, p=1)", "FoldBatchNorm()"]
    typed = [word for text in told for word in ("--pass", text)]
    assert data("compile", net, "-o", str(second), *typed)["history"] == told
    one, other = fxcompress.load(first), fxcompress.load(second)
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, other.module.state_dict()[name]), name


def test_a_recipe_is_taken_from_a_file_and_a_run_is_kept(net: str, tmp_path: Path) -> None:
    recipe, folder, out = tmp_path / "half.yaml", tmp_path / "run", str(tmp_path / "a.fxc")
    recipe.write_text("- RandomPruning: {ratio: 0.5}\n- FoldBatchNorm: {}\n")
    words = ["compile", net, "-o", out, "--pass", str(recipe), "--checkpoint", str(folder)]
    told = data(*words)
    assert told["history"] == ["RandomPruning(ratio=0.5)", "FoldBatchNorm()"]
    assert len(list(folder.iterdir())) == 2
    again = run(*words)
    assert "go on after FoldBatchNorm()" in again.stderr
    assert data(*words)["report"]["passes"] == told["report"]["passes"], "seconds and all"


def test_an_error_names_the_pass(net: str, tmp_path: Path) -> None:
    words = ["--pass", "random", "--ratio", "0.5", "--pass", "TaylorPruning()"]
    result = run("compile", net, "-o", str(tmp_path / "a.fxc"), *words)
    assert result.exit_code == 1
    assert "in pass 2 of 2, TaylorPruning(ratio=0.5), after RandomPruning(ratio=0.5)" in (
        result.stderr
    )


def test_the_output_is_called_after_the_model(
    net: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("compile", "nets.py:model").exit_code == 0
    assert (tmp_path / "model.fxc").is_file()


def test_a_check_that_fails_fails_the_command(net: str, tmp_path: Path) -> None:
    run("compile", net, "-o", tmp_path / "a.fxc", "--onnx", tmp_path / "a.onnx")
    run("compile", net, "--ratio", 0.5, "-o", tmp_path / "b.fxc")

    found = data("check", tmp_path / "a.onnx", tmp_path / "b.fxc", code=1)
    said = run("check", tmp_path / "a.onnx", tmp_path / "b.fxc")
    assert not found["ok"]
    assert "differs from" in said.stderr
    assert data("check", tmp_path / "a.onnx", net)["ok"]


def test_bench_times_files_programs_and_models(net: str, tmp_path: Path) -> None:
    program, onnx = tmp_path / "a.fxc", tmp_path / "a.onnx"
    run("compile", net, "-o", program, "--onnx", onnx)
    found = data("bench", onnx, program, net, "--rounds", 3, "--warmup", 0)

    assert [timing["name"] for timing in found["timings"]] == ["a.onnx", "a.fxc", net]
    assert [timing["runtime"] for timing in found["timings"]] == ["onnxruntime", "torch", "torch"]
    assert found["shapes"] == [[2, 1, 8, 8]]
    assert "p50" in run("bench", onnx, "--rounds", 3, "--input", "3x1x8x8").stdout


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (["inspect", "{bare}"], "LoadError", "--input SHAPE"),
        (["inspect", "{bare}", "-i", "2x5x8x8"], "CaptureError", "refused ResidualNet"),
        (["plan", "{net}", "--ratio", "1.5"], "BudgetError", "in [0, 1) or None, not 1.5"),
        (["plan", "{net}", "--flops", "0.0001"], "BudgetError", "flops"),
        (["plan", "{net}", "--ratio", "0.5", "--include", "stm.*"], "BudgetError", "stem"),
        (["explain", "{net}", "stem.wait"], "PlanError", "stem.weight"),
        (["check", "none.onnx", "{net}"], "ExportError", "none.onnx"),
        (["bench", "none.onnx"], "ExportError", "none.onnx"),
        (["compile", "{net}", "-o", "/proc/no/where.fxc"], "WriteError", "/proc/no"),
    ],
)
def test_an_error_is_one_message_and_exit_code_1(
    net: str, words: list[str], kind: str, message: str
) -> None:
    words = [word.format(net=net, bare=net.replace(":model", ":bare")) for word in words]
    result = run(*words)
    found = data(*words, code=1)

    assert result.exit_code == 1
    assert f"{kind}: " in result.stderr
    assert result.stdout == "" or "factory" in result.stdout
    assert "Traceback" not in result.stderr
    assert found["error"]["kind"] == kind
    assert message in found["error"]["message"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plan", "{net}"], "nothing to plan"),
        (["plan", "{net}", "--pass", "magnitud", "--ratio", "0.5"], "did you mean magnitude"),
        (["plan", "{net}", "--pass", "magnitude(q=1)", "--ratio", "0.5"], "no argument 'q'"),
        (["plan", "{net}", "--pass", "magnitude(1)", "--ratio", "0.5"], "needs its name"),
        (["plan", "{net}", "--pass", "magnitude(p=)", "--ratio", "0.5"], "write options as"),
        (["plan", "{net}", "--pass", "fold-batch-norm", "--ratio", "0.5"], "passes that do"),
        (["plan", "{net}", "--ratio", "half"], "as a number"),
        (["plan", "{net}", "--flops", "half"], "is no number"),
        (["plan", "{net}", "--global"], "needs a budget"),
        (["bench"], "Missing argument"),
        (["compress"], "No such command"),
    ],
)
def test_wrong_usage_is_exit_code_2(net: str, words: list[str], message: str) -> None:
    result = run(*[word.format(net=net) for word in words])

    assert result.exit_code == 2
    # The message stands in a box, broken into lines.
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_group_to_draw_needs_a_file(net: str) -> None:
    result = run("inspect", net, "--group", "stem")
    assert result.exit_code == 2
    assert "give --svg" in result.stderr
