"""Groups by the layers that hold their units, to compare with those of torch-pruning."""

from __future__ import annotations

from typing import Any

from torch import nn

from fxcompress.program import Program

CONVOLUTION = nn.modules.conv._ConvNd
LAYERS = (CONVOLUTION, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
Sides = frozenset[tuple[str, str]]
"""The layers of a group, each with the side that holds the units: ``in`` or ``out``."""


def sides_of(graph: Any, group: Any) -> Sides:
    """The layers of a group of torch-pruning's."""
    found = set()
    for dependency, _ in group:
        layer = dependency.target.module
        if isinstance(layer, LAYERS):
            map_ = isinstance(layer, (CONVOLUTION, nn.Linear))
            out = not map_ or graph.is_out_channel_pruning_fn(dependency.handler)
            found.add((graph._module2name[layer], "out" if out else "in"))
    return frozenset(found)


def ours_by_layers(found: Program, model: nn.Module) -> dict[Sides, Any]:
    """Our groups by their layers, without those that no layer of the model writes."""
    layers = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, LAYERS)}
    groups = {
        frozenset(
            (site.parameter.rpartition(".")[0], "in" if site.role == "contract" else "out")
            for site in group.sites
            if site.parameter in layers
        ): group
        for group in found.groups
    }
    return {sides: g for sides, g in groups.items() if any(side == "out" for _, side in sides)}
