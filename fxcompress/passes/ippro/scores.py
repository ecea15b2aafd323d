"""PROscores: whether one step of gradient descent in projective space moves a filter to the origin.

A filter F is embedded as the line [‖F‖ : F], which makes an angle of π/4 with [1 : 0], the filter
that is not there; a step of size λ along the gradients takes it to [‖F‖ - λ ∂L/∂D : F - λ∇L]. The
score is the tangent of its angle then; small means near the origin. (IPPRO, eq. 3 and 4.)

Everything here is float64. F and its gradient have shape (…, n, N), ∂L/∂D and scores (…, n);
gradients are means over samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fxcompress.errors import PlanError

LEAST = 1e-12
"""A denominator below this share of what it started from has lost all its digits."""
STEP = 0.01
"""The change of a typical score under the λ that is chosen by itself."""


@dataclass(frozen=True, eq=False)
class Filters:
    """The filters of one layer, and what is known of them.

    Attributes:
        value: F, shape (…, n, N).
        grad: ∇_F L.
        signal: ∂L/∂D = Σ g·x over samples and positions, shape (…, n).
        bare: No activation follows, so the filter itself is rescaled beside D: F stays on the cone
            as m·F with D = 1/m - 1, where ‖F‖m² + m - 1 = 0 (the paper's form for attention, with
            the root that keeps all tensors as they are). `signal` is not used then.
    """

    value: Tensor
    grad: Tensor
    signal: Tensor
    bare: bool = False

    @property
    def norm(self) -> Tensor:
        """‖F‖."""
        return self.value.square().sum(-1).sqrt()

    @property
    def taylor(self) -> Tensor:
        """⟨F, ∇L⟩."""
        return (self.value * self.grad).sum(-1)

    @property
    def gain(self) -> Tensor:
        """The factor m = 2/(1 + √(1 + 4‖F‖)), in (0, 1]."""
        return 2 / (1 + (1 + 4 * self.norm).sqrt())

    @property
    def live(self) -> Tensor:
        """Where F is not zero; a filter of zeros is gone already."""
        return self.norm > 0

    def slope(self, scale_free: bool = False) -> Tensor:
        """The coefficient s of score = 1 + λs + O(λ²); 0 where F is 0."""
        if scale_free:
            return -self.taylor if self.bare else self.signal - self.taylor
        norm = torch.where(self.live, self.norm, 1.0)
        if self.bare:
            return -self.taylor / (self.gain * norm.square())
        return (self.signal - self.taylor / norm) / norm

    def proscore(self, lam: float, scale_free: bool = False) -> Tensor:
        """The score after a step of `lam`; 0 where F is 0.

        Args:
            lam: The step.
            scale_free: Measure each filter's step by ‖F‖², so that the score stays when a unit is
                scaled by c > 0 and its consumers by 1/c. Without an activation D would then do
                what F does, and stays where it is.

        Raises:
            PlanError: The step takes a denominator to zero.
        """
        norm, start, end = self.norm[..., None], self.norm, self.norm
        if scale_free:
            moved = self.value - lam * norm.square() * self.grad
            end = end if self.bare else end - lam * end * self.signal
        elif self.bare:
            gain, start = self.gain[..., None], 1 / self.gain - 1
            moved = gain * self.value - lam / gain * self.grad
            end = start - lam * self.gain * self.taylor
        else:
            moved, end = self.value - lam * self.grad, end - lam * self.signal
        return self._tangent(torch.linalg.vector_norm(moved, dim=-1), start, end.abs(), lam)

    def _tangent(self, far: Tensor, start: Tensor, end: Tensor, lam: float) -> Tensor:
        lost = self.live & (end <= LEAST * start)
        if bool(lost.any()):
            raise PlanError(
                f"IPPRO: a step of lam={lam} takes {int(lost.sum())} of {lost.numel()} filters of "
                "a layer to infinity, where scores mean nothing; take a smaller lam, or lam='auto'"
            )
        return torch.where(self.live, far / torch.where(self.live, end, 1.0), 0.0)


def auto_step(layers: Iterable[Filters], scale_free: bool = False) -> float:
    """λ = 0.01 / median |s| over all filters whose score moves at all.

    Raises:
        PlanError: None does.
    """
    slopes = [layer.slope(scale_free).flatten().abs().cpu() for layer in layers]
    every = torch.cat(slopes)
    every = every[every > 0]
    if not len(every):
        raise PlanError(
            "IPPRO: no gradient reaches any filter; the loss must depend on the output, and the "
            "output on the layers in scope"
        )
    return STEP / float(every.median())
