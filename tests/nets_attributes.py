"""Nets whose modules keep sizes in attributes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nets_convolution import conv_bn, pooled


class Attention(nn.Module):
    """Sizes and scale are attributes; the residual stream is 12 wide, as are all heads together."""

    def __init__(self, width: int, heads: int, dims: int) -> None:
        super().__init__()
        self.heads, self.dims, self.scale = heads, dims, dims**-0.5
        self.sizes = [heads * dims] * 3
        self.qkv = nn.Linear(width, 3 * heads * dims)
        self.proj = nn.Linear(heads * dims, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part.view(b, n, self.heads, self.dims).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, -1)
        )
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        x = (weights @ v).transpose(1, 2).reshape(b, n, self.heads * self.dims)
        return self.proj(x)  # type: ignore[no-any-return]


class Unscaled(Attention):
    """The scale comes from the width of the queries."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (
            part.view(b, n, self.heads, self.dims).transpose(1, 2)
            for part in self.qkv(x).split(self.sizes, -1)
        )
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(b, n, self.heads * self.dims))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    def __init__(self, attention: type[Attention] = Attention) -> None:
        super().__init__()
        self.enter, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList([attention(12, 3, 4), attention(12, 2, 6)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """The shortcut of a CIFAR ResNet: one number pads both sides."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.stride, self.pad = stride, (o - i) // 2
        self.up, self.down = conv_bn(i, o, stride=stride), conv_bn(o, o)

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(F.relu(self.up(x)))
        if self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(x + y)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 6), nn.Linear(14, 5)
        self.blocks = nn.Sequential(Block(6, 6, 1), Block(6, 14, 2), Block(14, 14, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(pooled(self.blocks(F.relu(self.stem(x)))))  # type: ignore[no-any-return]


class Convolutional(nn.Module):
    """One depthwise convolution under two names, a grouped one with standardised weights, and
    attention whose queries come from a convolution.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 3)
        self.position = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.blocks = nn.ModuleList([nn.ModuleDict({"position": self.position})])
        self.grouped = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3, groups=2))
        self.qkv, self.heads, self.dims = nn.Conv2d(8, 24, 1), 2, 4

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for block in self.blocks:
            x = x + block["position"](self.position(x))  # type: ignore[index]
        x = self.grouped(x)
        q, k, v = (
            part.reshape(x.shape[0], self.heads, self.dims, -1).transpose(-2, -1)
            for part in self.qkv(x).chunk(3, 1)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(-2, -1)
        return self.head(y.reshape(x.shape[0], self.heads * self.dims, -1).mean(-1))  # type: ignore[no-any-return]
