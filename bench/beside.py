"""What a call takes beside other work: ``python -m fastnorm.bench.beside``.

Beside processes that compute, and in a process in which other libraries' threads spin after their
own calls: fastnorm as installed in time of fastnorm with one thread, each in a new process.
"""

import json
import subprocess
import sys
import time

import numpy as np

import fastnorm
from fastnorm.bench import peers
from fastnorm.bench.cases import Case
from fastnorm.bench.processes import busy, matrix_product

CASES = [
    Case("layer_norm", "rows", "forward", (2000, 1000)),
    Case("rms_norm", "rows", "forward", (300, 1000)),
    Case("batch_norm", "NCHW", "forward", (8, 64, 56, 56)),
    Case("batch_norm", "NCHW", "backward", (32, 64, 56, 56)),
    Case("batch_norm", "NCHW", "forward", (32, 64, 112, 112)),
]
CALLS = 150
BESIDE = {  # processes that compute, and what is called between fastnorm's calls
    "nothing": (0, None),
    "one process that computes": (1, None),
    "two": (2, None),
    "NumPy's products": (0, "numpy"),
    "torch's layer norm": (0, "torch"),
    "oneDNN's layer norm": (0, "onednn"),
    "onnxruntime's layer norm": (0, "onnxruntime"),
}


def other_call(name):
    """Return a call of about a millisecond that leaves threads behind which spin."""
    if name is None:
        return lambda: None
    if name == "numpy":
        return matrix_product()
    return peers.load(name).prepare(CASES[0].prepare())


def percentiles(threads, between):
    """Median and 90th percentile of each case, in seconds; threads 0: as installed."""
    fastnorm.set_num_threads(threads)
    other, found = other_call(between), []
    for case in CASES:
        call, seconds = peers.load("fastnorm").prepare(case.prepare()), []
        for _ in range(CALLS):
            other()
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        found.append([float(np.percentile(seconds, part)) for part in (50, 90)])
    return found


def in_process(threads, between):
    """Do the same in a new process."""
    program = (
        "import json; from fastnorm.bench.beside import percentiles\n"
        f"print(json.dumps(percentiles({threads}, {between!r})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return json.loads(done.stdout)


def main():
    """Print a table as Markdown."""
    print("| beside | " + " | ".join(f"{c.norm} {c.direction} {c.size}" for c in CASES) + " |")
    print("| --- " * (1 + len(CASES)) + "|")
    for name, (processes, between) in BESIDE.items():
        with busy(processes):
            one, all_threads = in_process(1, between), in_process(0, between)
        cells = (
            f"{m / one_m:.2f}, {p / one_p:.2f}"
            for (m, p), (one_m, one_p) in zip(all_threads, one, strict=True)
        )
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
