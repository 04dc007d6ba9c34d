"""Quantiles of the columns of a matrix: exact ones in memory, and those of parts by sketches."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
from scipy import sparse

from .._types import Array
from ..outofcore._checks import extra
from ..statistics.columns import BLOCK_BYTES

# A centroid of a sketch next to quantile q holds up to pi * sqrt(q * (1 - q)) / COMPRESSION of all
# samples; interpolation between centroids errs by about half of that. Below COMPRESSION * 2 / pi
# samples each has a centroid of its own.
COMPRESSION = 1000
# values that stand for a column of more: each for at most 1 / SUMMARY of the samples
SUMMARY = 1024

Summary = tuple[Array, float]


def _columns_of(x: Any) -> Iterator[Array]:
    """Values of one column after the other, without NaN."""
    # a few columns of what is in C order are read at once, since they share cache lines
    together = max(1, BLOCK_BYTES // max(1, x.shape[0] * x.dtype.itemsize))
    for start in range(0, x.shape[1], together):
        some = x[:, start : start + together]
        rows = np.ascontiguousarray(some.toarray().T if sparse.issparse(some) else some.T)
        for values in rows:
            unknown = np.isnan(values)
            yield values[~unknown] if unknown.any() else values


def exact(x: Any, q: Array) -> tuple[Array, list[Summary]]:
    """Quantiles of each column, (len(q), columns), float64, as ``np.nanquantile`` has them.

    Also the summary of each column: values at equal distances in its order, and how many samples
    each stands for. With it, sketches can go on where this ended.
    """
    found, summaries = np.empty((len(q), x.shape[1])), []
    for j, values in enumerate(_columns_of(x)):
        ordered = np.sort(values)
        found[:, j] = _interpolate(ordered, q)
        kept = np.linspace(0, len(ordered) - 1, min(len(ordered), SUMMARY))
        each = len(ordered) / len(kept) if len(kept) else 1.0
        summaries.append((ordered[np.rint(kept).astype(np.intp)], each))
    return found, summaries


def _interpolate(ordered: Array, q: Array) -> Array:
    if ordered.size == 0:
        return np.full(len(q), np.nan)
    at = q * (len(ordered) - 1)
    low = np.floor(at).astype(np.intp)
    high = np.minimum(low + 1, len(ordered) - 1)
    a, b = ordered[low].astype(np.float64), ordered[high].astype(np.float64)
    t, step = at - low, b - a
    # NumPy's rounding; a where a == b
    found: Array = np.where(t < 0.5, a + step * t, b - step * (1 - t))
    return found


def sketch(x: Any, before: list[Any]) -> list[Any]:
    """Sketches of the columns of x and of what was seen before, which stays as it is."""
    found = deepcopy(before)
    for each, values in zip(found, _columns_of(x), strict=True):
        each.update(values)
    return found


def sketches_of(summaries: list[Summary]) -> list[Any]:
    """Return the sketches of columns of which there are summaries."""
    digest = extra("crick", "sketch").TDigest
    found = [digest(COMPRESSION) for _ in summaries]
    for each, (values, weight) in zip(found, summaries, strict=True):
        each.update(values, weight)
    return found


def estimate(sketches: list[Any], q: Array) -> Array:
    """Quantiles of what was sketched, (len(q), columns)."""
    return np.stack([_estimate(each.centroids(), q) for each in sketches], axis=1)


def _estimate(centroids: Array, q: Array) -> Array:
    """Interpolate between the ranks of centroids: exact where each is one sample."""
    weight = centroids["weight"]
    if weight.size == 0:
        return np.full(len(q), np.nan)
    ranks = np.cumsum(weight) - (weight + 1) / 2
    found: Array = np.interp(q * (weight.sum() - 1), ranks, centroids["mean"])
    return found
