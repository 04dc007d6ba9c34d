"""Trains a small network on scikit-learn's 1797 digits with every normalizer.

What it shows: what micro-batches do to Batch Norm, how far Batch Renorm mends it, that Group and
Layer Norm do not care, and how long normalization takes here and in naive NumPy for the same calls.

In the last rows a micro-batch holds two classes that always come together, two samples of each, as
the labels of one video or one patient do. This is section 4.3 of the Batch Renorm paper, whose
batches hold 16 of 1000 labels, two samples of each. With Batch Norm the network learns to tell two
classes from each other by their batch, which inference does not have. Batch Renorm trains with the
output of inference.
"""

import argparse
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from convnet import small_convnet
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits
from tqdm import tqdm

import fastnorm
from fastnorm.bench import naive  # the same normalizers as a person would write them in NumPy

# learning rate for batches of 64; smaller batches take smaller steps (linear scaling)
RATE = 0.1


def momentum(size):
    """Weight of a batch in the running statistics: less for small batches, so that many count."""
    return min(0.1, 3 * size / 1347)


def renorm(channels, size, steps):
    """Batch Renorm with the paper's schedule, scaled from its 160,000 steps to ours."""
    scale = 160_000 / steps
    return fastnorm.BatchRenorm(
        channels,
        momentum=momentum(size),
        r_max=lambda step: fastnorm.batch_renorm_r_max(int(step * scale)),
        d_max=lambda step: fastnorm.batch_renorm_d_max(int(step * scale)),
    )


NORMS = {
    "none": lambda channels, size, steps: None,
    "BN": lambda channels, size, steps: fastnorm.BatchNorm(channels, momentum=momentum(size)),
    "BRN": renorm,
    "GN": lambda channels, size, steps: fastnorm.GroupNorm(8, channels),
    "LN": lambda channels, size, steps: fastnorm.LayerNorm(channels, axis=1),
}


class Timed:
    """A normalizer that is timed, and every training call of it repeated and timed in NumPy."""

    def __init__(self, layer, name):
        self.layer, self.name = layer, name
        self.ours = self.numpy = 0.0

    params = property(lambda self: self.layer.params)
    grads = property(lambda self: self.layer.grads)

    def train(self, mode=True):
        """Pass on."""
        self.layer.train(mode)

    def __call__(self, x):
        self.x = x if self.layer.training else None
        start = time.perf_counter()
        y = self.layer(x)
        if self.layer.training:
            self.ours += time.perf_counter() - start
        return y

    def backward(self, dy):
        """Time it, then naive NumPy on the same arrays, forward and backward."""
        start = time.perf_counter()
        dx = self.layer.backward(dy)
        self.ours += time.perf_counter() - start
        forward = self.in_numpy()
        if self.name == "LN":  # over the channels of each pixel
            dy = np.moveaxis(dy, 1, -1)
        start = time.perf_counter()
        _, cache = forward()
        naive.backward(dy, cache)
        self.numpy += time.perf_counter() - start
        return dx

    def in_numpy(self):
        """Return the forward call in bench/naive.py; what it needs is copied before it is timed."""
        x, weight, bias = self.x, self.params["weight"], self.params["bias"]
        if self.name == "GN":
            return lambda: naive.group_norm(x, self.layer.num_groups, weight, bias, "NCHW")
        if self.name == "LN":
            return lambda: naive.layer_norm(np.moveaxis(x, 1, -1), weight, bias)
        function = naive.batch_norm if self.name == "BN" else naive.batch_renorm
        running = [self.layer.buffers[k].copy() for k in ("running_mean", "running_var")]
        return lambda: function(x, weight, bias, *running, True, "NCHW")


def batches(rng, labels, size, pairs):
    """Yield the indices of an epoch, batch by batch; of pairs: digits 0 and 5, or 1 and 6, ..."""
    count = len(labels) // size
    if not pairs:
        yield from rng.permutation(len(labels))[: count * size].reshape(count, size)
        return
    of = [np.flatnonzero(labels == digit) for digit in range(10)]
    for digit in rng.integers(5, size=count):
        both = (of[digit], of[digit + 5])
        yield np.concatenate([rng.choice(each, size // 2, replace=False) for each in both])


def accuracy(network, x, labels):
    """Of inference, in batches."""
    network.train(False)
    right = sum((network(x[i : i + 256]).argmax(1) == labels[i : i + 256]).sum()
                for i in range(0, len(x), 256))  # fmt: skip
    network.train(True)
    return float(right) / len(x)


@threadpool_limits.wrap(limits=1)  # products this small take longer on two threads than on one
def train(name, size, pairs, data, epochs, seed=0):
    """Train once; returns accuracies by epoch and the seconds in normalization."""
    x_train, x_test, y_train, y_test = data
    rng = np.random.default_rng(seed)
    steps = epochs * (len(x_train) // size)
    timed = []

    def make(channels):
        layer = NORMS[name](channels, size, steps)
        if layer is not None:
            timed.append(Timed(layer, name))
            return timed[-1]
        return None

    network = small_convnet(rng, make)
    rate = RATE * size / 64
    curve = []
    title = f"{name:4} {in_words(size, pairs)}"
    step = 0
    # disable=None: no bar where stderr is no terminal
    with tqdm(total=steps, desc=title, leave=False, disable=None) as bar:
        for _ in range(epochs):
            for index in batches(rng, y_train, size, pairs):
                network.loss_and_backward(x_train[index], y_train[index])
                network.step(rate * 0.5 * (1 + np.cos(np.pi * step / steps)))
                step += 1
                bar.update()
            curve.append(accuracy(network, x_test, y_test))
    return curve, sum(t.ours for t in timed), sum(t.numpy for t in timed)


def load():
    """Digits as NCHW float32 in [0, 1], split in the same way every time."""
    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    return train_test_split(
        x, digits.target, test_size=0.25, random_state=0, stratify=digits.target
    )


def in_words(size, pairs):
    """Name a kind of batches."""
    return f"of {size}, 2 classes" if pairs else f"of {size}"


def draw(results, path):
    """Test accuracy by epoch, one panel for each kind of batch."""
    kinds = list(dict.fromkeys((size, pairs) for _, size, pairs in results))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.6), sharey=True)
    for axis, (size, pairs) in zip(np.atleast_1d(axes), kinds, strict=True):
        for name in NORMS:
            curve = results[name, size, pairs][0]
            axis.plot(range(1, len(curve) + 1), [100 * a for a in curve], label=name, marker=".")
        axis.set_title(f"batches {in_words(size, pairs)}")
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("test accuracy, %")
    np.atleast_1d(axes)[-1].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def print_table(results):
    """Accuracy of the last epoch and the seconds in normalization."""
    table = Table(title="1797 digits, a small convolutional network")
    for column in ("batches", "normalizer", "test accuracy", "s in fastnorm", "s in naive NumPy"):
        table.add_column(column, justify="left" if column in ("batches", "normalizer") else "right")
    for (name, size, pairs), (curve, ours, numpy) in results.items():
        cells = [f"{ours:.2f}", f"{numpy:.2f}"] if name != "none" else ["", ""]
        table.add_row(in_words(size, pairs), name, f"{100 * curve[-1]:.1f} %", *cells,
                      end_section=name == list(NORMS)[-1])  # fmt: skip
    Console(width=None if Console().is_terminal else 90).print(table)


def main():
    """Train all, print the table, draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="draw the curves there, as digits.png")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="five epochs, batches of 64 only")
    options = parser.parse_args()
    kinds = [(64, False)] if options.quick else [(64, False), (4, False), (4, True)]
    data = load()
    results = {}
    for size, pairs in kinds:
        for name in NORMS:
            epochs = 5 if options.quick else options.epochs
            results[name, size, pairs] = train(name, size, pairs, data, epochs)
    print_table(results)
    if options.output:
        draw(results, options.output)
        print(f"curves: {options.output}")


if __name__ == "__main__":
    main()
