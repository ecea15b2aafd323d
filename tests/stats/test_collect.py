"""Layer by layer is what whole passes give, for the cost of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
import models
import nets_stateful
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.passes import LeastSquaresPruning
from fxcompress.program import Program
from fxcompress.stats import Sums, Walk, Wanted, collect, observe
from fxcompress.task import Task


class Seen(Sums[Any]):
    """All that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Any] = []

    def update(self, batch: Any) -> None:
        self.batches.append(torch.utils._pytree.tree_map_only(Tensor, torch.clone, batch))


class Counted:
    """Data that know how often they are read."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches, self.reads = batches, 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        self.reads += 1
        return iter(self.batches)


class Overwriting(nn.Module):
    """Values are overwritten after they are read, also through views."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu_()
        half = h[:, :3]
        y = self.second(h)
        half.mul_(2)
        y = y + h
        h += 1
        return self.third(y.sigmoid_() * h)  # type: ignore[no-any-return]


def made(name: str) -> tuple[Program, Counted]:
    if name == "overwriting":
        model: nn.Module = models.randomize(Overwriting())
        args: tuple[Any, ...] = (models.normal(2, 5),)
    elif name == "moving_average":
        model, args = models.randomize(nets_stateful.MovingAverage()), (models.normal(2, 5),)
    else:
        model, args, _ = models.build(name)
    if args[0].is_floating_point():
        shape = args[0].shape[1:]
        batches = Counted([models.normal(n, *shape, seed=n).to(args[0]) for n in (3, 2)])
    else:
        batches = Counted([args[0], args[0].flip(0)])
    return fx.compile(model, args, task=batches), batches


NETS = [
    "conv_chain", "fused_attention", "rotary_grouped_attention", "dense_concat", "reused_module",
    "tied_language_model", "squeeze_excite", "overwriting", "moving_average",
]  # fmt: skip


def tensors(program: Program) -> list[str]:
    """Nodes whose values are tensors and no parameters."""
    nodes = program.module.graph.nodes
    known = [n for n in nodes if n.op == "call_function" and isinstance(n.meta.get("val"), Tensor)]
    return [node.name for node in known]


def whole(program: Program, names: Sequence[str]) -> dict[str, list[Tensor]]:
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, value: Tensor) -> None:
        found[name].append(value.clone())

    observe(program, {name: partial(keep, name) for name in names})
    return found


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("order", ["graph", "reversed", "mixed"])
def test_values_are_those_of_whole_passes_in_any_order(name: str, order: str) -> None:
    """Cut before every node, with steps back; to the last bit, for the same kernels run."""
    program, _ = made(name)
    names = tensors(program)
    known = whole(program, names)
    walk = Walk(program, names)
    asked = {"graph": names, "reversed": names[::-1], "mixed": names[::2] + names[1::2]}[order]
    for each in asked:
        one = Seen()
        walk.see([Wanted(each, one)])
        assert same(one.batches, known[each]), each


@pytest.mark.parametrize("name", NETS)
def test_pairs_are_those_of_two_whole_passes(name: str) -> None:
    """The other version gets new values for the weights of a layer once what it reads is seen."""
    program, _ = made(name)
    calls = layers(program)
    current, seen = program, {str(node.args[0]): Seen() for node in calls}
    expected: dict[str, list[Any]] = {}

    def compress(stage: Sequence[Wanted]) -> CapturedModule:
        nonlocal current
        value = stage[0].value
        for part in program, current:
            expected.setdefault(value, []).append(whole(part, [value])[value])
        for node in calls:
            if str(node.args[0]) == value:
                weight = str(node.args[1].target)
                old = current.module.get_parameter(weight)
                current = current.with_values({weight: old.detach() * 0.9})
        return current.module

    wanted = [Wanted(value, one, paired=True) for value, one in seen.items()]
    assert collect(program, wanted, "layers", compress=compress) == observe(program, {})
    for value, one in seen.items():
        for number in range(2):
            assert same([pair[number] for pair in one.batches], expected[value][number]), value


def layers(program: Program) -> list[Any]:
    """Calls of linear layers and convolutions."""
    targets = torch.ops.aten.linear.default, torch.ops.aten.conv2d.default
    return [node for node in program.module.graph.nodes if node.target in targets]


def test_in_the_order_of_the_graph_every_node_is_run_once() -> None:
    program, data = made("conv_chain")
    names = [str(node.args[0]) for node in layers(program)]
    data.reads = 0
    walk = Walk(program, names)
    for name in names:
        walk.see([Wanted(name, Seen())])
    order = [node.name for node in program.module.graph.nodes]
    needed = order[: order.index(names[-1]) + 1]
    assert data.reads == 1
    assert walk.nodes <= 2 * len(needed)  # two batches


def test_what_is_kept_are_the_activations_at_one_boundary() -> None:
    """However deep the program is: of two versions, no more than twice what one layer gives."""
    width, layers = 64, 5
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(layers))
    )
    data = [models.normal(n, width, seed=n) for n in (7, 9)]
    program = fx.compile(models.randomize(model), (data[0],), task=data)
    names = [n.name for n in program.module.graph.nodes if n.op == "call_function"]
    walk, other = Walk(program, names), program.with_values({"0.0.bias": torch.zeros(width)})
    for name in names:
        walk.see([Wanted(name, Seen(), paired=True)], other.module)
        assert 0 < walk.held <= 2 * 4 * (7 + 9) * width  # float32


@pytest.mark.parametrize("limit", [{"ratio": 0.5}, {"budget": fx.Budget(params=0.5)}])
@pytest.mark.parametrize("name", ["conv_chain", "fused_attention"])
def test_least_squares_in_order_reads_the_data_once(
    name: str, limit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And runs what it needs of the program, and of what becomes of it, once for each batch."""
    program, data = made(name)
    walks: list[Walk] = []
    begin = Walk.__init__

    def begun(self: Walk, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        walks.append(self)

    monkeypatch.setattr(Walk, "__init__", begun)
    data.reads = 0
    fx.apply(program, LeastSquaresPruning(sequential=True, **limit))
    assert data.reads == 1
    (walk,) = walks
    passes = walk.nodes / (2 * len(program.module.graph.nodes))
    assert passes <= (2 if "ratio" in limit else 3)  # scores of all come first for a budget


def test_what_a_task_does_around_the_module_is_run_as_well() -> None:
    model, args, _ = models.build("conv_chain")
    data = [models.normal(3, *args[0].shape[1:]).to(args[0])]
    task = Task(data, forward=lambda net, x: net(2 * x).exp())
    program = fx.compile(model, args, task=task)
    names = tensors(program)
    known, walk = whole(program, names), Walk(program, names)
    one = Seen()
    walk.see([Wanted(names[-1], one)])
    assert same(one.batches, known[names[-1]])
    assert walk.samples == 3


def test_a_single_pass_has_no_pairs() -> None:
    program, _ = made("conv_chain")
    for wrong in ({"wanted": [Wanted(tensors(program)[0], Seen(), paired=True)]},
                  {"wanted": [], "compress": lambda stage: None}):  # fmt: skip
        with pytest.raises(PlanError, match=r"takes no paired statistics.*give order='layers'"):
            collect(program, **wrong)


def test_a_walk_knows_its_nodes() -> None:
    program, _ = made("conv_chain")
    with pytest.raises(PlanError, match=r"nowhere, which are no nodes"):
        Walk(program, ["nowhere"])
