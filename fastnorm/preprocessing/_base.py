"""What the scalers share: how X is read, scaled and returned, and when a feature is constant."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_array, validate_data

from .. import _core
from .._check import keeping_mask
from .._types import Array
from ..statistics.columns import row_blocks
from . import _columns, _sparse
from ._checks import FLOATS, Bounds, flag, named, output_dtype, with_mask, without_mask

Coefficients = tuple[Any, Any, Any]


def divisor(spread: Array) -> Array:
    """Return what features are divided by: their deviation or range, and 1 where that is 0.

    That is exactly 0 where all values of a feature are equal, however they were grouped, and only
    there: extremes are exact, and moments are measured from one of the values. So there is no bound
    to be chosen, which would be too high for some features and too low for others.
    """
    least = 1 / float(np.finfo(np.float64).max)
    bad = np.flatnonzero((spread > 0) & (spread < least))
    if bad.size:
        raise ValueError(
            f"X: expected features that are constant or vary by at least {least:.2g}, got "
            f"{spread[bad[0]]:.2g} in feature {bad[0]}"
        )
    return np.where(spread == 0, 1.0, spread)


def refuse_overflow(low: Array, high: Array) -> None:
    """Raise an error where the range of a feature is no float64."""
    bad = np.flatnonzero(high / 2 - low / 2 > np.finfo(np.float64).max / 2)
    if bad.size:
        j = bad[0]
        raise ValueError(
            "X: expected features whose range is below 1.8e308, the largest float64, got feature "
            f"{j} from {low[j]:.3g} to {high[j]:.3g}"
        )


class Scaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Reads X and scales it. Infinities in dense X are looked for on all threads, not here."""

    _accept_sparse: Any = False
    _transform_sparse: Any = False
    _flags: tuple[str, ...] = ("copy",)
    _centers: str | None = None  # the flag that makes a sparse X impossible
    dtype: Any
    n_features_in_: int
    n_samples_seen_: Any

    def _check_arguments(self) -> None:
        for name in self._flags:
            flag(getattr(self, name), name)
        output_dtype(self.dtype)
        self._clip_bounds()

    def _clip_bounds(self) -> Bounds:
        raise AssertionError("a scaler says what it clips")

    def _fit_input(self, x: Any, reset: bool) -> Any:
        with named("X"):
            x = validate_data(
                self, without_mask(x), reset=reset, accept_sparse=self._accept_sparse,
                dtype=FLOATS, ensure_all_finite="allow-nan" if sparse.issparse(x) else False,
            )  # fmt: skip
        self._refuse_centering(x)
        return x

    def _refuse_centering(self, x: Any) -> None:
        if self._centers and getattr(self, self._centers) and sparse.issparse(x):
            raise ValueError(
                "X: expected a dense array, since centering would fill a sparse one, got "
                f"{x.format}; pass {self._centers}=False"
            )

    def _transform_input(self, x: Any, copy: bool, inverse: bool) -> Any:
        some = {
            "accept_sparse": self._transform_sparse,
            "dtype": FLOATS,
            "ensure_all_finite": "allow-nan" if sparse.issparse(x) else False,
            "copy": copy and sparse.issparse(x),
        }
        with named("X"):
            if not inverse:
                return validate_data(self, x, reset=False, **some)
            x = check_array(x, input_name="X", **some)  # which has no feature names
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X: expected {self.n_features_in_} features, got {x.shape[1]}")
        return x

    def _scale(
        self, given: Any, copy: Any, coefficients: Coefficients, *, inverse: bool = False
    ) -> Any:
        """``(X - center) * factor + shift``; of the dtype, and clipped, where it is no inverse."""
        copy = flag(copy, "copy")
        dtype = None if inverse else output_dtype(self.dtype)
        clip = None if inverse else self._clip_bounds()
        given = keeping_mask(given)
        unmasked = without_mask(given)
        x = self._transform_input(unmasked, copy, inverse)
        if not sparse.issparse(x):
            return with_mask(scaled(x, unmasked, copy, coefficients, clip, dtype), given)
        self._refuse_centering(x)
        if clip is not None and not clip[0] <= 0 <= clip[1]:
            raise ValueError(f"clip: expected bounds around 0 for a sparse X, got {clip}")
        return _sparse.scale(x, np.broadcast_to(coefficients[1], x.shape[1:]), clip, dtype)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        centers = bool(self._centers and getattr(self, self._centers))
        tags.input_tags.sparse = bool(self._accept_sparse) and not centers
        keeps = ["float64", "float32", "float16"] if self.dtype is None else []
        tags.transformer_tags.preserves_dtype = keeps
        return tags


def scaled(
    x: Array,
    given: Any,
    copy: bool,
    coefficients: Coefficients,
    clip: Bounds,
    dtype: np.dtype[Any] | None,
) -> Array:
    """``(x - center) * factor + shift``, clipped, in the precision of x or dtype, the higher one.

    Written into x where `copy` is False, or where x is a conversion of what was `given`, unless
    another dtype or precision is needed.
    """
    result = x.dtype if dtype is None else dtype
    work = np.result_type(x.dtype, result)
    if work == x.dtype == result:
        return _columns.affine(x, given, copy, coefficients, clip)
    out = _new(x, result)
    if work == result:
        out[...] = x
        return _columns.affine(out, out, False, coefficients, clip)
    for rows in row_blocks(x):
        some = np.array(x[rows], work, order="C")
        out[rows] = _columns.affine(some, some, False, coefficients, clip)
    return out


def _new(x: Array, dtype: np.dtype[Any]) -> Array:
    """Memory for a result of x's shape and order."""
    like = np.broadcast_to(np.zeros((), dtype), x.shape)
    if x.flags.f_contiguous and not x.flags.c_contiguous:
        return _core.empty_like(like.T).T
    return _core.empty_like(like)
