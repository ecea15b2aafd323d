"""What torch.export specialised a graph on, read from an exported program as an `Interface`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree
from torch.utils._sympy.printers import PythonPrinter

from fxcompress.capture.inputs import BATCH, UNDECIDED, AxisNames, spell_path
from fxcompress.errors import CaptureError
from fxcompress.graph.captured import CapturedModule
from fxcompress.graph.metadata import is_free
from fxcompress.interface import Interface, SizeInput, SizeRange, TensorInput, ValueInput
from fxcompress.interface.sizes import term

Place = tuple[int, int | None]
"""The index of an input and its axis; None for an input that is a number itself."""
Keys = tuple[Any, ...]

_ENDLESS = 2**31
_VARIADIC = re.compile(r"(.+)_(\d+)$")


def interface_of(program: ExportedProgram, module: CapturedModule, asked: AxisNames) -> Interface:
    """The interface of a captured module.

    Args:
        program: What it was made of.
        module: Its placeholders still hold the values of the export.
        asked: Names for free axes, by index or name of the tensor.

    Raises:
        CaptureError: A guard speaks of something that is no size of an input.
    """
    info = module.graph._codegen.pytree_info  # type: ignore[attr-defined]
    tree = pytree.tree_unflatten([torch.zeros(0)] * info.in_spec.num_leaves, info.in_spec)
    paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    sizes = _Sizes(module, [spell_path(path) for path in paths], asked)
    ranges = sizes.ranges(program.range_constraints)
    sources = _sources(info.orig_args, paths)
    guards = [_Guard(sizes, sources).text(guard) for guard in program._guards_code]
    return Interface(
        arguments=tuple(info.orig_args),
        spec=info.in_spec,
        inputs=tuple(sizes.leaf(index) for index in range(len(sizes.values))),
        sizes=ranges,
        conditions=tuple(
            text
            for text in dict.fromkeys([*sizes.conditions, *guards])
            if not _implied(text, ranges)
        ),
    )


class _Sizes:
    """The free sizes of the inputs: their names, and torch's symbols in terms of these.

    Attributes:
        values: What each placeholder held in the export.
        names: The name of every free size, by where it is.
        symbols: Each symbol of torch as an expression over names.
        conditions: What must hold for the symbols to be whole numbers.
    """

    def __init__(self, module: CapturedModule, titles: list[str], asked: AxisNames) -> None:
        self._nodes = module.graph.find_nodes(op="placeholder")
        self._titles = titles
        self.values = [node.meta.get("val") for node in self._nodes]
        self.names: dict[Place, str] = {}
        self.symbols: dict[str, str] = {}
        self.conditions: list[str] = []
        self._expressions: dict[str, sympy.Expr] = {}
        tensors = [index for index, value in enumerate(self.values) if isinstance(value, Tensor)]
        self._asked = {
            index: asked.get(order) or asked.get(titles[index]) or {}
            for order, index in enumerate(tensors)
        }
        for place, size in self._free():
            self.names[place] = self._named(place, size.node.expr)
        for name, expression in self._expressions.items():
            self._solve(name, expression)

    def _free(self) -> Iterator[tuple[Place, torch.SymInt]]:
        for index, value in enumerate(self.values):
            if isinstance(value, torch.SymInt) and is_free(value):
                yield (index, None), value
            for axis, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
                if isinstance(size, torch.SymInt) and is_free(size):
                    yield (index, axis), size

    def _named(self, place: Place, expression: sympy.Expr) -> str:
        """Equal sizes have one name; a name that was asked for twice makes them equal."""
        for name, known in self._expressions.items():
            if known == expression:
                return name
        (index, axis), bare = place, isinstance(expression, sympy.Symbol)
        own = self._nodes[index].name + ("" if axis is None else f"_{axis}")
        wanted = None if axis is None else self._asked[index].get(axis)
        if wanted in self._expressions and bare:
            self.symbols[str(expression)] = wanted
            return wanted
        usual = BATCH if bare and axis == 0 and BATCH not in self._expressions else own
        name = wanted or usual
        if not name.isidentifier() or name in self._expressions:
            raise CaptureError(
                f"axis {axis} of {self._titles[index]} cannot be called {name!r}: a name is one "
                "word of letters, digits and underscores, and means one size"
            )
        self._expressions[name] = expression
        if bare:
            self.symbols[str(expression)] = name
        return name

    def _solve(self, name: str, expression: sympy.Expr) -> None:
        """Where a symbol is no axis itself, read it off an axis that is linear in it."""
        unknown = [one for one in expression.free_symbols if not self._is_known(one)]
        if not unknown:
            return
        line = sympy.Poly(expression, unknown[0]) if len(expression.free_symbols) == 1 else None
        if line is None or line.degree() != 1:
            raise CaptureError(
                f"the size {name} is {expression}, from which the sizes in it cannot be told; "
                "export the program with other dynamic_shapes"
            )
        factor, offset = (int(number) for number in line.all_coeffs())
        self.symbols[str(unknown[0])] = f"({name} - {offset}) // {factor}"
        self.conditions.append(f"({name} - {offset}) % {factor} == 0")

    def _is_known(self, symbol: sympy.Symbol) -> bool:
        bare = any(symbol == one for one in self._expressions.values())
        return bare or str(symbol) in self.symbols

    def leaf(self, index: int) -> TensorInput | ValueInput | SizeInput:
        """What the input of this index was."""
        value, title = self.values[index], self._titles[index]
        if isinstance(value, Tensor):
            shape = tuple(
                self.names.get((index, axis)) or int(size) for axis, size in enumerate(value.shape)
            )
            return TensorInput(title, value.dtype, shape)
        if (index, None) in self.names:
            return SizeInput(title, self.names[index, None])
        if isinstance(value, torch.SymInt):
            value = int(value)
        if value is None or isinstance(value, bool | int | float | str):
            return ValueInput(title, value)
        raise CaptureError(
            f"input {title} is a {type(value).__name__}; a program takes tensors, numbers, flags, "
            "strings and None: set anything else in the model before it is captured"
        )

    def ranges(self, constraints: Mapping[Any, Any]) -> dict[str, SizeRange]:
        """The range of every name."""
        numbers = {name for (_, axis), name in self.names.items() if axis is None}
        found: dict[str, SizeRange] = {}
        for name, expression in self._expressions.items():
            equals = self._text(expression)
            solved = any(name in condition for condition in self.conditions)
            if equals != name and not solved:
                found[name] = SizeRange(0, None, equals)
                continue
            span = constraints.get(expression)
            low, high = (None, None) if span is None else (_whole(span.lower), _whole(span.upper))
            floor = (low or 0) if name in numbers else max(low or 0, UNDECIDED)
            found[name] = SizeRange(floor, high)
        return found

    def _text(self, expression: sympy.Expr) -> str:
        return _Guard(self, {}).text(PythonPrinter().doprint(expression))


class _Guard(ast.NodeTransformer):
    """Turns torch's guard ``L['x'].size()[0] < 16`` into ``batch < 16``."""

    def __init__(self, sizes: _Sizes, sources: Mapping[Keys, int]) -> None:
        self._sizes = sizes
        self._sources = sources

    def text(self, guard: str) -> str:
        """The condition over names.

        Raises:
            CaptureError: The guard cannot be said in terms of sizes of inputs.
        """
        try:
            tree = self.visit(ast.parse(guard.replace("\n", " "), mode="eval"))
            text = ast.unparse(tree)
            term(text, set(self._sizes.names.values()))
        except (KeyError, ValueError, SyntaxError) as error:
            raise CaptureError(
                f"torch.export guards the graph by {guard}, which is no condition on sizes of the "
                f"inputs ({error}); give contiguous example inputs or fix sizes with dynamic=None"
            ) from error
        return text

    def visit_Name(self, node: ast.Name) -> ast.expr:
        symbol = self._sizes.symbols.get(node.id)
        return node if symbol is None else ast.parse(symbol, mode="eval").body

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        match node:
            case ast.Subscript(
                value=ast.Call(func=ast.Attribute(value=base, attr="size")),
                slice=ast.Constant(value=int() as axis),
            ):
                return self._size(self._input(base), axis)
        return self._size(self._input(node), None)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return node if isinstance(node.value, ast.Name) else self._size(self._input(node), None)

    def _size(self, index: int, axis: int | None) -> ast.expr:
        name = self._sizes.names.get((index, axis))
        if name is not None:
            return ast.Name(name)
        value = self._sizes.values[index]
        if isinstance(value, Tensor) and axis is not None:
            value = int(value.shape[axis])
        return ast.Constant(value)

    def _input(self, node: ast.expr) -> int:
        keys = _keys(node)
        return self._sources[keys] if keys in self._sources else self._sources[keys[1:]]


def _keys(node: ast.expr) -> Keys:
    """``('x', 'k', 0)`` for ``L['x']['k'][0]`` and ``L['x'].k[0]``."""
    match node:
        case ast.Subscript(value=value, slice=ast.Constant(value=key)):
            return (*_keys(value), key)
        case ast.Attribute(value=value, attr=key):
            return (*_keys(value), key)
        case ast.Name(id="L"):
            return ()
    raise ValueError(f"{ast.unparse(node)} is no input")


def _sources(arguments: list[str], paths: list[Any]) -> dict[Keys, int]:
    """The index of every input by the ways in which guards spell it."""
    found: dict[Keys, int] = {}
    for index, (kind, head, *rest) in enumerate(paths):
        tail = tuple(_key(key) for key in rest)
        argument = arguments[head.idx] if kind.idx == 0 else head.key
        found[(argument, *tail)] = found[("flat_args", index)] = index
        if variadic := _VARIADIC.match(str(argument)):
            found.setdefault((variadic[1], int(variadic[2]), *tail), index)
    return found


def _key(key: Any) -> Any:
    """The index, key or attribute name of one step into a structure."""
    return next(getattr(key, kind) for kind in ("idx", "key", "name") if hasattr(key, kind))


def _implied(text: str, ranges: Mapping[str, SizeRange]) -> bool:
    """Whether a condition says no more than the range of a size, or nothing at all."""
    names = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
    if not names:
        return True
    match ast.parse(text, mode="eval").body:
        case ast.Compare(
            left=ast.Name(id=name),
            ops=[ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE()],
            comparators=[ast.Constant(value=int() as edge)],
        ):
            holds, one = term(text, names), ranges[name]
            ends = [one.low, 2 * abs(edge) + one.low + 2 if one.high is None else one.high]
            return all(holds({name: end}) for end in ends)
        case ast.Compare(left=left, ops=[ast.Eq()], comparators=[right]):
            sides = ast.unparse(left), ast.unparse(right)
            known = [ranges[side].equals for side in sides if side in ranges]
            return sides[0] == sides[1] or any(one in sides for one in known)
    return False


def _whole(bound: Any) -> int | None:
    """A bound as a number; None where torch means that there is none."""
    if not isinstance(bound, int | sympy.Integer):
        return None
    return int(bound) if abs(int(bound)) < _ENDLESS else None
