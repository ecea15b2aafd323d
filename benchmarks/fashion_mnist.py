"""Accuracy of the ten published Fashion-MNIST networks, method by method, without training.

    python benchmarks/fashion_mnist.py

The three hidden dense layers of each network lose their units in nine steps of about a tenth, layer
after layer from the first to the last, as the published curves were made; the widths are those that
reproduce the published figures. Every method removes the same numbers of units; ``at once`` means
straight from the trained network to each width. The two convolutions before are the same for all,
so their outputs are computed once. Measured points are kept, so a stopped run goes on where it was;
``--fresh`` measures anew.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from statistics import mean, stdev
from types import ModuleType
from typing import Any

import torch
from evidence import DOCS, HERE, Points, page, plot, shared, table
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxcompress as fx
from fxcompress import passes
from fxcompress.files.write import write_text

NETS, LAYERS, CALIBRATION = 10, ("fc0", "fc1", "fc2"), 2000
WIDTHS = {
    "fc0": (64, 58, 52, 46, 40, 34, 28, 21, 15, 8),
    "fc1": (32, 29, 26, 23, 20, 17, 14, 11, 8, 4),
    "fc2": (16, 15, 14, 13, 12, 11, 9, 7, 5, 3),
}
"""Units left after each step: int() of a tenth of the first width, of those left, in float32."""
STEPS = len(WIDTHS["fc0"])
POINTS = [f"{10 * step}%" for step in range(STEPS)]
PUBLISHED = {
    "authors 0/0/0": (.7215, .7188, .6966, .6612, .5971, .5092, .3613, .2155, .1420, .1048),
    "authors .5/.5/0": (.7215, .7232, .7164, .7065, .6990, .6731, .6289, .5357, .3670, .1699),
    "authors .5/.5/.5": (.7215, .7240, .7251, .7306, .7265, .7182, .7049, .6634, .5801, .3433),
    "exact .5/.5/.5": (.7215, .7249, .7215, .7221, .7135, .7087, .6832, .6313, .5406, .3461),
}  # fmt: skip
"""The curves of the paper's Figure 5, by 10000/9984: its loader left out the last images."""


def _projective(alpha: float, beta: float, gamma: float, **options: Any) -> Callable[..., Any]:
    return partial(passes.ProjectivePruning, alpha=alpha, beta=beta, gamma=gamma, **options)


_arccos = partial(
    passes.ProjectivePruning,
    kernel="arccos",
    reconstruction="linear",
    rescoring="static",
    rows="effective",
)
METHODS: Mapping[str, Callable[..., Any]] = {
    "random": passes.RandomPruning,
    "magnitude L2": partial(passes.MagnitudePruning, p=2),
    "folding": passes.Folding,
    "authors 0/0/0": _projective(0, 0, 0, rescoring="authors"),
    "authors .5/.5/0": _projective(0.5, 0.5, 0, rescoring="authors"),
    "authors .5/.5/.5": _projective(0.5, 0.5, 0.5, rescoring="authors"),
    "exact 0/0/0": _projective(0, 0, 0, rescoring="exact"),
    "exact .5/.5/.5": _projective(0.5, 0.5, 0.5, rescoring="exact"),
    "scaled .5/.5/.5": _projective(0.5, 0.5, 0.5, rescoring="scaled"),
    "static .5/.5/.5": _projective(0.5, 0.5, 0.5, rescoring="static"),
    "oneshot .5/.5/.5": _projective(0.5, 0.5, 0.5, rescoring="oneshot"),
    "exact, effective rows": _projective(
        0.5, 0.5, 0.5, rows="effective", rescoring="exact"
    ),
    "linear compensation": partial(
        passes.ProjectivePruning, rows="effective", reconstruction="linear", rescoring="static"
    ),
    "ReLU kernel": _arccos,
    "ReLU kernel, at once": _arccos,
    "least squares": passes.LeastSquaresPruning,
    "least squares, at once": passes.LeastSquaresPruning,
    "folding, at once": passes.Folding,
}  # fmt: skip
RIDGES = (0.0, 1e-3, 0.1, 1.0, 10.0)
METHODS = {
    **METHODS,
    **{
        f"exact, λ = {lam:g}": _projective(0.5, 0.5, 0.5, lam=lam, rescoring="exact")
        for lam in RIDGES
    },
}
SEEDS = {"random": (0, 1, 2)}


@cache
def packs() -> ModuleType:
    """The loaders beside the data."""
    file = shared("data") / "load_check.py"
    spec = importlib.util.spec_from_file_location("load_check", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Dense(nn.Module):
    """The layers behind the convolutions."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        for name in (*LAYERS, "fc3"):
            self.add_module(name, net.get_submodule(name))

    def forward(self, x: Tensor) -> Tensor:
        for name in LAYERS:
            x = F.relu(self.get_submodule(name)(x))
        return self.fc3(x)  # type: ignore[no-any-return, operator]


@torch.no_grad()
def features(net: Any, images: Tensor) -> Tensor:
    """What the convolutions give."""
    x = F.max_pool2d(F.relu(net.conv0(images)), 2)
    return F.max_pool2d(F.relu(net.conv1(x)), 3).flatten(1).double()


@cache
def subject(number: int) -> tuple[fx.Program, Tensor, Tensor]:
    """A network as a program, with the features and labels of the test images."""
    net = packs().extended_lenet(number)
    images, labels = packs().fashion_mnist("test")
    train, _ = packs().fashion_mnist("train_20k")
    seen = features(net, train[:CALIBRATION])
    found = features(net, images)
    batches = list(seen.split(500))
    return fx.compile(Dense(net).double(), (found[:2],), task=batches), found, labels


def accuracy(program: fx.Program, x: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return (program(x).argmax(1) == labels).double().mean().item()


def narrowed(
    program: fx.Program, method: Callable[..., Any], step: int, before: int, **seed: int
) -> fx.Program:
    """One step of every layer."""
    for layer in LAYERS:
        old, new = WIDTHS[layer][before], WIDTHS[layer][step]
        share = (old - new + 0.5) / old  # removed are the whole units in it
        one = method(ratio=share, include=f"{layer}.weight:out", round_to=1, **seed)
        program = fx.apply(program, one)
        width = program.module.get_parameter(f"{layer}.weight").shape[0]
        assert width == new, f"{layer} has {width} units, not {new}"
    return program


def curve(name: str, number: int, **seed: int) -> list[float]:
    """The accuracy of one network after every step."""
    dense, x, labels = subject(number)
    found, program = [accuracy(dense, x, labels)], dense
    for step in range(1, STEPS):
        if name.endswith("at once"):
            program = narrowed(dense, METHODS[name], step, 0, **seed)
        else:
            program = narrowed(program, METHODS[name], step, step - 1, **seed)
        found.append(accuracy(program, x, labels))
    return found


def measured(points: Points, name: str, nets: int) -> dict[str, Any]:
    """Means over networks (and seeds), and the spread over networks."""
    curves = []
    for number in range(nets):
        own = []
        for seed in SEEDS.get(name, (None,)):
            extra = {} if seed is None else {"seed": seed}
            figures = points.measure(
                lambda n=number, e=extra: {"accuracy": curve(name, n, **e)},  # type: ignore[misc]
                method=name, net=number, **extra,
            )  # fmt: skip
            if "failed" in figures:
                return {"failed": figures["failed"], "net": number}
            own.append(figures["accuracy"])
        curves.append([mean(values) for values in zip(*own, strict=True)])
    columns = list(zip(*curves, strict=True))
    return {
        "mean": [mean(values) for values in columns],
        "sd": [stdev(values) if nets > 1 else 0.0 for values in columns],
    }


def sections(found: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    rows = {name: figures["mean"] for name, figures in found.items() if "λ" not in name}
    ridges = {name: figures["mean"] for name, figures in found.items() if "λ" in name}
    apart = {
        name: [round(a - b, 4) + 0.0 for a, b in zip(found[name]["mean"], published, strict=True)]
        for name, published in PUBLISHED.items()
        if name in found
    }
    pages = {"Accuracy after each step": table(rows, POINTS, corner="removed")}
    if ridges:
        pages["The ridge"] = table(ridges, POINTS, corner="removed")
    if apart:
        worst = max(abs(value) for values in apart.values() for value in values[:9])
        pages["Against the published curves"] = (
            table(apart, POINTS, corner="ours less theirs", better=None)
            + f"\n\nUp to 80 % no mean is further off than {worst:.4f}."
        )
    spread = {name: figures["sd"] for name, figures in found.items() if "λ" not in name}
    pages["Standard deviation over the networks"] = table(
        spread, POINTS, corner="removed", better=None
    )
    return pages


def _refusals(found: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    lines = [f"- {name}, network {each['net']}: {each['failed']}" for name, each in found.items()]
    return {"Refused": "\n".join(lines)} if lines else {}


WORDS = f"""Mean accuracy on the 10,000 test images of the ten networks that the authors of
Projective Pruning published for their hyper-parameter study (two convolutions, dense
144-64-32-16-10), without any training. {{protocol}}

`authors`, `exact`, `scaled` and `static` are `ProjectivePruning` with that `rescoring` and the
shares alpha/beta/gamma; *linear compensation*, *ReLU kernel* (`kernel="arccos"`) are its other
reconstructions. All of these, folding, magnitude and random see no data; *least squares* sees
{CALIBRATION} training images without labels. Random is the mean of three seeds."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--nets", type=int, default=NETS)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--fresh", action="store_true", help="forget what was measured")
    parser.add_argument("--points", default=str(HERE.parent / "out" / "fashion_mnist.jsonl"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    points = Points(type(DOCS)(args.points), args.fresh)
    found = {name: measured(points, name, args.nets) for name in args.methods}
    known = {name: figures for name, figures in found.items() if "failed" not in figures}
    refused = {name: figures for name, figures in found.items() if "failed" in figures}
    DOCS.mkdir(exist_ok=True)
    told = " ".join(__doc__.split("\n\n")[2].split())  # type: ignore[union-attr]
    page(
        DOCS / "fashion_mnist.md",
        "Fashion-MNIST, the ten published networks",
        WORDS.replace("{protocol}", told.partition(" Measured points")[0]),
        {**sections(known), **_refusals(refused)},
    )
    content = {"points": POINTS, "widths": WIDTHS, "published": PUBLISHED, "methods": found}
    write_text(DOCS / "fashion_mnist.json", json.dumps(content, indent=1) + "\n")
    curves = {
        name: [(10.0 * step, value) for step, value in enumerate(figures["mean"])]
        for name, figures in known.items()
        if "λ" not in name
    }
    plot(DOCS / "fashion_mnist.png", {"ten networks": curves}, x="units removed, %", y="accuracy")


if __name__ == "__main__":
    main()
