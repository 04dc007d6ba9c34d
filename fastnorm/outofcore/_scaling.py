"""What scaling by features needs, whatever holds the array: statistics, and how they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .. import _core
from .._check import as_the_core
from .._types import Array, Axes
from ..statistics.affine import affine
from ..statistics.extremes import Extremes
from ..statistics.moments import Moments

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
    y: Array = _core.empty_like(x) if out is None else out
    axes = tuple(a % x.ndim for a in np.atleast_1d(axes).tolist())
    # a divisor below 6e-309 has no inverse in float64: there x is made larger first
    unit = np.where(divisor < 2.0**-1000, 2.0**200, 1.0)
    affine(x, (center, unit if (unit > 1).any() else 1 / divisor, 0.0), axes, y)
    if (unit > 1).any():
        affine(y, (0.0, 1 / (divisor * unit), 0.0), axes, y)
    if method == "minmax":
        # the largest value may round to above 1; other data than were measured may lie above it
        np.minimum(y, 1, out=y, where=y < 1 + 8 * np.finfo(y.dtype).eps)
    return y


@as_the_core
def masked_as(y: Array, x: np.ma.MaskedArray[Any, Any]) -> np.ma.MaskedArray[Any, Any]:
    """Return y with x's mask and value to fill in, which may be none of y's dtype."""
    return np.ma.MaskedArray(y, np.ma.getmask(x).copy(), fill_value=x.fill_value)
