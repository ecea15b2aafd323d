from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
import models
from fxcompress.edit.plan import Plan, Project
from fxcompress.errors import BudgetError, PlanError
from fxcompress.layers.weights import consumers
from fxcompress.passes import (
    LeastSquares,
    LeastSquaresPruning,
    Magnitude,
    Selection,
    StructuredPass,
)
from fxcompress.program import Program
from fxcompress.stats import observe

# float64 through a few layers; λ_rel = 1e-12 leaves 1e-12 of the signal
close = partial(torch.testing.assert_close, rtol=1e-8, atol=1e-9)
EXACT = 1e-12


class Vision(nn.Module):
    """BatchNorm, GELU and a depthwise layer between producer and consumer; then a flattened map."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.second, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depthwise(F.gelu(self.norm(self.first(x)))))
        x = F.avg_pool2d(F.relu(self.second(x)), 2)
        return self.head(x.flatten(1))  # type: ignore[no-any-return]


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


SHAPES: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "vision": (Vision, (32, 3, 4, 4)),
    "gated": (Gated, (64, 6)),
}


def made(name: str, duplicate: str = "") -> tuple[nn.Module, Tensor]:
    kind, shape = SHAPES[name]
    model = models.randomize(kind()).double()
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if value.ndim and duplicate and key.startswith(tuple(duplicate.split())):
                value[3] = value[1]  # unit 3 says what unit 1 says
    return model, x


def compiled(model: nn.Module, x: Any, **options: Any) -> Program:
    return fx.compile(model, (x,), task=[x], **options)


# ---- the laws of the method


@pytest.mark.parametrize(
    ("name", "group", "duplicate"),
    [
        ("vision", "first", "first.weight norm depthwise"),
        ("vision", "second", "second"),
        ("gated", "gate", "gate up"),
    ],
)
@pytest.mark.parametrize("centred", [False, True])
def test_a_duplicate_goes_first_and_nothing_changes(
    name: str, group: str, duplicate: str, centred: bool
) -> None:
    """Through BatchNorm, GELU, depthwise, pooling and a gate."""
    model, x = made(name, duplicate)
    if centred:  # a constant at the border of a padded map is no constant
        pytest.skip("padded") if group == "first" else None
    method = LeastSquares(lambda_rel=EXACT, centred=centred)
    program = compiled(model, x)
    found = program.group(group)

    score = method.prepare(program, (found,)).score(program, found)

    assert int(score.argmin()) in (1, 3)
    share = 1.01 / found.units
    small = fx.apply(
        program,
        LeastSquaresPruning(
            ratio=share, lambda_rel=EXACT, centred=centred, include=f"{group}.weight:out",
            round_to=1,
        ),
    )  # fmt: skip
    assert small.report.params.after < small.report.params.before
    close(small(x), model(x))


def test_a_combination_of_positive_units_is_given_back_through_a_linear_path() -> None:
    """In the span, not only a duplicate: no activation stands between."""
    model = models.randomize(nn.Sequential(nn.Linear(9, 6, bias=False), nn.Linear(6, 3))).double()
    with torch.no_grad():
        model[0].weight[5] = 0.3 * model[0].weight[0] - 2.0 * model[0].weight[2]  # type: ignore[index]
    x = torch.randn(40, 9, dtype=torch.float64)
    small = compiled(model, x, passes=[LeastSquaresPruning(ratio=0.17, lambda_rel=EXACT)])
    assert small.module.get_parameter("0.weight").shape == (5, 9)
    close(small(x), model(x))


def reconstruction(name: str, method: Any) -> float:
    model, x = made(name)
    small = compiled(model, x, passes=[method])
    gap: Tensor = (small(x) - model(x)).square().mean()
    return gap.item()


@pytest.mark.parametrize(("name", "layer"), [("vision", "second"), ("gated", "gate")])
@pytest.mark.parametrize("centred", [False, True])
def test_refitting_is_never_worse_than_deleting_on_its_data(
    name: str, layer: str, centred: bool
) -> None:
    limits = {"ratio": 0.5, "include": f"{layer}.weight:out", "round_to": 1}
    fit = LeastSquares(lambda_rel=1e-9, centred=centred)
    for criterion in (Magnitude(), fit):
        plain = StructuredPass(criterion=criterion, reconstruction=Selection(), **limits)  # type: ignore[arg-type]
        refit = StructuredPass(criterion=criterion, reconstruction=fit, **limits)  # type: ignore[arg-type]
        assert reconstruction(name, refit) < reconstruction(name, plain)
    both = reconstruction(name, LeastSquaresPruning(lambda_rel=1e-9, centred=centred, **limits))  # type: ignore[arg-type]
    other = StructuredPass(criterion=Magnitude(), reconstruction=fit, **limits)  # type: ignore[arg-type]
    assert both <= reconstruction(name, other)


def test_the_refitted_layer_is_the_least_squares_solution() -> None:
    """Compared with torch.linalg.lstsq on the very activations (a ridge of nothing)."""
    model, x = made("gated")
    small = compiled(model, x, passes=[LeastSquaresPruning(ratio=0.5, lambda_rel=EXACT)])
    assert isinstance(model, Gated)
    h = F.silu(model.gate(x)) * model.up(x)
    rows = small.module.get_parameter("gate.weight")
    kept = [int((model.gate.weight == row).all(1).nonzero()) for row in rows]
    solution = torch.linalg.lstsq(h[:, kept], h @ model.down.weight.T).solution
    torch.testing.assert_close(
        small.module.get_parameter("down.weight"), solution.T, rtol=1e-7, atol=1e-7
    )


@pytest.mark.parametrize("centred", [False, True])
def test_a_convolution_is_refitted_as_by_im2col(centred: bool) -> None:
    """Every tap of the units that stay has a coefficient of its own, zeros of the border count."""
    model, x = made("vision")
    assert isinstance(model, Vision)
    limits: Any = {"ratio": 0.5, "include": "first.weight:out", "round_to": 1}
    method = LeastSquaresPruning(**limits, lambda_rel=EXACT, centred=centred)
    small = compiled(model, x, passes=[method])
    stay = small.kept["first.weight"][0]
    assert stay is not None
    h = F.relu(model.depthwise(F.gelu(model.norm(model.first(x)))))
    patches = F.unfold(h[:, stay], 3, padding=1).movedim(1, 2).flatten(0, 1)
    given = F.conv2d(h, model.second.weight, padding=1).flatten(2).movedim(1, 2).flatten(0, 1)
    if centred:  # the bias is free
        patches = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.float64)], 1)
    best = torch.linalg.lstsq(patches, given).solution
    weight = small.module.get_parameter("second.weight")
    # a ridge of 1e-12 of the signal, and a Gram matrix squares the condition
    torch.testing.assert_close(weight.flatten(1).T, best[: 9 * len(stay)], rtol=1e-6, atol=1e-7)
    if centred:
        shift = small.module.get_parameter("second.bias") - model.get_parameter("second.bias")
        torch.testing.assert_close(shift, best[-1], rtol=1e-6, atol=1e-7)


def test_taps_of_a_kernel_may_share_their_coefficients() -> None:
    """One coefficient for each channel: least squares over positions, not over kernel taps."""
    model, x = made("vision")
    assert isinstance(model, Vision)
    h = F.relu(model.depthwise(F.gelu(model.norm(model.first(x)))))
    rows = h.movedim(1, 0).flatten(1)
    gram = rows @ rows.T / rows.shape[1]
    lam = 1e-3 * gram.trace() / 8
    limits: Any = {"ratio": 0.5, "include": "first.weight:out", "round_to": 1}
    small = compiled(model, x, passes=[LeastSquaresPruning(**limits, taps=False)])
    stay = small.kept["first.weight"][0]
    assert stay is not None
    gone = torch.tensor([i for i in range(8) if i not in stay])
    ridged = gram[stay][:, stay] + lam * torch.eye(len(stay), dtype=torch.float64)
    q = torch.linalg.solve(ridged, gram[stay][:, gone])
    old = model.second.weight
    expected = old[:, stay] + torch.einsum("oprs,kp->okrs", old[:, gone], q)
    close(small.module.get_parameter("second.weight"), expected)


def test_batches_and_their_order_do_not_matter() -> None:
    model, x = made("vision")
    method = LeastSquaresPruning(ratio=0.5)
    whole = compiled(model, x, passes=[method])
    cut = fx.compile(model, (x,), task=list(x[torch.randperm(32)].split((3, 20, 9))))
    again = fx.apply(cut, method)
    for (name, a), b in zip(
        whole.module.state_dict().items(), again.module.state_dict().values(), strict=True
    ):
        close(a, b, msg=name)


# ---- heads, cells, several readers, ties


@pytest.mark.parametrize(
    "name", ["fused_attention", "rotary_grouped_attention", "grouped_conv", "projected_residual",
             "reused_module", "dense_concat", "flatten_head", "squeeze_excite", "padded_residual"],
)  # fmt: skip
@pytest.mark.parametrize("centred", [False, True])
def test_every_group_that_a_layer_reads_can_be_refitted(name: str, centred: bool) -> None:
    """The proof of the compiler holds: the result is the dense model with the new values, masked.

    On the data the outputs are nearer to those of the dense model than without.
    """
    model, args, kwargs = models.build(name)
    x = models.rebatch(args, 16)[0]
    program = fx.compile(model, args, kwargs, task=[x])
    groups = [g for g in program.groups if not g.frozen and consumers(program, g)]
    for group in (g for g in groups if g.units > 1):
        fit = LeastSquares(lambda_rel=1e-6, centred=centred).prepare(program, (group,))
        score = fit.score(program, group)
        assert score.shape == (group.cells, group.units)
        assert all(len(row.unique()) == group.units for row in score)
        kept = score.argsort(1, descending=True)[:, : (group.units + 1) // 2].sort(1).values
        edits = fit.edits(program, group, kept if group.cells > 1 else kept[0])
        small = fx.apply(program, _Fixed(Plan(edits)))
        plain = fx.apply(program, _Fixed(Plan(tuple(e for e in edits if isinstance(e, Project)))))
        assert small.report.checks[-1].kind == "zero-masked"
        calls = [one.node for one in consumers(program, group)]
        if len(calls) == 1 and not centred:
            node = calls[0]
            # 1e-20 for squares of rounding errors, where nothing but copies goes
            assert _gap(small, program, node) <= _gap(plain, program, node) + 1e-20


class _Fixed:
    def __init__(self, plan: Plan) -> None:
        self.made = plan

    def plan(self, program: Program) -> Plan:
        return self.made


def _gap(found: Program, dense: Program, node: str) -> float:
    """How far apart two programs are at a node, on the data of both."""
    outputs = []
    for program in (found, dense):
        seen: list[Tensor] = []
        tap: Any = partial(_keep, seen)
        observe(program, {node: tap})
        outputs.append(torch.cat(seen))
    return (outputs[0] - outputs[1]).square().mean().item()


def _keep(seen: list[Tensor], value: Tensor) -> None:
    seen.append(value.clone())


@pytest.mark.parametrize("centred", [False, True])
def test_in_sequence_each_layer_makes_up_for_those_before_it(centred: bool) -> None:
    model, x = made("vision")
    limits: Any = {"ratio": 0.5, "lambda_rel": 1e-6, "round_to": 1, "centred": centred}
    plain = compiled(model, x, passes=[LeastSquaresPruning(**limits)])
    after = compiled(model, x, passes=[LeastSquaresPruning(**limits, sequential=True)])
    close(after.module.get_parameter("second.weight"), plain.module.get_parameter("second.weight"))
    dense = model(x)
    assert (after(x) - dense).square().sum() < (plain(x) - dense).square().sum()
    if not centred:  # the last layer is the best that its new inputs allow
        seen: list[Tensor] = []
        tap: Any = partial(_keep, seen)
        observe(after, {"flatten": tap})
        best = torch.linalg.lstsq(seen[0], dense - model.get_parameter("head.bias")).solution
        # a ridge of 1e-6 of the signal
        torch.testing.assert_close(
            after.module.get_parameter("head.weight"), best.T, rtol=1e-2, atol=1e-3
        )


def test_tied_weights_are_left_and_noted() -> None:
    model, args, _ = models.build("tied_language_model")
    small = fx.compile(
        model, args, task=[args[0]], passes=[LeastSquaresPruning(ratio=0.3, min_units=4)]
    )
    assert any("was not refitted" in note for run in small.report.passes for note in run.notes)


def test_wide_inputs_share_the_matrix_of_their_units() -> None:
    model, x = made("vision", "second")
    limits: Any = {"ratio": 0.18, "include": "second.weight:out", "round_to": 1}
    small = compiled(model, x, passes=[LeastSquaresPruning(**limits, inputs=8, lambda_rel=EXACT)])
    close(small(x), model(x))  # the duplicate is one for every position alike


def test_taps_of_wide_kernels_share_coefficients_and_the_report_says_so() -> None:
    model, x = made("vision")
    limits: Any = {"ratio": 0.5, "include": "first.weight:out", "round_to": 1}
    small = compiled(model, x, passes=[LeastSquaresPruning(**limits, inputs=71)])  # 8 x 9 taps
    assert any("share their coefficients" in note for note in small.report.passes[-1].notes)
    other = compiled(model, x, passes=[LeastSquaresPruning(**limits, taps=False)])
    name = "second.weight"
    close(small.module.get_parameter(name), other.module.get_parameter(name))
    whole = compiled(model, x, passes=[LeastSquaresPruning(**limits, inputs=72)])
    assert not whole.report.passes[-1].notes


# ---- bad input


def test_without_data_it_says_what_to_pass() -> None:
    model, x = made("gated")
    with pytest.raises(PlanError, match=r"Pruning looks at data and there are none; pass"):
        fx.compile(model, (x,), passes=[LeastSquaresPruning(ratio=0.5)])


def test_queries_and_keys_stay_whole_with_the_reason() -> None:
    """No layer reads them; alone in scope they are an error, beside others a note."""
    model, args, _ = models.build("fused_attention")
    program = fx.compile(model, args, task=[args[0]])
    small = fx.apply(program, LeastSquaresPruning(ratio=0.5))
    assert small.group("qkv:qk").units == program.group("qkv:qk").units
    note = "qkv:qk stays whole: no layer reads it (qk)"
    assert note in small.report.passes[-1].notes
    with pytest.raises(BudgetError, match=r"qkv:qk \(no layer reads it \(qk\)\)"):
        fx.compile(model, args, task=[args[0]], passes=[LeastSquaresPruning(ratio=0.5, dims="qk")])


def test_too_few_samples_without_a_ridge_are_refused() -> None:
    model, x = made("gated")
    with pytest.raises(PlanError, match=r"down.weight depend on each other.*larger lambda_rel"):
        fx.compile(model, (x,), task=[x[:3]], passes=[LeastSquaresPruning(ratio=0.5, lambda_rel=0)])


@pytest.mark.parametrize("options", [{"lambda_rel": -1.0}, {"order": "best"}])
def test_options_that_cannot_be_are_refused(options: Any) -> None:
    with pytest.raises(
        PlanError, match=r"lambda_rel must be .* not -1.0|order must be .* not 'best'"
    ):
        LeastSquaresPruning(ratio=0.5, **options)


def test_its_recipe_can_be_read_back() -> None:
    text = repr(LeastSquaresPruning(ratio=0.5, centred=True))
    assert text == "LeastSquaresPruning(ratio=0.5, centred=True)"
