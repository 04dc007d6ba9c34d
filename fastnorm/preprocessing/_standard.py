"""StandardScaler."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from .._check import as_the_core
from .._types import MaybeArray
from ..statistics.moments import Moments
from . import _columns, _sparse
from ._base import Scaler, divisor
from ._checks import Bounds, clip_bounds, sample_weights, unchanged_on_error


class StandardScaler(Scaler):
    """Scale each feature to mean 0 and variance 1.

    As scikit-learn's class of this name: NaN and masked values are passed over in `fit` and stay in
    `transform`, a feature without variance is centered only, and the variance is the biased one.

    Parameters
    ----------
    copy : bool
        False: `transform` writes into X where that is a writeable array of floats of the dtype of
        the result.
    with_mean, with_std : bool
        Whether to center, and to divide by the standard deviation. Sparse X cannot be centered.
    clip : float or (float, float), optional
        Bounds of what `transform` returns: (low, high), or (-clip, clip). One may be infinite.
    dtype : float16, float32 or float64, optional
        Of what `transform` returns; by default that of X. It is computed in the higher precision of
        the two.

    Attributes
    ----------
    mean_, var_, scale_ : ndarray of shape (n_features,), float64, or None
        Mean, variance, and what is divided by: the root of `var_`, or 1 where that is 0. None where
        `with_mean` and `with_std` make them needless, as in scikit-learn.
    n_samples_seen_ : int, or ndarray of shape (n_features,)
        Samples that are not NaN; an array where features differ; with weights, their sum (float).
    n_features_in_, feature_names_in_
        As in scikit-learn.

    References
    ----------
    Chan, Golub, LeVeque: Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances, 1979. STAN-CS-79-773

    Examples
    --------
    >>> from fastnorm.preprocessing import StandardScaler
    >>> x = [[0.0, 10.0], [2.0, 30.0], [4.0, 20.0], [2.0, 20.0]]
    >>> scaler = StandardScaler().fit(x)
    >>> scaler.mean_, scaler.var_
    (array([ 2., 20.]), array([ 2., 50.]))
    >>> scaler.inverse_transform(scaler.transform([[4.0, 10.0]]))
    array([[ 4., 10.]])
    """

    _accept_sparse = ("csr", "csc")
    _transform_sparse = "csr"
    _flags = ("copy", "with_mean", "with_std")
    _centers = "with_mean"
    mean_: MaybeArray
    var_: MaybeArray
    scale_: MaybeArray

    def __init__(
        self,
        *,
        copy: bool = True,
        with_mean: bool = True,
        with_std: bool = True,
        clip: float | tuple[float, float] | None = None,
        dtype: DTypeLike | None = None,
    ) -> None:
        self.copy = copy
        self.with_mean = with_mean
        self.with_std = with_std
        self.clip = clip
        self.dtype = dtype

    @as_the_core
    def fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Find mean and variance of each feature.

        Parameters
        ----------
        X : array_like or CSR or CSC matrix of shape (n_samples, n_features)
            float64, float32 or float16; what else is a number becomes float64.
        y : ignored
        sample_weight : array_like of shape (n_samples,), optional
            How often each sample counts.

        Returns
        -------
        StandardScaler
            Itself.

        Raises
        ------
        TypeError
            An argument of the constructor of the wrong type, or masked weights.
        ValueError
            Infinities in X, wrong shapes, weights that are NaN, below 0 or all 0, bounds out of
            order, or sparse X that `with_mean` would fill.
        """
        return self._update(X, sample_weight, first=True)

    @as_the_core
    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Take more samples: as `fit` of all samples so far would.

        Parameters, result and errors are those of `fit`.
        """
        return self._update(X, sample_weight, first=not hasattr(self, "n_samples_seen_"))

    def _update(self, x: Any, sample_weight: Any, first: bool) -> Self:
        with unchanged_on_error(self):
            self._check_arguments()
            x = self._fit_input(x, first)
            weight = None if sample_weight is None else sample_weights(sample_weight, x.shape[0])
            find = _sparse.moments if sparse.issparse(x) else _columns.moments_of_numbers
            found = find(x, weight)
            weighted = weight is not None
            if not first:
                weighted = weighted or np.asarray(self.n_samples_seen_).dtype.kind == "f"
                found = self._seen() + found
            self._set(found, weighted)
        return self

    def _clip_bounds(self) -> Bounds:
        return clip_bounds(self.clip)

    def _seen(self) -> Moments:
        """Moments of what was seen so far: more digits than the attributes have, if they agree."""
        zero = np.zeros(self.n_features_in_)
        count = zero + self.n_samples_seen_
        mean = zero if self.mean_ is None else np.where(count > 0, self.mean_, 0)
        var = zero if self.var_ is None else np.where(count > 0, self.var_, 0)
        kept: Moments | None = getattr(self, "_moments", None)
        if kept is not None and (
            np.array_equal(zero + kept.count, count)
            and (self.mean_ is None or np.array_equal(np.where(count > 0, kept.mean, 0), mean))
            and (self.var_ is None or np.array_equal(np.where(count > 0, kept.var(), 0), var))
        ):
            return kept
        return Moments(count, mean, var * count)

    def _set(self, found: Moments, weighted: bool) -> None:
        mean = np.where(found.count > 0, found.mean, np.nan)
        if not np.isfinite(mean[np.broadcast_to(found.count > 0, mean.shape)]).all():
            raise ValueError("X: expected finite values whose differences are a float64")
        count = np.broadcast_to(found.count, mean.shape).astype(float if weighted else np.int64)
        self._moments = found
        self.n_samples_seen_ = count[0] if (count == count[0]).all() else count
        self.mean_ = mean if self.with_mean or self.with_std else None
        self.var_ = found.var() if self.with_std else None
        self.scale_ = divisor(found.std()) if self.with_std else None

    @as_the_core
    def transform(self, X: Any, copy: bool | None = None) -> Any:
        """Center and scale.

        Parameters
        ----------
        X : array_like or sparse matrix of shape (n_samples, n_features)
            As for `fit`; sparse X is taken as CSR.
        copy : bool, optional
            Instead of the constructor's.

        Returns
        -------
        ndarray or CSR matrix
            Of X's shape and order. Where X is a masked array so is this, with NaN below the mask.

        Raises
        ------
        TypeError, ValueError
            Infinities in X, another number of features, sparse X with `with_mean`, or arguments of
            the constructor that `fit` would refuse; nothing was written into X.
        """
        check_is_fitted(self)
        factor = 1.0 if self.scale_ is None else 1 / self.scale_
        center = self.mean_ if self.with_mean else 0.0
        return self._scale(X, self.copy if copy is None else copy, (center, factor, 0.0))

    @as_the_core
    def inverse_transform(self, X: Any, copy: bool | None = None) -> Any:
        """Undo `transform`, but for what it clipped.

        Parameters, result and errors are as there; the dtype is X's.
        """
        check_is_fitted(self)
        factor = 1.0 if self.scale_ is None else self.scale_
        shift = self.mean_ if self.with_mean else 0.0
        copy = self.copy if copy is None else copy
        return self._scale(X, copy, (0.0, factor, shift), inverse=True)
