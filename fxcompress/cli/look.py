"""``inspect`` and ``explain``: what moves together in a model, what may not shrink, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxcompress.cli import options
from fxcompress.cli.answers import Answer, Tell, answer
from fxcompress.cli.models import Request
from fxcompress.cli.views import cost_of, shapes, table
from fxcompress.groups import ChannelGroup
from fxcompress.program import Program

_SHOWN = 3
Svg = Annotated[
    Path | None,
    typer.Option(help="Draw it too, to a file that ends in .svg, .png or .pdf."),
]


def inspect(
    model: options.Model,
    inputs: options.Input = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Show the groups that may not shrink one by one.")
    ] = False,
    weights: options.Weights = None,
    pin: options.Pin = None,
    static: options.Static = False,
    probe: options.Probe = False,
    seed: options.Seed = 0,
    svg: Svg = None,
    group: Annotated[
        str | None, typer.Option(help="Glob of groups or parameters to draw instead of all.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the channel groups of a model, its costs, and what may not shrink and why."""
    request = Request(model, inputs, weights, seed, static, pin, probe)

    def work(tell: Tell) -> Answer:
        program = request.program(tell)
        drawn = {} if svg is None else {"drawing": str(program.draw(svg, group))}
        return Answer({**_described(program, model), **drawn}, _shown(program, frozen))

    answer(work, as_json=json)


def explain(
    model: options.Model,
    first: Annotated[str, typer.Argument(help="A parameter or a group.", metavar="A")],
    second: Annotated[
        str | None, typer.Argument(help="Another parameter.", metavar="[B]", show_default=False)
    ] = None,
    inputs: options.Input = None,
    weights: options.Weights = None,
    pin: options.Pin = None,
    static: options.Static = False,
    probe: options.Probe = False,
    seed: options.Seed = 0,
    svg: Svg = None,
    json: options.Json = False,
) -> None:
    """Say which groups hold a parameter, or why two parameters have to shrink together."""
    request = Request(model, inputs, weights, seed, static, pin, probe)

    def work(tell: Tell) -> Answer:
        program = request.program(tell)
        text = program.explain(first, second)
        data = {"model": model, "first": first, "second": second, "explanation": text}
        if svg is not None:
            ties = None if second is None else (first, second)
            data["drawing"] = str(program.draw(svg, first, ties=ties))
        return Answer(data, Text(text))

    answer(work, as_json=json)


def _described(program: Program, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "cost": cost_of(program.cost()),
        "groups": [
            {
                "name": group.name,
                "units": group.units,
                "kind": group.kind,
                "cells": group.cells,
                "frozen": group.frozen,
                "exact": group.exact,
                "inexact": list(group.inexact),
                "sites": [asdict(site) for site in group.sites],
            }
            for group in program.groups
        ],
        "unknown": {op: list(nodes) for op, nodes in program.report.unknown.items()},
        "dynamic": [{str(dim): name for dim, name in axes.items()} for axes in program.dynamic],
    }


def _shown(program: Program, frozen: bool) -> RenderableType:
    free = [group for group in program.groups if not group.frozen]
    held = [group for group in program.groups if group.frozen]
    cost = program.cost()
    parts: list[RenderableType] = [
        Text(
            f"{program.report.model}: {cost.params:,} parameters, {cost.flops:,} FLOPs, "
            f"{cost.bytes:,} bytes ({shapes(program)})"
        ),
        _groups(free, f"{len(free)} groups that may shrink"),
    ]
    if held and frozen:
        parts.append(_groups(held, f"{len(held)} groups that may not", reasons=True))
    elif held:
        parts.append(Text(f"{len(held)} groups may not shrink; --frozen shows why"))
    if program.report.unknown:
        unknown = table("Operators without a rule; what they touch is frozen", "operator", "nodes")
        for op, nodes in program.report.unknown.items():
            unknown.add_row(op, _few(nodes))
        parts.append(unknown)
    return Group(*parts)


def _groups(groups: Sequence[ChannelGroup], title: str, *, reasons: bool = False) -> Table:
    last = "why" if reasons else "exact"
    shown = table(title, "group", ">units", "kind", ">cells", "layers", last)
    for group in groups:
        layers = dict.fromkeys(site.parameter.rpartition(".")[0] for site in group.sites)
        exact = "yes" if group.exact else f"no: {group.inexact[0]}"
        shown.add_row(
            group.name,
            str(group.units),
            group.kind,
            str(group.cells),
            _few([layer or "(model)" for layer in layers]),
            str(group.frozen) if reasons else exact,
        )
    return shown


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
