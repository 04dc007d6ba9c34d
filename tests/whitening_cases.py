"""What the tests of whitening share: inputs, and the definition in plain NumPy."""

import functools

import numpy as np
from cases import is_last

import fastnorm

FUNCTIONS = {
    "dbn": (fastnorm.decorrelated_batch_norm, None),
    "iter-1": (functools.partial(fastnorm.iter_norm, iterations=1), 1),
    "iter-5": (fastnorm.iter_norm, 5),
    "iter-7": (functools.partial(fastnorm.iter_norm, iterations=7), 7),
}
LAYOUTS = {
    "NC": (19, 8), "NCL": (5, 8, 3), "NLC": (5, 3, 8), "NCHW": (4, 8, 6, 5), "NHWC": (4, 6, 5, 8),
    "NCDHW": (3, 8, 3, 4, 2), "NDHWC": (3, 3, 4, 2, 8), "channels_first": (3, 8, 2, 1, 3, 4),
    "channels_last": (40, 8),
}  # fmt: skip


def grouped(x, size, layout):
    """(groups, size, values), in float64."""
    x = np.moveaxis(np.asarray(x, np.float64), -1 if is_last(layout) else 1, 0)
    return x.reshape(-1, size, x[0].size)


def root(cov, eps, iterations):
    """The matrix that whitens one group, by the definition."""
    cov = cov + eps * np.eye(len(cov))
    if iterations is None:
        values, vectors = np.linalg.eigh(cov)
        return vectors / np.sqrt(values) @ vectors.T
    trace, p = np.trace(cov), np.eye(len(cov))
    for _ in range(iterations):
        p = (3 * p - p @ p @ p @ cov / trace) / 2
    return p / np.sqrt(trace)


def plain(x, size, layout, iterations=None, eps=1e-5):
    """y without weight and bias, and mean and biased covariance of each group."""
    groups = grouped(x, size, layout)
    mean = groups.mean(2, keepdims=True)
    cov = (groups - mean) @ (groups - mean).transpose(0, 2, 1) / groups.shape[2]
    y = np.array([root(c, eps, iterations) for c in cov]) @ (groups - mean)
    first = np.moveaxis(x, -1, 1) if is_last(layout) else x
    y = np.moveaxis(y.reshape(first.shape[1], first.shape[0], *first.shape[2:]), 0, 1)
    return np.moveaxis(y, 1, -1) if is_last(layout) else y, mean.ravel(), cov


def mix(rng, x, layout):
    """Correlate the channels."""
    axis = x.ndim - 1 if is_last(layout) else 1
    c = x.shape[axis]
    matrix = np.eye(c) + 0.3 * rng.standard_normal((c, c))
    return np.moveaxis(np.tensordot(matrix, x, (1, axis)), 0, axis)


def draw(rng, layout, dtype=np.float64, shape=None):
    x = mix(rng, rng.standard_normal(shape or LAYOUTS[layout]), layout) + 0.7
    return np.ascontiguousarray(x, dtype)


def parameters(rng, channels, size, dtype=np.float64):
    """weight, bias, running mean and covariance."""
    w, b, mean = rng.uniform(0.5, 1.5, (3, channels))
    a = rng.standard_normal((channels // size, size, 2 * size))
    return [v.astype(dtype) for v in (w, b, mean, a @ a.transpose(0, 2, 1) / size)]
