"""Greedy elimination: which of n vectors to remove one after another, each time the one that the
others reproduce best, and with which coefficients they do.

Nothing here knows what the vectors are: rows of weights, or functions of which only a Gram matrix
is known (weights of query and key together, expected activations, measured activations).

    order = eliminate(Vectors.of_rows(weight), steps, lam)           # rows of a weight
    order = eliminate(Vectors.of_gram(moments), steps, lam, weights=norms)    # argmin d_i·norms_i

`Elimination.order` tells what went, `.coefficients` what each would have been in terms of those
that were left then, `.importance` a score for every unit that sorts in that order.
"""

from __future__ import annotations

from fxcompress.passes.elimination.greedy import RESCORING, Rescoring, eliminate
from fxcompress.passes.elimination.kernels import arc_cosine
from fxcompress.passes.elimination.scores import Form, Scores, inverse, scores
from fxcompress.passes.elimination.vectors import Elimination, Vectors

__all__ = [
    "RESCORING",
    "Elimination",
    "Form",
    "Rescoring",
    "Scores",
    "Vectors",
    "arc_cosine",
    "eliminate",
    "inverse",
    "scores",
]
