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
    "model", "groups", "frozen", "unknown ops", "compiled", "exact", "error", "error, norms",
    "reduction", "ONNX", "written back", "export s", "ours s", "ours / export", "verify s",
    "torch-pruning", "its reduction", "its s",
)  # fmt: skip
ONNX, WRITTEN = "onnx", "write back"
HEADINGS = {
    "exact": "Not exact",
    "speed": "Not timed",
    ONNX: "Not exported to ONNX",
    WRITTEN: "Not written back: the attribute or line of the class that prevents it",
}


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
        return "yes, but nothing may shrink"
    remarks = [] if figures["free_batch"] else ["one batch size"]
    within = any(figures.get(name, 0.0) > TOLERANCE for name in REFERENCES)
    remarks += ["casts to float32 itself"] if within else []
    return ", ".join(["yes", *remarks])


def compiled(found: Found) -> bool:
    """Whether there is a program, right or wrong."""
    return "prunable" in found.get("exact", {})


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
    figures = found.get("torch-pruning", {})
    if figures.get("failed") == "TimeLimit":
        return str(figures["says"])
    return str(figures.get("failed") or known.get("verdict", ""))


def behind(name: str, found: Found, theirs: Mapping[str, Figures]) -> bool:
    """Whether torch-pruning removes more where it is right."""
    known, ours = theirs.get(name, {}), reduction(found)
    return (
        known.get("verdict") == "ok" and ours is not None and ours < known.get("ratio", 0.0) - 1e-4
    )


def summary(results: Mapping[str, Found], theirs: Mapping[str, Figures]) -> list[str]:
    """The lines that sum the zoo up."""
    count = len(results)
    good = [name for name, found in results.items() if verdict(found).startswith("yes")]
    wrong = [name for name, found in results.items() if verdict(found).startswith("differs")]
    right = [
        name
        for name, found in results.items()
        if theirs.get(name, {}).get("verdict") == "ok" and reduction(found) is not None
    ]
    less = [name for name, found in results.items() if behind(name, found, theirs)]
    return [
        f"compiled: {sum(map(compiled, results.values()))} of {count}",
        f"exact: {len(good)} of {count}; wrong output: {len(wrong)}{_listed(wrong)}",
        f"reduction at least torch-pruning's: {len(right) - len(less)} of the {len(right)} models "
        f"that it gets right{_listed(less)}",
        _onnx_line(results),
        _written_line(results),
        _ratios("(canonicalization + analysis + plan + rewrite) / torch.export", results, ratio),
        _ratios("the same / torch-pruning's build and step", results, _against_theirs),
    ]


def _onnx_line(results: Mapping[str, Found]) -> str:
    measured = {name: found[ONNX] for name, found in results.items() if ONNX in found}
    failed = [name for name, figures in measured.items() if "failed" in figures]
    refused = [name for name, figures in measured.items() if "dense" in figures]
    return (
        f"ONNX: {len(measured) - len(failed) - len(refused)} of {len(measured)} agree in "
        f"onnxruntime; torch.onnx refuses the dense model too: {len(refused)}{_listed(refused)}; "
        f"failed: {len(failed)}{_listed(failed)}"
    )


def _written_line(results: Mapping[str, Found]) -> str:
    measured = [found[WRITTEN] for found in results.values() if WRITTEN in found]
    held = [figures for figures in measured if figures.get("failed") == "WriteBackError"]
    failed = [figures for figures in measured if "failed" in figures]
    other = len(failed) - len(held)
    return (
        f"written back into the user's own class: {len(measured) - len(failed)} of {len(measured)};"
        f" {len(held)} classes cannot hold the sizes and say where"
        + f"; {other} failed"
        * (other > 0)
    )


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
        "Every model of the zoo with half of the units of every group gone: does it compile, is "
        "the smaller model exactly what it should be, and what can be done with it? The columns "
        "are explained below the table; what is not a plain yes has its reason there.",
        "",
    ]
    lines += _row(COLUMNS) + _row(["---"] * len(COLUMNS))
    for name, found in results.items():
        lines += _row(_cells(name, found, theirs.get(name, {})))
    lines += ["", "## Summary", "", *(f"- {line}" for line in summary(results, theirs)), ""]
    lines += ["## Columns", "", *(f"- {line}" for line in LEGEND), "", *_remarks(results)]
    return "\n".join([*lines, "## Made by", "", *(f"- {fact}" for fact in facts), ""])


def _cells(name: str, found: Found, known: Figures) -> list[str]:
    figures, speed = found.get("exact", {}), found.get("speed", {})
    return [
        name, str(figures.get("prunable", "")), str(sum(figures.get("frozen", {}).values())),
        ", ".join(figures.get("unknown", {})), _compiled(found), _exact(found),
        _tiny(figures.get("error")), _tiny(figures.get("norm_error")), _share(reduction(found)),
        _state(found.get(ONNX)), _state(found.get(WRITTEN)), _seconds(speed.get("export")),
        _seconds(our_seconds(found)), _seconds(ratio(found)), _seconds(speed.get("verify")),
        their_verdict(found, known), _share(known.get("ratio")), _seconds(their_seconds(found)),
    ]  # fmt: skip


def _compiled(found: Found) -> str:
    if "exact" not in found:
        return ""
    return "yes" if compiled(found) else "no (below)"


def _exact(found: Found) -> str:
    if "exact" not in found:
        return ""
    said = verdict(found)
    return said if said.startswith("yes") else "no (below)"


def _remarks(results: Mapping[str, Found]) -> list[str]:
    lines = []
    for part, heading in HEADINGS.items():
        said = [
            f"- {name}: {words}" for name, found in results.items() if (words := _why(found, part))
        ]
        lines += [f"## {heading}", "", *said, ""] if said else []
    return lines


def _why(found: Found, part: str) -> str:
    """The reason why a part did not succeed; empty where it did or was not run."""
    figures = found.get(part, {})
    if "failed" in figures:
        words = figures["says"] or figures.get("where", "")
        return str(words) if part == WRITTEN else f"{figures['failed']}: {words}"
    if part == ONNX and "dense" in figures:
        return f"torch.onnx refuses the dense model too: {figures['dense']}"
    said = verdict(found) if part == "exact" and figures else "yes"
    return "" if said.startswith("yes") else said


LEGEND = (
    "`groups`: sets of units (channels, heads, dims of heads) that can be pruned; `frozen`: those "
    "that cannot, such as the classes of the output. `unknown ops`: operators without a rule, "
    "around which everything is frozen.",
    "`exact`: half of the units of every group are removed, drawn at random, in float64. `error`: "
    "only groups for which removing equals zeroing, against the user's own model with zeros; "
    "`error, norms`: all groups, against a forward that recomputes norms and means over the units "
    "that stay. Both at 2 and at 3 examples, relative to the largest output; at most 1e-10, or "
    "1e-5 where the model itself casts to float32.",
    "`reduction`: the share of the parameters that is gone then; what the plan predicts and what "
    "is counted are equal.",
    "`ONNX`: the model pruned by magnitude, exported and compared in onnxruntime. `dense neither`: "
    "torch.onnx refuses the model also before pruning.",
    "`written back`: the same in an instance of the model's own class, compared with the graph.",
    "Seconds are CPU seconds of one thread in float32: torch.export; canonicalization, analysis, "
    "plan and rewrite (`ours`); the forward passes of the verification.",
    "`torch-pruning`: what it does at the same ratio, used as in its own examples, with the number "
    "of heads given. Verdict and reduction are the zoo's own record of it; an exception and the "
    "seconds of its build and step are of this run.",
)


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
