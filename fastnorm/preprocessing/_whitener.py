"""Whitener: features without correlation, of variance 1."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OneToOneFeatureMixin,
    TransformerMixin,
)
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .._types import Array
from . import _columns
from ._columns import row_blocks, unchanged_on_error

FLOATS = (np.float64, np.float32)


class Whitener(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Make features uncorrelated and of variance 1: ``(X - mean_) @ whitening_``.

    Parameters
    ----------
    kind : {"pca", "zca"}
        "pca": the features of the result are the principal components, the largest first, as
        those of ``sklearn.decomposition.PCA(whiten=True)`` up to their signs. "zca": these, turned
        back, so that each feature stays as near as can be to the one that it comes from.
    n_components : int, optional
        How many principal components to keep; all of them by default.
    eps : float
        Added to the variances, so that directions of small variance are not blown up. Without it,
        directions of no variance (to rounding) become 0.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,), float64
    covariance_ : ndarray of shape (n_features, n_features), float64
        Unbiased covariance.
    explained_variance_ : ndarray of shape (n_components,), float64
        Variances of the principal components, the largest first.
    components_ : ndarray of shape (n_components, n_features), float64
        Their directions: rows of length 1, whose largest element is positive.
    whitening_ : ndarray of shape (n_features, n_features_out), float64
        n_features_out is n_components for "pca", n_features for "zca".
    coloring_ : ndarray of shape (n_features_out, n_features), float64
        The (pseudo-)inverse of `whitening_`.
    n_components_, n_samples_seen_ : int
    n_features_in_, feature_names_in_
        As in scikit-learn.

    References
    ----------
    Kessy, Lewin, Strimmer: Optimal Whitening and Decorrelation, The American Statistician 72, 2018.
    arXiv:1512.00809

    Examples
    --------
    >>> import numpy as np
    >>> from fastnorm.preprocessing import Whitener
    >>> x = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0], [6.0, 6.0]])
    >>> y = Whitener(kind="zca").fit_transform(x)
    >>> bool(np.allclose(np.cov(y.T), np.eye(2)))
    True
    """

    n_samples_seen_: int
    mean_: Array
    covariance_: Array

    def __init__(
        self, kind: str = "pca", n_components: int | None = None, *, eps: float = 0.0
    ) -> None:
        self.kind = kind
        self.n_components = n_components
        self.eps = eps

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find mean and covariance of the features, and what makes it the identity.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            At least two samples; float64 or float32, what else is a number becomes float64.
        y : ignored

        Returns
        -------
        Whitener
            Itself.

        Raises
        ------
        TypeError
            An argument of the constructor of the wrong type.
        ValueError
            NaN or infinities in X, fewer than two samples, or an argument of the constructor that
            is out of range.
        """
        return self._update(X, first=True)

    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Take more samples: as `fit` of all samples so far would.

        Parameters, result and errors are those of `fit`, but that one sample is enough after the
        first call.
        """
        return self._update(X, first=not hasattr(self, "n_samples_seen_"))

    def _update(self, x: Any, first: bool) -> Self:
        with unchanged_on_error(self):
            x = validate_data(self, x, reset=first, dtype=FLOATS, ensure_all_finite=False)
            self._check_arguments(x.shape[1])
            count, mean, scatter = _scatter(x)
            if not first:  # Chan's merge, of matrices
                before = self.n_samples_seen_
                delta = mean - self.mean_
                part = count / (before + count)
                mean = self.mean_ + delta * part
                scatter += self.covariance_ * (before - 1) + np.outer(delta, delta * before * part)
                count += before
            if count < 2:
                raise ValueError("X: expected at least 2 samples, got n_samples=1")
            self.n_samples_seen_, self.mean_ = count, mean
            self.covariance_ = scatter / (count - 1)
            self._set_whitening()
        return self

    def _check_arguments(self, features: int) -> None:
        k = self.n_components
        if self.kind not in ("pca", "zca"):
            raise ValueError(f"kind: expected 'pca' or 'zca', got {self.kind!r}")
        if k is not None and (isinstance(k, bool) or not isinstance(k, (int, np.integer))):
            raise TypeError(f"n_components: expected an int or None, got {k!r}")
        if k is not None and not 1 <= k <= features:
            raise ValueError(f"n_components: expected 1 to the {features} features, got {k}")
        if isinstance(self.eps, bool) or not isinstance(self.eps, (int, float, np.number)):
            raise TypeError(f"eps: expected a number, got {self.eps!r}")
        if not 0 <= self.eps < np.inf:
            raise ValueError(f"eps: expected a finite number of at least 0, got {self.eps!r}")

    def _set_whitening(self) -> None:
        variance, vectors = np.linalg.eigh(self.covariance_)
        k = self.n_components_ = self.n_components or len(variance)
        variance, vectors = np.maximum(variance[::-1][:k], 0), vectors[:, ::-1][:, :k]
        largest = np.abs(vectors).argmax(0)
        vectors = vectors * np.where(vectors[largest, np.arange(k)] < 0, -1.0, 1.0)
        self.explained_variance_, self.components_ = variance, vectors.T
        std = np.sqrt(variance + self.eps)
        if self.eps == 0:  # what rounding makes of no variance is no direction
            nothing = variance <= variance[0] * len(vectors) * np.finfo(np.float64).eps
            std[nothing] = 0
        inverse = np.divide(1, std, out=np.zeros(k), where=std > 0)
        self.whitening_, self.coloring_ = vectors * inverse, (vectors * std).T
        if self.kind == "zca":
            self.whitening_ = self.whitening_ @ vectors.T
            self.coloring_ = vectors @ self.coloring_

    def transform(self, X: Any) -> Array:
        """Whiten.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            float64 or float32; what else is a number becomes float64.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
            Of X's dtype.

        Raises
        ------
        ValueError
            NaN or infinities in X, or another number of features.
        """
        check_is_fitted(self)
        x = validate_data(self, X, reset=False, dtype=FLOATS)
        whitening = self.whitening_.astype(x.dtype)
        y = np.empty((len(x), whitening.shape[1]), x.dtype)
        for rows in row_blocks(x):  # the mean is taken from a sample in float64
            np.matmul(np.subtract(x[rows], self.mean_).astype(x.dtype), whitening, out=y[rows])
        return y

    def inverse_transform(self, X: Any) -> Array:
        """Undo `transform`, but for the components that were not kept.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features_out)
            float64 or float32; what else is a number becomes float64.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Of X's dtype.

        Raises
        ------
        ValueError
            NaN or infinities in X, or another number of features.
        """
        check_is_fitted(self)
        x = check_array(X, dtype=FLOATS)
        if x.shape[1] != len(self.coloring_):
            raise ValueError(f"X: expected {len(self.coloring_)} features, got {x.shape[1]}")
        y: Array = x @ self.coloring_.astype(x.dtype)
        y += self.mean_
        return y

    @property
    def _n_features_out(self) -> int:
        return int(self.whitening_.shape[1])

    def get_feature_names_out(self, input_features: Any = None) -> Array:
        """Names of the features of the result.

        Parameters
        ----------
        input_features : array_like of str, optional
            Names of X's features, where it was fitted without them.

        Returns
        -------
        ndarray of object
            "whitener0" and so on for "pca", those of the input for "zca".
        """
        of = OneToOneFeatureMixin if self.kind == "zca" else ClassNamePrefixFeaturesOutMixin
        names: Array = of.get_feature_names_out(self, input_features)
        return names

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _scatter(x: Array) -> tuple[int, Array, Array]:
    """Count, means, and sum of the outer products of the rows' deviations from these."""
    found = _columns.moments(x)
    if not np.isfinite(found.mean).all():
        assert_all_finite(x, input_name="X", estimator_name="Whitener")
    scatter = np.zeros((x.shape[1], x.shape[1]))
    for rows in row_blocks(x):
        deviation = np.subtract(x[rows], found.mean, dtype=np.float64)
        scatter += deviation.T @ deviation
    return len(x), found.mean, scatter
