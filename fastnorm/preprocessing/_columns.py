"""Moments, extremes and affine maps of the columns of a matrix, in C or Fortran order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite

from .. import _core
from .._types import Array, MaybeArray
from ..moments import Moments, measure

# of an array that is walked in blocks: the second step finds in the cache what the first one read
BLOCK_BYTES = 4 << 20


def row_blocks(x: Array) -> Iterator[slice]:
    rows = max(1, BLOCK_BYTES // max(1, x.shape[1] * x.itemsize))
    return (slice(r, r + rows) for r in range(0, len(x), rows))


def moments(x: Array, weight: MaybeArray = None, skip_nan: bool = False) -> Moments:
    """Moments of the columns; not finite where a column is not."""
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return measure(x.T, 1, None, skip_nan, weight)
    if x.flags.c_contiguous:
        return measure(x, 0, None, skip_nan, weight)
    return Moments.merge(
        measure(x[rows], 0, None, skip_nan, None if weight is None else weight[rows])
        for rows in row_blocks(x)
    )


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
    found = moments(x, weight, skip_nan=True)
    if not np.isfinite(found.mean + found.m2).all():
        refuse_infinity(x)
    return found


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
    center, factor, shift = (np.broadcast_to(v, x.shape[1:]) for v in coefficients)
    if out is x and np.isinf(extremes(x)).any():  # before anything is written
        refuse_infinity(x)
    if x.flags.c_contiguous and out.flags.c_contiguous:
        infinite = _core.affine(x, center, factor, shift, out)
    elif x.flags.f_contiguous and out.flags.f_contiguous:
        infinite = _core.affine(x.T, center, factor, shift, out.T, by_row=True)
    else:
        infinite = _affine_by_blocks(x, (center, factor, shift), out)
    if infinite and out is not x:
        refuse_infinity(x)
    if clip is not None:
        np.clip(out, *clip, out=out)
    return out


def _affine_by_blocks(x: Array, coefficients: tuple[Array, Array, Array], out: Array) -> bool:
    """Copy blocks of rows to where the C library can read them: to one memory, made first."""
    blocks = list(row_blocks(x))
    room = np.empty(x[blocks[0]].shape if blocks else (0, x.shape[1]), x.dtype)
    infinite, (center, factor, shift) = False, coefficients
    for rows in blocks:
        block = room[: len(x[rows])]
        np.copyto(block, x[rows])
        infinite |= _core.affine(block, center, factor, shift, block)
        np.copyto(out[rows], block)
    return infinite


def _output_of(x: Array, given: Any, copy: bool) -> Array:
    converted = isinstance(given, np.ndarray) and not np.may_share_memory(x, given)
    if (converted or not copy) and x.flags.writeable:
        return x
    return _core.empty_like(x.T).T if x.flags.f_contiguous else _core.empty_like(x)
