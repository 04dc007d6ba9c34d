"""Whitener: features without correlation, of variance 1."""

from __future__ import annotations

from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OneToOneFeatureMixin,
    TransformerMixin,
)
from sklearn.utils import assert_all_finite
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from .._check import as_the_core
from .._types import Array
from ..statistics.columns import row_blocks
from ._checks import FLOATS, named, output_dtype, refuse_mask, unchanged_on_error
from ._factor import Factor

ADVICE = (
    "whitening needs whole samples: leave out those with masked values (numpy.ma.compress_rows) or "
    "fill these in (x.filled(value), sklearn.impute)"
)


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
        directions of no variance become 0: those that are there by the rounding of X's values
        alone, in the dtype that X has.
    dtype : float16, float32 or float64, optional
        Of what `transform` returns; by default that of X. It is computed in float64.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,), float64
    covariance_ : ndarray of shape (n_features, n_features), float64
        Unbiased covariance. It is not what the rest is found from, see the notes.
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

    Notes
    -----
    X is decomposed itself (QR and SVD), not its covariance, which has half of the digits:
    directions are found to about 1e-14 however small they are, and however much the features differ
    in scale. `partial_fit` merges such decompositions.

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
        self,
        kind: str = "pca",
        n_components: int | None = None,
        *,
        eps: float = 0.0,
        dtype: DTypeLike | None = None,
    ) -> None:
        self.kind = kind
        self.n_components = n_components
        self.eps = eps
        self.dtype = dtype

    @as_the_core
    def fit(self, X: Any, y: Any = None) -> Self:
        """Find mean and covariance of the features, and what makes it the identity.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            At least two samples; float64, float32 or float16, what else is a number becomes
            float64.
        y : ignored

        Returns
        -------
        Whitener
            Itself.

        Raises
        ------
        TypeError
            An argument of the constructor of the wrong type, or masked values in X.
        ValueError
            NaN or infinities in X, fewer than two samples, or an argument of the constructor that
            is out of range.
        """
        return self._update(X, first=True)

    @as_the_core
    def partial_fit(self, X: Any, y: Any = None) -> Self:
        """Take more samples: as `fit` of all samples so far would.

        Parameters, result and errors are those of `fit`, but that one sample is enough after the
        first call.
        """
        return self._update(X, first=not hasattr(self, "n_samples_seen_"))

    def _update(self, x: Any, first: bool) -> Self:
        with unchanged_on_error(self):
            x = self._fit_input(x, first)
            self._check_arguments(x.shape[1])
            try:
                factor = Factor.of_rows(x)
            except ValueError:  # scikit-learn says which value it is
                assert_all_finite(x, input_name="X", estimator_name="Whitener")
                raise
            factor = factor if first else self._seen() + factor
            if factor.count < 2:
                raise ValueError("X: expected at least 2 samples, got n_samples=1")
            self._factor = factor
            self.n_samples_seen_, self.mean_ = factor.count, factor.mean.copy()
            self.covariance_ = factor.covariance()
            self._set_whitening()
        return self

    def _fit_input(self, x: Any, reset: bool) -> Array:
        refuse_mask(x, "X", ADVICE)
        with named("X"):
            found: Array = validate_data(
                self, x, reset=reset, dtype=FLOATS, ensure_all_finite=False
            )
        return found

    def _seen(self) -> Factor:
        """Return the factor of what was seen so far, where the attributes are still of that."""
        kept: Factor | None = getattr(self, "_factor", None)
        if (
            kept is not None
            and kept.count == self.n_samples_seen_
            and np.array_equal(kept.mean, self.mean_)
        ):
            return kept
        return Factor.of_covariance(self.n_samples_seen_, self.mean_, self.covariance_)

    def _check_arguments(self, features: int) -> None:
        k = self.n_components
        if not isinstance(self.kind, str) or self.kind not in ("pca", "zca"):
            raise ValueError(f"kind: expected 'pca' or 'zca', got {self.kind!r}")
        if k is not None and (isinstance(k, bool) or not isinstance(k, (int, np.integer))):
            raise TypeError(f"n_components: expected an int or None, got {k!r}")
        if k is not None and not 1 <= k <= features:
            raise ValueError(f"n_components: expected 1 to the {features} features, got {k}")
        if isinstance(self.eps, bool) or not isinstance(self.eps, (int, float, np.number)):
            raise TypeError(f"eps: expected a number, got {self.eps!r}")
        if not 0 <= self.eps < np.inf:
            raise ValueError(f"eps: expected a finite number of at least 0, got {self.eps!r}")
        output_dtype(self.dtype)

    def _set_whitening(self) -> None:
        std, vectors, whitening = self._factor.directions(self.eps)
        k = self.n_components_ = self.n_components or len(std)
        largest = np.abs(vectors).argmax(0)
        signs = np.where(np.take_along_axis(vectors, largest[np.newaxis], 0) < 0, -1.0, 1.0)
        std, vectors, self.whitening_ = (
            std[:k],
            (vectors * signs)[:, :k],
            (whitening * signs)[:, :k],
        )
        self.explained_variance_, self.components_ = std * std, vectors.T
        self.coloring_ = (vectors * np.hypot(std, np.sqrt(self.eps))).T
        self._maps = [self.whitening_], [self.coloring_]
        if self.kind == "zca":
            # One after the other: their product would spread the rounding of small directions.
            self._maps = [self.whitening_, vectors.T], [vectors, self.coloring_]
            self.whitening_ = self.whitening_ @ vectors.T
            self.coloring_ = vectors @ self.coloring_

    @as_the_core
    def transform(self, X: Any) -> Array:
        """Whiten.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features)
            As for `fit`; one sample is enough.

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)

        Raises
        ------
        TypeError
            Masked values in X, or a dtype that is none.
        ValueError
            NaN or infinities in X, or another number of features.
        """
        check_is_fitted(self)
        refuse_mask(X, "X", ADVICE)
        with named("X"):
            x = validate_data(self, X, reset=False, dtype=FLOATS)
        dtype = output_dtype(self.dtype)
        y = np.empty((len(x), len(self.whitening_.T)), x.dtype if dtype is None else dtype)
        for rows in row_blocks(x):
            y[rows] = reduce(np.matmul, self._maps[0], x[rows] - self.mean_)
        return y

    @as_the_core
    def inverse_transform(self, X: Any) -> Array:
        """Undo `transform`, but for the components that were not kept.

        Parameters
        ----------
        X : array_like of shape (n_samples, n_features_out)
            float64, float32 or float16; what else is a number becomes float64.

        Returns
        -------
        ndarray of shape (n_samples, n_features)
            Of X's dtype.

        Raises
        ------
        TypeError
            Masked values in X.
        ValueError
            NaN or infinities in X, or another number of features.
        """
        check_is_fitted(self)
        refuse_mask(X, "X", ADVICE)
        with named("X"):
            x = check_array(X, dtype=FLOATS, input_name="X")
        if x.shape[1] != len(self.coloring_):
            raise ValueError(f"X: expected {len(self.coloring_)} features, got {x.shape[1]}")
        y = np.empty((len(x), len(self.mean_)), x.dtype)
        for rows in row_blocks(x):
            y[rows] = reduce(np.matmul, self._maps[1], x[rows].astype(np.float64)) + self.mean_
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
        keeps = ["float64", "float32", "float16"] if self.dtype is None else []
        tags.transformer_tags.preserves_dtype = keeps
        return tags
