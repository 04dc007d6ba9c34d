"""Moments, extremes and affine maps of the columns of a matrix, in C or Fortran order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite
from sklearn.utils.sparsefuncs import mean_variance_axis

from .. import _core
from .._types import Array, MaybeArray
from ..moments import Moments

# scikit-learn's: what is no float becomes the first
FLOATS = (np.float64, np.float32, np.float16)
# of an array that is walked in blocks: the second step finds in the cache what the first one read
BLOCK_BYTES = 4 << 20


@contextmanager
def unchanged_on_error(estimator: Any) -> Iterator[None]:
    """Put the attributes back when the call fails: validation alone sets some."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def row_blocks(x: Array) -> Iterator[slice]:
    rows = max(1, BLOCK_BYTES // max(1, x.shape[1] * x.itemsize))
    return (slice(r, r + rows) for r in range(0, len(x), rows))


def _pieces(x: Array) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of what the C library takes at once: all, or columns, or blocks of rows."""
    every = slice(None)
    if x.flags.c_contiguous:
        return iter([(every, every)])
    if x.flags.f_contiguous:
        return ((every, slice(c, c + 1)) for c in range(x.shape[1]))
    return ((rows, every) for rows in row_blocks(x))


def moments(x: Array) -> Moments:
    """Moments of the columns; not finite where a column is not."""
    if x.flags.f_contiguous:
        return Moments.from_array(x.T, axis=1)
    if x.flags.c_contiguous:
        return Moments.from_array(x)
    return Moments.merge(Moments.from_array(x[rows]) for rows in row_blocks(x))


def extremes(x: Array) -> Array:
    """Return least and largest number of each column, (2, columns), NaN passed over."""
    if x.flags.f_contiguous:
        return np.concatenate([_core.extremes(column[:, np.newaxis]) for column in x.T], axis=1)
    if x.flags.c_contiguous:
        return _core.extremes(x)
    found = np.stack([_core.extremes(x[rows]) for rows in row_blocks(x)])
    return np.stack([np.fmin.reduce(found[:, 0]), np.fmax.reduce(found[:, 1])])


def refuse_infinity(x: Array) -> None:
    """Raise scikit-learn's error where x has infinities, but for where it is told not to look."""
    assert_all_finite(x, allow_nan=True, input_name="X")


def moments_of_numbers(x: Array, weight: MaybeArray) -> Moments:
    """Moments of the columns, NaN passed over; each row counts as much as its weight."""
    columns = x.shape[1]
    if weight is None:
        found = moments(x)
        slow = np.flatnonzero(~np.isfinite(found.mean + found.m2))
        if slow.size == 0:
            return found
        refuse_infinity(x)
    else:
        found, slow = Moments.empty((columns,)), np.arange(columns)
        refuse_infinity(x)
    merged = Moments.merge(
        _block_moments(x[rows, slow], None if weight is None else weight[rows])
        for rows in row_blocks(x)
    )
    count, mean, m2 = np.full(columns, float(len(x))), found.mean.copy(), found.m2.copy()
    count[slow], mean[slow], m2[slow] = merged.count, merged.mean, merged.m2
    return Moments(count, mean, m2)


def _block_moments(x: Array, weight: MaybeArray) -> Moments:
    x = x.astype(np.float64)
    w = ~np.isnan(x) * (1.0 if weight is None else weight[:, np.newaxis])
    x[np.isnan(x)] = 0
    count = w.sum(0)
    some = np.where(count > 0, count, 1)
    mean = (w * x).sum(0) / some
    x -= mean
    left = (w * x).sum(0) / some  # what rounding took from the mean
    return Moments(count, mean + left, (w * x * x).sum(0) - left * left * count)


def sparse_moments(x: Any, weight: MaybeArray) -> Moments:
    """Moments of the columns of a CSR or CSC matrix, NaN passed over."""
    if weight is not None:
        weight = weight.astype(x.dtype)
    mean, var, count = mean_variance_axis(x, axis=0, weights=weight, return_sum_weights=True)
    count = np.asarray(count, np.float64)
    return Moments(
        count,
        np.where(count > 0, mean, 0).astype(np.float64),
        np.where(count > 0, var, 0).astype(np.float64) * count,
    )


def affine(
    x: Array,
    given: Any,
    copy: bool,
    coefficients: tuple[Any, Any, Any],
    clip: tuple[float, float] | None = None,
) -> Array:
    """``(x - center) * factor + shift`` for coefficients of each column, or of all; clipped.

    Written into x where `copy` is False, or where x is a conversion of what was `given`.
    """
    out = _output_of(x, given, copy)
    c = np.stack([np.broadcast_to(v, x.shape[1:]) for v in coefficients])
    if out is x and np.isinf(extremes(x)).any():  # before anything is written
        refuse_infinity(x)
    for at in _pieces(x):
        source, target = x[at], out[at]
        if not source.flags.c_contiguous or not target.flags.c_contiguous:
            source = target = np.array(source, order="C")
        center, factor, shift = c[:, at[1]]
        infinite = _core.affine(source, center, factor, shift, target)
        if infinite and out is not x:
            refuse_infinity(x)
        if clip is not None:
            np.clip(target, *clip, out=target)
        if not np.may_share_memory(target, out):
            out[at] = target
    return out


def _output_of(x: Array, given: Any, copy: bool) -> Array:
    converted = isinstance(given, np.ndarray) and not np.may_share_memory(x, given)
    if (converted or not copy) and x.flags.writeable:
        return x
    return _core.empty_like(x.T).T if x.flags.f_contiguous else _core.empty_like(x)
