"""Running a rule so that an error inside it freezes what the operator touches, and ends nothing.

A rule that raises may have refined some factors and made some constraints. What of that holds
nobody knows, so all of it is taken back: it is as if the operator had no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from torch import fx

from fxcompress.axes.expressions import Axes, Concat, Factor, Product
from fxcompress.errors import PlanError
from fxcompress.graph.metadata import example_shape
from fxcompress.rules.context import Context, Output, Rule
from fxcompress.rules.create import frozen
from fxcompress.rules.registry import name_of

WIDTH = 160
"""Letters of an error's message that a report shows."""


def attempt(ctx: Context, node: fx.Node, rule: Rule) -> Output:
    """What `rule` says of `node`; fixed axes where it raises or what it says cannot be.

    Then ``ctx.failed`` has the operator's name with the node and the error, its operands are
    frozen, and everything else is as it was before the rule.
    """
    before = _Checkpoint(ctx)
    try:
        return _checked(node, rule(ctx, node))
    except Exception as error:  # rules are code of anyone, and may raise anything
        before.restore()
        words, name = _line(error), name_of(node.target)
        ctx.failed[name].append(f"{node.name}: {words}")
        return frozen(ctx, node, f"the axis rule of {name} failed: {words}")


class _Checkpoint:
    """What a context knew at one time. Rules add to it, so the lengths of its parts tell."""

    def __init__(self, ctx: Context) -> None:
        self.ctx = ctx
        ctx.space.links.clear()
        ctx.changes.clear()
        self.lists = [(own, len(own)) for own in self._lists()]

    def _lists(self) -> list[list[Any]]:
        """Every list of constraints, edges and names."""
        known = [getattr(part, f.name) for part in (self.ctx, self.ctx.space) for f in fields(part)]
        named = [self.ctx.unknown, self.ctx.probed, self.ctx.failed]
        return [own for own in known if isinstance(own, list)] + [
            own for table in named for own in table.values()
        ]

    def restore(self) -> None:
        """Take back what was added since."""
        for factor, link in reversed(self.ctx.space.links):
            factor.link = link
        for node, nonzero in reversed(self.ctx.changes):
            self.ctx.nonzero.pop(node, None)
            if nonzero is not None:
                self.ctx.nonzero[node] = nonzero
        for own, length in self.lists:
            del own[length:]
        known = {id(own) for own, _ in self.lists}
        for table in (self.ctx.unknown, self.ctx.probed, self.ctx.failed):
            for name in [name for name, own in table.items() if id(own) not in known]:
                del table[name]


def _checked(node: fx.Node, out: object) -> Output:
    """The axes that a rule gave, as tuples; they have the node's own sizes, or the rule is wrong.

    Raises:
        PlanError: They do not.
    """
    value = node.meta.get("val")
    if not isinstance(value, (tuple, list)):
        return _axes(node, value, out)
    if not isinstance(out, Sequence) or len(out) != len(value):
        raise PlanError(f"it gave {_told(out)} for {len(value)} outputs")
    return tuple(_axes(node, one, axes) for one, axes in zip(value, out, strict=True))


def _axes(node: fx.Node, value: Any, out: object) -> Axes:
    if not isinstance(out, Sequence) or not all(
        isinstance(e, Factor | Product | Concat) for e in out
    ):
        raise PlanError(f"it gave {_told(out)}, and axes are a tuple of expressions")
    sizes = tuple(expr.size for expr in out)
    if hasattr(value, "shape") and sizes != example_shape(value):
        raise PlanError(f"it gave axes of sizes {sizes} for a shape of {example_shape(value)}")
    return tuple(out)


def _told(value: object) -> str:
    return f"{type(value).__name__} {value!r}"[:WIDTH]


def _line(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"[:WIDTH].removesuffix(": ")
