"""`Program`: what flows through the compiler and what comes back from it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from fxcompress import io
from fxcompress.ambient import sealed
from fxcompress.analysis.cost import Cost, CostModel, cost_model
from fxcompress.analysis.couple import couple
from fxcompress.analysis.groups import Analysis, ChannelGroup
from fxcompress.arguments import FilePath, checked
from fxcompress.edit.check import check_values
from fxcompress.edit.finalize import finalize
from fxcompress.edit.masks import Masks, current_masks
from fxcompress.edit.plan import Plan
from fxcompress.edit.rows import with_parameters
from fxcompress.errors import FxCompressError, LoadError, PlanError, WriteBackError
from fxcompress.graph.captured import CapturedModule, clone_graph
from fxcompress.graph.parameters import has_values, names_of, replace_tensor, state_digest
from fxcompress.layers.maps import LinearMap, linear_maps
from fxcompress.recipes import Pipeline, Recipe
from fxcompress.report import Report, resized
from fxcompress.task import Task
from fxcompress.writeback import write_back

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Program:
    """A captured model with what is known about it. It is called like the model, and printed as
    its report.

    A pass gives a new program that shares every tensor it did not change: train a
    ``copy.deepcopy`` of the module where the program before is still needed.

    Attributes:
        module: The graph module: trains, saves, and has the model's own names in its
            ``state_dict()``.
        args: Example inputs by position, as the model takes them.
        kwargs: Example inputs by name.
        dynamic: For each tensor among the inputs, the axes whose size may vary, by name.
        single: Whether the batch given was one example. A free batch is captured with two, and
            ``args`` hold that example twice; costs are those of one.
        task: Data, loss and metric, for passes that need them.
        seed: Seed for everything random.
        pin: Globs of parameter or node names whose sizes must not change.
        probe: Whether ops without an axis rule are probed; see `fxcompress.probe`.
        history: The ``repr`` of every pass, in order: the recipe.
        parent: The digest of the dense weights that the first pass saw; empty before any pass.
        report: Sizes, groups and proofs, before and after.
        kept: For parameters and buffers of which units were only selected: on each axis the
            original indices that stayed, or None where the axis is as it was.
        mixed: Parameters and buffers of which a pass mixed units: none is an original one.
        masks: Entries that passes have made zero for good, by parameter.
        names: The names that groups had in the dense program, by where they lie now.
    """

    module: CapturedModule
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    dynamic: tuple[Mapping[int, str], ...] = ()
    single: bool = False
    task: Task | None = None
    seed: int = 0
    pin: tuple[str, ...] = ()
    probe: bool = False
    history: tuple[str, ...] = ()
    parent: str = ""
    report: Report = field(default_factory=Report)
    kept: Mapping[str, tuple[Tensor | None, ...]] = field(default_factory=dict)
    mixed: frozenset[str] = frozenset()
    masks: Masks = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    @sealed
    def analysis(self) -> Analysis:
        """Axes, coupling and groups of the module, made when first asked for."""
        return Analysis(couple(self.module, self.pin, probe=self.probe), self.names)

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All channel groups, frozen ones included."""
        return self.analysis.groups

    @cached_property
    @sealed
    def maps(self) -> tuple[LinearMap, ...]:
        """Every weight that multiplies a value, as a matrix; one for each node that applies it."""
        return linear_maps(self.module, self.analysis.coupling)

    @cached_property
    @sealed
    def cost(self) -> CostModel:
        """The cost of any plan: call it with ``{group: units kept}``, or with nothing for now."""
        return cost_model(self.analysis.coupling, self.module, self.single)

    @property
    def sparsity(self) -> dict[str, float]:
        """The share of zeros that are for good, of every parameter that has any."""
        masks = current_masks(self.module, self.masks)
        return {name: zeros.share for name, zeros in masks.items()}

    @property
    def recipe(self) -> Pipeline:
        """What was done, as data: passes and steps that can be done to another program.

        Raises:
            RecipeError: A pass in the history is not known: its module has to be imported, and its
                class has to be a `Recipe`.
        """
        return Pipeline(passes=tuple(Recipe.parse(text) for text in self.history))

    @property
    def origin(self) -> str:
        """The digest of the dense weights: `parent`, or that of its own before any pass."""
        return self.parent or state_digest(self.module)

    @checked(PlanError)
    def group(self, name: str) -> ChannelGroup:
        """The group of this name.

        Raises:
            PlanError: There is none; with the nearest names.
        """
        for group in self.groups:
            if group.name == name:
                return group
        names = [group.name for group in self.groups]
        near = get_close_matches(name, names, n=3, cutoff=0.0) or names
        raise PlanError(f"no group is called {name!r}; the nearest are {', '.join(near)}")

    @checked(PlanError)
    @sealed
    def with_values(self, values: Mapping[str, Tensor]) -> Program:
        """The same program with other values, of the same shapes, for some parameters or buffers.

        The analysis is shared, so groups of one are groups of the other, and so are all other
        tensors: train a ``copy.deepcopy`` of one.

        Raises:
            PlanError: There is no parameter or buffer of a name, or its shape is another.
        """
        check_values(self.module, values)
        module = clone_graph(self.module)
        names = names_of(module)
        for name, value in values.items():
            replace_tensor(module, names, name, value)
        new = replace(self, module=module)
        new.__dict__["analysis"] = self.analysis
        return new

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def __str__(self) -> str:
        return str(self.report)

    @checked(PlanError)
    @sealed
    def explain(self, first: str, second: str | None = None) -> str:
        """Why two parameters move together, or the groups that hold one."""
        from fxcompress.explain.words import explain_groups, explain_path  # networkx is slow

        if second is None:
            return explain_groups(self.groups, first)
        return explain_path(self.module, self.analysis.coupling, self.groups, first, second)

    @checked(PlanError)
    @sealed
    def draw(
        self, path: FilePath, group: str | None = None, *, ties: tuple[str, str] | None = None
    ) -> Path:
        """Draw what moves together, as a file that ends in ``.svg``, ``.png`` or ``.pdf``.

        Args:
            path: Where to.
            group: A glob of groups or parameters, at most 12 groups: the layers of each group and
                the operators that tie them. By default all groups, and which layers read one and
                write another.
            ties: Two parameters: the groups that both hold, with the two marked.

        Raises:
            PlanError: No group fits, too many do, or the format is not known.
        """
        from fxcompress.explain.drawing import (  # matplotlib is slow to import
            draw_groups,
            draw_overview,
        )
        from fxcompress.explain.words import matching_groups, shared_groups

        if ties is not None:
            found = shared_groups(self.analysis.coupling, self.groups, *ties)
        elif group is not None:
            found = matching_groups(self.groups, group)
        else:
            return draw_overview(self.groups, self.report.model or "program", path)
        return draw_groups(self.module, self.analysis.coupling, found, path, ties or (group or "",))

    @sealed
    def finalize(self) -> Program:
        """The same program with every mask and reparametrisation folded into plain parameters, and
        with what is kept in another form decoded.
        """
        masks = current_masks(self.module, self.masks)
        new = replace(self, module=finalize(self.module), masks=masks)
        report = resized(self.report, new.cost())
        return replace(new, report=with_parameters(report, new.module, masks))

    @checked(WriteBackError)
    @sealed
    def write_back(self, model: Model) -> Model:
        """A new instance of the user's class with the smaller parameters and mended attributes.

        The class holds plain parameters: what is read through a module is folded into them, and
        what is kept in another form is decoded, so that it takes as many bytes as before.

        Args:
            model: The model that was compiled, dense. It is not changed.

        Raises:
            WriteBackError: The class cannot hold the result; the message says which attribute or
                line prevents it.
        """
        return write_back(self.finalize().module, model, self.args, self.kwargs)

    @checked(PlanError)
    @sealed
    def save(self, path: FilePath, *, inputs: bool = False) -> None:
        """Write the program as it is, without pickle.

        What is in training stays in training: masks, gates and their like are saved beside the
        parameters that are read through them. Say ``program.finalize().save(path)`` to fold them.

        Args:
            path: A directory, or one file where it ends in ``.fxc`` or ``.safetensors``.
            inputs: Write the values of the example inputs. Otherwise a loaded program has others of
                the same shapes, types and ranges.

        Raises:
            FxCompressError: The program holds what a file without code cannot, such as a small
                module whose class is not `fxcompress.io.saveable`.
            WriteError: The disk refuses, or something that is not ours is in the way.
        """
        if not has_values(self.module):
            raise FxCompressError(
                "the program's parameters are on the meta device, which holds no values to save; "
                "load the weights first and compile again"
            )
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        io.save_module(path, self.module, io.packed(own, inputs))


def with_report(program: Program, report: Report) -> Program:
    """The same program with another report; what is known of its module is not found out again."""
    new = replace(program, report=report)
    known = {"analysis", "maps", "cost"} & program.__dict__.keys()
    new.__dict__.update({name: program.__dict__[name] for name in known})
    return new


@checked(LoadError)
@sealed
def load(path: FilePath, *, allow: Collection[str] = ()) -> Program:
    """Read a program that `Program.save` wrote. The original class is not needed.

    Nothing that the file says is run or imported, whoever wrote it. Running the program runs
    operators that only compute; operators of other packages have to be allowed.

    Args:
        path: What was saved to.
        allow: Namespaces of operators (``["torchvision"]``), or names, that the program may call
            beside those that only compute. Their packages have to be imported before.

    Raises:
        LoadError: The path holds no program, a damaged one, one of another version, or one that
            does what a program may not.
    """
    module, saved = io.load_program(path, allow)
    return Program(module=module, **io.unpacked(saved))


class Pass(Protocol):
    """A pass decides and edits nothing: a small frozen dataclass whose ``repr`` is its recipe."""

    def plan(self, program: Program) -> Plan:
        """What to do with `program`."""


__all__ = ["Cost", "Pass", "Program", "load"]
