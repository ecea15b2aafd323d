"""A plain training loop, as a recipe that can be printed and repeated."""

from __future__ import annotations

import math
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from fxcompress.arguments import Checked, Interval, NotNegative, Positive, Seed, Share, checked
from fxcompress.errors import FxCompressError
from fxcompress.task import Task
from fxcompress.train.batches import batches_of, call
from fxcompress.train.quality import depends, differentiate, loss_of
from fxcompress.train.reading import EMPTY


@dataclass(frozen=True)
class Progress:
    """Where training stands: the epoch (from 1), its batches so far, and their mean loss."""

    epoch: int
    epochs: int
    batch: int
    batches: int | None
    loss: float


@dataclass(frozen=True)
class Trainer(Checked):
    """A recipe for training: ``Trainer(epochs=3, lr=0.01).fit(program.module, task)``.

    Attributes:
        epochs: Passes over the task's data.
        lr: The learning rate, at its highest.
        optimizer: ``"sgd"`` with Nesterov's momentum, or ``"adamw"``.
        momentum: For SGD.
        weight_decay: On matrices and kernels; scales, shifts and biases go without.
        schedule: ``"cosine"`` goes from `lr` to 0, ``"constant"`` stays.
        warmup: Epochs in which the rate rises linearly to `lr`.
        clip: Largest norm of the gradient; None for any.
        seed: For dropout; the order of the data is the data's own matter.
    """

    epochs: Annotated[int, Interval("[1, 1000000]")] = 1
    lr: Positive = 0.05
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Share = 0.9
    weight_decay: NotNegative = 5e-4
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup: NotNegative = 0.0
    clip: Positive | None = None
    seed: Seed = 0

    @checked(FxCompressError)
    def fit(
        self,
        module: nn.Module,
        task: Task,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> tuple[float, ...]:
        """Train a module in place and leave it in evaluation mode.

        Args:
            module: A program's module, or any other.
            task: With labelled data and a loss.
            on_progress: Called after every batch.

        Returns:
            The mean loss of every epoch.

        Raises:
            FxCompressError: The task has no loss or no data, the loss has no gradient, or training
                diverged.
        """
        if task.loss is None:
            raise FxCompressError("the task has no loss; give Task(data, loss=...)")
        optimizer = self._optimizer(module)
        losses = []
        module.train()
        with torch.random.fork_rng(_cuda_devices(module)), torch.enable_grad():
            torch.manual_seed(self.seed)
            for epoch in range(1, self.epochs + 1):
                losses.append(self._epoch(epoch, module, task, optimizer, on_progress))
        module.eval()
        return tuple(losses)

    @checked(FxCompressError)
    def rate(self, epoch: NotNegative) -> float:
        """The learning rate after so many epochs, a fraction included."""
        if epoch < self.warmup:
            return self.lr * (epoch + 1e-2) / (self.warmup + 1e-2)
        if self.schedule == "constant":
            return self.lr
        share = (epoch - self.warmup) / max(self.epochs - self.warmup, 1e-9)
        return self.lr * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def _epoch(
        self,
        epoch: int,
        module: nn.Module,
        task: Task,
        optimizer: torch.optim.Optimizer,
        on_progress: Callable[[Progress], None] | None,
    ) -> float:
        batches = len(task.data) if isinstance(task.data, Sized) else None
        total, number = 0.0, 0
        for number, (inputs, labels) in enumerate(batches_of(module, task), start=1):
            done = epoch - 1 + ((number - 1) / batches if batches else 0.0)
            for group in optimizer.param_groups:
                group["lr"] = self.rate(done)
            output = call(module, task, inputs)
            loss = depends(loss_of(task, output, labels, "training"), "training")
            if not math.isfinite(value := loss.item()):
                raise FxCompressError(
                    f"training diverged: the loss is {value} in epoch {epoch}, batch {number}; "
                    f"lower lr={self.lr}, or give some warmup or clip"
                )
            optimizer.zero_grad()
            differentiate(loss, "training")
            if self.clip is not None:
                nn.utils.clip_grad_norm_(module.parameters(), self.clip)
            optimizer.step()
            total += value
            if on_progress:
                on_progress(Progress(epoch, self.epochs, number, batches, total / number))
        if not number:
            raise FxCompressError(EMPTY)
        return total / number

    def _optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        free = [value for value in module.parameters() if value.requires_grad]
        if not free:
            raise FxCompressError("there is nothing to train: no parameter requires a gradient")
        groups: list[dict[str, Any]] = [
            {
                "params": [value for value in free if value.ndim > 1],
                "weight_decay": self.weight_decay,
            },
            {"params": [value for value in free if value.ndim < 2], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        nesterov = self.momentum > 0
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=nesterov)


def _cuda_devices(module: nn.Module) -> list[torch.device]:
    return list({value.device for value in module.parameters() if value.device.type == "cuda"})
