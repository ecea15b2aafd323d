from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxcompress as fx
import models
from fxcompress.layers import inputs as reads_module
from fxcompress.layers.weights import consumers
from fxcompress.passes.structured.readers import readers
from fxcompress.program import Program
from fxcompress.stats import Read, moments, observe, window_of

CONVOLUTIONS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, ...]]] = {
    "strided": (nn.Conv2d, {"kernel_size": 3, "stride": 2, "padding": 1}, (9, 8)),
    "dilated": (nn.Conv2d, {"kernel_size": (3, 2), "dilation": (2, 3)}, (9, 8)),
    "same": (nn.Conv2d, {"kernel_size": (2, 5), "padding": "same", "dilation": 2}, (9, 8)),
    "valid": (nn.Conv2d, {"kernel_size": 4, "padding": "valid", "stride": (3, 1)}, (9, 8)),
    "reflected": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        (6, 5),
    ),
    "pointwise, strided": (nn.Conv2d, {"kernel_size": 1, "stride": 2}, (6, 5)),
    "line": (nn.Conv1d, {"kernel_size": 5, "padding": 3, "stride": 2}, (11,)),
    "volume": (nn.Conv3d, {"kernel_size": (1, 2, 3), "padding": (0, 1, 1)}, (3, 4, 5)),
}


class Before(nn.Module):
    """A convolution of some kind behind a pointwise one whose channels may go."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        own, options, _ = CONVOLUTIONS[kind]
        self.first, self.second = own(2, 6, 1), own(6, 9, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh())  # type: ignore[no-any-return]


def made(kind: str) -> tuple[Any, Tensor, Program]:
    model: Any = models.randomize(Before(kind)).double()
    x = models.rebatch((torch.randn(1, 2, *CONVOLUTIONS[kind][2], dtype=torch.float64),), 5)[0]
    return model, x, fx.compile(model, (x,), task=[x])


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("entries", [1, 10**6])
def test_a_convolution_is_a_linear_map_of_what_its_taps_meet(
    kind: str, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inputs by tap times entries by tap, summed, are what the layer gives; in parts as well."""
    monkeypatch.setattr(reads_module, "ENTRIES", entries)
    model, x, program = made(kind)
    group = program.group("first")
    (reader,) = readers(program, group, taps=True)
    (read,) = reader.reads
    seen: list[Tensor] = []
    observe(program, {read.value: lambda value: seen.append(value.clone())})
    value, axes = seen[0], program.analysis.coupling.axes[read.value]

    parts = list(read.signals(value, axes, group.factor, group.over))

    assert len(parts) == (len(x) if entries == 1 else 1)
    inputs, columns = torch.cat(parts, 3), reader.columns(program)
    assert inputs.shape[:3] == columns.shape[:3] == (group.cells, group.units, read.taps)
    given = torch.einsum("cuts,cuto->cos", inputs, columns)
    bias = model.second.bias.reshape(-1, *(1,) * len(CONVOLUTIONS[kind][2]))
    expected = (model(x) - bias).movedim(1, 0).flatten(1)
    torch.testing.assert_close(given[0], expected, rtol=1e-10, atol=1e-12)  # sums in another order


def test_taps_are_taken_together_where_groups_of_a_convolution_hold_copies() -> None:
    """A unit is one channel in each group, so its places in the map are none in the kernel."""
    model, args, _ = models.build("grouped_conv")
    program = fx.compile(model, args)
    found = [r for g in program.groups if not g.frozen for r in readers(program, g, taps=True)]
    assert any(not reader.aligned for reader in found)
    assert all(read.window is None for r in found if not r.aligned for read in r.reads)


def test_layers_that_read_places_one_by_one_share_a_read() -> None:
    model = models.randomize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1))).double()
    program = fx.compile(model, (torch.randn(2, 3, 4, 4, dtype=torch.float64),))
    (consumer,) = consumers(program, program.group("0"))
    nodes = {node.name: node for node in program.module.graph.nodes}
    window = window_of(nodes[consumer.node])
    assert window is not None
    assert window.plain
    assert Read(consumer.value) == readers(program, program.group("0"), taps=True)[0].reads[0]


def test_moments_of_taps_hold_those_of_the_places_they_meet() -> None:
    """Each tap has the moments of the positions that it meets, at strides of three and one."""
    model, x, program = made("valid")
    group = program.group("first")
    (read,) = readers(program, group, taps=True)[0].reads
    found = moments(program, [group], gram="places", reads=lambda _: [read])[group].each[read]
    h = model.first(x).tanh()
    taps = [h[:, :, i : i + 4 : 3, j : j + 5] for i in range(4) for j in range(4)]
    rows = torch.stack([tap.movedim(1, 0).flatten(1) for tap in taps], 1).flatten(0, 1)
    torch.testing.assert_close(found.gram[0], rows @ rows.T / rows.shape[1])
    torch.testing.assert_close(found.mean[0], rows.mean(1))
