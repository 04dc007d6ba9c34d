"""Moments as a value: how statistics of several arrays, processes or blocks of a file merge."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._types import Array, Axes, MaybeArray

__all__ = ["Moments"]

Pair: TypeAlias = tuple[Array, Any]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of each feature.

    What `a + b` holds is what one pass over both arrays would have found, in whatever order and
    grouping arrays are merged. So that a million merges cost no digits, the mean and m2 carry what
    rounding took from them.

    Parameters
    ----------
    count : float or ndarray
        Elements of a feature, or the sum of their weights: one number for all, or one for each. 0
        is the neutral element.
    mean, m2 : ndarray, float64
        Mean and ``sum (x - mean)**2`` of each feature, of one shape; m2 in units of
        ``4.0**exponent``.
    mean_low, m2_low : ndarray or float
        What `mean` and `m2` lost to rounding.
    exponent : ndarray or int
        0, but where deviations are above 1e144 or below 1e-144, whose squares a float64 may not
        hold.

    References
    ----------
    Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances, 1979. STAN-CS-79-773

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[1.0, 10.0], [3.0, 30.0], [8.0, 20.0]])
    >>> moments = fastnorm.Moments.from_array(x[:2]) + fastnorm.Moments.from_array(x[2:])
    >>> moments.count, moments.mean, moments.var(ddof=1)
    (3, array([ 4., 20.]), array([ 13., 100.]))
    """

    count: Any
    mean: Array
    m2: Array
    mean_low: Any = 0.0
    m2_low: Any = 0.0
    exponent: Any = 0

    @classmethod
    def from_array(
        cls, x: ArrayLike, axis: Axes | None = None, layout: str | None = None, *,
        skip_nan: bool = False, mask: ArrayLike | None = None,
    ) -> Moments:  # fmt: skip
        """Moments of one array, in one read of it.

        Parameters
        ----------
        x : array_like
            float32, float64, float16 or bfloat16; integers and booleans count as float64. Masked
            elements of a masked array do not count.
        axis : int or tuple of int, optional
            Axes whose elements share a mean; 0 where neither `axis` nor `layout` is given. The
            features have the shape of the other axes.
        layout : str, optional
            Instead of `axis`, as in :func:`fastnorm.batch_norm`: the features are the channels.
        skip_nan : bool
            Whether NaN does not count. Else the moments of a feature with NaN are NaN.

        mask : array_like of bool, optional
            Which elements count, True for those that do; it broadcasts against x.

        Returns
        -------
        Moments
            In float64, exact to some units of its last digit, whatever the dtype and the order of
            x. With a count for each feature where some elements do not count.

        Raises
        ------
        TypeError
            A dtype that is no number; `skip_nan` that is no bool.
        ValueError
            Both `axis` and `layout`; an axis or a layout that x does not have.
        """
        if axis is not None and layout is not None:
            raise ValueError(f"axis, layout: expected one of them, got {axis!r} and {layout!r}")
        if not isinstance(skip_nan, (bool, np.bool_)):
            raise TypeError(f"skip_nan: expected a bool, got {type(skip_nan).__name__}")
        if layout is None and axis is None:
            axis = 0
        x = check.keeping_mask(x)
        if mask is not None:
            x = _masked(x, mask)
        if not isinstance(x, np.ma.MaskedArray):
            return measure(numbers(x), axis, layout, bool(skip_nan))
        filled = filled_with_nan(x)
        found = measure(filled, axis, layout, True)
        if skip_nan or not np.isnan(filled[~np.ma.getmaskarray(x)]).any():
            return found
        every = measure(np.where(np.ma.getmaskarray(x), 0, filled), axis, layout, False)
        return replace(found, mean=np.where(np.isnan(every.mean), np.nan, found.mean),
                       m2=np.where(np.isnan(every.mean), np.nan, found.m2))  # fmt: skip

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Moments:
        """Moments of no elements, for features of `shape`."""
        return cls(0, np.zeros(shape), np.zeros(shape))

    @classmethod
    def merge(cls, moments: Iterable[Moments]) -> Moments:
        """Merge all, in order.

        Raises
        ------
        TypeError
            Something else than Moments.
        ValueError
            None at all, or different shapes.
        """
        if not isinstance(moments, Iterable):
            raise TypeError(f"moments: expected Moments, got {type(moments).__name__}")
        some = list(moments)
        for each in some:
            if not isinstance(each, Moments):
                raise TypeError(f"moments: expected Moments, got {type(each).__name__}")
        if not some:
            raise ValueError("moments: expected at least one, got none")
        return reduce(cls.__add__, some)

    def __add__(self, other: Moments) -> Moments:
        if not isinstance(other, Moments):
            return NotImplemented
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"moments: expected features of shape {self.mean.shape}, got {other.mean.shape}"
            )
        return self._merged(other)

    @check.as_the_core  # inf and NaN stay in their features
    def _merged(self, other: Moments) -> Moments:
        count = self.count + other.count
        part = other.count / np.where(count > 0, count, 1)  # weights may sum to less than 1
        delta, mean, mean_low = merged_means(
            (self.mean, self.mean_low), (other.mean, other.mean_low), part
        )
        first = np.asarray(self.count) == 0
        mean, mean_low = np.where(
            first, (other.mean, np.broadcast_to(other.mean_low, delta.shape)), (mean, mean_low)
        )
        apart = np.where((np.asarray(self.count) > 0) & (np.asarray(other.count) > 0), delta, 0)
        unit = _unit(self, other, apart)
        a, a_low = self._m2_in(unit)
        b, b_low = other._m2_in(unit)
        deviation = np.ldexp(apart, -unit)
        m2, low = two_sum(a, b)
        m2, more = two_sum(m2, deviation * deviation * (self.count * part))
        m2, m2_low = two_sum(m2, a_low + b_low + (low + more))
        return Moments(count, mean, m2, mean_low, m2_low, unit)

    @property
    def _exponent(self) -> Array:
        exponent: Array = np.asarray(self.exponent).astype(np.int64)
        return exponent

    def _m2_in(self, unit: Any) -> tuple[Array, Any]:
        steps = 2 * (self._exponent - unit)
        return np.ldexp(self.m2, steps), np.ldexp(self.m2_low, steps)

    @check.as_the_core
    def var(self, ddof: float = 0) -> Array:
        """Variance: ``m2 / (count - ddof)``; NaN where that leaves no element."""
        return np.asarray(np.ldexp(self._scaled_var(ddof), 2 * self._exponent))

    @check.as_the_core
    def std(self, ddof: float = 0) -> Array:
        """Root of `var`; a float64 also where the variance is none."""
        return np.asarray(np.ldexp(np.sqrt(self._scaled_var(ddof)), self._exponent))

    def _scaled_var(self, ddof: float) -> Array:
        ddof = check.number(ddof, "ddof", low=-math.inf)
        left = np.asarray(self.count - ddof, np.float64)
        return np.asarray((self.m2 + self.m2_low) / np.where(left > 0, left, np.nan))


def _masked(x: Any, mask: ArrayLike) -> np.ma.MaskedArray[Any, Any]:
    """Return x with all masked that does not count."""
    counts = check.array(mask, "mask")
    if counts.dtype != np.bool_:
        raise TypeError(f"mask: expected dtype bool, got {counts.dtype}")
    shape = np.shape(x)
    try:
        missing = ~np.broadcast_to(counts, shape)
    except ValueError:
        raise ValueError(
            f"mask: expected a shape that broadcasts to {shape}, got {counts.shape}"
        ) from None
    return np.ma.array(np.ma.getdata(x), mask=missing | np.ma.getmaskarray(x))


def numbers(x: ArrayLike) -> Array:
    """Return x as an array of floats."""
    x = np.asarray(check.detached(x, "x"))
    return x.astype(np.float64) if x.dtype.kind in "iub" else x


def filled_with_nan(x: np.ma.MaskedArray[Any, Any]) -> Array:
    """Return a masked array as one of floats, with NaN where it is masked."""
    data = numbers(np.ma.getdata(x))
    return np.where(np.ma.getmaskarray(x), data.dtype.type(np.nan), data)


def measure(
    x: Array, axis: Axes | None, layout: str | None, skip_nan: bool, row_weight: MaybeArray = None
) -> Moments:
    """As `Moments.from_array`, of floats; `row_weight`: how often each element of `axis` counts."""
    elements, shape, found = _core.measure(x, axis, layout, None, None, skip_nan, row_weight)
    counts, mean, low, m2, exponent = found[:, : math.prod(shape)].reshape((5, *shape))
    every = row_weight is None and not (skip_nan and (counts != elements).any())
    count = elements if every else counts
    return Moments(count, mean, m2, low, np.zeros(m2.shape), exponent.astype(int))


def merged_means(first: Pair, second: Pair, part: Any) -> tuple[Array, Array, Array]:
    """Merge means, each with what it lost to rounding; `part` is the second's of all elements.

    Returns their difference, the mean of all, and what that lost.
    """
    delta = (second[0] - first[0]) + (second[1] - first[1])
    return delta, *two_sum(first[0], first[1] + delta * part)


def two_sum(a: Any, b: Any) -> tuple[Any, Any]:
    """Return a + b, and what rounding took from it (Knuth)."""
    total = a + b
    rest = total - a
    return total, (a - (total - rest)) + (b - rest)


def _unit(a: Moments, b: Moments, delta: Array) -> Any:
    """Exponents in which the sums of squares of a, b and their union are float64."""
    sizes = [np.frexp(np.sqrt(m.m2))[1] + m._exponent for m in (a, b)] + [np.frexp(delta)[1]]
    present = [m.m2 > 0 for m in (a, b)] + [delta != 0]
    size = np.where(present, sizes, -(1 << 20)).max(0)
    return np.where((abs(size) <= 480) | ~np.any(present, 0), 0, size)
