"""The report is plain data: it survives JSON, and its texts say what the data say."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest

from fxcompress.errors import LoadError
from fxcompress.report import Change, Check, FrozenGroup, GroupChange, PassRun, Report
from fxcompress.report.tables import WIDTH

SITES = ({"parameter": "stem.0.weight", "dim": 0, "role": "produce"},)


def example(groups: int = 2) -> Report:
    return Report(
        model="ResNet",
        sizes={
            "params": Change(1_000_000, 250_000),
            "flops": Change(8_000, 2_000),
            "macs": Change(4_000, 1_000),
            "bytes": Change(4_000_000, 1_000_000),
        },
        groups=tuple(
            GroupChange(f"layer{i}.<0>", "channels", Change(64, 64 - i), sites=SITES)
            for i in range(groups)
        ),
        frozen=(FrozenGroup("fc", "an output of the model (at output)", 10),),
        passes=(PassRun("MagnitudePruning(ratio=0.5)", 0.25, ("layer1: 61 -> 64",)),),
        checks=(
            Check("zero-mask", 1e-7, 1e-5, ok=True, where="MagnitudePruning", zeroed_error=2e-7),
            Check("shapes", None, None, ok=True),
        ),
        unknown={"aten.cumsum.default": ("cumsum",)},
        failed={"mylib::op": ("op: ValueError: no axis",)},
        dynamic=({0: "batch"}, {}),
    )


def test_json_gives_the_report_back() -> None:
    assert Report.from_dict(json.loads(example().to_json())) == example()
    assert Report.from_dict(Report().to_dict()) == Report()


def test_the_dictionary_has_the_keys_that_others_rely_on() -> None:
    data = example().to_dict()
    assert data["params"] == {"before": 1_000_000, "after": 250_000}
    assert data["flops"]["after"] == 2_000
    assert data["bytes"]["before"] == 4_000_000
    assert data["groups"][1]["units"] == {"before": 64, "after": 63}
    assert data["groups"][0]["sites"] == list(SITES)
    assert data["frozen"][0]["reason"].startswith("an output")
    assert data["passes"][0]["seconds"] == 0.25
    assert data["verification"] == {
        "kind": "zero-mask",
        "max_relative_error": 1e-7,
        "zeroed_error": 2e-7,
        "tolerance": 1e-5,
        "ok": True,
    }


def test_the_worst_check_speaks_for_all() -> None:
    failed = Check("identity", 0.0, 0.0, ok=False)
    report = replace(example(), checks=(*example().checks, failed))
    assert report.verification is failed
    assert report.to_dict()["verification"]["ok"] is False
    assert Report().to_dict()["verification"]["ok"] is None


def test_the_text_names_what_changed() -> None:
    text = str(example())
    for words in (
        "ResNet",
        "1,000,000",
        "25.0%",
        "layer1.<0>",
        "64 -> 63",
        "MagnitudePruning(ratio=0.5)",
    ):
        assert words in text
    assert "error 1e-07, tolerance 1e-05" in text
    assert "aten.cumsum.default at cumsum" in text
    assert max(map(len, text.splitlines())) <= WIDTH


def test_long_models_are_cut_with_a_count() -> None:
    text = str(example(groups=200))
    assert "and 176 more" in text
    assert len(text.splitlines()) < 60


def test_changed_groups_come_first() -> None:
    unchanged = tuple(GroupChange(f"same{i}", "channels", Change(8, 8)) for i in range(50))
    report = Report(groups=(*unchanged, GroupChange("smaller", "channels", Change(8, 4))))
    assert "smaller" in str(report)


def test_an_empty_report_prints() -> None:
    assert "not verified" in str(Report())


def test_the_page_stands_alone(tmp_path: Path) -> None:
    path = example().to_html(tmp_path / "new" / "report.html")
    page = path.read_text()
    chart = page[page.index("<svg") : page.index("</svg>") + len("</svg>")]
    ElementTree.fromstring(chart)
    assert "layer1.&lt;0&gt;" in page
    assert "<script" not in page
    assert "src=" not in page
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


def test_pages_of_equal_reports_are_equal(tmp_path: Path) -> None:
    first, second = (example().to_html(tmp_path / f"{name}.html").read_text() for name in "ab")
    assert first == second


def test_other_data_are_refused() -> None:
    with pytest.raises(LoadError, match=r"not a report .*params"):
        Report.from_dict({"model": "x"})
