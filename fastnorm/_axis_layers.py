"""The layers that normalize axes: Layer Norm and RMS Norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _check as check
from . import functional as F
from ._check import count
from ._core import Context
from ._layer import Norm
from ._types import Array

__all__ = ["LayerNorm", "RMSNorm"]


class LayerNorm(Norm):
    """Layer Norm.

    Parameters
    ----------
    normalized_shape : int, or tuple or list of int
        Sizes of the normalized axes: the shape of weight and bias.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Whether there is a weight, and, with `bias`, a bias.
    bias : bool
        Whether there is a bias.
    axis : int, or tuple or list of int, optional
        The normalized axes; as in torch the last ones by default. ``LayerNorm(C, axis=1)``
        normalizes the channels of an NCHW image.
    dtype : dtype
        float32, of an input in float32, float16 or bfloat16; or float64, of one in float64.

    References
    ----------
    Ba, Kiros, Hinton: Layer Normalization, 2016. arXiv:1607.06450

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.LayerNorm(4)(np.array([[1, 2, 3, 4]], np.float32)).round(2)
    array([[-1.34, -0.45,  0.45,  1.34]], dtype=float32)
    """

    def __init__(self, normalized_shape: int | Sequence[int], eps: float = 1e-5,
                 elementwise_affine: bool = True, bias: bool = True, *,
                 axis: int | Sequence[int] | None = None,
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(dtype)
        self.eps = check.number(eps, "eps")
        self.axis = tuple(axis) if isinstance(axis, list) else axis
        self.normalized_shape, self._axes = _normalized(normalized_shape, axis)
        self.elementwise_affine = check.flag(elementwise_affine, "elementwise_affine")
        self.bias = check.flag(bias, "bias") and self.elementwise_affine
        self._affine(self.normalized_shape, self.elementwise_affine, self.bias)

    def _check_sizes(self, x: Array) -> None:
        _check_normalized(x.shape, self.normalized_shape, self._axes)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        return F.layer_norm(x, **self.params, axis=self._axes, eps=self.eps, return_ctx=True)


class RMSNorm(Norm):
    """RMS Norm: Layer Norm without the mean.

    Parameters
    ----------
    normalized_shape, elementwise_affine, axis, dtype
        As in :class:`LayerNorm`; there is no bias.
    eps : float or None
        Added to the mean square; None, as in torch: the machine epsilon, as in :func:`rms_norm`.

    References
    ----------
    Zhang, Sennrich: Root Mean Square Layer Normalization, 2019. arXiv:1910.07467

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.RMSNorm(2)(np.array([[3, 4]], np.float32)).round(3)
    array([[0.849, 1.131]], dtype=float32)
    """

    def __init__(self, normalized_shape: int | Sequence[int], eps: float | None = None,
                 elementwise_affine: bool = True, *, axis: int | Sequence[int] | None = None,
                 dtype: DTypeLike = np.float32) -> None:  # fmt: skip
        super().__init__(dtype)
        self.eps = None if eps is None else check.number(eps, "eps")
        self.axis = tuple(axis) if isinstance(axis, list) else axis
        self.normalized_shape, self._axes = _normalized(normalized_shape, axis)
        self.elementwise_affine = check.flag(elementwise_affine, "elementwise_affine")
        self._affine(self.normalized_shape, self.elementwise_affine, False)

    def _check_sizes(self, x: Array) -> None:
        _check_normalized(x.shape, self.normalized_shape, self._axes)

    def _forward(self, x: ArrayLike) -> tuple[Array, Context]:
        return F.rms_norm(x, **self.params, axis=self._axes, eps=self.eps, return_ctx=True)


def _normalized(
    shape: int | Sequence[int], axis: int | Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    given = shape if isinstance(shape, (tuple, list)) else (shape,)
    if not given:
        raise ValueError("normalized_shape: expected at least one size, got ()")
    if len(given) > 64:
        raise ValueError(f"normalized_shape: expected at most 64 sizes, got {len(given)}")
    sizes = tuple(count(n, "normalized_shape") for n in given)
    count(math.prod(sizes), "normalized_shape")
    axes = tuple(range(-len(sizes), 0)) if axis is None else check.ints(axis, "axis")
    if len(axes) != len(sizes):
        raise ValueError(
            f"axis: expected {len(sizes)} axes for normalized_shape {sizes}, got {axes}"
        )
    if len(set(axes)) != len(axes):
        raise ValueError(f"axis: expected distinct axes, got {axes}")
    return sizes, axes


def _check_normalized(
    shape: tuple[int, ...], sizes: tuple[int, ...], axes: tuple[int, ...]
) -> None:
    rank = len(shape)
    there = all(-rank <= a < rank for a in axes)
    if not there or tuple(shape[a] for a in sorted(a % rank for a in axes)) != sizes:
        raise ValueError(f"x: expected sizes {sizes} along the axes {axes}, got shape {shape}")
