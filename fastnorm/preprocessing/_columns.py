"""What the scalers do with the columns of a matrix, with scikit-learn's errors."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import assert_all_finite

from .. import _core
from .._types import Array, MaybeArray
from ..statistics import columns
from ..statistics.affine import affine as affine_of
from ..statistics.moments import Moments


def refuse_infinity(x: Array) -> None:
    """Raise scikit-learn's error where x has infinities, but for where it is told not to look."""
    assert_all_finite(x, allow_nan=True, input_name="X")


def moments_of_numbers(x: Array, weight: MaybeArray) -> Moments:
    """Moments of the columns, NaN passed over; each row counts as much as its weight."""
    found = columns.moments(x, weight, skip_nan=True)
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
    if out is x and np.isinf(columns.extremes(x)).any():  # before anything is written
        refuse_infinity(x)
    infinite = affine_of(x, coefficients, (0,), out)
    if infinite and out is not x:
        refuse_infinity(x)
    if clip is not None:
        np.clip(out, *clip, out=out)
    return out


def _output_of(x: Array, given: Any, copy: bool) -> Array:
    converted = isinstance(given, np.ndarray) and not np.may_share_memory(x, given)
    if (converted or not copy) and x.flags.writeable:
        return x
    return _core.empty_like(x.T).T if x.flags.f_contiguous else _core.empty_like(x)
