"""Moments, extremes and affine maps of the columns of a matrix, in C or Fortran order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from sklearn import get_config
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


def _blocks(x: Array) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of blocks that lie in one piece where x does."""
    if x.flags.f_contiguous:
        return ((slice(None), columns) for columns in row_blocks(x.T))
    return ((rows, slice(None)) for rows in row_blocks(x))


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


def refuse_infinity(x: Array, found: Array) -> None:
    """Raise scikit-learn's error where `found`, what was made of x, shows that x has infinities."""
    if not np.isfinite(found).all():
        assert_all_finite(x, allow_nan=True, input_name="X")


def moments_of_numbers(x: Array, weight: MaybeArray) -> Moments:
    """Moments of the columns, NaN passed over; each row counts as much as its weight."""
    columns = x.shape[1]
    if weight is None:
        found = moments(x)
        slow = np.flatnonzero(~np.isfinite(found.mean + found.m2))
        if slow.size == 0:
            return found
        refuse_infinity(x, found.mean)
    else:
        found, slow = Moments.empty((columns,)), np.arange(columns)
        refuse_infinity(x, extremes(x))
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
    center, factor, shift = (np.broadcast_to(c, x.shape[1:]) for c in coefficients)
    one = np.ones(x.shape[1])
    finite = get_config()["assume_finite"]
    if out is x and not finite:
        refuse_infinity(x, extremes(x))  # before anything is written
        finite = True
    with np.errstate(over="ignore"):  # a factor of float32 may be infinite
        dtype = np.promote_types(x.dtype, np.float32)
        weight, bias = factor.astype(dtype), shift.astype(dtype)
    for at in _blocks(x):
        if not finite:
            refuse_infinity(x[at], extremes(x[at]))
        c = at[1]
        _apply(x[at], center[c], one[c], weight[c], bias[c], out[at])
        if clip is not None:
            np.clip(out[at], *clip, out=out[at])
    return out


def _output_of(x: Array, given: Any, copy: bool) -> Array:
    converted = isinstance(given, np.ndarray) and not np.may_share_memory(x, given)
    if (converted or not copy) and x.flags.writeable:
        return x
    return _core.empty_like(x.T).T if x.flags.f_contiguous else _core.empty_like(x)


def _apply(x: Array, mean: Array, var: Array, weight: Array, bias: Array, out: Array) -> None:
    layout = "NC"
    if x.flags.f_contiguous:  # one sample, whose channels are the columns
        x, out, layout = x.T[np.newaxis], out.T[np.newaxis], "NCL"
    _core.apply(x, mean, var, weight, bias, None, layout, 0.0, out, False)
