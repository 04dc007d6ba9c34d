"""Moments, extremes and scaling of the columns of a CSR or CSC matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.sparsefuncs import inplace_column_scale, min_max_axis

from .._types import Array, MaybeArray
from ..statistics.moments import Moments
from ._checks import Bounds

# stored values that are taken at once: sums of more would lose digits
BLOCK = 1 << 13


def canonical(x: Any) -> Any:
    """Return x with each element stored once."""
    if not x.has_canonical_format:
        x = x.copy()
        x.sum_duplicates()
    return x


def moments(x: Any, weight: MaybeArray) -> Moments:
    """Moments of the columns, NaN passed over; each row counts as much as its weight."""
    x = canonical(x)
    rows, columns = x.shape
    found, stored, unstored = Moments.empty((columns,)), np.zeros(columns), np.full(columns, rows)
    for start in range(0, x.nnz, BLOCK):
        at = np.arange(start, min(start + BLOCK, x.nnz))
        outer, inner = np.searchsorted(x.indptr, at, "right") - 1, x.indices[at]
        row, column = (outer, inner) if x.format == "csr" else (inner, outer)
        w = np.ones(len(at)) if weight is None else weight[row]
        stored += np.bincount(column, w, columns)
        unstored -= np.bincount(column, minlength=columns)
        value = x.data[at].astype(np.float64)
        known = ~np.isnan(value)
        found += _scattered(value[known], column[known], w[known], columns)
    zeros = (rows if weight is None else weight.sum()) - stored
    zeros = np.where(unstored > 0, np.maximum(zeros, 0), 0)  # not what rounding leaves of weights
    return found + Moments(zeros, np.zeros(columns), np.zeros(columns))


def _scattered(value: Array, column: Array, weight: Array, columns: int) -> Moments:
    """Moments of values of one column or another."""
    count = np.bincount(column, weight, columns)

    def average(of: Array) -> Array:
        return np.bincount(column, weight * of, columns) / np.where(count > 0, count, 1)

    pivot = np.zeros(columns)
    pivot[column] = value  # one of each column, so that constant ones deviate by exactly 0
    deviation = value - pivot[column]
    mean = average(deviation)
    deviation -= mean[column]
    left = average(deviation)  # what rounding took from the mean
    var = np.maximum(average(deviation * deviation) - left * left, 0)
    return Moments(count, np.where(count > 0, pivot + (mean + left), 0), var * count)


def extremes(x: Any) -> Array:
    """Return least and largest number of each column, (2, columns), NaN passed over."""
    return np.stack(min_max_axis(canonical(x), axis=0, ignore_nan=True)).astype(np.float64)


def scale(x: Any, factor: Array, clip: Bounds, dtype: np.dtype[Any] | None) -> Any:
    """Multiply each column; in x itself where that has the dtype."""
    result = x.dtype if dtype is None else dtype
    x = x.astype(np.result_type(x.dtype, result), copy=False)
    inplace_column_scale(x, factor)
    if clip is not None:
        np.clip(x.data, *clip, out=x.data)
    return x.astype(result, copy=False)
