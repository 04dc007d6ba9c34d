"""What callers give: checks that name the argument at fault, and masked arrays."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import numpy as np

from .._check import keeping_mask
from .._types import Array

# scikit-learn's: what is no float becomes the first
FLOATS = (np.float64, np.float32, np.float16)

Bounds = tuple[float, float] | None


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


@contextmanager
def named(argument: str) -> Iterator[None]:
    """Put the argument's name before errors of NumPy and scikit-learn that do not have it."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if re.search(rf"\b{argument}\b", str(error)):
            raise
        kind = ValueError if isinstance(error, ValueError) else TypeError
        raise kind(f"{argument}: {error}") from error


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected a bool, got {value!r}")
    return bool(value)


def output_dtype(value: Any) -> np.dtype[Any] | None:
    if value is None:
        return None
    try:
        found: np.dtype[Any] = np.dtype(value).newbyteorder("=")
    except (TypeError, ValueError):
        found = np.dtype(object)
    if found not in FLOATS:
        raise TypeError(f"dtype: expected None, float16, float32 or float64, got {value!r}")
    return found


def number_pair(value: Any, name: str) -> tuple[float, float]:
    """Return a tuple of two numbers, which may be infinite or out of order."""
    some = value if isinstance(value, (tuple, list)) else ()
    if not some or not all(_is_number(v) for v in some):
        raise TypeError(f"{name}: expected a tuple of two numbers, got {value!r}")
    if len(some) != 2:
        raise ValueError(f"{name}: expected two numbers, got {value!r}")
    return float(some[0]), float(some[1])


def clip_bounds(value: Any) -> Bounds:
    if value is None or value is False:
        return None
    if _is_number(value):
        if not value > 0:
            raise ValueError(f"clip: expected a number above 0, got {value!r}")
        return -float(value), float(value)
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"clip: expected None, a number or a pair of numbers, got {value!r}")
    low, high = number_pair(value, "clip")
    if not low < high:
        raise ValueError(f"clip: expected (low, high) with low < high, got {value!r}")
    return low, high


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))


def sample_weights(given: Any, rows: int) -> Array:
    refuse_mask(given, "sample_weight", "0 leaves a sample out: sample_weight.filled(0)")
    with named("sample_weight"):
        weight = np.asarray(given)
        if weight.dtype.kind == "c":
            raise TypeError(f"sample_weight: expected real numbers, got {weight.dtype}")
        weight = weight.astype(np.float64)
    if weight.ndim == 0:
        weight = np.repeat(weight, rows)
    if weight.shape != (rows,):
        raise ValueError(f"sample_weight: expected shape ({rows},), got {weight.shape}")
    bad = weight[~((weight >= 0) & (weight < np.inf))]
    if bad.size:
        raise ValueError(
            f"sample_weight: expected finite numbers of at least 0, got {bad[0].item()!r}"
        )
    if not weight.any():
        raise ValueError("sample_weight: expected at least one above 0, got only zeros")
    return weight


def refuse_mask(x: Any, name: str, advice: str) -> None:
    x = keeping_mask(x)
    if np.ma.is_masked(x):
        count = np.count_nonzero(np.ma.getmaskarray(x))
        raise TypeError(
            f"{name}: expected an array without masked values, got {count} of them; {advice}"
        )


def without_mask(x: Any) -> Any:
    """Return x with NaN where it is masked; scikit-learn would take what lies below the mask."""
    x = keeping_mask(x)
    if not isinstance(x, np.ma.MaskedArray):
        return x
    if not np.ma.is_masked(x):
        return np.asarray(x)
    if x.dtype.kind in "iub":
        x = x.astype(np.float64)
    return np.asarray(x.filled(np.nan))


def with_mask(y: Array, given: Any) -> Array:
    """Return y with the mask of what was given: NaN lies below it, whoever drops the mask."""
    if not isinstance(given, np.ma.MaskedArray):
        return y
    return np.ma.array(y, mask=np.ma.getmaskarray(given), fill_value=np.nan)
