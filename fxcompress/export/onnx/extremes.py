"""Sizes to try a file at: the ends of the range of every free dimension."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from torch import nn

from fxcompress.export.onnx.exportable import Inputs
from fxcompress.interface import Interface

_MOST_ELEMENTS = 2**18
_LARGEST = 1024
_STEPS = 4096


@dataclass(frozen=True)
class Extremes:
    """The sizes that a program takes beside those of its example.

    Attributes:
        inputs: The example, with a name for every free dimension.
        interface: What the program takes; None for a module that nothing is known of.
    """

    inputs: Inputs
    interface: Interface | None

    @classmethod
    def of(cls, module: nn.Module, inputs: Inputs) -> Extremes:
        """Those of a captured module, or of any other."""
        return cls(inputs, getattr(module, "interface", None))

    def neighbours(self) -> dict[str, int]:
        """For each named dimension a size that is not the example's, and no larger if that can be.

        A smaller one cannot run off a table of positions; below 2 there is none that is general.
        """
        own = self.inputs.sizes()
        near = {label: size - 1 if size > 2 else size + 1 for label, size in own.items()}
        if self.interface is None:
            return near
        for label, size in near.items():
            for other in (size, size + 2, size - 1, size + 3):
                found = self._completed({**own, label: other}, label)
                own = own if found is None else found
                if found is not None:
                    break
        return own

    def ends(self, runs: Callable[[Mapping[str, int]], bool]) -> Iterator[dict[str, int]]:
        """For each named dimension its smallest and its largest size, the others as near to the
        example's as can be. Very large ends are clipped.

        Args:
            runs: Whether the program itself runs at these sizes. It is asked where a range has no
                end: nothing in a graph says how many rows a table of positions has.
        """
        own = self.inputs.sizes()
        for label, (low, high) in self._spans().items():
            top = min(self._clip(label), high or self._clip(label))
            lower = (self._completed({**own, label: n}, label) for n in range(low, own[label]))
            yield from islice(filter(None, islice(lower, _STEPS)), 1)
            upper = self._largest(label, top, (lambda _: True) if high else runs)
            if upper is not None:
                yield upper

    def _largest(
        self, label: str, top: int, runs: Callable[[Mapping[str, int]], bool]
    ) -> dict[str, int] | None:
        """The sizes with the largest of this dimension up to `top`; half as far from the example's
        each time that the program does not run.
        """
        own, size = self.inputs.sizes(), top
        for _ in range(_STEPS):
            if size <= own[label]:
                break
            found = self._completed({**own, label: size}, label)
            if found is not None and runs(found):
                return found
            size = size - 1 if found is None else own[label] + (size - own[label]) // 2
        return None

    def notes(self, tried: Collection[Mapping[str, int]]) -> Iterator[str]:
        """What a reader of the result has to know about the ranges.

        Args:
            tried: The sizes that were tried beside those of the example.
        """
        own = self.inputs.sizes()
        for label, (low, high) in self._spans().items():
            largest = max(sizes.get(label, own[label]) for sizes in (own, *tried))
            if high is None or high > largest:
                end = "has no upper end" if high is None else f"goes up to {high}"
                yield f"{label} {end}: it was tried up to {largest}"
            if low > 1 or high is not None:
                span = f"from {low}" + ("" if high is None else f" to {high}")
                yield f"the program takes {label} {span}; the file does not refuse other sizes"
        for condition in self.interface.conditions if self.interface else ():
            yield f"the program holds where {condition}; the file does not refuse other sizes"

    def _names(self) -> dict[str, set[str]]:
        """The names of the interface behind each name of a dimension."""
        assert self.interface is not None
        found: dict[str, set[str]] = {}
        for labels, names in zip(self.inputs.dynamic, self.interface.free_axes(), strict=True):
            for axis, label in labels.items():
                found.setdefault(label, set()).add(names[axis])
        return found

    def _spans(self) -> dict[str, tuple[int, int | None]]:
        if self.interface is None:
            return {}
        spans = {}
        for label, names in self._names().items():
            ranges = [self.interface.sizes[name] for name in names]
            ranges = [one for one in ranges if not one.equals]
            highs = [one.high for one in ranges if one.high is not None]
            if ranges:
                spans[label] = (max(one.low for one in ranges), min(highs, default=None))
        return spans

    def _completed(self, sizes: Mapping[str, int], label: str) -> dict[str, int] | None:
        """All sizes where `label` has this one; None where the program would not take them."""
        assert self.interface is not None
        labels = {name: label for label, names in self._names().items() for name in names}
        chosen = {
            name: sizes[labels[name]] for name in self.interface.independent if name in labels
        }
        if len(chosen) < len(self.interface.independent):
            return None
        full = self.interface.complete(chosen)
        found = {**sizes, **{labels[name]: size for name, size in full.items()}}
        agreed = all(found[labels[name]] == size for name, size in full.items())
        return found if agreed and self.interface.allows(full) else None

    def _clip(self, label: str) -> int:
        """The largest size that is worth the time: twice the example's, more where it is cheap."""
        own = self.inputs.sizes()[label]
        elements = sum(tensor.numel() for tensor in self.inputs.tensors) / max(own, 1)
        return max(2 * own, min(_LARGEST, int(_MOST_ELEMENTS / max(elements, 1))))
