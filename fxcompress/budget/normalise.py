"""Score normalisation: what makes the scores of one group comparable to those of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

import torch
from torch import Tensor

from fxcompress.errors import PlanError

Normaliser = Literal["mean", "max", "sum", "lamp", "zscore", "none"]
NORMALISERS: tuple[Normaliser, ...] = get_args(Normaliser)

_SCALES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": torch.mean, "max": torch.max, "sum": torch.sum,
}  # fmt: skip


def normalised(score: Tensor, normaliser: Normaliser) -> Tensor:
    """Scores of one group, made comparable to those of others; their order stays.

    ``mean``, ``max`` and ``sum`` divide by that of the absolute values, ``zscore`` takes the mean
    away and divides by the standard deviation, ``lamp`` is `lamp`. Scores that are all equal to
    zero stay so; scores that are all equal are standardised to zeros.

    Args:
        score: Of any shape; all entries count together.
        normaliser: One of `NORMALISERS`.

    Raises:
        PlanError: ``lamp`` is asked of scores below zero.
    """
    if normaliser == "lamp":
        return lamp(score)
    if normaliser == "zscore":
        return _standardised(score)
    if normaliser == "none":
        return score
    scale = _SCALES[normaliser](score.abs())
    return score / scale if scale != 0 else score


def _standardised(score: Tensor) -> Tensor:
    spread = score.std(correction=0)
    # The mean of equal scores is off by rounding, which must not be blown up to deviations of one.
    rounding = score.numel() * torch.finfo(score.dtype).eps * score.abs().max()
    if spread <= rounding:
        return torch.zeros_like(score)
    return (score - score.mean()) / spread


def lamp(score: Tensor) -> Tensor:
    """Each score over the sum of those that are not smaller, itself included; of equal ones the
    first counts as the smaller.

    With squared weights this is the layer-adaptive magnitude of Lee et al., 2021, eq. 4: the
    largest gets 1, and the scale of a layer does not matter.

    Args:
        score: Not negative, of any shape; all entries are ranked together.

    Raises:
        PlanError: A score is below zero.
    """
    if bool((score < 0).any()):
        raise PlanError(
            "normaliser='lamp' is for scores that are not negative, such as squared weights; "
            "use 'mean' or 'zscore'"
        )
    ordered, order = score.flatten().sort(stable=True)
    above = ordered.flip(0).cumsum(0).flip(0)
    share = ordered / torch.where(above > 0, above, 1.0)
    return torch.zeros_like(share).scatter_(0, order, share).reshape(score.shape)
