"""Small nets for Projective Pruning, and short ways to their groups and tensors."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fxcompress.analysis.groups import ChannelGroup
from fxcompress.program import Program
from models import randomize

DOUBLE = torch.float64


def groups_of(found: Program) -> list[ChannelGroup]:
    return [group for group in found.groups if group.frozen is None]


def parameter(found: Program, name: str) -> Tensor:
    value: Tensor = found.module.state_dict()[name]
    return value


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for narrow, wide in pairwise(widths):
        layers += [nn.Linear(narrow, wide), nn.ReLU()]
    net = nn.Sequential(*layers[:-1])
    randomize(net)
    return net.double()


def weight(net: nn.Sequential, place: int, name: str = "weight") -> Tensor:
    """A parameter of a layer, to be written to."""
    return dict(net[place].named_parameters())[name].data
