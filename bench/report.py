"""What a run gives, as rows: the table of cases, the summary, and the cases that a peer wins."""

import json
from dataclasses import dataclass, field
from itertools import groupby
from math import exp, log

from rich.table import Table

from fastnorm.bench.measure import Result

MARKERS = ("<!-- benchmark:start -->", "<!-- benchmark:end -->")
NAMES = {"numpy": "NumPy", "torch": "torch", "onednn": "oneDNN", "jax": "JAX"}
WON = 0.95  # of fastnorm's time: a peer below it is faster, beyond the noise
NOTABLE_BYTES = 100_000


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
            "x the limit", *(f"x faster than {NAMES[name]}" for name in self.peers),
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
        return [*SUMMARY_HEADER, *(f"x faster than {NAMES[name]}" for name in self.peers)]

    def summary_keys(self):
        """Name them for programs: each once."""
        header = self.summary_header()
        return [*header[:8], "worst of limit", header[9], "worst of best peer", *header[11:]]

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
    "x faster than the best peer", "worst",
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


def _mean_cell(ratios):
    found = [ratio for ratio in ratios if ratio is not None]
    return f"{geomean(found):.2f}" if found else "-"


def geomean(values):
    """Geometric mean."""
    return exp(sum(map(log, values)) / len(values))


def without_constants(header, rows, keep=2):
    """Return both without the columns of settings that never vary, and those as words."""
    settings = ["layout", "dtype", "threads", "isa"]
    constant = [
        i for i, name in enumerate(header)
        if i >= keep and name in settings and len({row[i] for row in rows}) == 1
    ]  # fmt: skip
    words = [in_words(rows[0][i]) if header[i] == "threads" else rows[0][i] for i in constant]
    shorter = [[v for i, v in enumerate(row) if i not in constant] for row in [header, *rows]]
    return shorter[0], shorter[1:], ", ".join(words)


def in_words(threads):
    """As a person writes it."""
    return f"{threads} thread" if int(threads) == 1 else f"{threads} threads"


def print_report(report, console):
    """On the terminal: cases, summary, lost cases, conditions, notes."""
    for title, header, rows in (
        ("cases", report.header(), report.rows()),
        ("summary: geometric means over the shapes", report.summary_header(), report.summary()),
    ):
        header, rows, words = without_constants(header, rows)
        table = Table(title=f"{title} ({words})" if words else title)
        for name in header:
            table.add_column(name, justify="left" if name in SUMMARY_HEADER[:4] else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in report.lost_lines():
        console.print(line, style="yellow", markup=False)
    for name, value in report.conditions.items():
        console.print(f"{name}: {value}", style="dim", markup=False)
    for note in [*report.notes, *report.failures()]:
        console.print(f"note: {note}", style="yellow", markup=False)


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


def to_markdown(report, text):
    """Return the text with the summary between its markers replaced."""
    before, rest = text.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    header, rows, words = without_constants(report.summary_header(), report.summary())
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    told = ["processor", "versions", "date"]
    end = ", ".join([words, *(report.conditions[name] for name in told)]) + "."
    return before + "\n".join([MARKERS[0], *lines, "", end, MARKERS[1]]) + after
