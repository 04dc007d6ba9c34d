"""A triangular factor of the covariance: what rows leave behind, with all their digits.

The covariance itself has the square of the data's condition, and so half of the digits of what is
small in it. Its factor ``r``, with ``r.T @ r`` the sum of the outer products of the rows'
deviations, comes from QR decompositions of blocks of rows, and the factors of parts merge by one
more (TSQR). Householder's QR errs in each column by the rounding of that column, however much the
features differ in scale.

References
----------
Demmel, Grigori, Hoemmen, Langou: Communication-optimal Parallel and Sequential QR and LU
Factorizations, SIAM J. Sci. Comput. 34, 2012. arXiv:0808.2664
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import qr, solve_triangular

from .._types import Array
from ..statistics import columns
from ..statistics.moments import merged_means, two_sum

# elements of a block: 1 MB as float64
BLOCK = 1 << 17
# what one decomposition may make of no variance, relative to a feature's deviation
ROUNDING = 8 * np.finfo(np.float64).eps
# of few samples: how much larger than the deviation along a direction a feature may be that takes
# part in it; of what is larger, rounding would be more than the direction
STEEP = 1e8


@dataclass(frozen=True, eq=False)
class Factor:
    """Count, mean and triangular factor of rows.

    Parameters
    ----------
    count : int
    mean, low : ndarray of shape (features,)
        Their sum is the mean: `low` is what float64 leaves of it, so that many merges lose nothing.
    r : ndarray of shape (k, features)
        ``r.T @ r`` is ``sum (x - mean).T @ (x - mean)``.
    noise : ndarray of shape (features,)
        The part of the length of r's columns that rounding alone may have made: of the values, in
        the dtype that they had, and of the decompositions.
    """

    count: int
    mean: Array
    low: Array
    r: Array
    noise: Array

    @classmethod
    def of_covariance(cls, count: int, mean: Array, covariance: Array) -> Factor:
        """Return what has this covariance, with the digits that it has."""
        variance, vectors = np.linalg.eigh(covariance * (count - 1))
        r = (vectors * np.sqrt(np.maximum(variance, 0))).T
        noise = np.sqrt(np.finfo(np.float64).eps) * _norms(r)
        return cls(count, mean, np.zeros_like(mean), r, noise)

    @classmethod
    def of_rows(cls, x: Array) -> Factor:
        """Return the factor of some rows.

        Raises
        ------
        ValueError
            NaN, infinities or sums beyond float64.
        """
        return cls._of_rows(x, columns.moments(x).mean)

    @classmethod
    def _of_rows(cls, x: Array, center: Array) -> Factor:
        if len(x) > max(2 * x.shape[1], BLOCK // x.shape[1]):
            half = len(x) // 2
            return cls._of_rows(x[:half], center) + cls._of_rows(x[half:], center)
        deviation = x - center
        left = deviation.mean(0)
        if not np.isfinite(left).all():
            raise ValueError("X: expected finite values whose sums are a float64")
        r = _triangle(deviation - left)
        mean, low = two_sum(center, left)
        size = _norms(r)
        rounding = np.finfo(x.dtype).eps * np.hypot(size, np.sqrt(len(x)) * mean)
        rounding = np.minimum(rounding, size / 2)  # alone, a feature that varies is not cut
        return cls(len(x), mean, low, r, rounding + ROUNDING * size)

    def __add__(self, other: Factor) -> Factor:
        count = self.count + other.count
        part = other.count / count
        delta, mean, low = merged_means((self.mean, self.low), (other.mean, other.low), part)
        between = delta * np.sqrt(self.count * part)
        r = _triangle(np.concatenate([self.r, other.r, between[np.newaxis]]))
        noise = np.hypot(np.hypot(self.noise, other.noise), ROUNDING * _norms(r))
        return Factor(count, mean, low, r, noise)

    def covariance(self) -> Array:
        """Unbiased covariance."""
        scaled = self.r / np.sqrt(self.count - 1)
        found: Array = scaled.T @ scaled
        return found

    def directions(self, eps: float) -> tuple[Array, Array, Array]:
        """Deviations along the principal directions, the largest first, and matrices of columns.

        The first has the directions, the second what whitens to them: ``directions / deviations``,
        or with eps, ``/ sqrt(deviations**2 + eps)``. Without eps, directions without variance come
        last, with deviation 0 and nothing that whitens to them.
        """
        features = self.r.shape[1]
        deviations, vectors = np.zeros(features), np.eye(features)
        known, order = self._above_noise(eps == 0)
        rank = len(known)
        if rank:
            # With pivots, rows and columns get smaller together: the SVD then is exact in
            # directions as small as the smallest of the features.
            q, graded, again = qr(known, mode="economic", pivoting=True)
            vectors[order[again]], deviations[:rank], turn = np.linalg.svd(graded.T)
        std = np.hypot(deviations, np.sqrt(eps))
        whitening = vectors * np.divide(1, std, out=np.zeros(features), where=std > 0)
        taken, others = order[:rank], order[rank:]
        seen = _norms(known[:, rank:])[:, np.newaxis] * np.abs(whitening[others])
        if eps == 0 and seen.max(initial=0) > (0 if self.count > features else STEEP):
            # Features that depend on others are not looked at: they do so up to their own rounding,
            # which may be much for smaller ones of the others. But of few samples all features
            # depend on each other, and more samples need not: there the directions say what counts.
            whitening[others] = 0
            whitening[taken, :rank] = solve_triangular(known[:, :rank], q @ turn.T)
        return deviations, vectors, whitening

    def _above_noise(self, cut: bool) -> tuple[Array, Array]:
        """Return a factor of the covariance, of full rank, and which features its columns are.

        Features are measured in units of their noise, and taken in the order in which most is new:
        not explained by those before. Where less than one unit of each is left, the rest depends on
        those before and is cut. What the rest has of a direction is noise as well where it is less
        than a unit; it must become 0, since beside a small direction it would be much.
        """
        unit = np.where(self.noise > 0, self.noise, 1)
        triangle, order = qr(self.r / unit, mode="r", pivoting=True)
        rank, unit = len(triangle), unit[order] / np.sqrt(self.count - 1)
        if cut:
            left = np.cumsum(np.square(triangle[::-1]), axis=0)[::-1]
            rank = int(np.count_nonzero((left > 1).any(1)))
        if rank:  # from the largest direction to the smallest
            taken = triangle[:rank, :rank] * unit[:rank]
            q, taken, again = qr(taken, mode="economic", pivoting=True)
            others = q.T @ triangle[:rank, rank:]
            if cut:
                others[np.abs(others) < 1] = 0
            triangle = np.concatenate([taken, others * unit[rank:]], axis=1)
            order[:rank] = order[again]
        return triangle[:rank], order


def _triangle(a: Array) -> Array:
    found: Array = np.linalg.qr(a, mode="r")  # type: ignore[assignment]  # one array in this mode
    return found


def _norms(a: Array) -> Array:
    """Lengths of the columns, without squares that overflow or vanish."""
    largest = np.abs(a).max(0, initial=0)
    lengths: Array = largest * np.linalg.norm(a / np.where(largest > 0, largest, 1), axis=0)
    return lengths
