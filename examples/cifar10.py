"""The CIFAR-10 ResNet with zero-padded shortcuts, and the images of the data pack."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file
from torch import Tensor, nn

CLASSES, SIDE = 10, 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the checkpoints were trained with


class Block(nn.Module):
    """Two convolutions beside a shortcut that costs nothing: strided, and padded with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        missing = outputs - inputs
        self.pad = (missing // 2, missing - missing // 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, *self.pad))
        return F.relu(y + x)


class ResNet(nn.Module):
    """Three stages of `blocks` blocks each: 6·blocks + 2 layers."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, 1, blocks)
        self.layer2 = _stage(16, 32, 2, blocks)
        self.layer3 = _stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


def _stage(inputs: int, outputs: int, stride: int, blocks: int) -> nn.Sequential:
    rest = [Block(outputs, outputs, 1) for _ in range(blocks - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


def load_resnet(path: Path) -> ResNet:
    """A ResNet with the weights of a checkpoint, as deep as they are, in evaluation mode."""
    weights = load_file(path)
    model = ResNet(sum(fnmatch(name, "layer1.*.conv1.weight") for name in weights))
    model.load_state_dict(weights)
    return model.eval()


class Images:
    """Batches of normalised images with their labels, anew in every epoch."""

    def __init__(
        self, images: Tensor, labels: Tensor, batch: int, *, augment: bool = False, seed: int = 0
    ) -> None:
        """Keep the images as they are; they are normalised a batch at a time.

        Args:
            images: uint8, (n, 3, 32, 32).
            labels: int64, (n,).
            batch: Images in a batch.
            augment: Mirror and shift at random, in random order.
            seed: For that.
        """
        self.images, self.labels, self.batch, self.augment = images, labels, batch, augment
        self._random = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.images)
        order = torch.randperm(count, generator=self._random)
        for places in (order if self.augment else torch.arange(count)).split(self.batch):
            images = normalised(self.images[places])
            yield (self._varied(images) if self.augment else images), self.labels[places]

    def _varied(self, images: Tensor) -> Tensor:
        flip = torch.rand(len(images), generator=self._random) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(3), images)
        row, column = torch.randint(0, 9, (2,), generator=self._random).tolist()
        return F.pad(images, (4,) * 4)[:, :, row : row + SIDE, column : column + SIDE]


def normalised(images: Tensor) -> Tensor:
    """What the network takes; channels last, which convolutions on a CPU like best."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def load_cifar10(folder: Path, split: str, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images (uint8, (n, 3, 32, 32)) and labels of ``test`` or ``train``."""
    images: list[Tensor] = []
    labels: list[Tensor] = []
    for file in sorted(folder.glob(f"{split}_*.npz")):
        if sum(map(len, labels)) < count:
            with np.load(file) as arrays:
                images.append(torch.from_numpy(decoded(arrays["residual"])))
                labels.append(torch.from_numpy(arrays["label"].astype(np.int64)))
    if not labels:
        raise SystemExit(f"no {split}_*.npz in {folder}; pass the folder of the data with --data")
    return torch.cat(images)[:count], torch.cat(labels)[:count]


def decoded(residual: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Pixels from their coding: differences along both axes, red and blue less green."""
    pixels = residual
    for axis in (2, 3):
        pixels = np.add.accumulate(pixels, axis=axis, dtype=np.uint8)  # modulo 256, as coded
    green = pixels[:, 1]
    return np.stack([pixels[:, 0] + green, green, pixels[:, 2] + green], axis=1)
