"""StandardScaler and MinMaxScaler."""

from __future__ import annotations

from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.sparsefuncs import inplace_column_scale
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_is_fitted,
    validate_data,
)

from .._types import Array, MaybeArray
from ..moments import Moments
from . import _columns
from ._columns import FLOATS, unchanged_on_error


class _Scaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """What the scalers share: how X is read. Infinities are looked for later, on all threads."""

    _accept_sparse: Any = False
    n_features_in_: int
    n_samples_seen_: Any

    def _check_flags(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            if not isinstance(value, (bool, np.bool_)):
                raise TypeError(f"{name}: expected a bool, got {value!r}")

    def _fit_input(self, x: Any, reset: bool) -> Any:
        return validate_data(
            self, x, reset=reset, accept_sparse=self._accept_sparse, dtype=FLOATS,
            ensure_all_finite="allow-nan" if sparse.issparse(x) else False,
        )  # fmt: skip

    def _transform_input(self, x: Any, copy: bool, inverse: bool = False) -> Any:
        some = {
            "accept_sparse": "csr" if self._accept_sparse else False,
            "dtype": FLOATS,
            "ensure_all_finite": "allow-nan" if sparse.issparse(x) else False,
            "copy": copy and sparse.issparse(x),
        }
        check_is_fitted(self)
        if not inverse:
            return validate_data(self, x, reset=False, **some)
        x = check_array(x, **some)  # which has no feature names
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features, got {x.shape[1]}")
        return x

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.sparse = bool(self._accept_sparse)
        tags.transformer_tags.preserves_dtype = ["float64", "float32", "float16"]
        return tags


class StandardScaler(_Scaler):
    """Scale each feature to mean 0 and variance 1.

    As scikit-learn's class of this name: NaN is passed over in `fit` and stays in `transform`, a
    feature without variance is centered only, and the variance is the biased one.

    Parameters
    ----------
    copy : bool
        False: `transform` writes into X where that is a writeable array of floats.
    with_mean, with_std : bool
        Whether to center, and to divide by the standard deviation. Sparse X cannot be centered.

    Attributes
    ----------
    mean_, var_, scale_ : ndarray of shape (n_features,), float64, or None
        Mean, variance, and what is divided by: the root of `var_`, or 1 where a feature is constant
        to rounding. None where `with_mean` and `with_std` make them needless, as in scikit-learn.
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
    mean_: MaybeArray
    var_: MaybeArray
    scale_: MaybeArray

    def __init__(self, *, copy: bool = True, with_mean: bool = True, with_std: bool = True) -> None:
        self.copy = copy
        self.with_mean = with_mean
        self.with_std = with_std

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
            An argument of the constructor that is no bool.
        ValueError
            Infinities in X, wrong shapes, weights below 0, or sparse X that `with_mean` would fill.
        """
        return self._update(X, sample_weight, first=True)

    def partial_fit(self, X: Any, y: Any = None, sample_weight: ArrayLike | None = None) -> Self:
        """Take more samples: as `fit` of all samples so far would.

        Parameters, result and errors are those of `fit`.
        """
        return self._update(X, sample_weight, first=not hasattr(self, "n_samples_seen_"))

    def _update(self, x: Any, sample_weight: Any, first: bool) -> Self:
        with unchanged_on_error(self):
            self._check_flags("copy", "with_mean", "with_std")
            x = self._fit_input(x, first)
            self._refuse_centering(x)
            weight: MaybeArray = None
            if sample_weight is not None:
                weight = _check_sample_weight(sample_weight, x, dtype=np.float64)
                if weight.min() < 0:
                    raise ValueError(f"sample_weight: expected at least 0, got {weight.min()}")
            find = _columns.sparse_moments if sparse.issparse(x) else _columns.moments_of_numbers
            found = find(x, weight)
            weighted = weight is not None
            if not first:
                weighted = weighted or np.asarray(self.n_samples_seen_).dtype.kind == "f"
                found = self._moments() + found
            self._set(found, weighted)
        return self

    def _refuse_centering(self, x: Any) -> None:
        if self.with_mean and sparse.issparse(x):
            raise ValueError(
                "X: expected a dense array, since centering would fill a sparse one, got "
                f"{x.format}; pass with_mean=False"
            )

    def _moments(self) -> Moments:
        """Moments of what was seen so far."""
        zero = np.zeros(self.n_features_in_)
        count = zero + self.n_samples_seen_
        mean = zero if self.mean_ is None else np.where(count > 0, self.mean_, 0)
        var = zero if self.var_ is None else np.where(count > 0, self.var_, 0)
        return Moments(count, mean, var * count)

    def _set(self, found: Moments, weighted: bool) -> None:
        mean = np.where(found.count > 0, found.mean, np.nan)
        var = found.var()
        count = np.broadcast_to(found.count, mean.shape).astype(float if weighted else np.int64)
        self.n_samples_seen_ = count[0] if (count == count[0]).all() else count
        self.mean_ = mean if self.with_mean or self.with_std else None
        self.var_ = var if self.with_std else None
        self.scale_ = None
        if self.with_std:
            # scikit-learn's bound: what rounding alone may make of a constant feature
            eps = np.finfo(np.float64).eps
            constant = var <= count * eps * var + (count * mean * eps) ** 2
            self.scale_ = np.where(constant, 1.0, np.sqrt(var))

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
            Of X's shape, dtype and order.

        Raises
        ------
        ValueError
            Infinities in X, another number of features, or sparse X with `with_mean`; nothing was
            written into X.
        """
        copy = self.copy if copy is None else copy
        x = self._transform_input(X, copy)
        factor = 1.0 if self.scale_ is None else 1 / self.scale_
        center = self.mean_ if self.with_mean else 0.0
        return self._scale(x, X, copy, (center, factor, 0.0))

    def inverse_transform(self, X: Any, copy: bool | None = None) -> Any:
        """Undo `transform`: parameters, result and errors are as there."""
        copy = self.copy if copy is None else copy
        x = self._transform_input(X, copy, inverse=True)
        factor = 1.0 if self.scale_ is None else self.scale_
        shift = self.mean_ if self.with_mean else 0.0
        return self._scale(x, X, copy, (0.0, factor, shift))

    def _scale(self, x: Any, given: Any, copy: bool, coefficients: tuple[Any, Any, Any]) -> Any:
        if not sparse.issparse(x):
            return _columns.affine(x, given, copy, coefficients)
        self._refuse_centering(x)
        inplace_column_scale(x, np.broadcast_to(coefficients[1], x.shape[1:]))
        return x

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = not self.with_mean
        return tags


class MinMaxScaler(_Scaler):
    """Scale each feature to a given range.

    As scikit-learn's class of this name: ``(X - data_min_) * scale_ + min`` with `scale_` such that
    `data_max_` becomes max. NaN is passed over in `fit` and stays in `transform`.

    Parameters
    ----------
    feature_range : (float, float)
        min and max of what `transform` makes of the samples of `fit`.
    copy : bool
        False: `transform` writes into X where that is a writeable array of floats.
    clip : bool
        Whether `transform` clips what lies outside the range, in other samples than those of `fit`.

    Attributes
    ----------
    data_min_, data_max_, data_range_ : ndarray of shape (n_features,), float64
        Least and largest value of each feature, and their difference.
    scale_, min_ : ndarray of shape (n_features,), float64
        ``X * scale_ + min_`` is what `transform` computes, up to rounding.
    n_samples_seen_ : int
        Samples, NaN or not.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from fastnorm.preprocessing import MinMaxScaler
    >>> scaler = MinMaxScaler().fit([[-1.0, 2.0], [0.0, 6.0], [1.0, 18.0]])
    >>> scaler.data_min_, scaler.data_max_
    (array([-1.,  2.]), array([ 1., 18.]))
    >>> scaler.transform([[0.5, 10.0]])
    array([[0.75, 0.5 ]])
    """

    data_min_: Array
    data_max_: Array

    def __init__(
        self, feature_range: tuple[float, float] = (0, 1), *, copy: bool = True, clip: bool = False
    ) -> None:
        self.feature_range = feature_range
        self.copy = copy
        self.clip = clip

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the least and the largest value of each feature.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            float64, float32 or float16; what else is a number becomes float64.
        y : ignored

        Returns
        -------
        MinMaxScaler
            Itself.

        Raises
        ------
        TypeError
            Sparse X, or an argument of the constructor of the wrong type.
        ValueError
            Infinities in X, wrong shapes, or a feature range that is none.
        """
        return self._update(X, first=True)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Take more samples: as `fit` of all samples so far would.

        Parameters, result and errors are those of `fit`.
        """
        return self._update(X, first=not hasattr(self, "n_samples_seen_"))

    def _update(self, x: Any, first: bool) -> Self:
        with unchanged_on_error(self):
            self._check_flags("copy", "clip")
            low, high = self._range()
            x = self._fit_input(x, first)
            found = _columns.extremes(x)
            if np.isinf(found).any():
                _columns.refuse_infinity(x)
            count = len(x)
            if not first:
                count += self.n_samples_seen_
                found = np.stack(
                    [np.fmin(self.data_min_, found[0]), np.fmax(self.data_max_, found[1])]
                )
            self.n_samples_seen_ = count
            self.data_min_, self.data_max_ = found
            self.data_range_ = self.data_max_ - self.data_min_
            # scikit-learn's bound, below which a feature is constant
            constant = self.data_range_ < 10 * np.finfo(x.dtype).eps
            self.scale_ = (high - low) / np.where(constant, 1.0, self.data_range_)
            self.min_ = low - self.data_min_ * self.scale_
        return self

    def _range(self) -> tuple[float, float]:
        some = self.feature_range
        if not isinstance(some, (tuple, list)) or not all(isinstance(v, Real) for v in some):
            raise TypeError(f"feature_range: expected a tuple of two numbers, got {some!r}")
        if len(some) != 2 or not -np.inf < some[0] < some[1] < np.inf:
            raise ValueError(f"feature_range: expected (min, max) with min < max, got {some!r}")
        return float(some[0]), float(some[1])

    def transform(self, X: Any) -> Array:
        """Scale to the feature range.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray
            Of X's shape, dtype and order.

        Raises
        ------
        ValueError
            Infinities in X, or another number of features; nothing was written into X.
        """
        x = self._transform_input(X, self.copy)
        low, high = self._range()
        clip = (low, high) if self.clip else None
        return _columns.affine(x, X, self.copy, (self.data_min_, self.scale_, low), clip)

    def inverse_transform(self, X: Any) -> Array:
        """Undo `transform`, but for what it clipped: parameters, result and errors are as there."""
        x = self._transform_input(X, self.copy, inverse=True)
        low, _ = self._range()
        return _columns.affine(x, X, self.copy, (low, 1 / self.scale_, self.data_min_))
