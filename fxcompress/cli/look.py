"""``inspect`` and ``explain``: what moves together in a model, what may not shrink, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxcompress.analysis.alike import common_name, folded, without_numbers
from fxcompress.analysis.groups import ChannelGroup
from fxcompress.cli import options
from fxcompress.cli.answers import Answer, Tell, answer
from fxcompress.cli.models import Request
from fxcompress.cli.views import count, shapes
from fxcompress.explain.flow import layer_of
from fxcompress.files.figures import picture_target
from fxcompress.program import Program
from fxcompress.report.tables import table

_SHOWN = 3
_LEGEND = (
    "groups: how many are alike but for their numbers (*); --all shows each. units: channels, "
    "heads, … of one cell.",
    "cells: how many sets of units may be chosen apart (one for each head, say). exact: whether "
    "cutting units equals masking them with zeros.",
)
Svg = Annotated[
    Path | None,
    typer.Option(help="Draw it too, to a file that ends in .svg, .png or .pdf."),
]


def inspect(
    model: options.Model,
    inputs: options.Input = None,
    frozen: Annotated[
        bool, typer.Option("--frozen", help="Show the groups that may not shrink, and why.")
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="A line for every group, also where blocks are alike."),
    ] = False,
    weights: options.Weights = None,
    pin: options.Pin = None,
    static: options.Static = False,
    probe: options.Probe = False,
    trust: options.Trust = False,
    seed: options.Seed = 0,
    svg: Svg = None,
    group: Annotated[
        str | None, typer.Option(help="Glob of groups or parameters to draw instead of all.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Show the channel groups of a model, its costs, and what may not shrink and why."""
    request = Request(model, inputs, weights, seed, static, pin, probe, trust=trust)

    def work(tell: Tell) -> Answer:
        if group is not None and svg is None:
            raise typer.BadParameter("--group says what to draw; give --svg FILE too")
        if svg is not None:
            picture_target(svg)
        program = request.program(tell)
        drawn = {} if svg is None else {"drawing": str(program.draw(svg, group))}
        return Answer({**_described(program, model), **drawn}, _shown(program, frozen, every))

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
    trust: options.Trust = False,
    seed: options.Seed = 0,
    svg: Svg = None,
    json: options.Json = False,
) -> None:
    """Say which groups hold a parameter, or why two parameters have to shrink together."""
    request = Request(model, inputs, weights, seed, static, pin, probe, trust=trust)

    def work(tell: Tell) -> Answer:
        if svg is not None:
            picture_target(svg)
        program = request.program(tell)
        text = program.explain(first, second)
        data = {"model": model, "first": first, "second": second, "explanation": text}
        if svg is not None:
            ties = None if second is None else (first, second)
            data["drawing"] = str(program.draw(svg, first, ties=ties))
        return Answer(data, Text(text, no_wrap=True, overflow="ignore"))

    answer(work, as_json=json)


def _described(program: Program, model: str) -> dict[str, Any]:
    return {
        "model": model,
        "cost": dict(program.cost().amounts),
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
        "unknown": {op: list(n) for op, n in program.analysis.coupling.unknown.items()},
        "probed": {op: list(n) for op, n in program.analysis.coupling.probed.items()},
        "failed": {op: list(n) for op, n in program.analysis.coupling.failed.items()},
        "dynamic": [{str(dim): name for dim, name in axes.items()} for axes in program.dynamic],
    }


def _shown(program: Program, frozen: bool, every: bool) -> RenderableType:
    free = [group for group in program.groups if not group.frozen]
    held = [group for group in program.groups if group.frozen]
    cost, coupling = program.cost(), program.analysis.coupling
    parts: list[RenderableType] = [
        Text(
            f"{program.report.model}: {cost.params:,} parameters, {cost.flops:,} FLOPs, "
            f"{cost.bytes:,} bytes ({shapes(program)})"
        ),
        _groups(free, f"{count(len(free), 'group')} may shrink", every),
    ]
    if held and frozen:
        title = f"{count(len(held), 'group')} may not shrink"
        parts.append(_groups(held, title, every, reasons=True))
    elif held:
        parts.append(Text(f"{count(len(held), 'group')} may not shrink; --frozen shows why"))
    if coupling.unknown:
        title = "Operators without a rule; what they touch is frozen"
        parts.append(_operators(title, coupling.unknown))
    if coupling.probed:
        title = "Operators without a rule, probed; what passes through unit by unit is not frozen"
        parts.append(_operators(title, coupling.probed))
    if coupling.failed:
        title = "Axis rules that failed; what the operators touch is frozen"
        parts.append(_operators(title, coupling.failed))
    return Group(*parts, *(Text(line, style="dim") for line in _LEGEND))


def _operators(title: str, found: Mapping[str, Sequence[str]]) -> Table:
    shown = table(title, "operator", "nodes")
    for op, nodes in found.items():
        shown.add_row(op, _few(nodes))
    return shown


def _groups(
    groups: Sequence[ChannelGroup], title: str, every: bool, *, reasons: bool = False
) -> Table:
    """A line for each group, or one for all that differ only in the numbers of their blocks."""
    last = "why" if reasons else "exact"
    shown = table(title, "group", ">groups", ">units", "kind", ">cells", "layers", last)
    shown.columns[0].no_wrap = True  # a name is to be copied whole
    alike: dict[tuple[Any, ...], list[ChannelGroup]] = {}
    for group in groups:
        same = without_numbers(f"{group.name} {group.frozen} {group.inexact[:1]}")
        key = (group if every else same, group.units, group.kind, group.cells)
        alike.setdefault(key, []).append(group)
    for own in alike.values():
        first = own[0]
        exact = "yes" if first.exact else f"no: {_common([g.inexact[0] for g in own])}"
        shown.add_row(
            _common([group.name for group in own]),
            str(len(own)),
            str(first.units),
            first.kind,
            str(first.cells),
            _few(_layers(first)),
            _common([str(group.frozen) for group in own]) if reasons else exact,
        )
    return shown


def _common(names: Sequence[str]) -> str:
    return common_name(names) if len(names) > 1 else names[0]


def _layers(group: ChannelGroup) -> list[str]:
    """The layers that hold the units, named from the block of the group on."""
    block = group.name.partition(":")[0].rpartition(".")[0]
    layers = dict.fromkeys(layer_of(site.parameter) for site in group.sites)
    return folded(layer.removeprefix(f"{block}.") for layer in layers)


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
