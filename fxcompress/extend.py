"""What an extension may import: everything here is public and keeps its name; what is elsewhere
and not in `fxcompress`, `fxcompress.passes` or `fxcompress.export` may change.

An extension is one file of your own that is imported before it is used; nothing of fxcompress is
edited. ``docs/extend`` has a page with a complete example for each of the first six:

===============  ================================================================================
an axis rule     `axis_rule` registers a function of a `RuleContext` and a node, which gives `Axes`
a criterion      a `Criterion`: `score` says which units of a `ChannelGroup` matter
a method         a `Structured` dataclass: options, `score`, and a `Reconstruction` where it has one
an edit          an `Edit` that checks, applies and proves itself; a `Codec` for `fxcompress.Store`
a runtime        a `Runtime` that opens a `Session`, and `register_runtime`
a step           a `Step`: `run` gives another program, where `plan` would not do
a statistic      a `Statistic` that is updated, merged and saved; `collect` goes through the data
a quantity       a `Quantity` of terms over sizes, and `register_quantity`: what a budget may bound
===============  ================================================================================

Where units lie: `producers` and `consumers` of a group by layers, `members_of` and `weights_of` by
the axes of parameters, `units_on` in any tensor; ``program.maps`` (`LinearMap`) has every weight as
a matrix. Over a task's data: `observe` values of nodes, `gradients`, `moments` of a group's units.
`read_tensor` reads a parameter's values wherever they lie. Arguments of dataclasses under `Recipe`,
`Structured`, `Step` and `Edit` are checked by their annotations, ranges such as `Share` included.
"""

from fxcompress.analysis.cost import CostModel
from fxcompress.analysis.groups import ChannelGroup, Site
from fxcompress.analysis.quantities import PerIndex, Quantity, Table
from fxcompress.analysis.quantities import register as register_quantity
from fxcompress.arguments import Count, Holds, Interval, NotNegative, Positive, Seed, Share
from fxcompress.axes.expressions import Axes, Expr, Factor
from fxcompress.budget import Sizing
from fxcompress.edit.base import Edit, ParameterEdit, Stage
from fxcompress.edit.codecs import Codec, Parts
from fxcompress.edit.context import Context as EditContext
from fxcompress.edit.proof import Proof
from fxcompress.edit.zeros import Masks, Pattern, Zeros
from fxcompress.export.runtimes import Input, Runtime, Session
from fxcompress.export.runtimes import register as register_runtime
from fxcompress.export.runtimes.protocol import Array, Source
from fxcompress.graph.parameters import read_tensor
from fxcompress.graph.saveable import Saveable, saveable
from fxcompress.layers.maps import LinearMap
from fxcompress.layers.units import Units, units_on
from fxcompress.layers.weights import Consumer, Producer, consumers, producers
from fxcompress.passes import Criterion, Reconstruction, Selection, Structured, StructuredPass
from fxcompress.passes.structured.method import DeclinedError
from fxcompress.passes.structured.scores import members_of, normalised, weights_of
from fxcompress.recipes import Recipe
from fxcompress.rules import Context as RuleContext
from fxcompress.rules import axis_rule
from fxcompress.stats import (
    Gradients,
    Moments,
    Statistic,
    Sums,
    Wanted,
    collect,
    gradients,
    moments,
    observe,
    unit_signals,
)
from fxcompress.train import Context as StepContext
from fxcompress.train import Step, Trainer, evaluate, recalibrate

__all__ = [
    "Array",
    "Axes",
    "ChannelGroup",
    "Codec",
    "Consumer",
    "CostModel",
    "Count",
    "Criterion",
    "DeclinedError",
    "Edit",
    "EditContext",
    "Expr",
    "Factor",
    "Gradients",
    "Holds",
    "Input",
    "Interval",
    "LinearMap",
    "Masks",
    "Moments",
    "NotNegative",
    "ParameterEdit",
    "Parts",
    "Pattern",
    "PerIndex",
    "Positive",
    "Producer",
    "Proof",
    "Quantity",
    "Recipe",
    "Reconstruction",
    "RuleContext",
    "Runtime",
    "Saveable",
    "Seed",
    "Selection",
    "Session",
    "Share",
    "Site",
    "Sizing",
    "Source",
    "Stage",
    "Statistic",
    "Step",
    "StepContext",
    "Structured",
    "StructuredPass",
    "Sums",
    "Table",
    "Trainer",
    "Units",
    "Wanted",
    "Zeros",
    "axis_rule",
    "collect",
    "consumers",
    "evaluate",
    "gradients",
    "members_of",
    "moments",
    "normalised",
    "observe",
    "producers",
    "read_tensor",
    "recalibrate",
    "register_quantity",
    "register_runtime",
    "saveable",
    "unit_signals",
    "units_on",
    "weights_of",
]
