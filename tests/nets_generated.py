"""Nets whose weights are made for each sample: the samples are the groups of one convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def per_sample(x: Tensor, weight: Tensor) -> Tensor:
    """Convolve each sample with weights of its own, (batch, outputs, inputs, k, k)."""
    b, c, h, w = x.shape
    outputs, kernel = weight.shape[1], weight.shape[-1]
    flat = weight.reshape(b * outputs, c, kernel, kernel)
    y = F.conv2d(x.reshape(1, b * c, h, w), flat, padding=kernel // 2, groups=b)
    return y.view(b, outputs, h, w)


class Modulated(nn.Module):
    """StyleGAN's convolution: inputs scaled by a style, outputs to unit variance."""

    def __init__(self, inputs: int, outputs: int, demodulate: bool = True) -> None:
        super().__init__()
        self.style, self.demodulate = nn.Linear(5, inputs), demodulate
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.randn(outputs))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.weight * self.style(style)[:, None, :, None, None]
        if self.demodulate:
            size = (weight.square().sum((2, 3, 4)) + 1e-8).rsqrt()
            weight = weight * size[:, :, None, None, None]
        return per_sample(x, weight) + self.bias[:, None, None]


class StyleNet(nn.Module):
    """Modulated convolutions between plain ones, and the mapping that makes the styles."""

    def __init__(self) -> None:
        super().__init__()
        self.mapping = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5))
        self.enter = nn.Conv2d(3, 6, 3, padding=1)
        self.first, self.second = Modulated(6, 8), Modulated(8, 7)
        self.image = Modulated(7, 3, demodulate=False)

    def forward(self, x: Tensor, latent: Tensor) -> Tensor:
        style = self.mapping(latent)
        x = F.relu(self.enter(x))
        x = F.relu(self.second(F.relu(self.first(x, style)), style))
        return self.image(x, style)  # type: ignore[no-any-return]


class Mixture(nn.Module):
    """CondConv: every sample mixes its kernel from those of the experts."""

    def __init__(self, inputs: int, outputs: int, experts: int = 3) -> None:
        super().__init__()
        self.route = nn.Linear(inputs, experts)
        self.weight = nn.Parameter(torch.randn(experts, outputs, inputs, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.route(x.mean((2, 3))))
        return per_sample(x, torch.einsum("be,eoikl->boikl", share, self.weight))


class FlatMixture(Mixture):
    """As timm spells it: the experts' kernels lie flat, and a product mixes them."""

    def forward(self, x: Tensor) -> Tensor:
        share = torch.sigmoid(self.route(x.mean((2, 3))))
        _, outputs, inputs, k, _ = self.weight.shape
        mixed = share @ self.weight.flatten(1)
        return per_sample(x, mixed.view(x.shape[0], outputs, inputs, k, k))


class CondConvNet(nn.Module):
    """Mixtures of kernels between plain convolutions."""

    def __init__(self, mixture: type[Mixture] = Mixture) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(7, 4, 1)
        self.first, self.second = mixture(6, 8), mixture(8, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.relu(self.enter(x))))
        return self.leave(F.relu(self.second(x)))  # type: ignore[no-any-return]
