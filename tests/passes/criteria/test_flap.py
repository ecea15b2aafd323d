from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
import models
from fxcompress.edit.plan import Offset, Plan, Project
from fxcompress.errors import PlanError
from fxcompress.layers.weights import consumers
from fxcompress.passes import FLAPPruning, Fluctuation, Selection, StructuredPass
from fxcompress.program import Program
from fxcompress.stats import observe
from fxcompress.verify import verify
from references import Through

close = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-10)


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    with np.load(shared / "golden" / "wanda_flap.npz") as found:
        return {key: torch.from_numpy(found[key]) for key in found.files}


@pytest.fixture(scope="module")
def through(golden: dict[str, Tensor]) -> Program:
    x = golden["X"].T.contiguous()
    return fx.compile(Through(golden["W"]), (x,), task=list(x.split(7)))


def test_the_weighted_variance_has_the_reference_values(
    golden: dict[str, Tensor], through: Program
) -> None:
    score = Fluctuation(normaliser="none").score(through, through.group("enter"))
    close(score[0], golden["flap_wifv"])


def test_the_bias_has_the_reference_values(golden: dict[str, Tensor], through: Program) -> None:
    kept = torch.tensor([1, 2, 4, 5, 6, 7])
    group = through.group("enter")
    edits = Fluctuation().prepare(through, (group,)).edits(through, group, kept)
    small = fx.apply(through, _Fixed(Plan(edits)))
    close(small.module.get_parameter("layer.bias").detach(), golden["flap_bias_for_pruned_0_3"])
    assert small.report.checks[-1].kind == "zero-masked"


def test_what_is_seen_of_inputs_has_the_reference_values(
    golden: dict[str, Tensor], through: Program
) -> None:
    """Mean, unbiased variance and root mean square of each column, over batches."""
    group = through.group("enter")
    seen = Fluctuation().prepare(through, (group,)).moments[group].features
    assert seen is not None
    close(seen.mean.flatten(), golden["x_mean"])
    close(seen.variance.flatten(), golden["x_var"])
    close(seen.square.sqrt().flatten(), golden["col_rms"])


class _Fixed:
    def __init__(self, plan: Plan) -> None:
        self.made = plan

    def plan(self, program: Program) -> Plan:
        return self.made


def test_scores_are_standardised_for_global_budgets(through: Program) -> None:
    score = Fluctuation().score(through, through.group("enter"))
    close(score.mean(), torch.zeros((), dtype=torch.float64))
    close(score.std(correction=0), torch.ones((), dtype=torch.float64))


NAMES = ["mlp", "swiglu", "fused_attention", "rotary_grouped_attention", "conv_chain",
         "grouped_conv", "flatten_head", "reused_module", "projected_residual"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_of_what_a_layer_gives_stays(name: str) -> None:
    """Of linear layers, and of convolutions that do not pad; whatever else goes with it."""
    model, args, kwargs = models.build(name)
    program = fx.compile(model, args, kwargs, task=[models.rebatch(args, 9)[0]])
    groups = [g for g in program.groups if not g.frozen and consumers(program, g) and g.exact]
    for group in groups:
        nodes = [one.node for one in consumers(program, group)]
        if len(nodes) > 1 or "conv" in nodes[0]:
            continue
        method = Fluctuation().prepare(program, (group,))
        order = method.score(program, group).argsort(1, descending=True)
        kept = order[:, : (group.units + 1) // 2].sort(1).values
        edits = method.edits(program, group, kept if group.cells > 1 else kept[0])
        small = fx.apply(program, _Fixed(Plan(edits)))
        close(_mean(small, nodes[0]), _mean(program, nodes[0]))


def _mean(program: Program, node: str) -> Tensor:
    seen: list[Tensor] = []
    observe(program, {node: lambda value: seen.append(value.flatten(0, -2).mean(0))})
    return torch.stack(seen).mean(0)


class Constant(nn.Module):
    """Unit 2 of the first layer always says the same; a BatchNorm follows the second."""

    def __init__(self, padding: int) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 6, 3, padding=padding, bias=False),
        )
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.second(torch.relu(self.first(x)))).mean((2, 3))  # type: ignore[no-any-return]


def test_a_constant_unit_goes_and_nothing_changes() -> None:
    """The norm that follows takes up the shift, so the layer needs no new bias."""
    model = models.randomize(Constant(0)).double()
    with torch.no_grad():
        for name, value in (("first.weight", 0.0), ("first.bias", 0.7)):
            model.get_parameter(name)[2] = value
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64)
    limits = {"ratio": 0.25, "round_to": 1, "include": "first.weight:out"}
    small = fx.compile(model, (x,), task=[x], passes=[FLAPPruning(**limits)])  # type: ignore[arg-type]
    assert "second.bias" not in small.module.state_dict()
    close(small(x), model(x))
    plain = StructuredPass(criterion=Fluctuation(), reconstruction=Selection(), **limits)  # type: ignore[arg-type]
    bare = fx.compile(model, (x,), task=[x], passes=[plain])
    assert not torch.allclose(bare(x), model(x), rtol=1e-3)


def test_without_data_it_says_what_to_pass() -> None:
    model, args, _ = models.build("mlp")
    with pytest.raises(PlanError, match=r"FLAPPruning looks at data and there are none"):
        fx.compile(model, args, passes=[FLAPPruning(ratio=0.5)])


# ---- offsets


def offset(name: str, weight: str, value: Tensor, *more: Project) -> tuple[Program, Program]:
    model, args, kwargs = models.build(name)
    program = fx.compile(model, args, kwargs)
    return program, fx.apply(program, _Fixed(Plan((Offset(weight, value), *more))))


def test_an_offset_is_added_to_what_a_layer_gives() -> None:
    program, small = offset("mlp", "head.weight", torch.arange(3.0, dtype=torch.float64))
    close(small(*program.args), program(*program.args) + torch.arange(3.0, dtype=torch.float64))


def test_an_offset_goes_into_a_layer_that_reads_its_weight_transposed() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight.t())

    program = fx.compile(Transposed(), (torch.randn(2, 3),))
    value = torch.arange(4.0)
    twice = Plan((Offset("weight", value), Offset("weight", value)))
    small = fx.apply(program, _Fixed(twice))
    assert small.module.get_parameter("bias").tolist() == [0.0, 2.0, 4.0, 6.0]
    torch.testing.assert_close(small(*program.args), program(*program.args) + 2 * value)


def test_an_offset_goes_into_the_bias_of_a_sum_with_a_product() -> None:
    class Product(nn.Module):
        def __init__(self, beta: float) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))
            self.beta = beta

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight, beta=self.beta)

    program = fx.compile(Product(1.0), (torch.randn(2, 3),))
    small = fx.apply(program, _Fixed(Plan((Offset("weight", torch.arange(4.0)),))))
    torch.testing.assert_close(small(*program.args), program(*program.args) + torch.arange(4.0))
    other = fx.compile(Product(2.0), (torch.randn(2, 3),))
    with pytest.raises(PlanError, match="weight is not the weight of linear layers alone"):
        fx.apply(other, _Fixed(Plan((Offset("weight", torch.arange(4.0)),))))


def test_a_new_bias_is_cut_with_the_units_of_its_layer(through: Program) -> None:
    value = torch.randn(8, dtype=torch.float64)
    kept = torch.tensor([0, 3, 4])
    edits = (Project(through.group("enter"), kept), Offset("enter.weight", value))
    small = fx.apply(through, _Fixed(Plan(edits)))
    close(small.module.get_parameter("enter.bias").detach(), value[kept])
    coupling = through.analysis.coupling
    check = verify(
        through.module, small.module, coupling, Plan(edits), through.args, through.kwargs
    )
    assert check.ok


@pytest.mark.parametrize(
    ("weight", "size", "words"),
    [
        ("head.weight", 4, r"offset of head.weight has shape \(4,\), expected \(3,\)"),
        ("nothing", 3, r"nothing is not the weight of linear layers alone"),
        ("head.bias", 3, r"head.bias is not the weight of linear layers"),
    ],
)
def test_offsets_that_cannot_be_are_refused(weight: str, size: int, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        offset("mlp", weight, torch.zeros(size, dtype=torch.float64))
