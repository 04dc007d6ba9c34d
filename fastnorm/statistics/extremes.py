"""Extremes as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .._types import Array, Axes
from . import columns


@dataclass(frozen=True, eq=False)
class Extremes:
    """Smallest and largest value of each feature: to min-max scaling what `Moments` is to standard.

    Features without values have NaN, which is the neutral element.
    """

    low: Array
    high: Array

    @classmethod
    def from_array(cls, x: Array, axis: Axes) -> Extremes:
        """Extremes over some axes, NaN passed over."""
        axes = np.atleast_1d(axis).tolist()
        features = x.shape[len(axes) :]
        if axes == list(range(len(axes))) and x.flags.c_contiguous and x.dtype.kind == "f":
            rows = math.prod(x.shape[: len(axes)])
            found = columns.extremes(x.reshape(rows, math.prod(features)))
            return cls(*found.reshape(2, *features))
        return cls(
            np.fmin.reduce(x, axis, initial=np.nan).astype(np.float64),
            np.fmax.reduce(x, axis, initial=np.nan).astype(np.float64),
        )

    @classmethod
    def empty(cls, shape: tuple[int, ...]) -> Extremes:
        """Extremes of no elements."""
        return cls(np.full(shape, np.nan), np.full(shape, np.nan))

    def __add__(self, other: Extremes) -> Extremes:
        return Extremes(np.fmin(self.low, other.low), np.fmax(self.high, other.high))
