"""Moments as a value: how statistics of several arrays, processes or blocks of a file merge."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from ._types import Array, Axes

__all__ = ["Moments"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of each feature.

    What `a + b` holds is what one pass over both arrays would have found, in whatever order and
    grouping arrays are merged; only the last digits differ.

    Parameters
    ----------
    count : float or ndarray
        Elements of a feature, or the sum of their weights: one number for all, or one for each. 0
        is the neutral element.
    mean, m2 : ndarray, float64
        Mean and ``sum (x - mean)**2`` of each feature, of one shape.

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

    @classmethod
    def from_array(
        cls, x: ArrayLike, axis: Axes | None = None, layout: str | None = None
    ) -> Moments:
        """Moments of one array, in one read of it.

        Parameters
        ----------
        x : array_like
            float32, float64, float16 or bfloat16; integers and booleans count as float64.
        axis : int or tuple of int, optional
            Axes whose elements share a mean; 0 where neither `axis` nor `layout` is given. The
            features have the shape of the other axes.
        layout : str, optional
            Instead of `axis`, as in :func:`fastnorm.batch_norm`: the features are the channels.

        Returns
        -------
        Moments

        Raises
        ------
        TypeError
            A dtype that is no number.
        ValueError
            Both `axis` and `layout`; an axis or a layout that x does not have.
        """
        if axis is not None and layout is not None:
            raise ValueError(f"axis, layout: expected one of them, got {axis!r} and {layout!r}")
        x = np.asarray(x)
        if x.dtype.kind in "iub":
            x = x.astype(np.float64)
        if layout is None and axis is None:
            axis = 0
        return cls(*_core.measure(x, axis, layout, None, None))

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
        count = self.count + other.count
        part = other.count / np.where(count > 0, count, 1)  # weights may sum to less than 1
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * part,
            self.m2 + other.m2 + delta * delta * (self.count * part),
        )

    def var(self, ddof: float = 0) -> Array:
        """Variance: ``m2 / (count - ddof)``; NaN where that leaves no element."""
        left = np.asarray(self.count - ddof, np.float64)
        return self.m2 / np.where(left > 0, left, np.nan)

    def std(self, ddof: float = 0) -> Array:
        """Root of `var`."""
        return np.sqrt(self.var(ddof))
