"""MinMaxScaler and MaxAbsScaler."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike
from scipy import sparse
from sklearn.utils.validation import check_is_fitted

from .._check import as_the_core
from .._types import Array
from ..statistics import columns
from . import _columns, _sparse
from ._base import Scaler, divisor, refuse_overflow
from ._checks import Bounds, flag, number_pair, unchanged_on_error


class _RangeScaler(Scaler):
    """Scales by the least and the largest value of each feature."""

    copy: bool

    @as_the_core
    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the least and the largest value of each feature.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            float64, float32 or float16; what else is a number becomes float64. CSR and CSC matrices
            by MaxAbsScaler.
        y : ignored

        Returns
        -------
        MinMaxScaler or MaxAbsScaler
            Itself.

        Raises
        ------
        TypeError
            Sparse X that is not supported, or an argument of the constructor of the wrong type.
        ValueError
            Infinities in X, wrong shapes, a range that no float64 holds, or a feature range that is
            none.
        """
        return self._update(X, first=True)

    @as_the_core
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Take more samples: as `fit` of all samples so far would.

        Parameters, result and errors are those of `fit`.
        """
        return self._update(X, first=not hasattr(self, "n_samples_seen_"))

    def _update(self, x: Any, first: bool) -> Self:
        with unchanged_on_error(self):
            self._check_arguments()
            x = self._fit_input(x, first)
            low, high = _sparse.extremes(x) if sparse.issparse(x) else columns.extremes(x)
            if np.isinf(low).any() or np.isinf(high).any():
                _columns.refuse_infinity(x)
            self.n_samples_seen_ = x.shape[0] + (0 if first else self.n_samples_seen_)
            self._set(low, high, first)
        return self

    def _set(self, low: Array, high: Array, first: bool) -> None:
        """Take least and largest values into the attributes."""
        raise AssertionError("a scaler of ranges defines it")

    @as_the_core
    def transform(self, X: Any) -> Any:
        """Scale.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        ndarray, or sparse matrix where X is one
            Of X's shape and order. Where X is a masked array so is this, with NaN below the mask.

        Raises
        ------
        TypeError, ValueError
            Infinities in X, another number of features, or arguments of the constructor that `fit`
            would refuse; nothing was written into X.
        """
        check_is_fitted(self)
        return self._scale(X, self.copy, self._coefficients())

    @as_the_core
    def inverse_transform(self, X: Any) -> Any:
        """Undo `transform`, but for what it clipped.

        Parameters, result and errors are as there; the dtype is X's.
        """
        check_is_fitted(self)
        center, factor, shift = self._coefficients()
        return self._scale(X, self.copy, (shift, 1 / factor, center), inverse=True)

    def _coefficients(self) -> tuple[Any, Array, Any]:
        raise AssertionError("a scaler of ranges defines it")


class MinMaxScaler(_RangeScaler):
    """Scale each feature to a given range.

    As scikit-learn's class of this name: ``(X - data_min_) * scale_ + min`` with `scale_` such that
    `data_max_` becomes max. NaN and masked values are passed over in `fit` and stay in `transform`;
    a feature of one value becomes min.

    Parameters
    ----------
    feature_range : (float, float)
        min and max of what `transform` makes of the samples of `fit`.
    copy : bool
        False: `transform` writes into X where that is a writeable array of floats of the dtype of
        the result.
    clip : bool
        Whether `transform` clips what lies outside the range, in other samples than those of `fit`.
    dtype : float16, float32 or float64, optional
        Of what `transform` returns; by default that of X. It is computed in the higher precision of
        the two.

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
        self,
        feature_range: tuple[float, float] = (0, 1),
        *,
        copy: bool = True,
        clip: bool = False,
        dtype: DTypeLike | None = None,
    ) -> None:
        self.feature_range = feature_range
        self.copy = copy
        self.clip = clip
        self.dtype = dtype

    def _check_arguments(self) -> None:
        super()._check_arguments()
        self._range()

    def _range(self) -> tuple[float, float]:
        low, high = number_pair(self.feature_range, "feature_range")
        if not (low < high and np.isfinite([low, high, high - low]).all()):
            raise ValueError(
                f"feature_range: expected (min, max) with min < max, got {self.feature_range!r}"
            )
        return low, high

    def _clip_bounds(self) -> Bounds:
        return self._range() if flag(self.clip, "clip") else None

    def _set(self, low: Array, high: Array, first: bool) -> None:
        if not first:
            low, high = np.fmin(self.data_min_, low), np.fmax(self.data_max_, high)
        refuse_overflow(low, high)
        spread = high - low
        self.data_min_, self.data_max_, self.data_range_ = low, high, spread
        least, largest = self._range()
        self.scale_ = (largest - least) / divisor(spread)
        self.min_ = least - low * self.scale_

    def _coefficients(self) -> tuple[Any, Array, Any]:
        return self.data_min_, self.scale_, self._range()[0]


class MaxAbsScaler(_RangeScaler):
    """Divide each feature by its largest absolute value.

    As scikit-learn's class of this name. Nothing is subtracted, so that zeros stay zeros: sparse X
    stays sparse. NaN and masked values are passed over in `fit` and stay in `transform`; a feature
    of zeros stays as it is.

    Parameters
    ----------
    copy : bool
        False: `transform` writes into X where that is a writeable array of floats of the dtype of
        the result.
    clip : bool
        Whether `transform` clips to -1 and 1, in other samples than those of `fit`.
    dtype : float16, float32 or float64, optional
        Of what `transform` returns; by default that of X. It is computed in the higher precision of
        the two.

    Attributes
    ----------
    max_abs_, scale_ : ndarray of shape (n_features,), float64
        Largest absolute value of each feature, and what is divided by: 1 where that is 0.
    n_samples_seen_ : int
        Samples, NaN or not.
    n_features_in_, feature_names_in_
        As in scikit-learn.

    Examples
    --------
    >>> from fastnorm.preprocessing import MaxAbsScaler
    >>> scaler = MaxAbsScaler().fit([[1.0, -8.0], [2.0, 0.0], [0.0, 4.0]])
    >>> scaler.max_abs_
    array([2., 8.])
    >>> scaler.transform([[1.0, 6.0]])
    array([[0.5 , 0.75]])
    """

    _accept_sparse = ("csr", "csc")
    _transform_sparse = ("csr", "csc")
    max_abs_: Array

    def __init__(
        self, *, copy: bool = True, clip: bool = False, dtype: DTypeLike | None = None
    ) -> None:
        self.copy = copy
        self.clip = clip
        self.dtype = dtype

    def _clip_bounds(self) -> Bounds:
        return (-1.0, 1.0) if flag(self.clip, "clip") else None

    def _set(self, low: Array, high: Array, first: bool) -> None:
        largest = np.fmax(np.abs(low), np.abs(high))
        self.max_abs_ = largest if first else np.fmax(self.max_abs_, largest)
        self.scale_ = divisor(self.max_abs_)

    def _coefficients(self) -> tuple[Any, Array, Any]:
        return 0.0, 1 / self.scale_, 0.0
