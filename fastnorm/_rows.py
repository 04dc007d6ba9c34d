"""The normalizers over axes: Layer Norm and RMS Norm.

What :mod:`fastnorm.functional` says of all normalizers holds here.
"""

from __future__ import annotations

from typing import Literal, overload

from numpy.typing import ArrayLike

from . import _core
from ._types import Array, Axes, MaybeArray, Param, WithContext

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
def layer_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, axis: Axes = -1, eps: float = 1e-5,
    out: MaybeArray = None, return_ctx: bool = False,
) -> Array | WithContext:  # fmt: skip
    """Layer Norm: statistics over `axis`, for each position along the other axes.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input of any shape with at least one axis.
    weight, bias : array_like, optional
        Their shape is that of `axis` in x, in x's axis order; x's dtype.
    axis : int or sequence of int
        Axes that share a mean and a variance, exactly these; ``axis=1`` normalizes the
        channels of each pixel of an NCHW image.
    eps : float
        Added to the variance, at least 0.
    out : ndarray, optional
        Where to write y.
    return_ctx : bool
        Whether to return ``(y, ctx)``; ctx is what :func:`backward` takes.

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
    return _core.axis_norm(_LAYER, x, weight, bias, axis, eps, out, return_ctx)


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
def rms_norm(
    x: ArrayLike, weight: Param = None, *, axis: Axes = -1, eps: float | None = None,
    out: MaybeArray = None, return_ctx: bool = False,
) -> Array | WithContext:  # fmt: skip
    """RMS Norm: ``weight * x / sqrt(mean(x**2) + eps)``, the mean over `axis`.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input of any shape with at least one axis.
    weight : array_like, optional
        Its shape is that of `axis` in x, in x's axis order; x's dtype.
    axis : int or sequence of int
        Axes that share a root mean square, exactly these.
    eps : float or None
        Added to the mean square, at least 0. None: the machine epsilon of the type that is computed
        in, as torch, which is that of float32 for 16 bits.
    out : ndarray, optional
        Where to write y.
    return_ctx : bool
        Whether to return ``(y, ctx)``; ctx is what :func:`backward` takes.

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
    return _core.axis_norm(_RMS, x, weight, None, axis, eps, out, return_ctx)
