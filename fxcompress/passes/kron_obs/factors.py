"""Kronecker factors of the Fisher information of linear layers, and what they say of removals.

For a layer W with inputs a and output gradients g the factors are A = E[a aᵀ] and G = E[g gᵀ], and
the loss rises by ½ tr(G δ A δᵀ) when W changes by δ.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from fxcompress.errors import PlanError
from fxcompress.graph.parameters import read_tensor
from fxcompress.graph.state import forked
from fxcompress.layers.maps import LinearMap
from fxcompress.program import Program
from fxcompress.stats.batching import batching_of
from fxcompress.stats.data import samples_of
from fxcompress.stats.gradients import Place, Tap, gradients
from fxcompress.stats.gram import Gram
from fxcompress.stats.observe import observe
from fxcompress.stats.running import runner
from fxcompress.train.batches import call


@dataclass(frozen=True, eq=False)
class Factors:
    """The two factors of one layer, float64.

    Attributes:
        inputs: A, shape (m, m), of the columns of the flattened weight, one more for a bias.
        outputs: G, shape (n, n).
    """

    inputs: Tensor
    outputs: Tensor

    def damped(self, share: float) -> Factors:
        """Both with a share of their mean diagonal added, so that they can be inverted."""
        return Factors(_damped(self.inputs, share), _damped(self.outputs, share))


def eigenbasis_damages(weight: Tensor, factors: Factors) -> tuple[Tensor, Tensor]:
    """The weight in the eigenbasis of both factors, and what each of its entries costs there.

    EigenDamage (Wang et al., ICML 2019, eq. 9): W* = Q_gᵀ W Q_a and ½ W*² λ_g λ_a, whose sums over
    rows and columns rank those. A layer cut there becomes three, Q_g W*' Q_aᵀ, which is no
    projection of channels: a plan cannot hold it.

    Args:
        weight: Shape (n, m).
        factors: Of that layer.

    Returns:
        W* and the damages, shape (n, m), with eigenvalues ascending.
    """
    outer, left = torch.linalg.eigh(factors.outputs)
    inner, right = torch.linalg.eigh(factors.inputs)
    rotated = left.mT @ weight @ right
    return rotated, 0.5 * rotated.square() * outer[:, None] * inner


def entry_losses(weight: Tensor, factors: Factors) -> Tensor:
    """By how much the loss rises when one entry goes and all others make up for it.

    Optimal brain surgeon with H = G ⊗ A: ½ w_ij² / ([G⁻¹]_ii [A⁻¹]_jj), shape (n, m).
    """
    outer, inner = _inverse_diagonal(factors.outputs), _inverse_diagonal(factors.inputs)
    return 0.5 * weight.square() / (outer[:, None] * inner)


def row_losses(weight: Tensor, factors: Factors) -> Tensor:
    """By how much the loss rises when one row goes and the others make up for it, shape (n,).

    ½ w_iᵀ A w_i / [G⁻¹]_ii (Wang et al., ICML 2019, eq. 7).
    """
    energy = ((weight @ factors.inputs) * weight).sum(1)
    return 0.5 * energy / _inverse_diagonal(factors.outputs)


def rows_removed(weight: Tensor, factors: Factors, gone: Tensor) -> Tensor:
    """The best weight without some rows: W_K + G_KK⁻¹ G_KP W_P, and zeros in the others.

    Args:
        weight: Shape (n, m).
        factors: Of that layer; G can be inverted on the rows that stay.
        gone: Whether each row goes, bool of shape (n,).
    """
    outputs, stay = factors.outputs, ~gone
    moved = torch.linalg.solve(outputs[stay][:, stay], outputs[stay][:, gone] @ weight[gone])
    new = torch.zeros_like(weight)
    new[stay] = weight[stay] + moved
    return new


def _inverse_diagonal(matrix: Tensor) -> Tensor:
    return torch.cholesky_inverse(torch.linalg.cholesky(matrix)).diagonal()


def _damped(matrix: Tensor, share: float) -> Tensor:
    mean = matrix.diagonal().mean()
    scale = torch.where(mean > 0, mean, 1.0)  # a layer that nothing reaches
    return matrix + share * scale * torch.eye(len(matrix)).to(matrix)


# ---- from data


def factors_of(
    program: Program, maps: Iterable[LinearMap], who: str, samples: int | None = None
) -> dict[str, Factors]:
    """The factors of linear maps, accumulated over the program's data; by weight.

    A sample of a convolution has as many inputs and gradients as positions: A sums over them and G
    takes their mean, as if they did not depend on each other (Grosse and Martens, 2016).

    Args:
        program: With labelled data and a loss.
        maps: All maps of each weight; they have factors, see `has_factors`.
        who: The method that asks, for messages.
        samples: How many samples at most; None for all.

    Raises:
        PlanError: As `gradients`.
    """
    inputs, *_ = next(samples_of(program, who))
    independent = batching_of(program, inputs).independent
    inner: dict[str, Gram] = {}
    outer: dict[str, Gram] = {}
    observed: dict[str, list[tuple[LinearMap, Gram]]] = {}
    watched: dict[Place, Tap] = {}
    for one in maps:
        own = inner.setdefault(one.weight, Gram())
        given = outer.setdefault(one.weight, Gram(_square(program, one)))
        observed.setdefault(one.values[0], []).append((one, own))
        watched[one.node] = _OutputTap(one, given, independent)
    taps = {source: _InputTap(tuple(pairs)) for source, pairs in observed.items()}
    count = observe(program, taps, who=who, samples=samples)
    gradients(program, (), watched, who=who, samples=samples)
    return {
        weight: Factors(inner[weight].total / count, outer[weight].total / count)
        for weight in inner
    }


def _square(program: Program, one: LinearMap) -> Tensor:
    """Zeros of the shape of G: what stays of a layer that no gradient reaches."""
    weight = read_tensor(program.module, one.weight)
    return weight.new_zeros((one.outputs, one.outputs), dtype=torch.float64)


def has_factors(one: LinearMap) -> bool:
    """Whether a map is one whose Fisher information factorises: all inputs meet all outputs, and
    what is added is a bias of its own or nothing.
    """
    biased = one.added is None or one.bias is not None
    return one.plain and one.groups == 1 and one.value is not None and biased


@dataclass(frozen=True)
class _InputTap:
    pairs: tuple[tuple[LinearMap, Gram], ...]

    def __call__(self, value: Tensor) -> None:
        for one, gram in self.pairs:
            rows = one.inputs_from(value)[0]
            rows = rows if one.bias is None else F.pad(rows, (0, 1), value=1.0)
            gram.update(rows.to(torch.float64).mT)


@dataclass(frozen=True)
class _OutputTap:
    map: LinearMap
    gram: Gram
    independent: bool

    def __call__(self, value: Tensor, gradient: Tensor) -> None:
        rows = self.map.outputs_from(gradient)[0]
        samples = len(gradient) if self.independent else 1
        self.gram.update(rows.to(torch.float64).mT, samples / len(rows))


def with_drawn_labels(program: Program, who: str, samples: int | None = None) -> Program:
    """The program with labels that it would give itself, drawn from its softmax: with them squared
    gradients are those of the Fisher information, not of the data.

    Raises:
        PlanError: The outputs are no logits of shape (samples, classes), or there are no data.
    """
    task = program.task
    generator = torch.Generator().manual_seed(program.seed)
    drawn = []
    module = runner(program.module)
    for inputs, _, _ in samples_of(program, who, True, samples):
        assert task is not None
        with torch.no_grad(), forked(module):
            logits = call(module, task, inputs)
        if not isinstance(logits, Tensor) or logits.dim() not in (1, 2):
            raise PlanError(
                f"{who} draws labels from logits of shape (samples, classes) or (classes), and "
                "the program gives something else; take the data's own with labels='data'"
            )
        chances = logits.double().softmax(-1).cpu()
        labels = torch.multinomial(chances, 1, generator=generator).squeeze(-1)
        drawn.append((inputs, labels.to(logits.device)))
    assert task is not None
    return replace(program, task=replace(task, data=drawn))
