"""Integer attributes of the user's classes: which follow a size that changed, and to what.

Modules of one class follow one rule: an attribute that holds the number of heads in one block holds
it in all. So a finding explains an attribute only if it gives the old value in every module of the
class that it occurs in. What explanations remain are ordered, best first; the numeric comparison
decides between them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from fxcompress.writeback.evidence import Evidence, Finding, Key

_INTERNAL = frozenset(vars(nn.Module())) | {"training"}
_NO_RANK = 99
_WIDTHS = frozenset(
    """
    all_head_size attention_head_size attn_dim channels d_ff d_model dim embed_dim embedding_dim
    ffn_dim head_dim head_hidden_size hidden_channels hidden_dim hidden_features hidden_size in_chs
    in_channels in_dim in_features inner_dim intermediate_size kdim mlp_dim n_embd n_head n_heads
    num_attention_heads num_channels num_features num_heads num_key_value_groups num_key_value_heads
    out_channels out_chs out_dim out_features split_size vdim width
    """.split()  # noqa: SIM905
)
"""Names that stand for a size: mended also where no forward tells right from wrong."""


@dataclass(frozen=True)
class Place:
    """An integer attribute, or an element of an attribute that is a tuple or list."""

    name: str
    index: int | None = None

    def __str__(self) -> str:
        return self.name if self.index is None else f"{self.name}[{self.index}]"

    def read(self, owner: nn.Module) -> int:
        """The value it has in `owner`."""
        value = getattr(owner, self.name)
        return int(value if self.index is None else value[self.index])

    def write(self, owner: nn.Module, value: int) -> None:
        """Set it in `owner`."""
        if self.index is None:
            setattr(owner, self.name, value)
            return
        items = list(getattr(owner, self.name))
        items[self.index] = value
        kind = list if isinstance(getattr(owner, self.name), list) else tuple
        setattr(owner, self.name, kind(items))


@dataclass(frozen=True)
class Decision:
    """One attribute of one class, and the values its modules may need, best explanation first.

    Attributes:
        cls: The class's name.
        place: The attribute.
        options: Each gives a value to every module path.
        firm: Whether the first explanation leaves the others far behind.
    """

    cls: str
    place: Place
    options: tuple[tuple[tuple[str, int], ...], ...]
    firm: bool

    @property
    def is_plain(self) -> bool:
        """Whether the attribute can be set unseen: its name is that of a width, and `firm`."""
        return self.firm and self.place.name in _WIDTHS

    def apply(self, model: nn.Module, option: int) -> None:
        """Set the attribute in every module of the class."""
        for path, value in self.options[option]:
            self.place.write(model.get_submodule(path), value)

    def touches(self, read: frozenset[tuple[str, str]]) -> bool:
        """Whether a module reads the attribute in its forward."""
        return any((path, self.place.name) in read for path, _ in self.options[0])


def decisions(model: nn.Module, evidence: Evidence, skip: Sequence[nn.Module]) -> list[Decision]:
    """The attributes that may have to change, in the order of the module tree.

    Args:
        model: Has its old attributes still.
        evidence: What changed where.
        skip: Layers whose attributes follow from their parameters.
    """
    known = {id(layer) for layer in skip}
    holders: dict[tuple[type, Place], dict[str, int]] = defaultdict(dict)
    for path, module in model.named_modules():
        if id(module) not in known:
            for place in _places(module):
                holders[type(module), place][path] = place.read(module)
    found = (_decide(cls, place, values, evidence) for (cls, place), values in holders.items())
    return [decision for decision in found if decision is not None]


def _places(module: nn.Module) -> Iterator[Place]:
    for name, value in vars(module).items():
        if name in _INTERNAL:
            continue
        if _counts(value):
            yield Place(name)
        elif type(value) in (list, tuple) or type(value).__name__ == "Size":
            for index, item in enumerate(value):
                if _counts(item):
                    yield Place(name, index)


def _counts(value: Any) -> bool:
    """Whether `value` could be a size that shrank: sizes of 0 and 1 cannot."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 1


Option = tuple[tuple[str, int], ...]


def _decide(cls: type, place: Place, values: dict[str, int], evidence: Evidence) -> Decision | None:
    fitting = {
        path: {key: f for key, f in evidence.get(path, {}).items() if f.old == old}
        for path, old in values.items()
    }
    keys = {key for findings in fitting.values() for key in findings}
    valid = {key for key in keys if _holds_everywhere(key, values, evidence)}
    unchanged = tuple(values.items())
    together = _best_of_each(values, {p: _only(found, valid) for p, found in fitting.items()})
    votes: dict[Option, list[int]] = {unchanged: []}
    for key in valid:
        news = {path: findings[key].new for path, findings in fitting.items() if key in findings}
        rank = min(findings[key].rank for findings in fitting.values() if key in findings)
        votes.setdefault(tuple((values | news).items()), []).append(rank)
        # A key need not occur in every module: what others say of the rest completes it.
        if (values | dict(together) | news) == dict(together) != values:
            votes.setdefault(together, []).append(rank)
    votes.setdefault(_best_of_each(values, fitting), [])
    ordered = sorted(
        votes, key=lambda option: (*_strength(votes[option]), option == unchanged, option)
    )
    if ordered == [unchanged]:
        return None
    return Decision(cls.__name__, place, tuple(ordered), _is_firm([votes[o] for o in ordered]))


def _only(findings: dict[Key, Finding], keys: Collection[Key]) -> dict[Key, Finding]:
    return {key: finding for key, finding in findings.items() if key in keys}


def _is_firm(votes: list[list[int]]) -> bool:
    """Whether the first explanation is nearer than the second, or has twice as many findings."""
    nearest, count = _strength(votes[0])
    if nearest == _NO_RANK or len(votes) == 1:
        return nearest < _NO_RANK
    other, others = _strength(votes[1])
    return nearest < other or count <= 2 * others


def _holds_everywhere(key: Key, values: dict[str, int], evidence: Evidence) -> bool:
    return all(
        key not in evidence.get(path, {}) or evidence[path][key].old == old
        for path, old in values.items()
    )


def _strength(ranks: list[int]) -> tuple[int, int]:
    """Nearest first, then by how many findings say so."""
    nearest = min(ranks, default=_NO_RANK)
    return nearest, -ranks.count(nearest)


def _best_of_each(values: dict[str, int], fitting: dict[str, dict[Key, Finding]]) -> Option:
    """Each module by its own findings, where no single one speaks for all."""
    return tuple((path, _best(old, list(fitting[path].values()))) for path, old in values.items())


def _best(old: int, findings: list[Finding]) -> int:
    ranks: dict[int, list[int]] = defaultdict(list)
    for finding in findings:
        ranks[finding.new].append(finding.rank)
    return min(ranks, key=lambda new: (*_strength(ranks[new]), new), default=old)
