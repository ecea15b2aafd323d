"""``plan`` and ``compile``: what passes would do to a model, and doing it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text
from safetensors import SafetensorError
from safetensors.torch import save_model
from torch import nn

from fxcompress.cli import options
from fxcompress.cli.answers import Answer, Tell, answer
from fxcompress.cli.models import Request
from fxcompress.cli.planning import planned
from fxcompress.cli.recipes import Sizes, default_passes, make_passes
from fxcompress.errors import WriteBackError
from fxcompress.export import check, to_onnx
from fxcompress.files.write import disk_error, file_target, new_folder, new_folder_target, written
from fxcompress.io import program_target
from fxcompress.loaders import Loaded
from fxcompress.program import Program


def plan(
    model: options.Model,
    passes: options.Passes = None,
    ratio: options.Ratio = None,
    flops: options.Flops = None,
    macs: options.Macs = None,
    params: options.Params = None,
    size: options.Bytes = None,
    everywhere: options.Global = False,
    exact: options.Exact = False,
    round_to: options.RoundTo = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dims: options.Dims = None,
    inputs: options.Input = None,
    weights: options.Weights = None,
    data: options.Data = None,
    pin: options.Pin = None,
    static: options.Static = False,
    probe: options.Probe = False,
    trust: options.Trust = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Say what passes would do to a model, and what the result would cost. Nothing is written."""
    sizes = Sizes(
        ratio, flops, macs, params, size, everywhere, round_to, include, exclude, dims, exact
    )
    request = Request(model, inputs, weights, seed, static, pin, probe, data, trust)

    def work(tell: Tell) -> Answer:
        wanted = make_passes(passes or default_passes(sizes, data), sizes)
        if not wanted:
            raise typer.BadParameter("nothing to plan; give --ratio, --flops or --pass")
        found = planned(request.program(tell), wanted, tell)
        return Answer({"model": model, **found.to_dict()}, found)

    answer(work, as_json=json)


def compile(
    model: options.Model,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to save the program: a directory, or a file that ends in .fxc. By default "
            "a file in this directory that is called after the model.",
        ),
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Export to this file too, and check it in onnxruntime.")
    ] = None,
    write_back: Annotated[
        Path | None,
        typer.Option(
            help="Put the result into the model's own class and write its state dict to a file "
            "that ends in .safetensors, or a Hugging Face model to a new directory."
        ),
    ] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page.")] = None,
    passes: options.Passes = None,
    ratio: options.Ratio = None,
    flops: options.Flops = None,
    macs: options.Macs = None,
    params: options.Params = None,
    size: options.Bytes = None,
    everywhere: options.Global = False,
    exact: options.Exact = False,
    round_to: options.RoundTo = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    dims: options.Dims = None,
    inputs: options.Input = None,
    weights: options.Weights = None,
    data: options.Data = None,
    pin: options.Pin = None,
    static: options.Static = False,
    probe: options.Probe = False,
    trust: options.Trust = False,
    seed: options.Seed = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="Folder to keep the run in; the same command goes on from there if it was killed."
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Compress a model, verify every pass, and save the program."""
    sizes = Sizes(
        ratio, flops, macs, params, size, everywhere, round_to, include, exclude, dims, exact
    )
    request = Request(model, inputs, weights, seed, static, pin, probe, data, trust, checkpoint)

    def work(tell: Tell) -> Answer:
        wanted = make_passes(passes or default_passes(sizes, data), sizes)
        _check_places(made_at := output or _default_output(model), html, onnx, write_back)
        loaded = request.load(tell)
        program = request.program(tell, wanted, loaded=loaded)
        made = _Made(program, made_at)
        tell(f"save {made.output}")
        program.save(made.output)
        if html:
            made.add("report", program.report.to_html(html))
        if write_back:
            tell("write back")
            _write_back(program, loaded, write_back)
            made.add("write_back", write_back)
        if onnx:
            tell("export to ONNX and check in onnxruntime")
            made.export(onnx)
        return made.answer()

    answer(work, as_json=json)


def _check_places(output: Path, html: Path | None, onnx: Path | None, back: Path | None) -> None:
    """Before any work: can everything that is asked for be written?"""
    program_target(output)
    for file in (html, onnx):
        if file is not None:
            file_target(file)
    if back is not None and back.suffix == ".safetensors":
        file_target(back)
    elif back is not None:
        new_folder_target(back)


class _Made:
    """A program, and the files that came of it."""

    def __init__(self, program: Program, output: Path) -> None:
        self.output = output
        self._program = program
        self._files = {"program": output}
        self._onnx: dict[str, Any] = {}
        self._lines: list[str] = []
        self._failed: str | None = None

    def add(self, name: str, path: Path) -> None:
        self._files[name] = path

    def export(self, path: Path) -> None:
        """Write the ONNX file and check it; a failed check fails the command."""
        file = to_onnx(self._program, path)
        checked = check(path, self._program, raise_on_failure=False)
        self.add("onnx", path)
        self._onnx = {"onnx": file.to_dict(), "check": checked.to_dict()}
        self._lines.append(str(checked))
        if not checked.ok:
            self._failed = f"{path} differs from the program"

    def answer(self) -> Answer:
        data = {
            "report": self._program.report.to_dict(),
            "files": {name: str(path) for name, path in self._files.items()},
            "history": list(self._program.history),
            **self._onnx,
        }
        lines = [*self._lines, *(f"{name}: {path}" for name, path in self._files.items())]
        view: RenderableType = Group(self._program.report, *(Text(line) for line in lines))
        return Answer(data, view, self._failed)


def _write_back(program: Program, loaded: Loaded, target: Path) -> None:
    if loaded.program is not None or not isinstance(loaded.model, nn.Module):
        raise WriteBackError(
            f"{loaded.label} is a graph without its class; give --write-back where the model comes "
            "from a factory, torchvision, timm or Hugging Face"
        )
    smaller = program.write_back(loaded.model)
    if target.suffix == ".safetensors":
        with written(target) as draft, _telling(target):
            save_model(smaller, str(draft))
    elif callable(save := getattr(smaller, "save_pretrained", None)):
        with new_folder(target) as draft, _telling(target):
            save(draft)
    else:
        raise WriteBackError(
            f"{target}: give a file that ends in .safetensors; only Hugging Face models write "
            "directories"
        )


@contextmanager
def _telling(target: Path) -> Iterator[None]:
    """Tell what others' functions for saving raise, a full disk among it."""
    try:
        yield
    except OSError:
        raise
    except SafetensorError as error:
        raise disk_error(error) from error
    except Exception as error:  # save_pretrained is the model's own code
        raise WriteBackError(f"{target}: the model cannot save itself ({error})") from error


def _default_output(model: str) -> Path:
    """A file in the current directory, named after the model."""
    name = Path(model).stem if Path(model).suffix in (".pt2", ".fxc") else model.partition(":")[2]
    return Path(re.sub(r"[^\w.-]+", "-", name).strip("-.") or "program").with_suffix(".fxc")
