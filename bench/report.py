"""What a run gives, as rows: the table of cases, the summary, and the cases that a peer wins.

The *overview* has one row for each normalizer, in one setting: it is what `--quick` prints and what
the picture shows.
"""

import json
from dataclasses import dataclass, field
from itertools import groupby
from math import exp, log

from rich.table import Table

from fastnorm.bench.cases import PASSES
from fastnorm.bench.measure import Result

NAMES = {
    "numpy": "NumPy", "torch": "torch", "onednn": "oneDNN", "jax": "JAX",
    "onnxruntime": "onnxruntime", "openvino": "OpenVINO", "torch.compile": "torch.compile",
    "numba": "Numba",
}  # fmt: skip
WON = 0.95  # of fastnorm's time: a peer below it is faster, beyond the noise
NOTABLE_BYTES = 100_000
EXPLANATION = (
    "x the limit: time in that of a kernel that only moves the same arrays; x NumPy and so on: how "
    "many times faster than it."
)


@dataclass
class Report:
    """Results, the peers that took part, and what is to be known about them."""

    peers: list[str]
    conditions: dict[str, str]
    notes: list[str]
    results: list[Result] = field(default_factory=list)

    def failures(self):
        """List the errors that contestants raised, each once."""
        found = {}
        for result in self.results:
            for name, error in result.errors.items():
                found.setdefault((name, error), []).append(result.case.id)
        return [
            f"{name} failed in {ids[0]}{f' and {len(ids) - 1} more' if len(ids) > 1 else ''}: {e}"
            for (name, e), ids in found.items()
        ]

    def header(self):
        """Name the columns of `rows`."""
        return [
            "normalizer", "pass", "layout", "dtype", "shape", "threads", "isa", "ms",
            "x the limit", *(f"x {NAMES[name]}" for name in self.peers),
        ]  # fmt: skip

    def rows(self):
        """One for each result."""
        return [
            [
                *_operation(result)[:4], result.case.size, *_operation(result)[4:],
                _cell(result, "fastnorm", lambda r: r.seconds["fastnorm"] * 1e3, "{:.3g}"),
                _cell(result, "fastnorm", lambda r: r.ratio("fastnorm", "limit"), "{:.2f}"),
                *(
                    _cell(result, name, lambda r, name=name: r.ratio(name, "fastnorm"), "{:.2f}")
                    for name in self.peers
                ),
            ]
            for result in self.results
        ]  # fmt: skip

    def summary(self):
        """Geometric means and the worst case of each operation."""
        ordered = sorted(enumerate(self.results), key=lambda pair: _operation(pair[1]))
        groups = []
        for operation, pairs in groupby(ordered, key=lambda pair: _operation(pair[1])):
            pairs = list(pairs)
            groups.append((pairs[0][0], operation, [result for _, result in pairs]))
        return [
            _summarize(operation, results, self.peers) for _, operation, results in sorted(groups)
        ]

    def summary_header(self):
        """Name the columns of `summary`."""
        return [*SUMMARY_HEADER, *(f"x {NAMES[name]}" for name in self.peers)]

    def summary_keys(self):
        """Name them for programs: each once."""
        header = self.summary_header()
        return [*header[:8], "worst of limit", header[9], "worst of best peer", *header[11:]]

    def overview_setting(self):
        """Dtype, threads and instruction set of the overview: those of the first result."""
        first = self.results[0]
        return first.case.dtype, first.threads, first.isa

    def overview(self):
        """Return {normalizer: {pass: its results}}, each in its first layout, for one setting."""
        found, layouts = {}, {}
        for result in self.results:
            case = result.case
            setting = case.dtype, result.threads, result.isa
            layout = layouts.setdefault(case.norm, case.layout)
            if setting == self.overview_setting() and case.layout == layout:
                found.setdefault(case.norm, {}).setdefault(case.direction, []).append(result)
        return found

    def overview_passes(self):
        """List the passes that every normalizer of the overview has, in order."""
        having = [set(by_pass) for by_pass in self.overview().values()]
        return [name for name in PASSES if all(name in each for each in having)]

    def overview_header(self):
        """Name the columns of `overview_rows`; what follows a time is of the same pass."""
        kinds = ["x the limit", *(f"x {NAMES[name]}" for name in self.peers)]
        return ["normalizer", *(word for name in self.overview_passes()
                                for word in (f"{name}, ms", *kinds))]  # fmt: skip

    def overview_rows(self):
        """List for each normalizer geometric means over its shapes, one pass beside the other."""
        return [
            [norm, *(cell for name in self.overview_passes()
                     for cell in _overview_cells(by_pass[name], self.peers))]
            for norm, by_pass in self.overview().items()
        ]  # fmt: skip

    def lost(self):
        """Results above 100 kB in which the best peer beats fastnorm beyond the noise."""
        return [
            result
            for result in self.results
            if result.case.bytes > NOTABLE_BYTES and (result.ratio("best", "fastnorm") or 1) < WON
        ]

    def lost_lines(self):
        """Say the same in words."""
        return [
            f"{r.case.id}, {in_words(r.threads)}, {r.isa}: {NAMES[r.best_peer]} takes "
            f"{r.ratio('best', 'fastnorm'):.2f} of fastnorm's time"
            for r in self.lost()
        ]


SUMMARY_HEADER = [
    "normalizer", "pass", "layout", "dtype", "threads", "isa", "cases", "x the limit", "worst",
    "x the best peer", "worst",
]  # fmt: skip


def _operation(result):
    case = result.case
    return case.norm, case.direction, case.layout, case.dtype, str(result.threads), result.isa


def _cell(result, name, value, form):
    if name in result.errors:
        return "failed"
    if name not in result.seconds:
        return "-"
    number = value(result)
    return "-" if number is None else form.format(number)


def _summarize(operation, results, names):
    to_limit = [v for r in results if (v := r.ratio("fastnorm", "limit")) is not None]
    to_best = [v for r in results if (v := r.ratio("best", "fastnorm")) is not None]
    return [
        *operation,
        str(len(results)),
        *((f"{geomean(to_limit):.2f}", f"{max(to_limit):.2f}") if to_limit else "--"),
        *((f"{geomean(to_best):.2f}", f"{min(to_best):.2f}") if to_best else "--"),
        *(_mean_cell([result.ratio(name, "fastnorm") for result in results]) for name in names),
    ]


def _overview_cells(results, names):
    seconds = [result.seconds.get("fastnorm") for result in results]
    return [
        _mean_cell([s and s * 1e3 for s in seconds], "{:.3g}"),
        _mean_cell([result.ratio("fastnorm", "limit") for result in results]),
        *(
            _mean_cell([result.ratio(name, "fastnorm") for result in results], "{:.1f}")
            for name in names
        ),
    ]


def _mean_cell(values, form="{:.2f}"):
    mean = mean_of(values)
    return "-" if mean is None else form.format(mean)


def mean_of(values):
    """Geometric mean of those that are there; None where none is."""
    found = [value for value in values if value is not None]
    return geomean(found) if found else None


def geomean(values):
    """Geometric mean."""
    return exp(sum(map(log, values)) / len(values))


def without_constants(header, rows, keep=2):
    """Return both without the columns of settings that never vary, and those as words.

    And without those of peers that have none of these operations.
    """
    settings = ["layout", "dtype", "threads", "isa"]
    constant = [
        i for i, name in enumerate(header)
        if i >= keep and name in settings and len({row[i] for row in rows}) == 1
    ]  # fmt: skip
    empty = [
        i for i, name in enumerate(header) if is_faster(name) and {r[i] for r in rows} == {"-"}
    ]
    words = [in_words(rows[0][i]) if header[i] == "threads" else rows[0][i] for i in constant]
    dropped = {*constant, *empty}
    shorter = [[v for i, v in enumerate(row) if i not in dropped] for row in [header, *rows]]
    return shorter[0], shorter[1:], ", ".join(words)


def is_faster(name):
    """Whether a column says how many times faster fastnorm is than somebody."""
    return name.startswith("x ") and name != "x the limit"


def in_words(threads):
    """As a person writes it."""
    return f"{threads} thread" if int(threads) == 1 else f"{threads} threads"


def print_report(report, console, short=False):
    """On the terminal: cases, summary, lost cases, conditions, notes; or the overview alone."""
    if short:
        _print_overview(report, console)
    else:
        for title, header, rows in (
            ("cases", report.header(), report.rows()),
            ("summary: geometric means over the shapes", report.summary_header(), report.summary()),
        ):
            header, rows, words = without_constants(header, rows)
            _print_table(console, f"{title} ({words})" if words else title, header, rows)
        console.print(EXPLANATION, style="dim", markup=False)
        for line in report.lost_lines():
            console.print(line, style="yellow", markup=False)
        for name, value in report.conditions.items():
            console.print(f"{name}: {value}", style="dim", markup=False)
    for note in [*report.notes, *report.failures()]:
        console.print(f"note: {note}", style="yellow", markup=False)


def _print_overview(report, console):
    title = f"speed: {report.conditions['processor']}, {overview_words(report)}"
    header = ["\n".join(name.rsplit(" ", 1)) for name in report.overview_header()]  # 80 columns
    _print_table(console, title, header, report.overview_rows())
    shapes = dict.fromkeys(
        (result.case.size, round(result.case.bytes / 1e6, 1))
        for by_pass in report.overview().values()
        for results in by_pass.values()
        for result in results
    )
    arrays = ", ".join(f"{size} ({mb:g} MB)" for size, mb in shapes)
    console.print(f"Arrays of {arrays}. {EXPLANATION}", style="dim", markup=False)


def _print_table(console, title, header, rows):
    table = Table(title=title)
    for name in header:
        left = name in SUMMARY_HEADER[:4]
        table.add_column(name, justify="left" if left else "right", no_wrap=name == "normalizer")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def overview_words(report):
    """Name the setting of the overview, as a person writes it."""
    dtype, threads, isa = report.overview_setting()
    return f"{dtype}, {in_words(threads)}, {isa}"


def to_json(report):
    """All numbers, for programs."""
    return json.dumps(
        {
            "conditions": report.conditions,
            "notes": [*report.notes, *report.failures()],
            "results": [_as_dict(result) for result in report.results],
            "summary": [
                dict(zip(report.summary_keys(), row, strict=True)) for row in report.summary()
            ],
            "lost": [result.case.id for result in report.lost()],
        },
        indent=1,
    )  # fmt: skip


def _as_dict(result):
    case = result.case
    return {
        "norm": case.norm, "pass": case.direction, "layout": case.layout, "dtype": case.dtype,
        "shape": case.shape, "threads": result.threads, "isa": result.isa,
        "bytes": case.bytes, "traffic": case.traffic,
        "seconds": result.seconds, "errors": result.errors,
    }  # fmt: skip


def to_markdown(report):
    """Return a page with the summary, the cases that a peer wins, and the conditions."""
    header, rows, words = without_constants(report.summary_header(), report.summary())
    table = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    lost = [f"- {line}" for line in report.lost_lines()] or ["None."]
    told = [f"- {name}: {value}" for name, value in report.conditions.items()]
    told += [f"- note: {note}" for note in [*report.notes, *report.failures()]]
    return "\n".join(
        [MARKDOWN_TOP, f"## Summary{f' ({words})' if words else ''}", "", *table, "",
         "## Cases above 100 kB in which a peer is faster", "", *lost, "",
         "## Conditions", "", *told, ""]
    )  # fmt: skip


MARKDOWN_TOP = """# Benchmarks

<!-- Written by `fastnorm bench --markdown`: change bench/report.py, not this file. -->

Geometric means over the shapes of layers. *x the limit* is fastnorm's time in that of a kernel that
only moves the same arrays, so 1 is as fast as memory; *x NumPy* is how many times faster than NumPy
fastnorm is, and so on; *worst* is the least favourable shape. All take turns in one run;
[design.md](design.md#measuring) says how, and [performance.md](performance.md) what limits each
normalizer.
"""
