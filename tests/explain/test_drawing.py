"""Pictures of groups: what is in them, and that nothing lies on anything else."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

import fxcompress as fx
from fxcompress.errors import PlanError
from fxcompress.explain.flow import flow
from fxcompress.explain.layout import Drawing, place
from fxcompress.explain.overview import overview
from fxcompress.explain.picture import HALF
from models import MODELS
from programs import program

ROUNDING = 1e-9  # inches: sums of float64 in another order
nets = pytest.mark.parametrize("name", MODELS)


def drawings(found: fx.Program) -> list[Drawing]:
    """Every picture there is of a program, placed."""
    graphs = [flow(found.module, found.analysis.coupling, group) for group in found.groups]
    return [place(graph) for graph in (*graphs, overview(found.groups))]


@nets
def test_every_layer_of_a_group_is_in_its_picture(name: str) -> None:
    found = program(name)
    for group in found.groups:
        graph = flow(
            found.module, found.analysis.coupling, group, [s.parameter for s in group.sites]
        )
        assert any(data["marked"] for _, data in graph.nodes(data=True))
        shown = {vertex for vertex, data in graph.nodes(data=True) if data["kind"] != "op"}
        layers = {parameter.rpartition(".")[0] for parameter in (s.parameter for s in group.sites)}
        assert all(any(vertex.startswith(layer) for vertex in shown) for layer in layers)


@nets
def test_nothing_lies_on_anything_else(name: str) -> None:
    for drawing in drawings(program(name)):
        boxes = [(x, y, drawing.widths[v]) for v, (x, y) in drawing.centers.items()]
        for (x, y, width), (other, row, wide) in combinations(boxes, 2):
            assert abs(x - other) >= (width + wide) / 2 - ROUNDING or abs(y - row) >= 2 * HALF
        assert all(x - width / 2 >= -ROUNDING for x, _, width in boxes)
        assert all(x + width / 2 <= drawing.size[0] + ROUNDING for x, _, width in boxes)


@nets
def test_arrows_pass_beside_what_they_do_not_join(name: str) -> None:
    for drawing in drawings(program(name)):
        for edge, bends in drawing.bends.items():
            for vertex, (x, y) in drawing.centers.items():
                if vertex not in edge:
                    assert all(abs(x - a) >= drawing.widths[vertex] / 2 or y != b for a, b in bends)


@nets
def test_the_overview_joins_what_layers_join(name: str) -> None:
    """A layer that reads one group and writes another is an arrow between them."""
    groups = program(name).groups
    graph = overview(groups).to_undirected()
    box = {name: v for v, data in graph.nodes(data=True) for name in data["members"]}
    assert sorted(box) == sorted(group.name for group in groups)
    for first, second in combinations(groups, 2):
        roles = [{s.parameter: s.role for s in group.sites} for group in (first, second)]
        shared = [p for p in roles[0] if {roles[0][p], roles[1].get(p)} == {"produce", "contract"}]
        if shared:
            assert graph.has_edge(box[first.name], box[second.name])


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
def test_pictures_are_written_and_are_the_same_every_time(ending: str, tmp_path: Path) -> None:
    found = program("padded_residual")
    paths = [found.draw(tmp_path / f"{number}/a.{ending}") for number in range(2)]
    if ending != "pdf":  # which carries a date
        assert paths[0].read_bytes() == paths[1].read_bytes()
    if ending == "svg":
        assert ElementTree.parse(paths[0]).getroot().tag.endswith("svg")


def test_two_parameters_are_marked_in_the_picture_of_what_they_share(tmp_path: Path) -> None:
    found = program("mlp")
    (group, *_) = (g for g in found.groups if not g.frozen)
    names = [site.parameter for site in group.sites if site.role in ("produce", "contract")]
    assert found.draw(tmp_path / "ties.svg", ties=(names[0], names[-1])).is_file()
    assert found.draw(tmp_path / "one.svg", names[0]).is_file()


def test_what_cannot_be_drawn_is_refused_with_a_way_out(tmp_path: Path) -> None:
    found = program("mlp")
    with pytest.raises(PlanError, match=r"ends in \.svg"):
        found.draw(tmp_path / "a.txt")
    with pytest.raises(PlanError, match="nearest names"):
        found.draw(tmp_path / "a.svg", "no.such.layer")
    weights = [name for name in found.analysis.coupling.parameters if name.endswith("weight")]
    with pytest.raises(PlanError, match="share no units"):
        found.draw(tmp_path / "a.svg", ties=(weights[0], weights[-1]))
