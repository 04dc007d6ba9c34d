"""The command line of ``fastnorm bench``."""

import os
import shlex
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from tqdm import tqdm

import fastnorm
from fastnorm.bench import measure, processes
from fastnorm.bench import peers as contestants
from fastnorm.bench.cases import DTYPES, LAYOUTS, NORMS, PASSES, QUICK, SHAPES, cases
from fastnorm.bench.conditions import conditions
from fastnorm.bench.report import Report, print_report, to_json, to_markdown

WHICH = ("norms", "passes", "layouts", "dtypes")  # options that `cases` takes

NO_CASE = (
    "no such case: layer_norm and rms_norm take ROWSxFEATURES, others NxCxHxW; inference is "
    "measured where it differs from forward"
)

BUSY = (
    "the machine was busy in the minute before: where threads wait for each other on a busy core, "
    "rows can be wrong by factors"
)


class Names(click.ParamType):
    """Names of a list, separated by commas; "all" is all of them."""

    name = "names"

    def __init__(self, choices):
        self.choices = list(choices)
        self.choice = click.Choice([*self.choices, "all"])

    def get_metavar(self, param, ctx=None):
        return f"[{'|'.join(self.choice.choices)}][,...]"

    def convert(self, value, param, ctx):
        names = [self.choice.convert(name.strip(), param, ctx) for name in value.split(",")]
        return self.choices if "all" in names else names


class Shape(click.ParamType):
    """As 32x64x56x56 (N, C, H, W) or 8192x768 (rows, features)."""

    name = "shape"

    def convert(self, value, param, ctx):
        parts = value.split("x")
        if len(parts) not in (2, 4) or not all(p.isdecimal() and int(p) > 0 for p in parts):
            self.fail(f"{value!r} is not a shape: expected NxCxHxW or ROWSxFEATURES", param, ctx)
        return tuple(map(int, parts))


class Threads(click.ParamType):
    """Numbers separated by commas."""

    name = "numbers"

    def convert(self, value, param, ctx):
        parts = value.split(",")
        if not all(p.strip().isdecimal() and int(p) > 0 for p in parts):
            self.fail(f"{value!r}: expected positive numbers, such as 1,2", param, ctx)
        return [int(p) for p in parts]


def _flat(ctx, param, values):
    """Join what a repeated option gave, without repetitions; None where it was not given."""
    return list(dict.fromkeys(v for several in values for v in several)) or None


def _target(ctx, param, path):
    """Refuse before the run, not after it, a file that cannot be written."""
    if path is not None and not os.access(path.parent, os.W_OK):
        raise click.BadParameter(f"{path.parent} is not a folder that can be written to")
    return path


def several(flag, choices, text, *name):
    return click.option(flag, *name, type=Names(choices), multiple=True, callback=_flat, help=text)


def file_option(flag, text):
    path = click.Path(dir_okay=False, path_type=Path)
    return click.option(flag, type=path, callback=_target, help=text)


@click.command("bench")
@several("--set", SHAPES, "Sets of shapes; tiny where neither a set nor a shape is given.", "sets")
@click.option("--shape", "shapes", type=Shape(), multiple=True, help="NxCxHxW or ROWSxFEATURES.")
@several("--norms", NORMS, "Normalizers; all by default.")
@several("--passes", PASSES, "Passes; all by default.")
@several("--layouts", LAYOUTS, "Layouts of images; all by default.")
@several("--dtypes", DTYPES, "Dtypes; float32 by default.")
@click.option("--threads", type=Threads(), help="As 1,2; by default as many as fastnorm takes.")
@several("--isas", fastnorm.available_isas(), "Instruction sets of fastnorm; the best by default.")
@several("--peers", contestants.PEERS, "Whom to compare with; all that are installed by default.")
@click.option("--rounds", type=click.IntRange(1), help="Samples of each; 5, with --quick 3.")
@click.option(
    "--quick", is_flag=True,
    help="Channels first and rows, one shape of each, NumPy, 3 rounds, where not told otherwise; "
    "prints a row for each normalizer.",
)  # fmt: skip
@click.option(
    "--as-installed", is_flag=True,
    help="Each contestant in a process of its own, with its own defaults: as a user gets it. Else "
    "all are in one process, with as many threads, which spin while they wait.",
)  # fmt: skip
@click.option(
    "--network", is_flag=True,
    help="With --as-installed: each call behind a matrix product of NumPy, timed together.",
)  # fmt: skip
@click.option("--busy", type=click.IntRange(0), default=0, help="So many processes compute too.")
@file_option("--json", "Write all numbers.")
@file_option("--plot", "Write a picture, GB/s against bytes (.png, .svg, .pdf).")
@file_option("--html", "Write a page with table and plots.")
@file_option("--markdown", "Write a page with the summary, as docs/benchmarks.md.")
@file_option("--picture", "Write a picture of the summary, as docs/speed.svg (.png, .svg, .pdf).")
def command(
    sets, shapes, threads, isas, peers, rounds, quick, as_installed, network, busy, **options
):  # fmt: skip
    """Compare fastnorm with the memory limit and with other libraries, in turns, in one run."""
    shapes = [*(shape for name in sets or () for shape in SHAPES[name]), *shapes]
    if quick:
        shapes, peers, rounds = shapes or QUICK, peers or ["numpy"], rounds or 3
    shapes, rounds = shapes or SHAPES["tiny"], rounds or 5
    which = {name: options[name] for name in WHICH if options[name]}
    usual = {"layouts": LAYOUTS[:1], "passes": ["forward", "backward"]} if quick else {}
    selected = cases(dict.fromkeys(shapes), **{"layouts": LAYOUTS, **usual, **which})
    if not selected:
        raise click.UsageError(NO_CASE)
    if as_installed and (threads or isas):
        raise click.UsageError("--as-installed takes the defaults of threads and instruction sets")
    if network and not as_installed:
        raise click.UsageError("--network needs --as-installed")
    writers = _writers(options)
    names = ["fastnorm", *(peers or contestants.PEERS)]
    loaded = os.getloadavg()[0] > 1
    with processes.busy(busy):
        if as_installed:
            report = _as_installed(selected, names, network, rounds)
        else:
            report = _in_one_process(selected, names, threads, isas, rounds)
    if busy:
        report.conditions["other work"] = f"{busy} processes that compute"
    report.conditions["command"] = shlex.join(["fastnorm", *sys.argv[1:]])
    if loaded:
        report.notes.append(BUSY)
    console = Console()
    print_report(report, console if console.is_terminal else Console(width=200), quick)
    for path, contents in writers.items():
        write(path, contents(report))


@contextmanager
def _settings_kept():
    isa = fastnorm.get_isa()
    try:
        yield
    finally:
        fastnorm.set_isa(isa)
        fastnorm.set_num_threads(0)


def _in_one_process(selected, names, threads, isas, rounds):
    modules, versions, notes = contestants.find(names)
    report = Report([p for p in modules if p != "fastnorm"], {}, notes)
    report.conditions = conditions(versions, rounds)
    # threads outermost: JAX starts anew for another number
    settings = threads or [fastnorm.get_num_threads()], isas or [fastnorm.get_isa()]
    todo = [(case, n, isa) for n in settings[0] for isa in settings[1] for case in selected]
    with _settings_kept():
        for case, n, isa in _progress(todo):
            report.results.append(measure.run(case, modules, n, isa, rounds))
    return report


def _as_installed(selected, names, network, rounds):
    with processes.started(names, selected, network) as (contestants, versions, notes):
        report = Report([p for p in versions if p != "fastnorm"], {}, notes)
        report.conditions = conditions(versions, rounds)
        report.conditions["waiting threads"] = "each contestant in its own process, as it waits"
        report.conditions["memory"] = "each contestant as it gets its memory"
        if network:
            size = processes.PRODUCT
            report.conditions["network"] = (
                f"each call behind NumPy's product of two matrices of {size}x{size}, timed together"
            )
        for (case,) in _progress([(case,) for case in selected]):
            report.results.append(processes.run(case, *contestants, rounds))
    return report


def _progress(todo):
    # disable=None: no bar where stderr is no terminal
    for some in (bar := tqdm(todo, unit="case", leave=False, disable=None)):
        bar.set_description(some[0].id)
        yield some


def _writers(options):
    """Return what makes the contents of each file; imports what it needs before the run."""
    writers = {}
    if path := options["json"]:
        writers[path] = to_json
    if path := options["html"]:
        from fastnorm.bench.plots import page

        writers[path] = page
    if path := options["markdown"]:
        writers[path] = to_markdown
    for name in ("plot", "picture"):
        if path := options[name]:
            writers[path] = _image(name, path)
    return writers


def _image(name, path):
    from fastnorm.bench.plots import picture, roofline

    if path.suffix not in (".png", ".svg", ".pdf"):
        raise click.BadParameter(f"{path}: expected .png, .svg or .pdf", param_hint=f"--{name}")
    draw = {"plot": roofline, "picture": picture}[name]
    return lambda report: draw(report, path.suffix[1:])


def write(path, contents):
    """All or nothing: a reader never sees half a file."""
    data = contents if isinstance(contents, bytes) else contents.encode()
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as scratch:
        try:
            scratch.write(data)
            scratch.close()
            os.chmod(scratch.name, 0o644)
            os.replace(scratch.name, path)
        except BaseException:
            os.unlink(scratch.name)
            raise
