"""What scaling by features needs, whatever holds the array: statistics, and how they are used."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .. import _core
from .._check import as_the_core
from .._types import Array, Axes
from ..moments import Moments


@dataclass(frozen=True, eq=False)
class Extremes:
    """Smallest and largest value of each feature: to min-max scaling what `Moments` is to standard.

    Features without values have NaN, which is the neutral element.
    """

    low: Array
    high: Array

    @classmethod
    def from_array(cls, x: Array, axis: Axes) -> Extremes:
        leading = len(np.atleast_1d(axis))
        is_matrix = [*np.atleast_1d(axis)] == [*range(leading)] and x.flags.c_contiguous
        if is_matrix and x.dtype.kind == "f" and x.size:
            features = x.shape[leading:]
            low, high = _core.extremes(x.reshape(-1, math.prod(features)))
            return cls(low.reshape(features), high.reshape(features))
        return cls(
            np.fmin.reduce(x, axis, initial=np.nan).astype(np.float64),
            np.fmax.reduce(x, axis, initial=np.nan).astype(np.float64),
        )

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Extremes:
        return cls(np.full(shape, np.nan), np.full(shape, np.nan))

    def __add__(self, other: Extremes) -> Extremes:
        return Extremes(np.fmin(self.low, other.low), np.fmax(self.high, other.high))


Statistics: TypeAlias = Moments | Extremes


def known_moments(x: Array, axis: Axes) -> Moments:
    """Moments of what is not NaN, with a count for each feature where there is any."""
    return Moments.from_array(x, axis, skip_nan=True)


METHODS: dict[str, Callable[[Array, Axes], Any]] = {
    "standard": known_moments,
    "minmax": Extremes.from_array,
}


@as_the_core
def coefficients(found: Statistics) -> tuple[Array, Array]:
    """Center and divisor of each feature; 1 where the feature is constant or has none."""
    if isinstance(found, Moments):
        center, divisor = found.mean, np.where(found.count > 0, found.std(), 0)
    else:
        known = found.low <= found.high
        center = np.where(known, found.low, 0)
        divisor = np.where(known, found.high - found.low, 0)
    if not (np.isfinite(center) & np.isfinite(divisor)).all():
        raise ValueError(
            "values: expected finite values or NaN, got infinity, or a range that is no float64"
        )
    return center, np.where(divisor > 0, divisor, 1)


@as_the_core
def apply(
    x: Array, center_and_divisor: tuple[Array, Array], axes: Axes, method: str, out: Array | None
) -> Array:
    center, divisor = center_and_divisor
    y: Array = _core.apply(x, center, divisor, None, None, axes, None, 0.0, out, False)
    if method == "minmax":
        # the largest value may round to above 1; other data than were measured may lie above it
        np.minimum(y, 1, out=y, where=y < 1 + 8 * np.finfo(y.dtype).eps)
    return y


@as_the_core
def masked_as(y: Array, x: np.ma.MaskedArray[Any, Any]) -> np.ma.MaskedArray[Any, Any]:
    """Return y with x's mask and value to fill in, which may be none of y's dtype."""
    return np.ma.MaskedArray(y, np.ma.getmask(x).copy(), fill_value=x.fill_value)
