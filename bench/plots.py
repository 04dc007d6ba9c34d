"""Pictures: rooflines, which are GB/s against the bytes of the array, and the overview.

The overview says how many times the memory limit each contestant takes for each normalizer.
"""

import io
import json
from collections import defaultdict
from math import log2, log10

import jinja2
import matplotlib.pyplot as plt
import plotly.graph_objects as go
from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter
from plotly.offline import get_plotlyjs

from fastnorm.bench import report as tables
from fastnorm.bench.cases import PASSES

# Okabe and Ito's colours, which also differ for the colour-blind, in the dark and on paper; and
# three more, in which the marks tell more
COLORS = {
    "limit": "#888888",
    "fastnorm": "#d55e00",
    "numpy": "#0072b2",
    "torch": "#009e73",
    "onednn": "#e69f00",
    "jax": "#cc79a7",
    "onnxruntime": "#56b4e9",
    "openvino": "#8f5b34",
    "torch.compile": "#7cc46a",
    "numba": "#8a6bd1",
}
MARKS = {
    "numpy": "s", "torch": "^", "onednn": "D", "jax": "v", "onnxruntime": "P", "openvino": "X",
    "torch.compile": "<", "numba": "*", "fastnorm": "o", "limit": "",
}  # fmt: skip
SYMBOLS = {
    "numpy": "square", "torch": "triangle-up", "onednn": "diamond", "jax": "triangle-down",
    "onnxruntime": "cross", "openvino": "x", "torch.compile": "triangle-left", "numba": "star",
    "fastnorm": "circle",
}  # fmt: skip
TICKS = {
    digit * 10**e: f"{digit * 10 ** (e % 3)} {('', 'k', 'M', 'G')[e // 3]}B"
    for e in range(1, 11)
    for digit in (1, 3)
}
LABELS = {"limit": "memory limit", "fastnorm": "fastnorm", **tables.NAMES}


def panels(report):
    """Return {(setting, pass): {contestant: [(bytes, GB/s, case id), ...]}}, sorted by bytes."""
    found = defaultdict(lambda: defaultdict(list))
    for result in sorted(report.results, key=lambda r: r.case.bytes):
        setting = ", ".join([result.case.dtype, tables.in_words(result.threads), result.isa])
        for name in COLORS:
            if name in result.seconds:
                point = (result.case.bytes, result.gb_per_second(name), result.case.id)
                found[setting, result.case.direction][name].append(point)
    return found


def line(points):
    """Geometric means of the cases of about one size: an octave."""
    octaves = defaultdict(list)
    for size, speed, _ in points:
        octaves[round(log2(size))].append((size, speed))
    means = [map(tables.geomean, zip(*octave, strict=True)) for octave in octaves.values()]
    return tuple(zip(*means, strict=True))


def roofline(report, kind):
    """All panels in one image: settings by passes."""
    found = panels(report)
    settings = list(dict.fromkeys(setting for setting, _ in found))
    passes = [name for name in PASSES if any(p == name for _, p in found)]
    size = (5 * len(passes) + 1, 3.8 * len(settings) + 0.6)
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, grid = plt.subplots(
            len(settings), len(passes), figsize=size, squeeze=False, sharex=True, sharey=True,
            layout="constrained",
        )  # fmt: skip
        for row, setting in zip(grid, settings, strict=True):
            row[0].set_ylabel(f"GB/s ({setting})" if len(settings) > 1 else "GB/s")
            for axes, name in zip(row, passes, strict=True):
                _panel(axes, found[setting, name])
                axes.set_title(name)
                axes.set_xlabel("array")
        _legend(figure, grid)
        title = [report.conditions["processor"], *(settings if len(settings) == 1 else [])]
        figure.suptitle(", ".join(title))
        return _saved(figure, kind)


def _saved(figure, kind):
    """Return the image; of the same figure always the same bytes of SVG."""
    image = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "fastnorm"}):
        figure.savefig(
            image, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else {}
        )
    plt.close(figure)
    return image.getvalue()


def picture(report, kind):
    """Dots on a line for each normalizer, a panel for each pass: times the limit, log scale."""
    overview, passes = report.overview(), report.overview_passes()
    names = ["fastnorm", *report.peers]
    size = (4.6 * len(passes) + 1, 0.34 * len(overview) + 1.7)
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False,
             "axes.spines.left": False}  # fmt: skip
    with plt.rc_context(style):
        figure, (row,) = plt.subplots(1, len(passes), figsize=size, squeeze=False, sharex=True,
                                      sharey=True, layout="constrained")  # fmt: skip
        for axes, name in zip(row, passes, strict=True):
            _dots(axes, [by_pass[name] for by_pass in overview.values()], names)
            axes.set_title(name)
            axes.set_yticks(range(len(overview)), [norm.replace("_", " ") for norm in overview])
            axes.set_xlabel("times the memory limit")
        row[0].invert_yaxis()
        _legend(figure, row, names)
        told = [report.conditions["processor"], tables.overview_words(report),
                report.conditions["date"]]  # fmt: skip
        figure.suptitle("Time, as a multiple of what moving the same arrays takes\n"
                        f"({', '.join(told)})", size=10)  # fmt: skip
        return _saved(figure, kind)


def _dots(axes, by_norm, names):
    axes.axvline(1, color=COLORS["limit"], linestyle="--", linewidth=1.2)
    for name in reversed(names):  # fastnorm on top
        means = [tables.mean_of([r.ratio(name, "limit") for r in results]) for results in by_norm]
        found = [(mean, y) for y, mean in enumerate(means) if mean is not None]
        if found:
            axes.plot(*zip(*found, strict=True), MARKS[name], color=COLORS[name], markersize=8,
                      label=LABELS[name], linestyle="")  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", alpha=0.25)
    axes.grid(axis="y", alpha=0.5)
    axes.tick_params(axis="y", length=0)


def _panel(axes, lines):
    for name, points in lines.items():
        style = {"color": COLORS[name], "marker": MARKS[name], "markersize": 5}
        dashed = "--" if name == "limit" else "-"
        axes.plot(*line(points), dashed, label=LABELS[name], linewidth=1.8, **style)
        if name != "limit":
            x, y, _ = zip(*points, strict=True)
            axes.plot(x, y, ".", color=COLORS[name], alpha=0.35, markersize=4)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)


def _legend(figure, grid, names=tuple(COLORS)):
    found = {}
    for axes in grid.flat:
        handles, labels = axes.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    shown = [LABELS[name] for name in names if LABELS[name] in found]
    figure.legend([found[label] for label in shown], shown,
                  loc="outside lower center", ncols=6, frameon=False)  # fmt: skip


def page(report):
    """One HTML file with everything in it."""
    figures = []
    for (setting, name), lines in panels(report).items():
        figures.append({"title": name, "setting": setting, "figure": _figure(lines)})
    order = {name: i for i, name in enumerate(PASSES)}
    figures.sort(key=lambda f: (f["setting"], order[f["title"]]))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("fastnorm.bench", ""), autoescape=True, trim_blocks=True
    )
    header, rows, words = tables.without_constants(report.header(), report.rows())
    short, summary, _ = tables.without_constants(report.summary_header(), report.summary())
    return environment.get_template("page.html.j2").render(
        report=report,
        tables=[("Summary", short, summary), ("Cases", header, rows)],
        words=words,
        explanation=tables.EXPLANATION,
        is_faster=tables.is_faster,
        figures=[{**f, "figure": json.loads(f["figure"])} for f in figures],
        several_settings=len({f["setting"] for f in figures}) > 1,
        plotlyjs=get_plotlyjs(),
    )


def _figure(lines):
    figure = go.Figure()
    for name, points in lines.items():
        x, y = line(points)
        dash = "dash" if name == "limit" else "solid"
        color = {"color": COLORS[name]}
        figure.add_scatter(
            x=x, y=y, name=LABELS[name], legendgroup=name, hoverinfo="skip",
            mode="lines" if name == "limit" else "lines+markers",
            line={**color, "dash": dash, "width": 2.5},
            marker={**color, "symbol": SYMBOLS.get(name), "size": 7},
        )  # fmt: skip
        x, y, ids = zip(*points, strict=True)
        figure.add_scatter(
            x=x, y=y, text=ids, name=LABELS[name], legendgroup=name, showlegend=False,
            mode="markers", marker={**color, "size": 5, "opacity": 0.45},
            hovertemplate="%{text}<br>%{y:.1f} GB/s",
        )  # fmt: skip
    sizes, speeds, _ = zip(*(point for points in lines.values() for point in points), strict=True)
    figure.update_layout(
        margin={"l": 48, "r": 8, "t": 8, "b": 24},
        legend={"orientation": "h", "y": -0.12, "yanchor": "top"},
        xaxis={
            "type": "log",
            "tickvals": list(TICKS),
            "ticktext": list(TICKS.values()),
            "range": _decades(sizes, 2.5),
        },
        yaxis={
            "type": "log",
            "dtick": 1,
            "title": {"text": "GB/s"},
            "range": _decades(speeds, 1.3),
        },
    )
    return figure.to_json()


def _decades(values, margin):
    return [log10(min(values) / margin), log10(max(values) * margin)]
