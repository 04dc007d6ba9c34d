"""Normalizers with what stands around them: ``fastnorm bench-fused``.

A sum, a normalizer and an activation in one call of fastnorm, beside the memory limit of as many
bytes and beside the calls one by one, of fastnorm and of others. All take turns in one process.
"""

from dataclasses import dataclass
from itertools import product

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import fastnorm
from fastnorm import activations
from fastnorm._core import memory_limit
from fastnorm.bench import peers as modules
from fastnorm.bench.cases import QUICK, ROW_NORMS, Case, dtype_of, laid
from fastnorm.bench.command import Shape, Threads, several
from fastnorm.bench.compare import Comparison, sample
from fastnorm.bench.conditions import conditions
from fastnorm.bench.fused_calls import CONTESTANTS, PEERS, Beside
from fastnorm.bench.measure import LIMIT, measure

# the normalizer, and what is around it; one line for each that is measured
OPERATIONS = {
    "batch norm + shortcut + relu": ("batch_norm", {"shortcut": True, "activation": "relu"}),
    "group norm + silu": ("group_norm", {"activation": "silu"}),
    "add + RMS norm": ("rms_norm", {"residual": True}),
    "add + layer norm": ("layer_norm", {"residual": True}),
}
SHAPES = [*QUICK, (4, 64, 14, 14), (512, 768)]  # 25 MB, and what lies in the L2


@dataclass(frozen=True)
class Fused:
    """One measurement: a normalizer's case, and what is around it."""

    operation: str
    plain: Case
    activation: str | None = None
    shortcut: bool = False
    residual: bool = False

    @property
    def id(self):
        """Name of the case."""
        return f"{self.operation} {self.plain.layout} {self.plain.direction} {self.plain.size}"

    @property
    def moved(self):
        """Arrays that the pass at least reads, and writes."""
        if self.plain.direction == "forward":
            return 1 + self.shortcut + self.residual, 1 + self.residual
        # of x, dy and what is beside; the gradient of a residual is that of x. Relu's bend needs
        # the shortcut.
        return 2 + self.shortcut + self.residual, 1 + self.shortcut

    def prepare(self):
        """Make the arrays."""
        case, rng = self.plain, np.random.default_rng(2)
        plain, backward = case.prepare(), case.direction == "backward"

        def array(wanted=True):
            if not wanted:
                return None
            made = laid(np.empty(case.room, np.uint8), case.stored, dtype_of(case.dtype))
            made[...] = rng.standard_normal(made.shape)
            return made

        shortcut, residual = array(self.shortcut), array(self.residual)
        total, ds = array(self.residual), array(self.residual and backward)
        if self.residual:
            np.add(plain.x, residual, out=total)
        kept = backward and self.activation is not None
        z, dz = array(kept), array(kept)
        if kept:
            args, kwargs = plain.arguments()
            getattr(fastnorm, case.norm)(plain.x, *args, **kwargs, out=z)
            if shortcut is not None:
                z += shortcut
            if self.activation == "relu":  # which everyone's backward takes of its output as well
                activations.relu(z, out=z)
        return Beside(plain, self.activation, shortcut, residual, total, ds, z, dz)


def cases(shapes=SHAPES, operations=OPERATIONS):
    """All cases of the shapes."""
    return [
        Fused(name, Case(norm, layout, direction, shape), **around)
        for shape in shapes
        for name, (norm, around) in OPERATIONS.items()
        if name in operations and (norm in ROW_NORMS) == (len(shape) == 2)
        for layout in (["rows"] if norm in ROW_NORMS else ["NCHW", "NHWC"])
        for direction in ("forward", "backward")
    ]


def limit_calls(case):
    """Return kernels that only stream as many bytes: copies, or sums of two arrays."""
    reads, writes = case.moved
    size = case.plain.bytes // 4
    arrays = 2 if reads == writes else 3
    x, dy, out = (np.ones(size * (reads + writes) // arrays, np.float32) for _ in range(3))
    dy = None if arrays == 2 else dy
    return {
        name: lambda stream=stream: memory_limit(x, dy, out, stream)
        for name, stream in LIMIT.items()
    }


def large(result):
    """Return what a call gave in the shape of x: outputs, or gradients."""
    if hasattr(result, "shortcut"):
        return [a for a in (result.x, result.shortcut) if a is not None]
    return result if isinstance(result, tuple) else (result,)


def run(case, names, threads, rounds):
    """Measure a case: median seconds of each contestant, and why others have none."""
    arrays, calls, errors = case.prepare(), {}, {}
    compared = Comparison(case.plain)
    for name in names:
        needs, make = CONTESTANTS[name]
        try:
            modules.load(needs).set_threads(threads)
            call = make(arrays)
            if call is None:
                continue
            found = [sample(array, case.plain) for array in large(call())]  # may also compile
            compared.take(name, np.concatenate(found))
            calls[name] = call
        except Exception as error:  # the others go on
            errors[name] = modules.first_line(error)
    seconds, late = measure({**limit_calls(case), **calls}, rounds)
    seconds["limit"] = min(seconds.pop(name) for name in LIMIT)
    return seconds, errors | late


def row(case, threads, seconds, errors, names):
    """Return the cells of a case."""
    plain = case.plain
    ours = seconds.get("fastnorm")
    cells = [case.operation, plain.layout, plain.direction, plain.size, str(threads)]
    if ours is None:
        return [*cells, "failed", *[""] * (len(names) + 1)]
    found = [name for name in PEERS if name in seconds]
    best = min(found, key=seconds.get, default=None)
    ratio = {name: f"{seconds[name] / ours:.2f}" for name in names if name in seconds}
    cells += [f"{ours * 1e3:.3g}", f"{ours / seconds['limit']:.2f}"]
    cells.append("-" if best is None else f"{ratio[best]} {best}")
    failed = dict.fromkeys(errors, "failed")
    return cells + [{**failed, **ratio}.get(name, "-") for name in names if name != "fastnorm"]


def columns(names):
    """Return their heads."""
    others = [f"x {name.removeprefix('fastnorm, ')}" for name in names if name != "fastnorm"]
    return ["operation", "layout", "pass", "shape", "threads", "ms", "x the limit",
            "x the best peer", *others]  # fmt: skip


def tell(rows, names, markdown):
    """Print the table, for people or for a document."""
    if markdown:
        click.echo(f"| {' | '.join(columns(names))} |")
        click.echo("| --- " * len(columns(names)) + "|")
        for cells in rows:
            click.echo(f"| {' | '.join(cells)} |")
        click.echo("\n## Conditions\n")
        return
    table = Table(title="x the limit: 1 is as fast as memory. Others: times faster than they")
    for i, head in enumerate(columns(names)):
        table.add_column(head, justify="left" if i < 4 else "right")
    for cells in rows:
        table.add_row(*cells)
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


@click.command("bench-fused")
@click.option("--shape", "shapes", type=Shape(), multiple=True, help="NxCxHxW or ROWSxFEATURES.")
@several("--operations", OPERATIONS, "What to measure; all by default.")
@click.option("--threads", type=Threads(), default="1,2", help="As 1,2.")
@several("--peers", PEERS, "Whom to compare with; all that are installed by default.")
@click.option("--rounds", type=click.IntRange(1), default=5, help="Samples of each; 5.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
def command(shapes, operations, threads, peers, rounds, markdown):
    """Compare fused calls with the memory limit and with separate calls, in turns, in one run."""
    wanted = ["fastnorm", *(peers or PEERS)]
    found, versions, notes = modules.find(wanted)
    names = [name for name, (needs, _) in CONTESTANTS.items() if needs in found]
    selected = cases(dict.fromkeys(shapes) or SHAPES, operations or OPERATIONS)
    if not selected:
        raise click.UsageError("no such case: add + norm takes ROWSxFEATURES, others NxCxHxW")
    said = [f"{name}: {value}" for name, value in conditions(versions, rounds).items()] + notes
    rows = []
    try:
        # threads outermost, as in `fastnorm bench`; disable=None: no bar where there is no terminal
        for n, case in tqdm(list(product(threads, selected)), leave=False, disable=None):
            seconds, errors = run(case, names, n, rounds)
            rows.append(row(case, n, seconds, errors, names))
            said += [f"{case.id}, {name}: {error}" for name, error in errors.items()]
    finally:
        fastnorm.set_num_threads(0)
    tell(rows, names, markdown)
    for line in said:
        click.echo(f"- {line}")
