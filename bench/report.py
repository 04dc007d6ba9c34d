"""The table: fastnorm, naive NumPy and a copy of the same traffic, in turns, in one run.

The copy is np.copyto, and for backward, which reads two arrays, np.add of two into a third.

python bench/report.py [--quick] [--markdown README.md]
"""

import argparse
import platform
import statistics
import time
from pathlib import Path

from cases import SHAPES, cases
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import fastnorm

MARKERS = ("<!-- benchmark:start -->", "<!-- benchmark:end -->")
QUICK = [(32, 512, 28, 28), (8192, 768)]
LEAST_SECONDS = 2e-3  # of a sample; shorter calls are repeated


def timed(call, repeats):
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(calls, rounds=5):
    """Median seconds of each, interleaved, after a warm-up that finds the number of repeats."""
    callables = {"fastnorm": calls.fastnorm, "numpy": calls.numpy, "copy": calls.copy}
    repeats = {}
    for name, call in callables.items():
        call()
        repeats[name] = max(1, int(LEAST_SECONDS / timed(call, 1)))
    samples = {name: [] for name in callables}
    for _ in range(rounds):
        for name, call in callables.items():
            samples[name].append(timed(call, repeats[name]))
    return {name: statistics.median(values) for name, values in samples.items()}


def rows(selected, rounds):
    for case in tqdm(selected, desc="benchmark", unit="case", leave=False):
        seconds = measure(case.prepare(), rounds)
        yield [
            case.norm,
            case.direction,
            case.layout,
            "x".join(map(str, case.shape)),
            f"{seconds['fastnorm'] * 1e3:.3g}",
            f"{seconds['numpy'] / seconds['fastnorm']:.1f}",
            f"{seconds['fastnorm'] / seconds['copy']:.2f}",
        ]


HEADER = ["normalizer", "pass", "layout", "shape", "ms", "x faster than NumPy", "x a NumPy copy"]


def conditions():
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            s.split(":")[1].strip() for s in info.read_text().splitlines() if "model name" in s
        ]
        processor = names[0] if names else processor
    return (
        f"fastnorm {fastnorm.__version__}, {fastnorm.get_num_threads()} threads, "
        f"{fastnorm.get_isa()}, {processor}, float32, {time.strftime('%Y-%m-%d')}"
    )


def print_table(table_rows):
    table = Table(*HEADER, title=conditions())
    for row in table_rows:
        table.add_row(*row)
    Console(width=None if Console().is_terminal else 110).print(table)


def write_markdown(path, table_rows):
    text = path.read_text()
    before, rest = text.split(MARKERS[0])
    _, after = rest.split(MARKERS[1])
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    lines += ["| " + " | ".join(row) + " |" for row in table_rows]
    block = "\n".join([MARKERS[0], *lines, "", conditions() + ".", MARKERS[1]])
    path.write_text(before + block + after)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a shape of ResNet-50 and one of BERT")
    parser.add_argument("--sets", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--rounds", type=int, help="5, and 3 with --quick")
    parser.add_argument("--markdown", type=Path, help="file whose marked table is replaced")
    options = parser.parse_args()
    selected = cases(options.sets)
    if options.quick:
        selected = [case for case in selected if case.shape in QUICK]
    found = list(rows(selected, options.rounds or (3 if options.quick else 5)))
    print_table(found)
    if options.markdown:
        write_markdown(options.markdown, found)


if __name__ == "__main__":
    main()
