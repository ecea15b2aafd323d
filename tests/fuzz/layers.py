"""Families of layers: linear maps, convolutions, norms, attention, recurrent nets, lookups."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fuzz.blocks import WIDTHS, Block, Shape, divisors, family, layer, normal

CONVS = {2: nn.Conv1d, 3: nn.Conv2d, 4: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose1d, 3: nn.ConvTranspose2d, 4: nn.ConvTranspose3d}


@family(1, 2, weight=6)
def linear(rng: random.Random, shape: Shape) -> Block:
    return layer(nn.Linear(shape[-1], rng.choice(WIDTHS), bias=rng.random() < 0.8))


@family(3, 4, weight=0.5)
def linear_on_last(rng: random.Random, shape: Shape) -> Block:
    return layer(nn.Linear(shape[-1], rng.choice(WIDTHS)))


@family(1, 2, weight=3)
def mlp(rng: random.Random, shape: Shape) -> Block:
    width, hidden = shape[-1], rng.choice(WIDTHS) * 2
    act = rng.choice((nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh))()
    return Block(
        f"x + mlp({width}, {hidden})",
        lambda b, x: x + b.down(b.act(b.up(x))),
        up=nn.Linear(width, hidden),
        down=nn.Linear(hidden, width),
        act=act,
    )


@family(1, 2, weight=2)
def gated_mlp(rng: random.Random, shape: Shape) -> Block:
    width, hidden = shape[-1], rng.choice(WIDTHS) * 2
    if rng.random() < 0.5:
        return Block(
            "gated mlp",
            lambda b, x: b.down(F.silu(b.gate(x)) * b.up(x)),
            gate=nn.Linear(width, hidden),
            up=nn.Linear(width, hidden),
            down=nn.Linear(hidden, width),
        )

    def fused(b: Any, x: Tensor) -> Tensor:
        gate, up = b.both(x).chunk(2, -1)
        return b.down(torch.sigmoid(gate) * up)  # type: ignore[no-any-return]

    both, down = nn.Linear(width, 2 * hidden), nn.Linear(hidden, width)
    return Block("fused gated mlp", fused, both=both, down=down)


@family(2, 3, 4, weight=6)
def convolution(rng: random.Random, shape: Shape) -> Block:
    channels, *space = shape
    out = rng.choice((*WIDTHS, channels))
    groups = 1
    if rng.random() < 0.35:
        groups = rng.choice([n for n in divisors(channels) if out % n == 0])
    kernel = rng.choice([k for k in (1, 3) if k <= min(space) + 2])
    stride = rng.choice((1, 1, 2)) if min(space) >= 4 else 1
    mode: Any = rng.choice(("zeros", "zeros", "zeros", "reflect", "circular"))
    if mode != "zeros" and min(space) <= kernel:
        mode = "zeros"
    conv = CONVS[len(shape)](
        channels,
        out,
        kernel,
        stride=stride,
        padding=kernel // 2,
        groups=groups,
        bias=rng.random() < 0.6,
        padding_mode=mode,
    )
    return layer(conv)


@family(2, 3, 4, weight=1.5)
def depthwise(rng: random.Random, shape: Shape) -> Block:
    channels = shape[0]
    wide = channels * rng.choice((1, 1, 2))
    return layer(CONVS[len(shape)](channels, wide, 3, padding=1, groups=channels))


@family(2, 3, 4, weight=0.7)
def transposed_convolution(rng: random.Random, shape: Shape) -> Block | None:
    channels = shape[0]
    if max(shape[1:]) > 8:
        return None
    out = rng.choice(WIDTHS)
    groups = rng.choice([n for n in divisors(channels) if out % n == 0 and n < 4])
    kernel = TRANSPOSED[len(shape)](channels, out, 2, stride=2, groups=groups)
    return layer(kernel)


@family(2, weight=3)
def attention(rng: random.Random, shape: Shape) -> Block:
    width = shape[-1]
    dim, heads = rng.choice((2, 4)), rng.choice((1, 2, 4))
    shared = rng.choice(divisors(heads))
    causal = rng.random() < 0.3

    def run(b: Any, x: Tensor) -> Tensor:
        q = b.q(x).unflatten(-1, (heads, dim)).transpose(1, 2)
        k = b.k(x).unflatten(-1, (shared, dim)).transpose(1, 2)
        v = b.v(x).unflatten(-1, (shared, dim)).transpose(1, 2)
        if shared < heads:
            k, v = (t.repeat_interleave(heads // shared, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return b.o(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    return Block(
        f"attention({heads} heads of {dim}, {shared} shared)",
        run,
        q=nn.Linear(width, heads * dim),
        k=nn.Linear(width, shared * dim),
        v=nn.Linear(width, shared * dim),
        o=nn.Linear(heads * dim, width),
    )


@family(2, weight=1)
def fused_attention(rng: random.Random, shape: Shape) -> Block:
    width, heads = shape[-1], rng.choice((1, 2))
    dim = rng.choice((2, 4))

    def run(b: Any, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        q, k, v = b.qkv(x).reshape(n, t, 3, heads, dim).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * dim**-0.5).softmax(-1)
        return b.o((weights @ v).transpose(1, 2).reshape(n, t, heads * dim))  # type: ignore[no-any-return]

    return Block(
        f"fused attention({heads} heads of {dim})",
        run,
        qkv=nn.Linear(width, 3 * heads * dim),
        o=nn.Linear(heads * dim, width),
    )


@family(2, weight=0.5)
def multihead_attention(rng: random.Random, shape: Shape) -> Block:
    inner = nn.MultiheadAttention(
        shape[-1], rng.choice([n for n in divisors(shape[-1]) if n < 5]), batch_first=True
    )
    return Block("nn.MultiheadAttention", lambda b, x: b.inner(x, x, x)[0], inner=inner)


@family(2, weight=1)
def recurrent(rng: random.Random, shape: Shape) -> Block:
    kind = rng.choice((nn.LSTM, nn.GRU, nn.RNN))
    inner = kind(
        shape[-1],
        rng.choice(WIDTHS),
        num_layers=rng.choice((1, 1, 2)),
        bidirectional=rng.random() < 0.3,
        batch_first=True,
    )
    return Block(str(inner), lambda b, x: b.inner(x)[0], inner=inner)


@family(2, weight=0.5)
def recurrent_cell(rng: random.Random, shape: Shape) -> Block:
    width = rng.choice(WIDTHS)
    kind = rng.choice((nn.GRUCell, nn.RNNCell, nn.LSTMCell))
    steps = shape[0]

    def run(b: Any, x: Tensor) -> Tensor:
        state = None
        for step in range(steps):
            state = b.cell(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state  # type: ignore[return-value]

    return Block(f"{kind.__name__} unrolled", run, cell=kind(shape[-1], width))


@family(1, 2, weight=0.7)
def tied_linear(rng: random.Random, shape: Shape) -> Block:
    inner = nn.Linear(shape[-1], rng.choice(WIDTHS), bias=False)
    return Block(
        "F.linear(tanh(xW'), W')", lambda b, x: torch.tanh(b.inner(x)) @ b.inner.weight, inner=inner
    )


@family(1, 2, weight=0.5)
def looked_up(rng: random.Random, shape: Shape) -> Block:
    """Rows of a table chosen by the values."""
    rows, width = 5, shape[-1]
    table = nn.Embedding(rows, width)

    def tokens(x: Tensor) -> Tensor:
        return (x.sum(-1).detach() * 3).long().remainder(rows)

    return Block("x + embedding", lambda b, x: x + b.table(tokens(x)), table=table)


@family(1, 2, weight=0.5)
def bilinear_einsum(rng: random.Random, shape: Shape) -> Block:
    width, out = shape[-1], rng.choice(WIDTHS)
    return Block(
        "einsum",
        lambda b, x: torch.einsum("...i,io->...o", x, b.weight),
        weight=normal(rng, width, out, scale=width**-0.5),
    )


@family(1, 2, weight=0.4)
def mixture(rng: random.Random, shape: Shape) -> Block:
    width, experts = shape[-1], 3

    def run(b: Any, x: Tensor) -> Any:
        gate = b.router(x).softmax(-1)
        parts = torch.stack([one(x) for one in b.experts], -1)
        return (parts * gate.unsqueeze(-2)).sum(-1)

    def expert() -> nn.Module:
        return nn.Sequential(nn.Linear(width, 8), nn.ReLU(), nn.Linear(8, width))

    return Block(
        "mixture of experts",
        run,
        router=nn.Linear(width, experts),
        experts=nn.ModuleList([expert() for _ in range(experts)]),
    )
