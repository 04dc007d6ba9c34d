"""Moments and extremes of the columns of a matrix, in C or Fortran order, or in neither."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .. import _core
from .._types import Array, MaybeArray
from .moments import Moments, measure

# of an array that is walked in blocks: the second step finds in the cache what the first one read
BLOCK_BYTES = 4 << 20


def row_blocks(x: Array) -> Iterator[slice]:
    """Cut x along its first axis."""
    rows = max(1, BLOCK_BYTES * len(x) // max(1, x.size * x.itemsize))
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
