"""Cosine Norm: the cosine between input and weight in place of their dot product.

A row divided by its root mean square (centered: a standardized row) is sqrt(K) times a unit vector,
K its length. So a cosine is a product of rows that `rms_norm` or `layer_norm` has normalized,
divided by K, and its gradient goes back through them. A convolution is that product with the
columns of its patches, sample by sample, so that patches of one sample at most are in memory;
backward makes them again.
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, overload

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._core import Context
from .._types import Array, DerivedContext, Gradients, MaybeArray, Param
from ._base import Norm
from ._gradients import backward

__all__ = ["CosineNorm", "cosine_norm"]

Size: TypeAlias = int | tuple[int, ...]


_LAYER, _RMS = map(_core.NORMS.index, ("layer", "rms"))
MOST_STEPS = 2**31  # of stride and padding


class _Units:
    """Vectors of K elements along `axis`, divided by their norms, times sqrt(K); and back."""

    def __init__(self, vectors: Array, centered: bool, eps: float, axis: int = 1) -> None:
        self.units: Array
        self._ctx: Context
        # the least length; there, the least root mean square
        least = eps / math.sqrt(vectors.shape[axis])
        self.units, self._ctx = _core.axis_norm(
            _LAYER if centered else _RMS, vectors, None, None, axis, 0.0, None, True, None, least
        )

    def backward(self, grad: Array) -> Array:
        """Gradient of the vectors, in the memory of that of `units`."""
        return backward(grad, self._ctx, grad).x


class _Weight(_Units):
    """The rows of a weight. A product of units with `cosines`, the units over K, is of cosines."""

    def __init__(self, weight: Array, centered: bool, eps: float) -> None:
        super().__init__(weight.reshape(weight.shape[0], -1), centered, eps)
        self._shape, self._part = weight.shape, weight.dtype.type(1 / weight[0].size)
        self.cosines = self.units * self._part

    def backward(self, grad: Array) -> Array:
        """Gradient of the weight from that of `cosines`."""
        grad *= self._part
        return super().backward(grad).reshape(self._shape)


class _CosineContext(DerivedContext):
    """What both forms share: checks of dy."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.shape, self.dtype = shape, dtype  # of y

    def grads(self, dy: Array) -> Gradients:
        """Gradients of ``sum(dy * y)``."""
        raise AssertionError("a context defines its gradients")

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Gradients:
        """As :func:`fastnorm.backward`."""
        dy = check.gradient(dy, self.shape, self.dtype)
        if out is not None:
            raise TypeError(f"out: expected None after this forward, got {type(out).__name__}")
        return self.grads(dy)


class _Linear(_CosineContext):
    """A product of x and weight as rows."""

    def __init__(self, x: Array, weight: Array, centered: bool, eps: float) -> None:
        super().__init__((*x.shape[:-1], weight.shape[0]), x.dtype)
        self._x_shape = x.shape
        self._x = _Units(x.reshape(-1, x.shape[-1]), centered, eps)
        self._weight = _Weight(weight, centered, eps)

    @check.as_the_core
    def forward(self) -> Array:
        y: Array = self._x.units @ self._weight.cosines.T
        return y.reshape(self.shape)

    def grads(self, dy: Array) -> Gradients:
        dy = dy.reshape(-1, self.shape[-1])
        dx = self._x.backward(dy @ self._weight.cosines).reshape(self._x_shape)
        return Gradients(dx, self._weight.backward(dy.T @ self._x.units), None)


class _Conv(_CosineContext):
    """A product of weight and patches, sample by sample."""

    def __init__(self, x: Array, weight: Array, centered: bool, eps: float, stride: Size,
                 padding: Size) -> None:  # fmt: skip
        self._sizes = _Sizes(x.shape[1:], weight.shape[1:], stride, padding)
        super().__init__((x.shape[0], weight.shape[0], *self._sizes.out), x.dtype)
        self._x, self._was, self._options = x, check.memory(x), (centered, eps)
        self._weight = _Weight(weight, centered, eps)

    def _patches(self, sample: Array) -> _Units:
        return _Units(self._sizes.patches(sample), *self._options, axis=0)

    @check.as_the_core
    def forward(self) -> Array:
        y = np.empty(self.shape, self.dtype)
        for sample, to in zip(self._x, y, strict=True):
            units = self._patches(sample).units
            np.matmul(self._weight.cosines, units, out=to.reshape(to.shape[0], -1))
        return y

    def grads(self, dy: Array) -> Gradients:
        x = check.unchanged(self._x, self._was)
        dx, dw = np.empty_like(x), np.zeros_like(self._weight.cosines)
        for n, sample in enumerate(x):
            patches, g = self._patches(sample), dy[n].reshape(dy.shape[1], -1)
            dw += g @ patches.units.T
            dx[n] = self._sizes.add_patches(patches.backward(self._weight.cosines.T @ g))
        return Gradients(dx, self._weight.backward(dw), None)


class _Sizes:
    """Patches of a sample (C, *) as columns, in the order of a weight's elements, and back."""

    def __init__(self, shape: tuple[int, ...], window: tuple[int, ...], stride: Size,
                 padding: Size) -> None:  # fmt: skip
        spatial = shape[1:]
        self.window, self.kernel = window, window[1:]
        self.stride = _each(stride, "stride", len(spatial), 1)
        padding = _each(padding, "padding", len(spatial), 0)
        padded = tuple(n + 2 * p for n, p in zip(spatial, padding, strict=True))
        if any(n < k for n, k in zip(padded, self.kernel, strict=True)):
            raise ValueError(
                f"x: expected at least the kernel {self.kernel} with its padding, got {padded}"
            )
        steps = zip(padded, self.kernel, self.stride, strict=True)
        self.out = tuple((n - k) // s + 1 for n, k, s in steps)
        self.padded = (shape[0], *padded)
        inner = (slice(p, p + n) for p, n in zip(padding, spatial, strict=True))
        self.inner = (slice(None), *inner)

    def patches(self, sample: Array) -> Array:
        """Make the columns: shape (C * prod(kernel), prod(out))."""
        padded = np.zeros(self.padded, sample.dtype)
        padded[self.inner] = sample
        windows = sliding_window_view(padded, self.kernel, tuple(range(1, sample.ndim)))
        windows = windows[(slice(None), *(slice(None, None, s) for s in self.stride))]
        rank = len(self.out)  # from (C, *out, *kernel)
        windows = np.moveaxis(windows, range(1, rank + 1), range(rank + 1, 2 * rank + 1))
        return windows.reshape(math.prod(self.window), -1)

    def add_patches(self, columns: Array) -> Array:
        """Add each column where its elements came from: the transpose of `patches`."""
        padded = np.zeros(self.padded, columns.dtype)
        patches = columns.reshape(*self.window, *self.out)
        for offset in np.ndindex(*self.kernel):
            each = zip(offset, self.stride, self.out, strict=True)
            to = (slice(first, first + step * n, step) for first, step, n in each)
            padded[(slice(None), *to)] += patches[(slice(None), *offset)]
        return padded[self.inner]


def _each(value: Size, name: str, rank: int, least: int) -> tuple[int, ...]:
    """One int for each spatial axis."""
    values = check.ints(value, name)
    values = values if isinstance(value, (tuple, list)) else values * rank
    if len(values) != rank or any(v < least or v > MOST_STEPS for v in values):
        raise ValueError(f"{name}: expected {rank} int(s) from {least} to 2**31, got {value!r}")
    return values


def _native(value: ArrayLike, name: str) -> Array:
    array = check.array(value, name)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check(x: Array, weight: Array) -> None:
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x: expected dtype float32 or float64, got {x.dtype}")
    if weight.dtype != x.dtype:
        raise TypeError(f"weight: expected x's dtype {x.dtype}, got {weight.dtype}")
    if weight.ndim < 2 or weight.size == 0:
        raise ValueError(
            f"weight: expected at least 2 dimensions, none of them 0, got shape {weight.shape}"
        )
    if weight.ndim == 2 and (x.ndim == 0 or x.shape[-1] != weight.shape[1]):
        raise ValueError(f"x: expected shape (*, {weight.shape[1]}), got {x.shape}")
    if weight.ndim > 2 and (x.ndim != weight.ndim or x.shape[1] != weight.shape[1]):
        raise ValueError(
            f"x: expected {weight.ndim} dimensions with {weight.shape[1]} channels, as of weight "
            f"{weight.shape}, got shape {x.shape}"
        )


@overload
def cosine_norm(
    x: ArrayLike, weight: ArrayLike, *, centered: bool = ..., stride: Size = ...,
    padding: Size = ..., eps: float = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def cosine_norm(
    x: ArrayLike, weight: ArrayLike, *, centered: bool = ..., stride: Size = ...,
    padding: Size = ..., eps: float = ..., return_ctx: Literal[True],
) -> tuple[Array, DerivedContext]: ...  # fmt: skip
@overload
def cosine_norm(
    x: ArrayLike, weight: ArrayLike, *, centered: bool = ..., stride: Size = ...,
    padding: Size = ..., eps: float = ..., return_ctx: bool,
) -> Array | tuple[Array, DerivedContext]: ...  # fmt: skip
def cosine_norm(
    x: ArrayLike, weight: ArrayLike, *, centered: bool = False, stride: Size = 1,
    padding: Size = 0, eps: float = 1e-8, return_ctx: bool = False,
) -> Array | tuple[Array, DerivedContext]:  # fmt: skip
    """Cosine Norm: a linear layer or a convolution whose products are cosines.

    Parameters
    ----------
    x : array_like, float32 or float64
        Linear: ``(*, in)``. Convolution: ``(N, C, *)``, channels first.
    weight : array_like
        Linear: ``(out, in)``. Convolution: ``(out, C, *kernel)``. x's dtype.
    centered : bool
        Whether means are subtracted first: Pearson's correlation.
    stride, padding : int or tuple of int
        Of the convolution, one for each spatial axis; padding is by zeros, which count as elements
        of their patch.
    eps : float
        The least length that a vector is divided by, as in torch's ``cosine_similarity``: one of
        zeros (centered: a constant one) gives 0 and not NaN.
    return_ctx : bool
        Whether to return ``(y, ctx)``; ctx is what :func:`backward` takes.

    Returns
    -------
    y : ndarray
        ``(*, out)`` or ``(N, out, *)``, in [-1, 1] but for rounding; x's dtype.

    Raises
    ------
    TypeError
        An argument of the wrong type or dtype.
    ValueError
        A wrong shape or value; a kernel that is larger than x with its padding.

    Notes
    -----
    ``y = <x, w> / (max(|x|, eps) * max(|w|, eps))`` for each pair of a row or patch x and a weight
    w. With unit vectors ``u = x / |x|`` and ``v = w / |w|`` the gradient is
    ``dx = sum(dy * (v - y * u)) / |x|``; of a vector shorter than eps, ``sum(dy * v) / eps``. The
    products are NumPy's, by BLAS: their last bits, unlike
    those of other functions, may differ between machines and thread counts.

    References
    ----------
    Luo, Zhan, Wang, Yang: Cosine Normalization: Using Cosine Similarity Instead of Dot Product in
    Neural Networks, 2017. arXiv:1702.05870

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[3.0, 4.0], [0.0, 0.0]])
    >>> weight = np.array([[5.0, 0.0], [8.0, 6.0], [-3.0, -4.0]])
    >>> fastnorm.cosine_norm(x, weight).round(2)
    array([[ 0.6 ,  0.96, -1.  ],
           [ 0.  ,  0.  ,  0.  ]])
    """
    x, weight = _native(x, "x"), _native(weight, "weight")
    _check(x, weight)
    centered, eps = check.flag(centered, "centered"), check.number(eps, "eps")
    return_ctx = check.flag(return_ctx, "return_ctx")
    ctx: _Linear | _Conv
    if weight.ndim == 2:
        for name, value, unused in (("stride", stride, 1), ("padding", padding, 0)):
            none = isinstance(value, tuple) and not value
            if not none and check.ints(value, name) != (unused,):
                raise ValueError(f"{name}: expected {unused} without a convolution, got {value!r}")
        ctx = _Linear(x, weight, centered, eps)
    else:
        ctx = _Conv(x, weight, centered, eps, stride, padding)
    y = ctx.forward()
    return (y, ctx) if return_ctx else y


class CosineNorm(Norm):
    """A linear layer or a convolution whose products are cosines.

    Parameters
    ----------
    weight : array_like, float32 or float64
        Initial weight, which is copied: ``(out, in)``, or ``(out, C, *kernel)`` for a convolution
        of ``(N, C, *)``. Its lengths do not change the result; the longer, the smaller its
        gradient.
    centered, stride, padding, eps
        As in :func:`cosine_norm`.

    References
    ----------
    Luo, Zhan, Wang, Yang, 2017. arXiv:1702.05870

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> rng = np.random.default_rng(0)
    >>> layer = fastnorm.CosineNorm(rng.standard_normal((5, 3, 2, 2)), centered=True, padding=1)
    >>> y = layer(rng.standard_normal((4, 3, 8, 8)))
    >>> dx = layer.backward(np.ones_like(y))
    >>> y.shape, dx.shape, layer.grads["weight"].shape
    ((4, 5, 9, 9), (4, 3, 8, 8), (5, 3, 2, 2))
    """

    def __init__(self, weight: ArrayLike, *, centered: bool = False, stride: Size = 1,
                 padding: Size = 0, eps: float = 1e-8) -> None:  # fmt: skip
        weight = np.array(_native(weight, "weight"), order="C")
        check.layer_dtype(weight, "weight")
        super().__init__(weight.dtype)
        self.params["weight"] = weight
        self.centered, self.stride, self.padding, self.eps = centered, stride, padding, eps
        smallest = weight.shape[1:]
        self._forward(np.zeros((1, *smallest), weight.dtype))  # for its checks

    def _check_sizes(self, x: Array) -> None:
        """Leave it to the function, which compares x with the weight."""

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, DerivedContext]:
        return cosine_norm(
            x, self.params["weight"], centered=self.centered, stride=self.stride,
            padding=self.padding, eps=self.eps, return_ctx=True, **around,
        )  # fmt: skip

    def __repr__(self) -> str:
        return (
            f"CosineNorm(shape={self.params['weight'].shape}, centered={self.centered}, "
            f"stride={self.stride}, padding={self.padding}, eps={self.eps})"
        )
