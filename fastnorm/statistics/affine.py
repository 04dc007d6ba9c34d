"""The affine map of scaling: ``(x - center) * factor + shift``, of each feature its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import _core
from .._types import Array
from .columns import row_blocks

# coefficients are repeated for at most so many elements; from so many on a call of its own is worth
# its cost, about 5 microseconds
REPEATED, ALONE = 1 << 16, 1 << 12


def affine(x: Array, coefficients: Sequence[Any], axes: tuple[int, ...], out: Array) -> bool:
    """``out = (x - center) * factor + shift``; return whether x has infinities.

    The coefficients, float64, are those of the features, which have the shape of the axes besides
    `axes`, or of all. `out` is x, or does not overlap it.
    """
    features = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    own = [np.broadcast_to(c, features) for c in coefficients]
    if x.flags.c_contiguous and out.flags.c_contiguous:
        return _dense(x, own, axes, out)
    if x.flags.f_contiguous and out.flags.f_contiguous:
        flipped = tuple(x.ndim - 1 - a for a in axes)
        return _dense(x.T, [c.T for c in own], flipped, out.T)
    blocks = list(row_blocks(x))
    room = np.empty(x[blocks[0]].shape if blocks else (0, *x.shape[1:]), x.dtype)
    infinite = False
    for rows in blocks:  # where the C library can read them: in one memory, made first
        block = room[: len(x[rows])]
        np.copyto(block, x[rows])
        infinite |= _dense(block, own if 0 in axes else [c[rows] for c in own], axes, block)
        np.copyto(out[rows], block)
    return infinite


def _dense(x: Array, coefficients: list[Array], axes: tuple[int, ...], out: Array) -> bool:
    """In C order: as matrices whose columns, or rows, are features.

    Features with other axes between or behind them are repeated for these, in parts: x of shape
    (9, 5, 2) and axes 0 and 2, for example, is a matrix of 9 rows and 10 columns.
    """
    leading = 0
    while leading in axes:
        leading += 1
    by_row = leading == 0 and len(axes) > 0 and min(axes) == x.ndim - len(axes)
    columns = math.prod(x.shape[leading:])
    few = columns <= REPEATED if leading else x[:1].size < ALONE
    if by_row or leading == len(axes) or (few and columns <= REPEATED):
        if leading < len(axes) and not by_row:
            behind = tuple(a - leading for a in axes if a >= leading)
            shape = x.shape[leading:]
            coefficients = [np.broadcast_to(np.expand_dims(c, behind), shape) for c in coefficients]
        rows = math.prod(x.shape[: min(axes) if by_row else leading])
        matrix = (rows, x.size // max(1, rows) if by_row else columns)
        center, factor, shift = (np.asarray(c, np.float64).reshape(-1) for c in coefficients)
        target = out.reshape(matrix)
        return _core.affine(x.reshape(matrix), center, factor, shift, target, by_row)
    infinite = False
    step = max(1, REPEATED * len(x) // x.size) if few and not leading else 1
    for i in range(0, len(x), step):
        some: Any = slice(i, i + step) if step > 1 else i
        own = coefficients if leading else [c[some] for c in coefficients]
        behind = axes if step > 1 else tuple(a - 1 for a in axes if a)
        infinite |= _dense(x[some], own, behind, out[some])
    return infinite
