"""Convolution, BatchNorm, ReLU, convolution: the net of the reference scores."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class NormedConvs(nn.Module):
    """Two convolutions of given weights with a BatchNorm of a given scale between, in float64."""

    def __init__(self, producer: Tensor, consumer: Tensor, scale: Tensor) -> None:
        super().__init__()
        between = len(scale)
        self.first = nn.Conv2d(producer.shape[1], between, 3, bias=False)
        self.norm = nn.BatchNorm2d(between)
        self.second = nn.Conv2d(between, len(consumer), 3, bias=False)
        self.double()
        with torch.no_grad():
            self.first.weight.copy_(producer)
            self.second.weight.copy_(consumer)
            self.norm.weight.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return y
