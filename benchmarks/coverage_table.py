"""The table and the summary of `coverage.py`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]
Found = Mapping[str, Figures]
"""For each part of a model, its figures."""
TOLERANCE, SINGLE = 1e-10, 1e-5
REFERENCES = {
    "error": "zero-masked model",
    "norm_error": "reference with norms",
    "batch_error": "same examples in a smaller batch",
}
OURS = ("canonicalize", "analysis", "plan", "rewrite")
COLUMNS = (
    "model", "groups", "frozen", "unknown ops", "exact", "error", "error, norms", "reduction",
    "torch-pruning", "its reduction", "ONNX", "written back", "export s", "ours s", "ours / export",
    "verify s", "torch-pruning s",
)  # fmt: skip


def verdict(found: Found) -> str:
    """``yes``, or what is wrong: an exception, a number that is off, or nothing measured."""
    figures = found.get("exact")
    if figures is None:
        return "not measured"
    if "failed" in figures:
        return f"{figures['failed']}: {figures['says']}"
    tolerance = SINGLE if figures.get("single") else TOLERANCE
    for name, words in REFERENCES.items():
        if not figures.get(name, 0.0) <= tolerance:
            return f"differs from the {words} by {figures[name]:.1g}"
    if figures.get("predicted") != figures.get("counted"):
        return f"{figures['counted']} parameters, {figures['predicted']} predicted"
    if "counted" not in figures:
        return "nothing may shrink"
    remarks = [] if figures["free_batch"] else ["one batch size"]
    within = any(figures.get(name, 0.0) > TOLERANCE for name in REFERENCES)
    remarks += ["casts to float32 itself"] if within else []
    return ", ".join(["yes", *remarks])


def compiled(found: Found) -> bool:
    """Whether there is a smaller program, right or wrong."""
    return "counted" in found.get("exact", {})


def reduction(found: Found) -> float | None:
    """The share of the parameters that is gone with half of every group."""
    figures = found.get("exact", {})
    return 1 - figures["counted"] / figures["dense"] if "counted" in figures else None


def ratio(found: Found) -> float | None:
    """CPU seconds of the compiler after the capture, over those of torch.export."""
    figures = found.get("speed", {})
    ours = our_seconds(found)
    return None if ours is None else ours / figures["export"]


def our_seconds(found: Found) -> float | None:
    """CPU seconds of canonicalization, analysis, plan and rewrite."""
    figures = found.get("speed", {})
    return sum(figures[stage] for stage in OURS) if "rewrite" in figures else None


def their_seconds(found: Found) -> float | None:
    """CPU seconds of torch-pruning's build and step, where it came to an end."""
    figures = found.get("torch-pruning", {})
    return figures["build"] + figures["step"] if "step" in figures else None


def their_verdict(found: Found, known: Figures) -> str:
    """What torch-pruning did here; whether its output was right is from the zoo's own record."""
    figures = found.get("torch-pruning")
    if figures is not None and "failed" in figures:
        return f"{figures['failed']}"
    return str(known.get("verdict", ""))


def behind(name: str, found: Found, theirs: Mapping[str, Figures]) -> bool:
    """Whether torch-pruning removes more where it is right."""
    known, ours = theirs.get(name, {}), reduction(found)
    return (
        known.get("verdict") == "ok" and ours is not None and ours < known.get("ratio", 0.0) - 1e-4
    )


def summary(results: Mapping[str, Found], theirs: Mapping[str, Figures]) -> list[str]:
    """The lines that sum the zoo up."""
    good = [name for name, found in results.items() if verdict(found).startswith("yes")]
    wrong = [name for name, found in results.items() if verdict(found).startswith("differs")]
    right = [
        name
        for name, found in results.items()
        if theirs.get(name, {}).get("verdict") == "ok" and compiled(found)
    ]
    less = [name for name, found in results.items() if behind(name, found, theirs)]
    lines = [
        f"compiled: {sum(map(compiled, results.values()))} of {len(results)}",
        f"exact: {len(good)} of {len(results)}; wrong: {len(wrong)}{_listed(wrong)}",
        f"reduction at least torch-pruning's: {len(right) - len(less)} of {len(right)} models that "
        f"it gets right and that are compiled{_listed(less)}",
        _ratios("(analysis + plan + rewrite) / torch.export", results, ratio),
        _ratios("the same / torch-pruning's build and step", results, _against_theirs),
    ]
    for part in ("onnx", "write back"):
        figures = [found[part] for found in results.values() if part in found]
        done = sum("failed" not in each and "dense" not in each for each in figures)
        refused = sum("dense" in each for each in figures)
        lines.append(f"{part}: {done} of {len(figures)}" + (
            f", {refused} that torch.onnx refuses dense" if refused else ""
        ))  # fmt: skip
    return lines


def _against_theirs(found: Found) -> float | None:
    ours, theirs = our_seconds(found), their_seconds(found)
    return None if ours is None or theirs is None else ours / theirs


def _ratios(words: str, results: Mapping[str, Found], figure: Any) -> str:
    values = {name: figure(found) for name, found in results.items()}
    values = {name: value for name, value in values.items() if value is not None}
    if not values:
        return f"{words}: not measured"
    worst = max(values, key=lambda name: values[name])
    return (
        f"{words}: median {statistics.median(values.values()):.2f}, worst {values[worst]:.2f} "
        f"({worst}), {len(values)} models"
    )


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""


# ---- the page


def page(results: Mapping[str, Found], theirs: Mapping[str, Figures], facts: Sequence[str]) -> str:
    """The whole of docs/coverage.md."""
    lines = [
        "# Coverage",
        "",
        "Written by `benchmarks/coverage.py`; what the columns say is below.",
        "",
    ]
    lines += [f"- {line}" for line in summary(results, theirs)] + [""]
    lines += _row(COLUMNS) + _row(["---"] * len(COLUMNS))
    for name, found in results.items():
        lines += _row(_cells(name, found, theirs.get(name, {})))
    lines += ["", *_remarks(results), "", *_legend(), "", *(f"- {fact}" for fact in facts), ""]
    return "\n".join(lines)


def _cells(name: str, found: Found, known: Figures) -> list[str]:
    figures, speed = found.get("exact", {}), found.get("speed", {})
    said = verdict(found)
    return [
        name, str(figures.get("prunable", "")), str(sum(figures.get("frozen", {}).values())),
        ", ".join(figures.get("unknown", {})), said if said.startswith("yes") else "no (below)",
        _tiny(figures.get("error")), _tiny(figures.get("norm_error")), _share(reduction(found)),
        their_verdict(found, known), _share(known.get("ratio")), _state(found.get("onnx")),
        _state(found.get("write back")), _seconds(speed.get("export")),
        _seconds(our_seconds(found)), _seconds(ratio(found)),
        _seconds(speed.get("verify")), _seconds(their_seconds(found)),
    ]  # fmt: skip


def _remarks(results: Mapping[str, Found]) -> list[str]:
    lines = []
    for name, found in results.items():
        said = verdict(found)
        if not said.startswith("yes"):
            lines.append(f"- {name}: {said}")
        for part in ("speed", "onnx", "write back"):
            figures = found.get(part, {})
            if "failed" in figures:
                lines.append(f"- {name}, {part}: {figures['failed']}: {figures['says']}")
            elif "dense" in figures:
                lines.append(f"- {name}, {part}: refused dense too: {figures['dense']}")
    return lines


def _legend() -> list[str]:
    return [
        "`exact`: half of the units of every group, drawn at random, in float64. `error`: groups "
        "that are exact, against the user's own model with zeros for the units that left; `error, "
        "norms`: all groups, against a forward that recomputes norms over the units that stay; "
        "both at 2 and 3 examples, relative to the largest output, at most 1e-10 (1e-5 where the "
        "model itself casts to float32). `reduction`: share of the parameters that is gone then; "
        "predicted and counted are equal. "
        "`torch-pruning`: its verdict at the same ratio, and its reduction, from the zoo's own "
        "record. Seconds are CPU seconds of one thread in float32: torch.export; canonicalization, "
        "analysis, plan and rewrite (`ours`); the forward passes of the verification; "
        "torch-pruning's build and step in the same run."
    ]


def _row(cells: Sequence[str]) -> list[str]:
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"]


def _state(figures: Figures | None) -> str:
    if figures is None:
        return ""
    if "dense" in figures:
        return "dense neither"
    return "no (below)" if "failed" in figures else "yes"


def _tiny(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
