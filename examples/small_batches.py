"""What a small batch does to Batch Norm: theory against 1797 real digits.

The data are random projections of scikit-learn's digits, on the whitened principal components that
hold 90 % of their variance: what a first layer with random weights makes of real pictures. Their
distribution is nearly normal (kurtosis 2.96 on average, 3 is normal), which the first two formulas
assume. Behind a ReLU it is not (kurtosis 5.2), and the same batch measures the variance worse.

For a batch of B values of a channel, with mean mu_B and biased variance sigma_B^2, where those of
the data are mu and sigma^2:

- The unbiased variance s^2 has ``E (s^2 / sigma^2 - 1)^2 = 2 / (B - 1)`` for normal values, and
  ``(kurtosis - (B - 3) / (B - 1)) / B`` for any.
- *Mismatch* is the mean over a batch of ``(y_training - y_inference)^2``, in units of the output's
  variance: how far what training computes is from what inference would. With z = (x - mu) / sigma,
  d = (mu_B - mu) / sigma and s = sigma_B / sigma it is ``d^2 + (1 - s)^2``, as z = d + s y. To
  first order ``E d^2 = 1 / B`` and ``E (1 - s)^2 = 1 / (2 B)``: together 3 / (2 B). For normal
  values ``E d^2 = 1 / B`` and ``E s^2 = (B - 1) / B`` exactly, so that it is ``2 (1 - E s)``, where
  ``E s = sqrt(2 / B) gamma(B / 2) / gamma((B - 1) / 2)``: 3 / (2 B) + 7 / (16 B^2) + ...
"""

import argparse
from dataclasses import dataclass
from math import exp, lgamma, sqrt
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from tqdm import tqdm

import fastnorm

SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
CHANNELS = 1024
TINY = 1e-12  # eps: a batch may hold the same digit twice, and has no variance then


def variance_error(size, kurtosis=3.0):
    """Return the expected squared relative error of the unbiased variance of `size` values."""
    return (kurtosis - (size - 3) / (size - 1)) / size


def mismatch(size):
    """Return the expected mismatch of training and inference for `size` normal values."""
    mean_s = sqrt(2 / size) * exp(lgamma(size / 2) - lgamma((size - 1) / 2))
    return 2 * (1 - mean_s)


@dataclass
class Measured:
    """One batch size."""

    size: int
    variance_error: float
    mismatch: float
    relu_variance_error: float


def projections(rng):
    """Random projections of the digits, (1797, CHANNELS), standardized."""
    x = load_digits().data
    u, s, _ = np.linalg.svd(x - x.mean(0), full_matrices=False)
    kept = np.searchsorted(np.cumsum(s**2) / (s**2).sum(), 0.9) + 1
    return standardized(u[:, :kept] @ rng.standard_normal((kept, CHANNELS)))


def standardized(x):
    """Return x with mean 0 and variance 1 in every channel, so that this is what is true."""
    return fastnorm.batch_norm(x, training=True, eps=0.0)


def kurtosis(x):
    """Return the mean fourth power of standardized channels."""
    return float((x**4).mean())


def squared_error(batches):
    """Return the mean squared error of unbiased variances; one is the truth."""
    return float(((fastnorm.Moments.from_array(batches).var(ddof=1) - 1) ** 2).mean())


def measure(x, relu, rng, batches=400_000):
    """Draw batches with replacement from the channels of x and relu, and measure both formulas.

    A batch is a column: normalizing an array of (size, batches) is Batch Norm of each of them.
    """
    zero, one = np.zeros(CHANNELS), np.ones(CHANNELS)
    results = []
    for size in tqdm(SIZES, desc="batch sizes", leave=False, disable=None):
        sums = np.zeros(3)
        rounds = max(1, batches // CHANNELS)
        for _ in range(rounds):
            drawn = rng.integers(len(x), size=(size, CHANNELS))
            batch = np.take_along_axis(x, drawn, 0)
            training = fastnorm.batch_norm(batch, training=True, eps=TINY)
            inference = fastnorm.batch_norm(batch, running_mean=zero, running_var=one, eps=TINY)
            apart = float(((training - inference) ** 2).mean())
            through_relu = squared_error(np.take_along_axis(relu, drawn, 0))
            sums += squared_error(batch), apart, through_relu
        results.append(Measured(size, *(sums / rounds).tolist()))
    return results


def draw(results, relu_kurtosis, path):
    """Measured dots on predicted lines, one panel for each formula."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2))
    sizes = [r.size for r in results]
    fine = np.geomspace(sizes[0], sizes[-1], 200)
    left.plot(fine, [variance_error(b) for b in fine], "C0", label="2 / (B - 1)")
    left.plot(sizes, [r.variance_error for r in results], "C0o", label="digits, projected")
    left.plot(fine, [variance_error(b, relu_kurtosis) for b in fine], "C1--",
              label=f"kurtosis {relu_kurtosis:.1f}")  # fmt: skip
    left.plot(sizes, [r.relu_variance_error for r in results], "C1s", label="behind a ReLU")
    left.set_title("squared relative error of the variance of a batch")
    right.plot(fine, [mismatch(b) for b in fine], "C0", label="2 (1 - E s)")
    right.plot(fine, 1.5 / fine, "C0:", label="3 / (2 B)")
    right.plot(sizes, [r.mismatch for r in results], "C0o", label="digits, projected")
    right.set_title("mean squared difference, training to inference")
    for axis in (left, right):
        axis.set(xscale="log", yscale="log", xlabel="samples in a batch, B")
        axis.set_xticks(sizes, [str(b) for b in sizes], minor=False)
        axis.set_xticks([], minor=True)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def print_table(results, relu_kurtosis):
    """Measured against predicted, in percent of the variance."""
    table = Table(title="Batches of B values: measured (predicted), % of the variance")
    for column in ("B", "error of the variance", "behind a ReLU", "mismatch", "3 / (2 B)"):
        table.add_column(column, justify="right")
    for r in results:
        pairs = (
            (r.variance_error, variance_error(r.size)),
            (r.relu_variance_error, variance_error(r.size, relu_kurtosis)),
            (r.mismatch, mismatch(r.size)),
        )
        cells = [f"{100 * found:.1f} ({100 * said:.1f})" for found, said in pairs]
        table.add_row(str(r.size), *cells, f"{150 / r.size:.1f}")
    Console(width=None if Console().is_terminal else 90).print(table)


def main(arguments=None):
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="draw a picture there, as small_batches.png")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    x = projections(rng)
    relu = standardized(np.maximum(x, 0))
    results = measure(x, relu, rng)
    print(f"kurtosis of the projections {kurtosis(x):.2f}, behind a ReLU {kurtosis(relu):.2f}")
    print_table(results, kurtosis(relu))
    if options.output:
        draw(results, kurtosis(relu), options.output)
        print(f"picture: {options.output}")
    return results, kurtosis(relu)


if __name__ == "__main__":
    main()
