"""Perplexity of the pruned stories260K LLaMA, method by method and kind of unit by kind of unit.

    python benchmarks/stories_methods.py

Removed are units of the MLPs, heads (a key/value head with its queries, and of each that stays the
same share of its two queries: none at 25 %, one at 50 %), pairs of query/key dims, or value/output
dims, the same share in every layer; nothing is trained. The attention scale
stays that of the dense model. Pairs of query/key dims are rotated together and are the same in all
heads and layers of this model, because all layers share one rotation; there are four, as there are
four key/value heads, so only quarters can go. Methods that look at data see the first stories of
the file, perplexity is measured on the last. Measured points are kept, so a stopped run goes on
where it was; ``--fresh`` measures anew.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from evidence import DOCS, HERE, Points, page, plot, shared, table

sys.path.append(str(HERE.parent / "examples"))

from stories import IGNORED, Stories, Tokenizer, load_llama, read_stories
from stories_llama import cross_entropy, logits

import fxcompress as fx
from fxcompress import passes
from fxcompress.files.write import write_text
from fxcompress.passes import LeastSquares, Magnitude, Selection, StructuredPass

HELD, CALIBRATION, BATCH = 50, 48, 16
"""Stories that are measured on, and that methods may look at."""
POINTS: Mapping[str, Sequence[float]] = {
    "mlp": (0.1, 0.2, 0.3, 0.5),
    "vo": (0.125, 0.25, 0.375, 0.5),
    "heads": (0.25, 0.5),
    "qk": (0.25, 0.5),
}
"""Shares removed of each kind of unit; of eight dims only eighths can go."""
KINDS = {
    "mlp": "MLP units",
    "vo": "value/output dims",
    "heads": "heads",
    "qk": "query/key dims",
}
Method = Callable[..., Any]


def _projective(**options: Any) -> Method:
    return partial(passes.ProjectivePruning, relative=True, **options)


METHODS: Mapping[str, Method] = {
    "random": passes.RandomPruning,
    "magnitude L1": partial(passes.MagnitudePruning, p=1),
    "magnitude L2": partial(passes.MagnitudePruning, p=2),
    "FPGM": passes.FPGMPruning,
    "LAMP": passes.LAMPPruning,
    "group norm": passes.GroupNormPruning,
    "projective, choice alone": _projective(reconstruction="none"),
    "projective, redistributed": _projective(),
    "projective, linear": _projective(reconstruction="linear", rescoring="static"),
    "folding": partial(passes.Folding, exact_only=False),
    "IPPRO": passes.IPPRO,
    "IPPRO, slope": partial(passes.IPPRO, score="slope"),
    "Taylor, elements": partial(passes.TaylorPruning, form="elements"),
    "Taylor, units": partial(passes.TaylorPruning, form="units"),
    "diagonal Fisher": partial(passes.TaylorPruning, form="fisher"),
    "Wanda-sp": passes.WandaPruning,
    "FLAP": passes.FLAPPruning,
    "least squares, choice alone": partial(
        StructuredPass, criterion=LeastSquares(), reconstruction=Selection()
    ),
    "L2 choice, least squares": partial(
        StructuredPass, criterion=Magnitude(), reconstruction=LeastSquares()
    ),
    "least squares, centred": partial(passes.LeastSquaresPruning, centred=True),
    "least squares": passes.LeastSquaresPruning,
    "least squares, in order": partial(passes.LeastSquaresPruning, sequential=True, centred=True),
}
SEEDS = {"random": (0, 1, 2)}


class Bench:
    """The model as a program, with what methods look at, and the held stories."""

    def __init__(self, held: int) -> None:
        """Load the model and encode the stories."""
        data = shared("data")
        checkpoints = data / "checkpoints"
        tokenizer = Tokenizer(checkpoints / "stories260k_tok512.bin")
        stories = read_stories(data / "text" / "tinystories_2mib.txt.gz")
        self.held = Stories([tokenizer.encode(story) for story in stories[-held:]], BATCH)
        seen = Stories([tokenizer.encode(story) for story in stories[:CALIBRATION]], BATCH)
        model = load_llama(checkpoints / "stories260k_llama.safetensors")
        self.program = fx.compile(
            model,
            (),
            {"input_ids": next(iter(self.held))[0][:2, :64]},
            task=fx.Task(seen, loss=cross_entropy, forward=logits),
            dynamic={"input_ids": {0: "batch", 1: "length"}},
        )
        self.tokens = {"held": _tokens(self.held), "calibration": _tokens(seen)}

    def perplexity(self, program: fx.Program) -> float:
        """The exponential of the mean loss of a token, over all held stories."""
        loss, count = 0.0, 0
        with torch.no_grad():
            for tokens, following in self.held:
                seen = int((following != IGNORED).sum())
                loss += cross_entropy(logits(program.module, tokens), following).item() * seen
                count += seen
        return math.exp(loss / count)

    def figures(self, method: str, kind: str, share: float, **seed: int) -> dict[str, Any]:
        """Perplexity after one method, and what is left of the model."""
        one = METHODS[method](ratio=share, dims=kind, round_to=1, **seed)
        small = fx.apply(self.program, one)
        report = small.report
        return {
            "perplexity": self.perplexity(small),
            "params": report.params.ratio,
            "flops": report.flops.ratio,
        }


def _tokens(stories: Stories) -> int:
    return sum(int((following != IGNORED).sum()) for _, following in stories)


def measured(
    bench: Bench, points: Points, method: str, kind: str, share: float
) -> dict[str, Any] | None:
    """The figures of a point, the geometric mean over seeds; None where the method cannot."""
    own = []
    for seed in SEEDS.get(method, (None,)):
        extra = {} if seed is None else {"seed": seed}
        found = points.measure(
            lambda e=extra: bench.figures(method, kind, share, **e),  # type: ignore[misc]
            method=method, kind=kind, share=share, **extra,
        )  # fmt: skip
        if "failed" in found:
            return None
        own.append(found)
    log = mean(math.log(found["perplexity"]) for found in own)
    return {**own[0], "perplexity": math.exp(log)}


WORDS = """Perplexity a token on the last {held} stories of `tinystories_2mib.txt.gz` ({held_tokens}
tokens; at most 512 of a story); {dense:.3f} for the dense model. All of the file is training text
of the checkpoint; methods that look at data saw the first {calibration} stories ({seen} tokens),
which are none of the held ones. {protocol}

Random is the geometric mean of three seeds. *choice alone* removes the units that the method
chooses and changes nothing else, *L2 choice, least squares* refits after choosing by magnitude. A
dash: the method does not apply. No layer reads query/key dims, so Wanda, FLAP and least squares,
which look at the inputs of layers, cannot rank them; folding merges units where that is exact for
identical ones, which pairs of rotated dims that all layers share are not.

Over all {points} points of MLP units and value/output dims the geometric mean of the perplexity is
lowest with *{best}*."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--held", type=int, default=HELD, help="stories to measure on")
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--kinds", nargs="*", default=list(POINTS))
    parser.add_argument("--fresh", action="store_true", help="forget what was measured")
    parser.add_argument(
        "--points", type=Path, default=HERE.parent / "out" / "stories_methods.jsonl"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    points, bench = Points(args.points, args.fresh), Bench(args.held)
    dense = points.measure(
        lambda: {"perplexity": bench.perplexity(bench.program)}, method="dense", held=args.held
    )["perplexity"]
    found = {
        kind: {
            method: [measured(bench, points, method, kind, share) for share in POINTS[kind]]
            for method in args.methods
        }
        for kind in args.kinds
    }
    _write(bench, found, dense, args.held)


def _write(bench: Bench, found: Mapping[str, Mapping[str, Any]], dense: float, held: int) -> None:
    sections, panels = {}, {}
    for kind, methods in found.items():
        columns = [f"{100 * share:g} %" for share in POINTS[kind]]
        rows = {name: [f and f["perplexity"] for f in own] for name, own in methods.items()}
        left = next(own for own in methods.values() if all(own))
        sizes = {"parameters left, %": [100 * f["params"] for f in left]}
        body = table(rows, columns, corner="removed", digits=3, better=min)
        body += "\n\n" + table(sizes, columns, corner="", digits=1, better=None)
        sections[KINDS[kind]] = body
        panels[KINDS[kind]] = {
            name: [(0.0, dense), *zip((100 * s for s in POINTS[kind]), values, strict=True)]
            for name, values in rows.items()
            if all(values)
        }
    protocol = " ".join(__doc__.split("\n\n")[2].split()).partition(" Methods that look")[0]  # type: ignore[union-attr]
    words = WORDS.format(
        held=held, held_tokens=bench.tokens["held"], dense=dense, calibration=CALIBRATION,
        seen=bench.tokens["calibration"], protocol=protocol, **_best(found),
    )  # fmt: skip
    DOCS.mkdir(exist_ok=True)
    page(DOCS / "stories_methods.md", "stories260K, method by method", words, sections)
    content = {"dense": dense, "held": held, "tokens": bench.tokens, "points": POINTS,
               "methods": found}  # fmt: skip
    text = json.dumps(content, indent=1) + "\n"
    write_text(DOCS / "stories_methods.json", text)
    plot(DOCS / "stories_methods.png", panels, x="removed, %", y="perplexity", log=True)


def _best(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The method with the lowest geometric mean over the kinds that all methods take."""
    kinds = [kind for kind in ("mlp", "vo") if kind in found]
    total: dict[str, float] = {}
    for name in next(iter(found.values())):
        values = [f for kind in kinds for f in found[kind][name]]
        if all(values):
            total[name] = mean(math.log(f["perplexity"]) for f in values)
    count = sum(len(POINTS[kind]) for kind in kinds)
    return {"points": count, "best": min(total, key=total.__getitem__) if total else "none"}


if __name__ == "__main__":
    main()
