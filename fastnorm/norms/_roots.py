"""Matrices that whiten, from covariances, and their gradients: functions of the eigenvalues.

``f(S) = U diag(f(l)) U^T`` has the gradient ``U ((U^T dW U) * K) U^T``, where K are the divided
differences ``(f(l_i) - f(l_j)) / (l_i - l_j)``, on the diagonal the derivatives. Both functions
here have forms of K that divide by no difference, so that equal eigenvalues are nothing special.
"""

from __future__ import annotations

import numpy as np

from .._types import Array


class Root:
    """Inverse roots, or what is near them, of ``cov + eps * I``, symmetric and positive.

    A group whose covariance is not finite has a matrix of NaN.
    """

    matrix: Array  # (groups, size, size)

    def __init__(self, cov: Array, eps: float) -> None:
        self._finite = np.isfinite(cov).all((1, 2), keepdims=True)
        values, self._vectors = np.linalg.eigh(np.where(self._finite, cov, 0))
        self._values = np.maximum(values, 0) + eps  # rounding leaves some below 0

    def gradient(self, dmatrix: Array) -> Array:
        """Gradient of the covariance, symmetric, from that of the matrix."""
        raise AssertionError("a root defines its gradient")

    def _of(self, values: Array) -> Array:
        """Make matrices with these eigenvalues."""
        found = (self._vectors * values[:, np.newaxis]) @ self._vectors.transpose(0, 2, 1)
        return np.where(self._finite, found, np.nan)

    def _turned(self, dmatrix: Array) -> Array:
        """Turn the symmetric part to the basis of the eigenvectors."""
        both = (dmatrix + dmatrix.transpose(0, 2, 1)) / 2
        turned: Array = self._vectors.transpose(0, 2, 1) @ both @ self._vectors
        return turned

    def _back(self, turned: Array) -> Array:
        found: Array = self._vectors @ turned @ self._vectors.transpose(0, 2, 1)
        return found


class InverseRoot(Root):
    """The inverse root itself: ZCA whitening."""

    def __init__(self, cov: Array, eps: float) -> None:
        super().__init__(cov, eps)
        self._root = np.sqrt(self._values)
        self.matrix = self._of(1 / self._root)

    def gradient(self, dmatrix: Array) -> Array:
        """As :meth:`Root.gradient`: (1/a - 1/b) / (a^2 - b^2) is -1 / (a b (a + b))."""
        a, b = self._root[:, :, np.newaxis], self._root[:, np.newaxis]
        # one after the other: the third power of a deviation may be no float64
        return self._back(self._turned(dmatrix) / a / b / -(a + b))


class NewtonSchulz(Root):
    """What `iterations` steps ``P <- (3 P - P^3 S) / 2`` from I make, with S of trace 1.

    All P are polynomials of S, so that the steps are done on eigenvalues. The steps of matrices
    give the same until rounding grows in them: by up to half the condition number in each.
    """

    def __init__(self, cov: Array, eps: float, iterations: int) -> None:
        super().__init__(cov, eps)
        self._trace = self._values.sum(1, keepdims=True)
        s = self._values / self._trace
        p = np.ones_like(s)
        s_i, s_j = s[:, :, np.newaxis], s[:, np.newaxis]
        lesser, swap = np.minimum(s_i, s_j), s_i < s_j
        slope = np.zeros(lesser.shape)  # divided differences of p
        for _ in range(iterations):
            p_i, p_j = p[:, :, np.newaxis], p[:, np.newaxis]
            # of p^3 at the larger one: the other way round, which is equal, rounding grows
            cube = np.where(swap, p_j, p_i) ** 3
            slope_of_cube = slope * (p_i * p_i + p_i * p_j + p_j * p_j)
            slope = 1.5 * slope - 0.5 * (cube + slope_of_cube * lesser)
            p = 1.5 * p - 0.5 * p**3 * s
        self._s, self._p, self._slope = s, p, slope
        self.matrix = self._of(p / np.sqrt(self._trace))

    def gradient(self, dmatrix: Array) -> Array:
        """As :meth:`Root.gradient`: W = P(S / trace) / sqrt(trace), through P and both traces."""
        dp = self._turned(dmatrix) / np.sqrt(self._trace)[..., np.newaxis]
        ds = dp * self._slope
        on_p = (np.diagonal(dp, axis1=1, axis2=2) * self._p).sum(1, keepdims=True)
        on_s = (np.diagonal(ds, axis1=1, axis2=2) * self._s).sum(1, keepdims=True)
        dtrace = -(on_s + on_p / 2) / self._trace
        found = ds / self._trace[..., np.newaxis]
        diagonal = np.arange(found.shape[1])
        found[:, diagonal, diagonal] += dtrace
        return self._back(found)
