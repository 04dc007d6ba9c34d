"""Vectors divided by their length, in whatever norm, forward and backward."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._types import (
    Array,
    Axes,
    Gradients,
    MaybeArray,
    Param,
    PlainContext,
    RepeatableContext,
)
from ..around import Around, Kept, Outside, run

_L2 = _core.NORMS.index("l2")

__all__ = ["normalize"]


@overload
def normalize(
    x: ArrayLike, ord: float = ..., axis: Axes = ..., *, eps: float = ..., out: MaybeArray = ...,
    return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def normalize(
    x: ArrayLike, ord: float = ..., axis: Axes = ..., *, eps: float = ..., out: MaybeArray = ...,
    return_ctx: Literal[True],
) -> tuple[Array, PlainContext]: ...  # fmt: skip
@overload
def normalize(
    x: ArrayLike, ord: float = ..., axis: Axes = ..., *, eps: float = ..., out: MaybeArray = ...,
    return_ctx: bool,
) -> Array | tuple[Array, PlainContext]: ...  # fmt: skip
@overload
def normalize(
    x: ArrayLike, ord: float = ..., axis: Axes = ..., *, eps: float = ..., out: MaybeArray = ...,
    return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def normalize(
    x: ArrayLike, ord: float = 2.0, axis: Axes = 1, *, eps: float = 1e-12, out: MaybeArray = None,
    return_ctx: bool = False, **around: Unpack[Around],
) -> Array | tuple[Array, PlainContext]:  # fmt: skip
    """Divide vectors by their length: ``x / max(norm(x, ord), eps)``.

    torch's ``normalize``, ONNX's ``LpNormalization``, scikit-learn's ``Normalizer``.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Vectors of any shape.
    ord : float
        Of the norm, above 0: ``sum(abs(x)**ord)**(1 / ord)``; ``math.inf`` is the largest
        magnitude. 2, the Euclidean length, is computed by the C kernels, in one pass; the others
        by NumPy in float64.
    axis : int or tuple of int
        Axes that a vector lies along; 1, as in torch.
    eps : float
        The least length that a vector is divided by, at least 0, so that a vector of zeros stays
        zero.
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
        A wrong shape, axis or value; `out` that overlaps x with `return_ctx`.

    Notes
    -----
    With the length n of a vector, ``y = x / n`` and p for `ord`, the gradient is
    ``dx = (dy - sign(x) * abs(y)**(p - 1) * sum(dy * y)) / n``; of a vector shorter than eps it is
    ``dy / eps``. With ``ord=inf`` the elements of the largest magnitude share it equally.

    References
    ----------
    torch.nn.functional.normalize; ONNX operator LpNormalization

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[3.0, -4.0], [0.0, 0.0]])
    >>> fastnorm.normalize(x)
    array([[ 0.6, -0.8],
           [ 0. ,  0. ]])
    >>> fastnorm.normalize(x, ord=1).round(3)
    array([[ 0.429, -0.571],
           [ 0.   ,  0.   ]])
    """
    ord = check.number(ord, "ord", high=math.inf)
    if not ord > 0:
        raise ValueError(f"ord: expected a number above 0, got {ord}")
    eps = check.number(eps, "eps")
    if ord == 2:
        y: Array | tuple[Array, PlainContext] = _core.axis_norm(
            _L2, x, None, None, axis, 0.0, out, return_ctx, around, eps
        )
        return y
    arguments = {
        "norm": _L2, "x": x, "weight": None, "bias": None, "axis": axis, "eps": 0.0, "out": out,
        "return_ctx": return_ctx,
    }  # fmt: skip
    found: Array | tuple[Array, PlainContext] = run(_Entry(ord, eps), arguments, around)
    return found


@dataclass(frozen=True)
class _Entry(Outside):
    """What :func:`fastnorm.around.run` calls in place of the core."""

    ord: float
    least: float

    def normalize(self, **arguments: Any) -> Any:
        """Divide by the lengths."""
        own = {name: arguments[name] for name in ("x", "axis", "out", "return_ctx")}
        return _divide(**own, ord=self.ord, eps=self.least)


def _divide(
    x: ArrayLike, axis: Axes, out: MaybeArray, return_ctx: bool, ord: float, eps: float
) -> Array | tuple[Array, PlainContext]:
    # the core checks x, axis and out, and what is returned has the dtype and memory that it chooses
    bare, axes = _core.checked_rows(x, axis, out, return_ctx)
    ctx = _Lengths(bare, ord, axes, eps)
    y = ctx.output(out)
    return (y, ctx) if return_ctx else y  # a flag: the core has looked at it


@check.as_the_core
def _put(values: Array, like: Array, out: MaybeArray) -> Array:
    """float64 values in an array like another, or in `out`."""
    target: Array = _core.empty_like(like) if out is None else out
    np.copyto(target, values, casting="unsafe")
    return target


class _Lengths(RepeatableContext):
    """What :func:`normalize` keeps in another norm than the Euclidean one."""

    @check.as_the_core  # inf and NaN stay in their vectors
    def __init__(self, x: Array, ord: float, axes: tuple[int, ...], eps: float) -> None:
        self._x, self._ord, self._axes = x, ord, axes
        self._kept = Kept({"x": x})
        exact = x.astype(np.float64)
        largest = np.abs(exact).max(axes, keepdims=True, initial=0)
        # in units of the largest magnitude, whose powers may be no float64
        unit = np.where((largest > 0) & np.isfinite(largest), largest, 1)
        if ord == math.inf:
            length = largest
        else:
            powers = (np.abs(exact / unit) ** ord).sum(axes, keepdims=True)
            length = unit * powers ** (1 / ord)
        self._clamped = length < eps
        self._length = np.maximum(length, eps)

    def _over_length(self, a: Array) -> Array:
        """Return an array divided by the lengths, float64; 0 where the length is."""
        found: Array = np.divide(
            a, self._length, where=self._length != 0, out=np.zeros(a.shape), dtype=np.float64
        )
        return found

    @check.as_the_core
    def output(self, out: MaybeArray = None) -> Array:
        """Return y."""
        self._kept.check()
        return _put(self._over_length(self._x), self._x, out)

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Gradients:
        """As :func:`fastnorm.backward`."""
        self._kept.check()
        dy = check.gradient(dy, self._x.shape, self._x.dtype)
        _core.checked_rows(dy, self._axes, out, False)
        self._kept.check_out(out, dy)
        exact, y = dy.astype(np.float64), self._over_length(self._x)
        size = np.abs(y)
        if self._ord == math.inf:
            largest = size == size.max(self._axes, keepdims=True, initial=0)
            slope: Any = largest / largest.sum(self._axes, keepdims=True)
        else:
            slope = np.where(size > 0, size ** (self._ord - 1), 0)
        along = np.sign(y) * slope * (exact * y).sum(self._axes, keepdims=True)
        dx = self._over_length(exact - np.where(self._clamped, 0, along))
        return Gradients(_put(dx, dy, out), None, None)
