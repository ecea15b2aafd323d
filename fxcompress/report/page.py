"""A report as one HTML page without scripts or links: tables, and a chart of the widths as SVG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from fxcompress.files.write import write_text
from fxcompress.report.text import describe_check, describe_form, describe_zeros, sizes

if TYPE_CHECKING:
    from fxcompress.report import Report

_BARS = 80

_TEMPLATE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>fxcompress: {{ report.model or "program" }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 64rem; color: #222; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; }
th, td { text-align: left; vertical-align: top; }
th, td { padding: 0.2rem 0.9rem 0.2rem 0; border-bottom: 1px solid #ddd; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
.bad { color: #b00; font-weight: 600; }
code { white-space: pre-wrap; }
svg { max-width: 100%; height: auto; }
</style>
<h1>{{ report.model or "program" }}</h1>
<table>
<tr><th></th><th class="n">before</th><th class="n">after</th><th class="n">left</th></tr>
{% for name, before, after, left in sizes -%}
<tr><td>{{ name }}</td><td class="n">{{ "{:,}".format(before) }}</td>
<td class="n">{{ "{:,}".format(after) }}</td><td class="n">{{ "{:.1%}".format(left) }}</td></tr>
{% endfor -%}
</table>
<h2>Checks</h2>
<ul>
{% for check in report.checks -%}
<li{% if not check.ok %} class="bad"{% endif %}>{{ describe(check) }}</li>
{% else -%}
<li>not verified</li>
{% endfor -%}
</ul>
{% if report.passes -%}
<h2>Passes</h2>
<table>
<tr><th>pass</th><th class="n">seconds</th></tr>
{% for run in report.passes -%}
<tr><td><code>{{ run.repr }}</code>{% for note in run.notes %}<br>{{ note }}{% endfor %}</td>
<td class="n">{{ "%.2f"|format(run.seconds) }}</td></tr>
{% endfor -%}
</table>
{% endif -%}
{% if report.groups -%}
<h2>Widths</h2>
{{ chart|safe }}
<table>
<tr><th>group</th><th>kind</th><th class="n">before</th><th class="n">after</th>
<th class="n">cells</th><th>sites</th></tr>
{% for group in report.groups -%}
<tr><td>{{ group.name }}</td><td>{{ group.kind }}</td><td class="n">{{ group.units.before }}</td>
<td class="n">{{ group.units.after }}</td><td class="n">{{ group.cells }}</td>
<td>{% for site in group.sites -%}
{{ site.role }} axis {{ site.dim }} of {{ site.parameter }}<br>
{% endfor %}</td></tr>
{% endfor -%}
</table>
{% endif -%}
{% if report.sparse -%}
<h2>Zeros for good</h2>
<table>
<tr><th>parameter</th><th>share</th></tr>
{% for one in report.sparse -%}
<tr><td>{{ one.name }}</td><td>{{ zeros(one) }}</td></tr>
{% endfor -%}
</table>
{% endif -%}
{% if report.stored -%}
<h2>Kept in another form</h2>
<table>
<tr><th>parameter</th><th>form</th></tr>
{% for one in report.stored -%}
<tr><td>{{ one.name }}</td><td>{{ form(one) }}</td></tr>
{% endfor -%}
</table>
{% endif -%}
{% if report.frozen -%}
<h2>May not shrink</h2>
<table>
<tr><th>group</th><th>reason</th></tr>
{% for group in report.frozen -%}
<tr><td>{{ group.name }}</td><td>{{ group.reason }}</td></tr>
{% endfor -%}
</table>
{% endif -%}
{% if report.unknown -%}
<h2>Operators without a rule</h2>
<ul>
{% for op, nodes in report.unknown.items() %}<li>{{ op }}: {{ nodes|join(", ") }}</li>
{% endfor -%}
</ul>
{% endif -%}
{% if report.probed -%}
<h2>Operators without a rule that were probed</h2>
<ul>
{% for op, nodes in report.probed.items() %}<li>{{ op }}: {{ nodes|join(", ") }}</li>
{% endfor -%}
</ul>
{% endif -%}
{% if report.failed -%}
<h2>Axis rules that failed</h2>
<ul>
{% for op, errors in report.failed.items() %}<li>{{ op }} at {{ errors|join("; ") }}</li>
{% endfor -%}
</ul>
{% endif -%}
{% if report.ranges -%}
<h2>Sizes of the free axes</h2>
<ul>
{% for name, sizes in report.ranges.items() %}<li>{{ name }}: {{ sizes }}</li>
{% endfor -%}
{% for relation in report.relations %}<li>{{ relation }}</li>
{% endfor -%}
</ul>
{% endif -%}
{% if report.static %}<p>The batch is fixed: {{ report.static }}</p>
{% endif -%}
{% if report.training -%}
<h2>Where training differs from the model</h2>
<ul>
{% for note in report.training %}<li>{{ note }}</li>
{% endfor -%}
</ul>
{% endif -%}
</html>
"""


def write_page(report: Report, path: Path) -> Path:
    """Write the page.

    Raises:
        WriteError: The file cannot be written; what was there is as it was.
    """
    write_text(path, render_page(report))
    return path


def render_page(report: Report) -> str:
    """The text of the page."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    chart = _chart(report) if report.groups else ""
    return environment.from_string(_TEMPLATE).render(
        report=report,
        sizes=list(sizes(report)),
        chart=chart,
        describe=describe_check,
        form=describe_form,
        zeros=describe_zeros,
    )


def _chart(report: Report) -> str:
    """Bars of the units before, and of those that stay in front of them, as an SVG element."""
    # A figure of its own: pyplot would choose a window system. Imported where it is used.
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups = report.groups[:_BARS]
    with mpl.rc_context({"svg.hashsalt": "fxcompress", "svg.fonttype": "none"}):
        figure = Figure(figsize=(9, 1 + 0.22 * len(groups)), layout="constrained")
        axes = figure.subplots()
        rows = range(len(groups))
        axes.barh(rows, [group.units.before for group in groups], color="#d5dbe3", label="before")
        axes.barh(rows, [group.units.after for group in groups], color="#2f6db5", label="after")
        axes.set_yticks(rows, [group.name.replace("$", r"\$") for group in groups], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("units")
        axes.legend(frameon=False)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
