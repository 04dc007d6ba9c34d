"""What the examples of fused calls share: one network twice, by fused and by separate calls.

A network has `params`, a dict of arrays; `clock`, which runs while it normalizes; `state`, arrays
that training updates besides the parameters; ``forward(*batch)``, which returns the loss and what
backward needs; and ``backward(tape)``, which returns gradients by the names of the parameters, and
takes from the tape what it has done with, so that memory is free early.
"""

import argparse
import statistics
import time
import tracemalloc
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import fastnorm

MOMENTUM = 0.9
STEP = 1e-6  # of the finite differences
TOLERANCE = 1e-6  # of a slope, where its loss is about 1


class Clock:
    """Seconds inside its ``with`` blocks."""

    seconds = 0.0

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *error):
        self.seconds += time.perf_counter() - self.start


@dataclass
class Measured:
    """One of the two networks: a number for each step, and the memory of a step."""

    losses: list = field(default_factory=list)
    norm_seconds: list = field(default_factory=list)
    step_seconds: list = field(default_factory=list)
    kept: int = 0  # bytes that forward leaves for backward
    peak: int = 0  # bytes at most, during the step

    def milliseconds(self):
        """Return medians: of normalization, and of the whole step."""
        return [1e3 * statistics.median(s) for s in (self.norm_seconds, self.step_seconds)]


def softmax_loss(logits, labels):
    """Return the mean cross-entropy of rows of logits, and its gradient."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    rows = np.arange(len(p))
    loss = -np.log(p[rows, labels]).mean()
    p[rows, labels] -= 1
    p /= p.dtype.type(len(p))
    return float(loss), p


def step(network, batch, velocity, rate):
    """Train once: forward, backward, and SGD with momentum; return the loss."""
    loss, tape = network.forward(*batch)
    gradients = network.backward(tape)
    for name, param in network.params.items():
        velocity[name] *= MOMENTUM
        velocity[name] -= rate * gradients[name]
        param += velocity[name]
    return loss


def train(networks, batches, rate):
    """Train all networks on the same batches, in turns, so that both meet the same machine."""
    velocities = {
        name: {k: np.zeros_like(v) for k, v in network.params.items()}
        for name, network in networks.items()
    }
    measured = {name: Measured() for name in networks}
    # disable=None: no bar where stderr is no terminal
    for i, batch in enumerate(tqdm(batches, unit="step", leave=False, disable=None)):
        for name in sorted(networks, reverse=i % 2):  # each is the first in every other step
            network, of = networks[name], measured[name]
            network.clock.seconds = 0.0
            start = time.perf_counter()
            of.losses.append(step(network, batch, velocities[name], rate))
            of.step_seconds.append(time.perf_counter() - start)
            of.norm_seconds.append(network.clock.seconds)
    for name, network in networks.items():
        measured[name].kept, measured[name].peak = memory(network, batches[0])
    return measured


def memory(network, batch):
    """Return the bytes that forward leaves for backward, and the most during both."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        _, tape = network.forward(*batch)
        kept = tracemalloc.get_traced_memory()[0] - before
        network.backward(tape)
        return kept, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def same_bits(networks, measured):
    """Whether all losses, parameters and other arrays are the same, bit for bit."""
    first, second = networks.values()
    losses = [m.losses for m in measured.values()]
    arrays = [{**n.params, **n.state} for n in (first, second)]
    return losses[0] == losses[1] and all(
        arrays[0][name].tobytes() == arrays[1][name].tobytes() for name in arrays[0]
    )


def check(network, batch, rng):
    """Compare gradients in float64 with finite differences; return the largest error.

    Each parameter takes a small step forth and back in a direction by chance: the loss must change
    as the gradient says. The direction has length 1.
    """
    _, tape = network.forward(*batch)
    gradients = network.backward(tape)
    worst = 0.0
    for name, param in network.params.items():
        direction = rng.standard_normal(param.shape)
        direction /= np.linalg.norm(direction)
        at, losses = param.copy(), []
        for sign in (1, -1):
            param[...] = at + sign * STEP * direction
            losses.append(network.forward(*batch)[0])
        param[...] = at
        slope = (losses[0] - losses[1]) / (2 * STEP)
        worst = max(worst, abs(slope - float((gradients[name] * direction).sum())))
    return worst


def print_table(title, measured):
    """Print time and memory, a row for each network."""
    table = Table(title=title)
    for column in ("calls", "normalization, ms", "whole step, ms", "kept for backward, MB",
                   "most memory, MB", "last loss"):  # fmt: skip
        table.add_column(column, justify="left" if column == "calls" else "right")
    for name, m in measured.items():
        times = [f"{t:.2f}" for t in m.milliseconds()]
        table.add_row(name, *times, f"{m.kept / 1e6:.1f}", f"{m.peak / 1e6:.1f}",
                      f"{m.losses[-1]:.3f}")  # fmt: skip
    Console(width=None if Console().is_terminal else 100).print(table)


def draw(title, measured, path):
    """Bars: time of a step, of which normalization is a part, and memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 2.6))
    names = list(measured)
    norms, steps = zip(*(m.milliseconds() for m in measured.values()), strict=True)
    left.barh(names, steps, color="#c8d3de", label="whole step")
    left.barh(names, norms, color="#2b6ca3", label="normalization")
    left.set_xlabel("ms")
    right.barh(names, [m.peak / 1e6 for m in measured.values()], color="#c8d3de", label="most")
    right.barh(names, [m.kept / 1e6 for m in measured.values()], color="#2b6ca3", label="kept")
    right.set_xlabel("MB")
    for axis in (left, right):
        axis.invert_yaxis()
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, bbox_to_anchor=(0, 1.02), loc="lower left", ncols=2)
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def options(doc, arguments, **defaults):
    """Parse what both examples take: whole numbers, and what to do."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    for name, (default, text) in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{text} ({default})")
    parser.add_argument("--threads", type=int, default=1, help="of products and of fastnorm (1)")
    parser.add_argument("--picture", type=Path, help="draw time and memory there")
    parser.add_argument("--check", action="store_true", help="only compare gradients in float64 "
                        "with finite differences")  # fmt: skip
    return parser.parse_args(arguments)


def main(title, make, batches, chosen, rate):
    """Check or train, and tell; `make(fused, dtype)` makes a network."""
    with threadpool_limits(limits=chosen.threads):
        before = fastnorm.get_num_threads()
        fastnorm.set_num_threads(chosen.threads)
        try:
            return _check(make, batches[0]) if chosen.check else (
                _train(title, make, batches, chosen.picture, rate))  # fmt: skip
        finally:
            fastnorm.set_num_threads(before)


def _check(make, batch):
    for name, fused in (("fused", True), ("separate", False)):
        worst = check(make(fused, np.float64), batch, np.random.default_rng(1))
        print(f"{name}: gradients and finite differences differ by {worst:.1e} at most")
        if not worst < TOLERANCE:
            raise SystemExit("the gradients are wrong")
    return None


def _train(title, make, batches, picture, rate):
    networks = {"fused": make(True, np.float32), "separate": make(False, np.float32)}
    measured = train(networks, batches, rate)
    if not same_bits(networks, measured):
        raise SystemExit("fused and separate calls gave different bits")
    print_table(title, measured)
    print(f"{len(batches)} steps: losses and parameters of both are the same, bit for bit")
    if picture:
        draw(title, measured, picture)
        print(f"picture: {picture}")
    return measured
