"""Tiny nets of linear layers, attention and embeddings. Heads are 5, head_dim is 4, and so on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def attend(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """Attention over (batch, heads, tokens, dim), with heads and dims merged again at the end."""
    x = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    return x.transpose(1, 2).flatten(2)


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 7), nn.Linear(7, 11), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.second(F.relu(self.first(x)))))  # type: ignore[no-any-return]


class ReusedModule(nn.Module):
    """One layer and one norm are called three times on the same stream."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, 9), nn.Linear(9, 3)
        self.up, self.down = nn.Linear(9, 13), nn.Linear(13, 9)
        self.norm = nn.BatchNorm1d(9)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for _ in range(3):
            x = self.norm(x + self.down(F.relu(self.up(x))))
        return self.head(x)  # type: ignore[no-any-return]


class Siblings(nn.Module):
    """One layer writes three widths, which nothing but their places tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 3 + 4 + 6)
        self.left, self.middle, self.right = nn.Linear(3, 7), nn.Linear(4, 7), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = F.relu(self.enter(x)).split((3, 4, 6), dim=-1)
        return self.left(a) * self.middle(b) + self.right(c)  # type: ignore[no-any-return]


class EntangledSum(nn.Module):
    """Units (6 4) are added to themselves as (4 6): no unit of the one is a unit of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head, self.inner = nn.Linear(5, 24), nn.Linear(24, 3), nn.Linear(3, 7)
        self.out = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        x = x + x.view(-1, 6, 4).transpose(1, 2).reshape(-1, 24)
        return self.out(F.relu(self.inner(self.head(x))))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """A pre-norm residual block whose inner width is gated: down(silu(gate(x)) * up(x))."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(5, 10), nn.RMSNorm(10), nn.Linear(10, 3)
        self.gate, self.up = nn.Linear(10, 14, bias=False), nn.Linear(10, 14, bias=False)
        self.down = nn.Linear(14, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.norm(x)
        return self.head(x + self.down(F.silu(self.gate(y)) * self.up(y)))  # type: ignore[no-any-return]


class FusedAttention(nn.Module):
    """A ViT block: rows of the fused weight lie as (3 heads head_dim)."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(5, 10), nn.LayerNorm(10), nn.Linear(10, 6)
        self.qkv, self.proj = nn.Linear(10, 3 * 5 * 4), nn.Linear(5 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, 5, 4).permute(2, 0, 3, 1, 4).unbind(0)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, 20))
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class ChunkedAttention(nn.Module):
    """Query, key and value are chunks of one projection; the softmax is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, 10), nn.Linear(10, 6)
        self.qkv, self.proj = nn.Linear(10, 3 * 5 * 4), nn.Linear(5 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, _ = x.shape
        q, k, v = (part.view(b, n, 5, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        weights = torch.softmax(q @ k.transpose(-2, -1) * 4**-0.5, dim=-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, 20))
        return self.head(x[:, -1])  # type: ignore[no-any-return]


class InterleavedAttention(nn.Module):
    """GPT-NeoX order: rows of the fused weight lie as (heads [q | k | v])."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, 10), nn.Linear(10, 6)
        self.qkv, self.proj = nn.Linear(10, 3 * 5 * 4), nn.Linear(5 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        q, k, v = self.qkv(x).unflatten(-1, (5, 12)).transpose(1, 2).chunk(3, dim=-1)
        return self.head(x + self.proj(attend(q, k, v)))  # type: ignore[no-any-return]


class MultiQueryAttention(nn.Module):
    """Falcon's attention: of 2 times 5 fused heads the last two are key and value, read by index.

    Each serves the 3 query heads before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, 10), nn.Linear(10, 7)
        self.qkv, self.proj = nn.Linear(10, 2 * 5 * 4), nn.Linear(6 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        b, n, _ = x.shape
        fused = self.qkv(x).view(b, n, 2, 5, 4)
        q, k, v = fused[..., :-2, :], fused[..., [-2], :], fused[..., [-1], :]
        k, v = torch.broadcast_to(k, q.shape), torch.broadcast_to(v, q.shape)
        q, k, v = (part.flatten(2, 3).transpose(1, 2) for part in (q, k, v))
        return self.head(x + self.proj(attend(q, k, v)))  # type: ignore[no-any-return]


class RotaryGroupedAttention(nn.Module):
    """LLaMA's attention: 2 key/value heads for 6 query heads, halves of head_dim rotated."""

    inv_freq: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.head = nn.Linear(5, 10), nn.RMSNorm(10), nn.Linear(10, 7)
        self.q_proj = nn.Linear(10, 6 * 4, bias=False)
        self.k_proj, self.v_proj = nn.Linear(10, 8, bias=False), nn.Linear(10, 8, bias=False)
        self.o_proj = nn.Linear(6 * 4, 10, bias=False)
        self.register_buffer("inv_freq", torch.tensor([1.0, 0.1]))

    def rotate(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[2], device=x.device, dtype=self.inv_freq.dtype)
        angles = torch.outer(positions, self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        half = torch.cat((-x[..., 2:], x[..., :2]), dim=-1)
        return x * angles.cos() + half * angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        y = self.norm(x)
        b, n, _ = y.shape
        q = self.rotate(self.q_proj(y).view(b, n, 6, 4).transpose(1, 2))
        k = self.rotate(self.k_proj(y).view(b, n, 2, 4).transpose(1, 2))
        v = self.v_proj(y).view(b, n, 2, 4).transpose(1, 2)
        k, v = (
            t[:, :, None].expand(b, 2, 3, n, 4).reshape(b, 6, n, 4)  # each serves 3 query heads
            for t in (k, v)
        )
        return self.head(x + self.o_proj(attend(q, k, v, causal=True)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Swin's downsampling: four neighbours concatenated, a norm, a linear reduction."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.norm, self.reduce = nn.LayerNorm(24), nn.Linear(24, 10, bias=False)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        corners = x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]
        x = F.gelu(self.reduce(self.norm(torch.cat(corners, -1))))
        return self.head(x.mean((1, 2)))  # type: ignore[no-any-return]


class TiedLanguageModel(nn.Module):
    """The output layer is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(17, 10), nn.LayerNorm(10)
        self.up, self.down = nn.Linear(10, 14), nn.Linear(14, 10)
        self.head = nn.Linear(10, 17, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.down(F.relu(self.up(self.norm(x))))
        return self.head(x)  # type: ignore[no-any-return]


class ManyInputs(nn.Module):
    """Two inputs and a keyword; a dictionary with a nested tuple comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 9), nn.Linear(6, 9)
        self.scale, self.score, self.value = nn.Linear(4, 9), nn.Linear(9, 3), nn.Linear(9, 2)

    def forward(
        self, left: Tensor, right: Tensor, *, scale: Tensor
    ) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
        x = F.relu(self.left(left)) + F.relu(self.right(right))
        y = x * torch.sigmoid(self.scale(scale))
        return {"score": self.score(y), "pair": (self.value(x), self.value(y))}


class TokenClassifier(nn.Module):
    """A class token, a positional table, a post-norm block; the head reads [token | mean]."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 10, 3, 3)
        self.token = nn.Parameter(torch.zeros(1, 1, 10))
        self.position = nn.Parameter(torch.zeros(1, 7, 10))
        self.up, self.down, self.norm = nn.Linear(10, 14), nn.Linear(14, 10), nn.LayerNorm(10)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.position
        x = self.norm(x + self.down(F.gelu(self.up(x))))
        return self.head(torch.cat((x[:, 0], x[:, 1:].mean(1)), -1))  # type: ignore[no-any-return]
