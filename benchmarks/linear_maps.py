"""Whether every weight of the zoo that is summed over is known as a matrix, and multiplies as one.

    python benchmarks/linear_maps.py                       # all models: an hour on one core
    python benchmarks/linear_maps.py --models toy/mlp hf/llama
    python benchmarks/linear_maps.py --no-values           # without running them

For each model: how many parameters an operator sums over, how many of them have a linear map, and
how far matrix times inputs is from what the operator gives, as a share of its largest entry, in
double precision. Maps inside an operator (recurrent layers, experts) have no values to compare.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from coverage import zoo_folder
from coverage_case import Case
from torch import Tensor, fx
from torch.utils import _pytree as pytree

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import fxcompress
from fxcompress.layers.maps import LinearMap
from fxcompress.program import Program
from map_law import contracted, product_and_output

TOLERANCE = 1e-10


class _Compared(fx.Interpreter):
    """Runs a program and compares every map when its node has run."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.module)
        self.maps: dict[str, list[LinearMap]] = {}
        for one in program.maps:
            if one.direct:
                self.maps.setdefault(one.node, []).append(one)
        self.worst = 0.0

    def run_node(self, n: fx.Node) -> Any:
        """The node's value; where it applies a map, what that gives is compared with it."""
        own = self.maps.get(n.name, ())
        before = {node.name: value for node, value in self.env.items()} if own else {}
        value = super().run_node(n)
        for one in own:
            self._compare(one, {**before, n.name: value})
        return value

    def _compare(self, one: LinearMap, values: dict[str, Any]) -> None:
        product, output = product_and_output(self.module, one, values)
        scale = output.abs().max().clamp(min=torch.finfo(output.dtype).tiny)
        self.worst = max(self.worst, float((product - output).abs().max() / scale))


def told(name: str, folder: Path, values: bool) -> tuple[str, bool]:
    """A model's line, and whether all is right."""
    start = time.process_time()
    case = Case(name, folder)
    model, (args, kwargs) = case.double()
    program = fxcompress.compile(model, args, kwargs, verify=False)
    wanted = contracted(program.analysis.coupling)
    missing = sorted(wanted - {one.weight for one in program.maps})
    computed = len({one.weight for one in program.maps if one.computed})
    words = f"{len(wanted) - len(missing)} of {len(wanted)} weights have a map"
    words += f", {computed} computed in the graph" if computed else ""
    worst = _worst(program, args, kwargs) if values else 0.0
    words += f", values within {worst:.1g}" if values else ""
    words += f"; none: {', '.join(missing)}" if missing else ""
    seconds = time.process_time() - start
    return f"{name}: {words} ({seconds:.0f} s)", not missing and worst <= TOLERANCE


def _worst(program: Program, args: Any, kwargs: Any) -> float:
    runner = _Compared(program)
    with torch.no_grad():
        given: Iterable[Tensor] = pytree.tree_leaves((args, kwargs))
        runner.run(*given)
    return runner.worst


def main() -> None:
    """Print a line for each model, and those that fail in the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--models", nargs="*", default=None, help="by default all of the zoo")
    parser.add_argument("--no-values", action="store_true", help="do not run the models")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = zoo_folder()
    sys.path.insert(0, str(folder))
    import zoo

    failed = []
    for name in options.models or zoo.names():
        try:
            line, right = told(name, folder, not options.no_values)
        except Exception as error:  # whatever is raised is a result
            line, right = f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}", False
        print(line, flush=True)
        failed += [] if right else [name]
    print(f"{len(failed)} fail{': ' + ', '.join(failed) if failed else ''}")


if __name__ == "__main__":
    main()
