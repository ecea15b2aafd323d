"""Tiny image nets, each with one thing that makes channels hard to follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def conv_bn(i: int, o: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(o))


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


class ConvChain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn(3, 6), conv_bn(6, 10, stride=2)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.second(F.relu(self.first(x))))
        return self.head(pooled(x))  # type: ignore[no-any-return]


class PaddedResidual(nn.Module):
    """The shortcut halves the image and pads the channels with zeros, as CIFAR ResNets do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.up, self.down = conv_bn(6, 12, stride=2), conv_bn(12, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))
        x = F.relu(self.down(F.relu(self.up(x))) + short)
        return self.head(pooled(x))  # type: ignore[no-any-return]


class ProjectedResidual(nn.Module):
    """One block with a 1x1 shortcut, one with an identity, one in-place addition."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 6)
        self.up, self.down, self.short = conv_bn(6, 9), conv_bn(9, 10), conv_bn(6, 10, kernel=1)
        self.inner, self.outer = conv_bn(10, 7), conv_bn(7, 10)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x), inplace=True)
        x = F.relu(self.down(F.relu(self.up(x))) + self.short(x))
        y = self.outer(F.relu(self.inner(x)))
        y += x
        return self.head(pooled(F.relu(y)))  # type: ignore[no-any-return]


class DenseConcat(nn.Module):
    """Each layer reads the concatenation of all before it, norm first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(6), nn.BatchNorm2d(10), nn.BatchNorm2d(14)])
        self.layers = nn.ModuleList([nn.Conv2d(n, 4, 3, padding=1, bias=False) for n in (6, 10)])
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            features.append(layer(F.relu(norm(torch.cat(features, 1)))))
        return self.head(pooled(F.relu(self.norms[2](torch.cat(features, 1)))))  # type: ignore[no-any-return]


class GroupedConv(nn.Module):
    """A grouped convolution with 3 groups of 4, then a depthwise one and a pointwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce, self.grouped = conv_bn(3, 12, kernel=1), conv_bn(12, 12, groups=3)
        self.depthwise, self.pointwise = conv_bn(12, 12, groups=12), conv_bn(12, 10, kernel=1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.reduce(x))))
        x = F.hardswish(self.pointwise(F.relu6(self.depthwise(x))))
        return self.head(pooled(x))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.project = conv_bn(3, 12), conv_bn(12, 7, kernel=1)
        self.squeeze, self.excite = nn.Conv2d(12, 5, 1), nn.Conv2d(5, 12, 1)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.expand(x))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True))))
        x = self.project(x * torch.sigmoid(gate))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class FlattenHead(nn.Module):
    """The head reads channels times pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.hidden, self.head = nn.Linear(6 * 3 * 2, 11), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.head(F.relu(self.hidden(x.view(x.size(0), -1))))  # type: ignore[no-any-return]


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, layer norm over the last axis, a layer scale and a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 2, 2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.up, self.down = nn.Linear(8, 20), nn.Linear(20, 8)
        self.gamma = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.down(F.gelu(self.up(y)))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 12, 3), nn.GroupNorm(3, 12)
        self.second, self.head = nn.Conv2d(12, 7, 3), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        return self.head(pooled(F.relu(self.second(x))))  # type: ignore[no-any-return]


class PReLUNet(nn.Module):
    """One slope for each channel, then one slope for all."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each = nn.Conv2d(3, 6, 3), nn.PReLU(6)
        self.second, self.every = nn.Conv2d(6, 10, 3), nn.PReLU(1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.every(self.second(self.each(self.first(x))))
        return self.head(pooled(x))  # type: ignore[no-any-return]


class TransposedConv(nn.Module):
    """An encoder and a decoder with a skip; the transposed weights lie input axis first."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.inner = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 10, 3, 2, 1)
        self.lift = nn.ConvTranspose2d(10, 6, 2, 2)
        self.decode = nn.ConvTranspose2d(6, 8, 2, 2, groups=2)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.encode(x))
        x = F.relu(self.lift(F.relu(self.inner(skip)))) + skip
        return self.last(F.relu(self.decode(x)))  # type: ignore[no-any-return]


class PixelShuffleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 7, 3, padding=1), nn.Conv2d(7, 5 * 4, 3, padding=1)
        self.shuffle, self.last = nn.PixelShuffle(2), nn.Conv2d(5, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shuffle(self.second(F.relu(self.first(x))))
        return self.last(F.relu(x))  # type: ignore[no-any-return]


class ChannelShuffle(nn.Module):
    """ShuffleNet's unit: half the channels pass by, then the two halves are interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 12)
        self.enter, self.leave = conv_bn(6, 10, kernel=1), conv_bn(10, 6, kernel=1)
        self.tail, self.head = conv_bn(12, 7), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        keep, work = F.relu(self.stem(x)).chunk(2, 1)
        x = torch.cat((keep, F.relu(self.leave(F.relu(self.enter(work))))), 1)
        b, c, h, w = x.shape
        x = x.view(b, 2, c // 2, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.head(pooled(F.relu(self.tail(x))))  # type: ignore[no-any-return]


class PointCloud(nn.Module):
    """PointNet's shape: convolutions over a line of points, and their largest responses."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv1d(3, 8, 1), nn.BatchNorm1d(8)
        self.second, self.head = nn.Conv1d(8, 10, 3, stride=2, padding=1), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(F.relu(self.norm(self.first(x))))
        return self.head(x.amax(2))  # type: ignore[no-any-return]


class TwiceOver(nn.Module):
    """A depthwise layer with two filters a channel reads the same channels twice.

    Its rows are ``([c | c] d)``: an index of the concatenation is no channel.
    """

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(16, 32, 3, padding=1, groups=16)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        both = torch.cat((x, torch.tanh(x)), 1)
        return self.head(self.depthwise(both).mean((2, 3)))  # type: ignore[no-any-return]
