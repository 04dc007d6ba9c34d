"""Layer Norm and RMS Norm: statistics over given axes, for each position along the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _check as check
from .. import _core
from .._check import count
from .._core import Context
from .._types import Array, Axes, MaybeArray, Param, WithContext
from ..around import Around, AroundSettings
from ._base import Norm

__all__ = ["LayerNorm", "RMSNorm", "layer_norm", "rms_norm"]

_LAYER, _RMS = map(_core.NORMS.index, ("layer", "rms"))


@overload
def layer_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, axis: Axes = ..., eps: float = ...,
    out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def layer_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, axis: Axes = ..., eps: float = ...,
    out: MaybeArray = ..., return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def layer_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, axis: Axes = ..., eps: float = ...,
    out: MaybeArray = ..., return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
@overload
def layer_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, axis: Axes = ..., eps: float = ...,
    out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def layer_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, axis: Axes = -1, eps: float = 1e-5,
    out: MaybeArray = None, return_ctx: bool = False, **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """Layer Norm: statistics over `axis`, for each position along the other axes.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input of any shape with at least one axis.
    weight, bias : array_like, optional
        Their shape is that of `axis` in x, in x's axis order; x's dtype. Also of x's number of
        dimensions, broadcasting against x: (B, 1, C) for each sample of (B, T, C).
    axis : int or sequence of int
        Axes that share a mean and a variance, exactly these; ``axis=1`` normalizes the
        channels of each pixel of an NCHW image.
    eps : float
        Added to the variance, at least 0.
    out : ndarray, optional
        Where to write y.
    return_ctx : bool
        Whether to return ``(y, ctx)``; ctx is what :func:`backward` takes.
    **around
        What stands around it in the same pass, an activation, a shortcut, a mask...: see
        :class:`fastnorm.Around`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x.

    Raises
    ------
    TypeError
        An argument of the wrong type or dtype.
    ValueError
        A wrong shape, axis or eps; `out` that overlaps x with `return_ctx`.

    Notes
    -----
    With ``g = weight * dy``, ``x_hat = (x - mean) / sigma`` and means over `axis`, the gradient is
    ``dx = (g - mean(g) - x_hat * mean(g * x_hat)) / sigma``.

    References
    ----------
    Ba, Kiros, Hinton: Layer Normalization, 2016. arXiv:1607.06450

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0]])
    >>> fastnorm.layer_norm(x, bias=np.ones(3)).round(3)
    array([[-0.225,  1.   ,  2.225],
           [-0.225,  1.   ,  2.225]])
    """
    return _core.axis_norm(_LAYER, x, weight, bias, axis, eps, out, return_ctx, around)


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
    **around
        What each call has around it, but where it says otherwise: `activation`, `slope`,
        `gate_activation`, `weight_offset` (the weight starts at 1 less that), `cast` and
        `virtual_batch_size` of :class:`fastnorm.Around`.

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
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(dtype, **around)
        self.eps = check.number(eps, "eps")
        self.axis = tuple(axis) if isinstance(axis, list) else axis
        self.normalized_shape, self._axes = _normalized(normalized_shape, axis)
        self.elementwise_affine = check.flag(elementwise_affine, "elementwise_affine")
        self.bias = check.flag(bias, "bias") and self.elementwise_affine
        self._affine(self.normalized_shape, self.elementwise_affine, self.bias)

    def _check_sizes(self, x: Array) -> None:
        _check_normalized(x.shape, self.normalized_shape, self._axes)

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        return layer_norm(
            x, **self.params, axis=self._axes, eps=self.eps, return_ctx=True, **around
        )


@overload
def rms_norm(
    x: ArrayLike, weight: Param = ..., *, axis: Axes = ..., eps: float | None = ...,
    out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def rms_norm(
    x: ArrayLike, weight: Param = ..., *, axis: Axes = ..., eps: float | None = ...,
    out: MaybeArray = ..., return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def rms_norm(
    x: ArrayLike, weight: Param = ..., *, axis: Axes = ..., eps: float | None = ...,
    out: MaybeArray = ..., return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
@overload
def rms_norm(
    x: ArrayLike, weight: Param = ..., *, axis: Axes = ..., eps: float | None = ...,
    out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def rms_norm(
    x: ArrayLike, weight: Param = None, *, axis: Axes = -1, eps: float | None = None,
    out: MaybeArray = None, return_ctx: bool = False, **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """RMS Norm: ``weight * x / sqrt(mean(x**2) + eps)``, the mean over `axis`.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input of any shape with at least one axis.
    weight : array_like, optional
        Its shape is that of `axis` in x, in x's axis order; x's dtype. Also of x's number of
        dimensions, broadcasting against x: (B, 1, C) for each sample of (B, T, C).
    axis : int or sequence of int
        Axes that share a root mean square, exactly these.
    eps : float or None
        Added to the mean square, at least 0. None: the machine epsilon of the type that is computed
        in, as torch, which is that of float32 for 16 bits.
    out : ndarray, optional
        Where to write y.
    return_ctx : bool
        Whether to return ``(y, ctx)``; ctx is what :func:`backward` takes.
    **around
        What stands around it in the same pass, an activation, a shortcut, a mask...: see
        :class:`fastnorm.Around`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x.

    Raises
    ------
    TypeError
        An argument of the wrong type or dtype.
    ValueError
        A wrong shape, axis or eps; `out` that overlaps x with `return_ctx`.

    Notes
    -----
    With ``g = weight * dy`` and ``x_hat = x / rms`` the gradient is
    ``dx = (g - x_hat * mean(g * x_hat)) / rms``.

    References
    ----------
    Zhang, Sennrich: Root Mean Square Layer Normalization, 2019. arXiv:1910.07467

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.rms_norm(np.array([3.0, -4.0]), np.array([1.0, 10.0])).round(3)
    array([  0.849, -11.314])
    """
    return _core.axis_norm(_RMS, x, weight, None, axis, eps, out, return_ctx, around)


class RMSNorm(Norm):
    """RMS Norm: Layer Norm without the mean.

    Parameters
    ----------
    normalized_shape, elementwise_affine, axis, dtype, **around
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
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(dtype, **around)
        self.eps = None if eps is None else check.number(eps, "eps")
        self.axis = tuple(axis) if isinstance(axis, list) else axis
        self.normalized_shape, self._axes = _normalized(normalized_shape, axis)
        self.elementwise_affine = check.flag(elementwise_affine, "elementwise_affine")
        self._affine(self.normalized_shape, self.elementwise_affine, False)

    def _check_sizes(self, x: Array) -> None:
        _check_normalized(x.shape, self.normalized_shape, self._axes)

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        return rms_norm(x, **self.params, axis=self._axes, eps=self.eps, return_ctx=True, **around)


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
