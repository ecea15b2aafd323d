"""``check``, ``bench`` and ``demo``: numbers about files and programs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Group
from rich.text import Text
from torch import nn

from fxcompress.capture import capture
from fxcompress.cli import options
from fxcompress.cli.answers import Answer, Tell, answer
from fxcompress.cli.models import Request
from fxcompress.demo import QUICK, Settings, run
from fxcompress.export import Example, Exportable
from fxcompress.export import benchmark as measure
from fxcompress.export import check as compare
from fxcompress.export.onnx.names import unique_names
from fxcompress.export.onnx.write import describe
from fxcompress.loaders import parse_inputs


def check(
    onnx: Annotated[Path, typer.Argument(help="The ONNX file.", metavar="ONNX")],
    program: Annotated[
        str,
        typer.Argument(
            help="What it was made from: a saved program or a model.", metavar="PROGRAM"
        ),
    ],
    rtol: Annotated[
        float | None, typer.Option(help="Relative tolerance; by default by dtype.")
    ] = None,
    atol: Annotated[float | None, typer.Option(help="Absolute tolerance.")] = None,
    samples: Annotated[int, typer.Option(help="How many inputs.", min=1)] = 3,
    inputs: options.Input = None,
    weights: options.Weights = None,
    static: options.Static = False,
    trust: options.Trust = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Run an ONNX file in onnxruntime against the program; exit code 1 if they differ."""
    request = Request(program, inputs, weights, seed, static, trust=trust)

    def work(tell: Tell) -> Answer:
        source = request.program(tell)
        tell("run in onnxruntime")
        result = compare(
            onnx,
            source,
            rtol=rtol,
            atol=atol,
            samples=samples,
            seed=seed,
            raise_on_failure=False,
        )
        failed = None if result.ok else f"{onnx} differs from {program}"
        made = describe(onnx).metadata
        lines = [str(result), *(f"  {key}: {value}" for key, value in made.items())]
        return Answer({**result.to_dict(), "metadata": dict(made)}, Text("\n".join(lines)), failed)

    answer(work, as_json=json)


def bench(
    entries: Annotated[
        list[str],
        typer.Argument(
            help="ONNX files (run by onnxruntime), saved programs and models (run by torch). The "
            "first is the one to beat.",
            metavar="A B …",
        ),
    ],
    rounds: Annotated[int, typer.Option(help="How often each is timed.", min=2)] = 50,
    warmup: Annotated[int, typer.Option(help="Untimed runs of each before.", min=0)] = 5,
    threads: Annotated[int, typer.Option(help="Threads of each runtime.", min=1)] = 1,
    inputs: options.Input = None,
    trust: options.Trust = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Time models in turn on the same inputs, and say how far the numbers can be trusted."""

    def work(tell: Tell) -> Answer:
        names = unique_names([_label(entry) for entry in entries])
        opened = [
            _opened(entry, Request(entry, inputs, seed=seed, trust=trust), tell)
            for entry in entries
        ]
        args, kwargs = parse_inputs(inputs or (), seed)
        result = measure(
            dict(zip(names, opened, strict=True)),
            rounds=rounds,
            warmup=warmup,
            threads=threads,
            inputs=(*args, *kwargs.values()) or None,
            seed=seed,
            progress=lambda done, all_: tell("time in turn", done / all_),
        )
        notes = [Text(line) for line in str(result).splitlines()]
        return Answer(result.to_dict(), Group(*notes))

    answer(work, as_json=json)


def demo(
    out: Annotated[Path, typer.Option(help="Where to write the files.")] = Path("out/demo"),
    quick: Annotated[
        bool, typer.Option("--quick", help="A few seconds: shows that it works, not how well.")
    ] = False,
    seed: Annotated[int, typer.Option(help="For split, weights and order.")] = 0,
    json: options.Json = False,
) -> None:
    """Train a small net on digits, halve its FLOPs, recover, export, check and time it."""

    def work(tell: Tell) -> Answer:
        result = run(out, replace(QUICK if quick else Settings(), seed=seed), tell)
        return Answer(result.to_dict(), result)

    answer(work, as_json=json)


def _opened(entry: str, request: Request, tell: Tell) -> Path | Exportable:
    if entry.endswith(".onnx"):
        return Path(entry)
    loaded = request.load(tell)
    if loaded.program is not None:
        return loaded.program
    if isinstance(loaded.model, nn.Module):
        return Example(loaded.model, loaded.args, loaded.kwargs)
    return capture(loaded.model, loaded.args, loaded.kwargs, trust=request.trust)


def _label(entry: str) -> str:
    return Path(entry).name if entry.endswith((".onnx", ".fxc", ".pt2")) else entry
