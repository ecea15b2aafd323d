"""What is always true, on every tiny net: the laws that each later pass rests on."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fxcompress as fx
from fxcompress.graph.metadata import dynamic_dims, is_tensor
from fxcompress.program import Program
from models import MODELS, build, rebatch, tensors
from programs import program as dense
from selection import RandomSelection, zero_masked

nets = pytest.mark.parametrize("name", MODELS)
ROUNDING = 1e-10  # float64: sums of a few hundred terms in another order


def small(name: str, seed: int = 0, *, exact_only: bool = False) -> Program:
    return fx.apply(dense(name), RandomSelection(seed, exact_only=exact_only))


def assert_equal(found: object, expected: object, tolerance: float) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        scale = float(b.detach().abs().max()) if b.is_floating_point() else 1.0
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * scale)


@nets
def test_without_passes_every_bit_is_the_models(name: str) -> None:
    model, args, kwargs = build(name)
    program = fx.compile(model, args, kwargs)
    for inputs in ((args, kwargs), rebatch((args, kwargs), 3)):
        assert_equal(program(*inputs[0], **inputs[1]), model(*inputs[0], **inputs[1]), 0.0)


@nets
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31), share=st.sampled_from((0.25, 0.5, 0.75)))
def test_exact_groups_cut_is_exact_groups_masked(name: str, seed: int, share: float) -> None:
    program = fx.apply(dense(name), RandomSelection(seed, share, exact_only=True))
    assert program.report.params.after < program.report.params.before
    model, args, kwargs = build(name)
    reference = zero_masked(model, program)
    for inputs in ((args, kwargs), rebatch((args, kwargs), 3)):
        assert_equal(program(*inputs[0], **inputs[1]), reference(*inputs[0], **inputs[1]), ROUNDING)


@nets
@settings(max_examples=8)
@given(seed=st.integers(0, 2**31))
def test_every_group_cut_passes_its_own_proof(name: str, seed: int) -> None:
    check = small(name, seed).report.verification
    assert check is not None
    assert check.ok
    assert check.kind in ("zero-masked", "bit-identical")
    assert check.max_relative_error is not None
    assert check.max_relative_error <= ROUNDING


@nets
def test_something_shrinks(name: str) -> None:
    program = small(name)
    assert program.report.params.after < program.report.params.before


@nets
def test_predicted_cost_is_counted_cost(name: str) -> None:
    old, pass_ = dense(name), RandomSelection()
    predicted = old.cost(pass_.plan(old).widths)
    new = fx.apply(old, pass_)
    assert predicted.params == sum(p.numel() for p in new.module.parameters())
    stored = [*new.module.parameters(), *new.module.buffers()]
    assert predicted.bytes == sum(t.numel() * t.element_size() for t in stored)
    # Torch's counter does not see the fused attention kernel of the CPU.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        new(*new.args, **new.kwargs)
    assert predicted.flops == counter.get_total_flops() == new.cost().flops


@nets
def test_what_is_free_stays_free_in_the_graph(name: str) -> None:
    """Asking a symbolic size for its number would fix it for good."""
    program = small(name)
    inputs = [node for node in program.module.graph.find_nodes(op="placeholder") if is_tensor(node)]
    assert [set(dynamic_dims(node)) for node in inputs] == [set(axes) for axes in program.dynamic]
    assert any(program.dynamic)


def test_costs_are_those_of_the_batch_given() -> None:
    model, (x,), _ = build("conv_chain")
    two = fx.compile(model, (x,)).report
    one = fx.compile(model, (x[:1],)).report
    assert 2 * one.flops.before == two.flops.before
    assert one.params == two.params


@nets
def test_gradients_reach_every_parameter(name: str) -> None:
    """As they do before the cut: a bias before a BatchNorm never has any."""
    before, after = (_unreached(program) for program in (dense(name), small(name)))
    assert after <= before
    assert all(parameter.endswith("bias") for parameter in before)


def _unreached(program: Program) -> set[str]:
    """The parameters whose gradient is zero but for rounding, in training."""
    module = copy.deepcopy(program.module).train()
    args, kwargs = rebatch((program.args, program.kwargs), 5)  # two would normalise to +-1
    out = tensors(module(*args, **kwargs))
    torch.stack([(t * torch.randn_like(t)).sum() for t in out]).sum().backward()
    largest = {
        n: 0.0 if p.grad is None else float(p.grad.abs().max())
        for n, p in module.named_parameters()
    }
    return {n for n, size in largest.items() if size <= ROUNDING * max(largest.values())}


@nets
def test_the_result_exports_again(name: str) -> None:
    program = small(name)
    again = fx.compile(program.module, program.args, program.kwargs)
    assert_equal(
        again(*program.args, **program.kwargs), program(*program.args, **program.kwargs), 0.0
    )
    assert again.cost() == program.cost()


@nets
def test_the_same_seed_gives_the_same_bits(name: str) -> None:
    first, second = small(name, 7), small(name, 7)
    for a, b in zip(first.module.parameters(), second.module.parameters(), strict=True):
        assert torch.equal(a, b)


@nets
def test_the_model_is_never_changed(name: str) -> None:
    model, args, kwargs = build(name)
    before = copy.deepcopy(model.state_dict())
    program = fx.compile(model, args, kwargs, passes=[RandomSelection()])
    with torch.no_grad():
        for p in program.module.parameters():
            p.add_(1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@nets
def test_a_second_cut_composes(name: str) -> None:
    once = small(name, exact_only=True)
    program = fx.apply(once, RandomSelection(1, exact_only=True))
    assert program.report.params.after < once.report.params.after < program.report.params.before
    model, args, kwargs = build(name)
    reference = zero_masked(model, program)
    assert_equal(program(*args, **kwargs), reference(*args, **kwargs), ROUNDING)


@pytest.mark.parametrize("name", ["padded_residual", "rotary_grouped_attention", "many_inputs"])
def test_the_onnx_file_agrees(name: str, tmp_path: object) -> None:
    model, args, kwargs = build(name, torch.float32)
    program = fx.compile(model, args, kwargs, passes=[RandomSelection()])
    path = f"{tmp_path}/{name}.onnx"
    fx.export.to_onnx(program, path)
    assert fx.export.check(path, program).ok
