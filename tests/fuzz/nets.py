"""A random net: blocks in sequence, each reading tensors that earlier blocks gave."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fuzz import activations, layers, norms, shapes  # noqa: F401  (they register their families)
from fuzz.blocks import FAMILIES, Block, Family, Shape, call, layer, normal
from models import randomize

BATCH = 2
STARTS: tuple[Shape, ...] = ((5,), (8,), (4, 6), (5, 8), (3, 6, 6), (4, 5, 4), (2, 4, 4, 4))
CLASSES = 3
TRIES = 12
LARGEST = 4096  # entries of one tensor, without the batch
FIRST = {
    name: FAMILIES[name] for name in ("linear", "convolution", "recurrent", "attention", "mlp")
}
"""What nets begin with: layers with units that may leave."""


@dataclass(frozen=True)
class Wire:
    """Which values a block reads."""

    sources: tuple[int, ...]


class RandomNet(nn.Module):
    """Value 0 is the input; block i gives value i + 1. The last block's value is the output."""

    def __init__(self, blocks: list[Block], wires: list[Wire]) -> None:
        super().__init__()
        self.blocks, self.wires = nn.ModuleList(blocks), wires

    def forward(self, x: Tensor) -> Tensor:
        values = [x]
        for block, wire in zip(self.blocks, self.wires, strict=True):
            values.append(block(*(values[source] for source in wire.sources)))
        return values[-1]

    def describe(self) -> str:
        """One line a block: what it is and what it reads."""
        pairs = zip(self.blocks, self.wires, strict=True)
        return "\n".join(
            f"v{number} = {block.label} of {', '.join(f'v{s}' for s in wire.sources)}"
            for number, (block, wire) in enumerate(pairs, 1)
        )


@dataclass(frozen=True)
class Case:
    """A net with its input, in evaluation mode and double precision."""

    net: RandomNet
    x: Tensor


def draw(seed: int, limit: int | None = None) -> Case:
    """The net of a seed; with `limit`, its first so many random blocks alone."""
    rng = random.Random(seed)
    shape = rng.choice(STARTS)
    length = rng.randint(2, 9)
    x = normal(rng, BATCH, *shape).double()
    values, blocks, wires = [x], list[Block](), list[Wire]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.getrandbits(31))
        for number in range(length if limit is None else min(limit, length)):
            _extend(rng, values, blocks, wires, FIRST if number == 0 else FAMILIES)
        for block in _head(rng, values[-1]):
            wires.append(Wire((len(blocks),)))
            blocks.append(block)
    net = RandomNet(blocks, wires).double()
    randomize(net, seed)
    return Case(net, x)


def _extend(
    rng: random.Random,
    values: list[Tensor],
    blocks: list[Block],
    wires: list[Wire],
    families: Mapping[str, Family],
) -> None:
    """Add one random block, if one is found that runs and stays small."""
    for _ in range(TRIES):
        sources = _sources(rng, values)
        found = [values[source] for source in sources]
        kind = _family(rng, found, families)
        block = kind.make(rng, tuple(tuple(v.shape[1:]) for v in found))
        if block is None or (block.writes and 0 in sources):
            continue  # nets do not write into their inputs
        value = _run(block, found)
        if value is not None and 1 < value.dim() <= 5 and 1 < value[0].numel() <= LARGEST:
            block.family = kind.name
            values.append(value)
            blocks.append(block)
            wires.append(Wire(sources))
            return


def _sources(rng: random.Random, values: list[Tensor]) -> tuple[int, ...]:
    """The last value mostly, and another of its shape where there is one."""
    last = len(values) - 1 if rng.random() < 0.85 else rng.randrange(len(values))
    alike = [n for n, value in enumerate(values) if value.shape == values[last].shape and n != last]
    if alike and rng.random() < 0.5:
        return (last, rng.choice(alike))
    return (last,)


def _family(rng: random.Random, found: list[Tensor], families: Mapping[str, Family]) -> Family:
    rank = found[0].dim() - 1
    fitting = [f for f in families.values() if rank in f.ranks and f.arity == len(found)]
    return rng.choices(fitting, [f.weight for f in fitting])[0]


def _run(block: Block, operands: list[Tensor]) -> Tensor | None:
    """What a block gives; None where torch forbids it (a piece of a split is written to)."""
    try:
        value: Tensor = block.double().eval()(
            *(1 * value.clone().requires_grad_() for value in operands)
        )
    except RuntimeError:
        return None
    return value.detach()


def _head(rng: random.Random, last: Tensor) -> list[Block]:
    """A classifier behind a mean or a flattening; for some nets nothing."""
    if rng.random() < 0.2:
        return []
    if rng.random() < 0.3 or last.dim() == 2:
        width = last[0].numel()
        return [
            call("flatten(1)", lambda x: x.flatten(1)),
            layer(nn.Linear(width, CLASSES)),
        ]
    if rng.random() < 0.5:
        rest = tuple(range(2, last.dim()))
        return [
            call(f"mean over {rest}", lambda x: x.mean(rest)),
            layer(nn.Linear(last.shape[1], CLASSES)),
        ]
    return [layer(nn.Linear(last.shape[-1], CLASSES))]
