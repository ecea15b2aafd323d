"""What the analysis finds in nets whose structure is known: axes, roles, cells, reasons."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxcompress.analysis.couple import check_pins, couple
from fxcompress.analysis.coupling import Coupling
from fxcompress.analysis.groups import Analysis, ChannelGroup
from fxcompress.axes.expressions import Axes, Concat, Expr, Factor, leaves
from fxcompress.canonicalize import canonicalize
from fxcompress.capture import capture
from fxcompress.errors import PlanError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.parameters import find_tensor
from models import MODELS, build
from seeded import once


@once
def module_of(name: str) -> CapturedModule:
    model, args, kwargs = build(name)
    return canonicalize(capture(model, args, kwargs).module)


@once
def coupling_of(name: str) -> Coupling:
    return couple(module_of(name))


def coupled(model: nn.Module, *args: Tensor) -> Coupling:
    return couple(canonicalize(capture(model, args).module))


def group(coupling: Coupling, name: str) -> ChannelGroup:
    return next(each for each in Analysis(coupling).groups if each.name == name)


def shape(coupling: Coupling, parameter: str) -> list[str]:
    """The form of each axis of a parameter: products and concatenations of sizes."""
    return [_form(expr) for expr in coupling.parameters[parameter]]


def _form(expr: Expr) -> str:
    if isinstance(expr, Factor):
        return str(expr.size)
    parts = [_form(part) for part in expr.parts]
    return f"[{' | '.join(parts)}]" if isinstance(expr, Concat) else f"({' '.join(parts)})"


# ---- laws on every net


@pytest.mark.parametrize("name", MODELS)
def test_axes_have_the_sizes_of_their_tensors(name: str) -> None:
    coupling = coupling_of(name)
    for parameter, axes in coupling.parameters.items():
        tensor = find_tensor(module_of(name), parameter)
        assert tensor is not None
        assert tuple(expr.size for expr in axes) == tensor.shape


@pytest.mark.parametrize("name", MODELS)
def test_inputs_and_outputs_may_not_shrink(name: str) -> None:
    coupling, graph = coupling_of(name), module_of(name).graph
    ends = [node for node in graph.nodes if node.op == "placeholder"]
    ends += graph.output_node().all_input_nodes
    axes: list[Axes] = [coupling.axes[node.name] for node in ends if node.name in coupling.axes]
    assert axes
    assert all(leaf in coupling.frozen for own in axes for expr in own for leaf in leaves(expr))


@pytest.mark.parametrize("name", MODELS)
def test_every_op_of_the_nets_has_a_rule(name: str) -> None:
    assert coupling_of(name).unknown == {}


@pytest.mark.parametrize("name", MODELS)
def test_reasons_name_a_node(name: str) -> None:
    nodes = {node.name for node in module_of(name).graph.nodes}
    for reasons in coupling_of(name).frozen.values():
        for reason in reasons:
            words, _, node = reason.removesuffix(")").rpartition("(at ")
            assert node in nodes if words else reason == "no layer produces it"


@pytest.mark.parametrize("name", MODELS)
def test_the_same_graph_gives_the_same_groups(name: str) -> None:
    again = Analysis(couple(module_of(name))).groups
    for first, second in zip(Analysis(coupling_of(name)).groups, again, strict=True):
        assert (first.name, first.units, first.cells, first.sites) == (
            (second.name, second.units, second.cells, second.sites)
        )


# ---- structures


@pytest.mark.parametrize(
    ("name", "parameter", "axes"),
    [
        ("interleaved_attention", "qkv.weight", ["(5 [4 | 4 | 4])", "10"]),
        ("multi_query_attention", "qkv.weight", ["(2 [(3 4) | 4 | 4])", "10"]),
        ("multi_query_attention", "proj.weight", ["10", "(2 3 4)"]),
        ("rotary_grouped_attention", "q_proj.weight", ["(2 3 [2 | 2])", "10"]),
        ("rotary_grouped_attention", "k_proj.weight", ["(2 [2 | 2])", "10"]),
        ("rotary_grouped_attention", "v_proj.weight", ["(2 4)", "10"]),
        ("rotary_grouped_attention", "o_proj.weight", ["10", "(2 3 4)"]),
        ("rotary_grouped_attention", "inv_freq", ["2"]),
    ],
)
def test_structure_is_read_from_the_graph(name: str, parameter: str, axes: list[str]) -> None:
    assert shape(coupling_of(name), parameter) == axes


def test_patches_that_are_merged_are_the_same_channels() -> None:
    coupling = coupling_of("patch_merging")
    parts = [
        expr
        for axes in coupling.parameters.values()
        for expr in axes
        if isinstance(expr, Concat) and len(expr.parts) == 4
    ]
    assert parts
    assert all(len(set(expr.parts)) == 1 for expr in parts)


def test_rotated_halves_leave_together_and_the_table_with_them() -> None:
    coupling = coupling_of("rotary_grouped_attention")
    (table,) = coupling.parameters["inv_freq"]
    keys = set(leaves(coupling.parameters["k_proj.weight"][0]))
    assert table in keys


# ---- roles, kinds, cells


def test_roles_of_a_chain() -> None:
    coupling = coupling_of("conv_chain")
    roles = {role for held in coupling.roles.values() for *_, role in held}
    assert {"produce", "contract", "affine"} <= roles


def test_heads_and_their_dims_are_known_as_such() -> None:
    kinds = {each.kind for each in Analysis(coupling_of("rotary_grouped_attention")).groups}
    assert {"heads", "qk", "vo"} <= kinds


def test_every_head_may_keep_dims_of_its_own_unless_a_table_ties_them() -> None:
    """Value dims are free under the heads; rotated dims are not, since one table serves all."""
    groups = {each.kind: each for each in Analysis(coupling_of("rotary_grouped_attention")).groups}
    assert groups["vo"].cells == 2
    assert groups["qk"].cells == 1


# ---- exactness


class _Chain(nn.Module):
    """A layer, then `between`, then a sum over its channels beside a layer that reads them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.layer, self.between, self.head = nn.Linear(5, 8), between, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self.layer(x))
        return self.head(x) + x.sum(-1, keepdim=True)  # type: ignore[no-any-return]


class _LinearAttention(nn.Module):
    """Products of two activations that masking does not make zero, summed over their channels."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(5, 8), nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return (F.elu(self.q(x)) + 1) @ (F.elu(self.k(x)) + 1).transpose(1, 2)


@pytest.mark.parametrize(
    ("between", "exact"),
    [
        (nn.ReLU(), True),
        (nn.Tanh(), True),
        (nn.Sequential(nn.GELU(), nn.Linear(8, 8)), True),
        (nn.Sigmoid(), False),
        (nn.Softplus(), False),
        (nn.Softmax(-1), False),
        (nn.LayerNorm(8), False),
    ],
    ids=repr,
)
def test_sums_are_exact_where_masked_units_stay_zero(between: nn.Module, exact: bool) -> None:
    coupling = coupled(_Chain(between), torch.randn(4, 5))
    groups = [each for each in Analysis(coupling).groups if not each.frozen]
    assert groups
    assert all(each.exact for each in groups) is exact


def test_products_of_two_activations_are_exact_where_one_is_zero() -> None:
    coupling = coupled(_LinearAttention(), torch.randn(2, 4, 5))
    (only,) = (each for each in Analysis(coupling).groups if each.units == 8)
    assert not only.exact
    assert "adds up what masking does not make zero" in only.inexact[0]


class _Chosen(nn.Module):
    """As many rows as the values say, which no example size tells."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(5, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x).relu()
        return self.head(x[x.sum(-1) > 0]).sum(0)  # type: ignore[no-any-return]


def test_channels_of_rows_that_a_mask_chooses_may_shrink() -> None:
    coupling = coupled(_Chosen(), torch.randn(4, 5))
    (hidden,) = (each for each in Analysis(coupling).groups if each.units == 8)
    assert hidden.frozen is None


# ---- why


def test_a_path_tells_why_two_layers_move_together() -> None:
    coupling = coupling_of("padded_residual")
    names = [name for name in coupling.parameters if name.endswith("weight")]
    ties = [
        nx.shortest_path(coupling.graph, (first, 0), (second, 0))
        for first in names
        for second in names
        if first < second and nx.has_path(coupling.graph, (first, 0), (second, 0))
    ]
    assert ties
    for path in ties:
        edges = [coupling.graph.edges[pair] for pair in pairwise(path)]
        assert all(edge["cause"] or edge["kind"] == "axis" for edge in edges)


def test_a_pin_freezes_with_its_reason() -> None:
    module = module_of("mlp")
    weights = [name for name in coupling_of("mlp").parameters if name.endswith("weight")]
    pinned = couple(module, pin=(weights[0],))
    for leaf in leaves(pinned.parameters[weights[0]][0]):
        assert any(reason.startswith("pinned by the caller") for reason in pinned.frozen[leaf])


def test_a_pin_that_fits_nothing_names_the_nearest() -> None:
    with pytest.raises(PlanError, match=r"no\.such\.layer"):
        check_pins(module_of("mlp"), ("no.such.layer",))


def test_what_no_layer_produces_is_no_channel() -> None:
    """Positions of a learned table are read, never produced."""
    coupling = coupling_of("token_classifier")
    reasons = {reason for reasons in coupling.frozen.values() for reason in reasons}
    assert any("no layer produces it" in reason or "(at " in reason for reason in reasons)


def test_entangled_axes_are_frozen_on_both_sides() -> None:
    coupling = coupling_of("entangled_sum")
    reasons = [reason for reasons in coupling.frozen.values() for reason in reasons]
    assert any(reason.startswith("entangled") for reason in reasons)
