"""How much correlation normalizers leave between channels, on real digits.

The channels are what two 3x3 convolutions of random weights, with a ReLU between, make of
scikit-learn's digits: 32 channels, of which 16 each are whitened together. Measured are, after each
normalizer in training:

- the mean magnitude of the correlation of two channels, within a group and of all channels;
- the least and the largest variance of a direction, a combination of a group's channels of length
  1. White are those that have 1 in all directions.

Batch Norm cannot change a correlation. IterNorm works from the large directions down, a step of
Newton each; Decorrelated Batch Norm is where it goes, but for eps.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from sklearn.datasets import load_digits

import fastnorm

GROUP = 16
STEPS = range(1, 8)


def convolve(x, channels, rng):
    """Return a 3x3 convolution of (N, C, H, W) with random weights."""
    windows = sliding_window_view(x, (3, 3), (2, 3))
    weight = rng.standard_normal((channels, x.shape[1], 3, 3)) / np.sqrt(9 * x.shape[1])
    return np.einsum("nchwij,dcij->ndhw", windows, weight, optimize=True)


def features(seed=0):
    """Return what two convolutions make of the digits, (1797, 32, 4, 4)."""
    rng = np.random.default_rng(seed)
    images = load_digits().images[:, np.newaxis] / 16
    hidden = np.maximum(convolve(images, 16, rng), 0)
    return convolve(hidden, 2 * GROUP, rng)


def correlation_left(y, size):
    """Return the mean magnitude of correlations within groups of `size` channels."""
    flat = np.moveaxis(y, 1, 0).reshape(-1, size, y[:, 0].size)
    apart = ~np.eye(size, dtype=bool)
    return float(np.mean([np.abs(np.corrcoef(group))[apart].mean() for group in flat]))


def variances(y):
    """Return the least and the largest variance of a direction in any group."""
    flat = np.moveaxis(y, 1, 0).reshape(-1, GROUP, y[:, 0].size)
    values = np.linalg.eigvalsh([np.cov(group, ddof=0) for group in flat])
    return float(values.min()), float(values.max())


def measure(x):
    """Return (name, correlation in a group, of all channels, least and largest variance)."""
    iterated = {
        f"`iter_norm`, {t} step{'s' if t > 1 else ''}": fastnorm.iter_norm(
            x, training=True, group_size=GROUP, iterations=t
        )
        for t in STEPS
    }
    results = {
        "none": x,
        "`batch_norm`": fastnorm.batch_norm(x, training=True),
        **iterated,
        "`decorrelated_batch_norm`": fastnorm.decorrelated_batch_norm(
            x, training=True, group_size=GROUP
        ),
    }
    return [
        (name, correlation_left(y, GROUP), correlation_left(y, x.shape[1]), *variances(y))
        for name, y in results.items()
    ]


def rows(results):
    """Return the lines of a table."""
    return [
        f"| {name} | {group:.3f} | {everything:.3f} | {least:.2g} | {largest:.3g} |"
        for name, group, everything, least, largest in results
    ]


def main():
    """Measure and print."""
    results = measure(features())
    print("| normalizer | correlation in a group | of all channels | least variance | largest |")
    print("| --- | --- | --- | --- | --- |")
    print("\n".join(rows(results)))
    return results


if __name__ == "__main__":
    main()
