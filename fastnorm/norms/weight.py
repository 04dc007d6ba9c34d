"""Weight Norm: weights as a length times a direction, forward, backward and initialization."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._core import Context
from .._types import Array, MaybeArray, WeightGradients
from ..statistics.moments import Moments
from ._base import Layer
from ._gradients import backward

__all__ = ["WeightNorm", "WeightNormInit", "weight_norm", "weight_norm_init"]


@overload
def weight_norm(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = ..., eps: float = ..., out: MaybeArray = ...,
    return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def weight_norm(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = ..., eps: float = ..., out: MaybeArray = ...,
    return_ctx: Literal[True],
) -> tuple[Array, Context[WeightGradients]]: ...  # fmt: skip
@overload
def weight_norm(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = ..., eps: float = ..., out: MaybeArray = ...,
    return_ctx: bool,
) -> Array | tuple[Array, Context[WeightGradients]]: ...  # fmt: skip
def weight_norm(
    v: ArrayLike, g: ArrayLike, *, axis: int | None = 0, eps: float = 0.0, out: MaybeArray = None,
    return_ctx: bool = False,
) -> Array | tuple[Array, Context[WeightGradients]]:  # fmt: skip
    """Weight Norm: ``w = g * v / ||v||``, a norm for each index of `axis`.

    Parameters
    ----------
    v : array_like, float32, float64, float16 or bfloat16
        Directions, of any shape with at least one axis.
    g : array_like
        Lengths, shape ``(v.shape[axis],)`` or torch's, which is v's with 1 for all other axes; ()
        with ``axis=None``. v's dtype.
    axis : int or None
        The axis that keeps a norm of its own for each index, torch's ``dim``: 0 for the outputs of
        ``(out, in)`` and ``(out, in, kh, kw)``. None: one norm of all elements.
    eps : float
        The least length that v is divided by, at least 0.
    out : ndarray, optional
        Where to write w.
    return_ctx : bool
        Whether to return ``(w, ctx)``; ctx is what :func:`backward` takes, which then returns a
        :class:`WeightGradients` ``(x, g)``, with the gradient of v as ``x``.

    Returns
    -------
    w : ndarray
        Shape and dtype of v. Vectors of zeros have no direction: they stay 0, and so do their
        gradients (with an eps above 0, dv is that of ``g * v / eps``).

    Raises
    ------
    TypeError
        An argument of the wrong type or dtype.
    ValueError
        A wrong shape or axis; `out` that overlaps v with `return_ctx`.

    Notes
    -----
    With ``u = v / ||v||`` the gradients are ``dg = sum(dw * u)`` and
    ``dv = g / ||v|| * (dw - u * dg)``.

    References
    ----------
    Salimans, Kingma: Weight Normalization: A Simple Reparameterization to Accelerate Training of
    Deep Neural Networks, 2016. arXiv:1602.07868

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> v, g = np.array([[3.0, 4.0], [0.0, -2.0]]), np.array([10.0, 1.0])
    >>> w, ctx = fastnorm.weight_norm(v, g, return_ctx=True)
    >>> w
    array([[ 6.,  8.],
           [ 0., -1.]])
    >>> dv, dg = fastnorm.backward(np.array([[1.0, 0.0], [0.0, 1.0]]), ctx)
    >>> dg
    array([ 0.6, -1. ])
    """
    return _core.weight_norm(v, g, axis, eps, out, return_ctx)


class WeightNormInit(NamedTuple):
    """What :func:`weight_norm_init` returns.

    Attributes
    ----------
    v : ndarray
        Directions, of the shape that was asked for.
    g, bias : ndarray, shape (out,)
        Length of the weight, and bias, of each output.
    """

    v: Array
    g: Array
    bias: Array


def _index(axis: int, rank: int) -> int:
    """Return the axis, of `rank` axes, from 0."""
    if isinstance(axis, bool) or not isinstance(axis, (int, np.integer)):
        raise TypeError(f"axis: expected an int or None, got {axis!r}")
    if not -rank <= axis < rank:
        raise ValueError(f"axis: expected one in [{-rank}, {rank}), got {axis}")
    return int(axis) % rank


@check.as_the_core
def _linear(x: Array, weight: Array) -> Array:
    return np.asarray(x @ weight.T)


def weight_norm_init(
    x: ArrayLike, shape: tuple[int, ...], *, axis: int = 0, layout: str = "channels_first",
    forward: Callable[[Array, Array], Array] = _linear, rng: np.random.Generator | None = None,
) -> WeightNormInit:  # fmt: skip
    """Initialize a weight-normalized layer so that its outputs on x have mean 0 and variance 1.

    ``v ~ N(0, 0.05**2)``; with ``t = forward(x, v / ||v||)`` and, over all axes but the channels,
    its means and standard deviations: ``g = 1 / std[t]`` and ``bias = -mean[t] / std[t]``.

    Parameters
    ----------
    x : array_like, float32 or float64
        A batch of the layer's input; for the default `forward` of shape ``(N, in)``.
    shape : tuple of int
        Shape of the layer's weight; for the default `forward` ``(out, in)``.
    axis : int
        The axis of `shape` with the outputs, as in :func:`weight_norm`.
    layout : str
        Where the channels of t are, as in :func:`batch_norm`.
    forward : callable
        ``forward(x, weight)`` is the layer without its bias. The default is the linear layer
        ``x @ weight.T``.
    rng : numpy.random.Generator, optional
        What v is drawn from.

    Returns
    -------
    WeightNormInit
        ``(v, g, bias)``, of x's dtype.

    Raises
    ------
    TypeError
        x of another dtype; an argument of the wrong type.
    ValueError
        A shape with 0 or an axis that it does not have; outputs that are not one for each index of
        `axis`, or one that does not vary.

    References
    ----------
    Salimans, Kingma, 2016, section 3. arXiv:1602.07868

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.random.default_rng(0).uniform(2.0, 7.0, (100, 8))
    >>> init = fastnorm.weight_norm_init(x, (3, 8), rng=np.random.default_rng(1))
    >>> y = x @ fastnorm.weight_norm(init.v, init.g).T + init.bias
    >>> bool(np.allclose(y.mean(0), 0)), bool(np.allclose(y.std(0), 1))
    (True, True)
    """
    x = check.array(x, "x")
    if x.dtype not in (np.float32, np.float64):
        raise TypeError(f"x: expected dtype float32 or float64, got {x.dtype}")
    if not isinstance(shape, tuple):
        raise TypeError(f"shape: expected a tuple of ints, got {shape!r}")
    shape = tuple(check.count(n, "shape") for n in shape)
    if not 0 < len(shape) <= 64 or math.prod(shape) > sys.maxsize // 8:
        raise ValueError(f"shape: expected that of an array, got {shape!r:.100}")
    channels = shape[_index(axis, len(shape))]
    if not isinstance(rng, (np.random.Generator, type(None))):
        raise TypeError(f"rng: expected a numpy.random.Generator, got {type(rng).__name__}")
    rng = np.random.default_rng() if rng is None else rng
    v = rng.normal(0, 0.05, shape).astype(x.dtype)
    if forward is _linear and (x.ndim != 2 or v.ndim != 2 or x.shape[1] != v.shape[1]):
        raise ValueError(
            f"x: expected (N, in) for a weight (out, in) of shape {shape}, got {x.shape}"
        )
    if not callable(forward):
        raise TypeError(f"forward: expected a callable, got {type(forward).__name__}")
    t = forward(x, weight_norm(v, np.ones(channels, x.dtype), axis=axis))
    moments = Moments.from_array(t, layout=layout)
    std = moments.std()
    if std.shape != (channels,):
        raise ValueError(f"forward: expected {channels} channels, got {std.size} in {np.shape(t)}")
    if not np.all(std > 0):
        raise ValueError(
            "x: expected outputs that vary over the batch, got a standard deviation of 0 or NaN in "
            f"{int(np.sum(~(std > 0)))} of {channels} channels"
        )
    return WeightNormInit(v, (1 / std).astype(x.dtype), (-moments.mean / std).astype(x.dtype))


def _norms(v: Array, axis: int | None) -> Array:
    """Norms of v in torch's shape."""
    kept = () if axis is None else (_index(axis, v.ndim),)
    over = tuple(i for i in range(v.ndim) if i not in kept)
    exact = v.astype(np.float64)
    # in units of the largest element, whose square may be no float64
    unit = np.abs(exact).max(over, keepdims=bool(kept), initial=0)
    unit = np.where(unit > 0, unit, 1)
    norms = unit * np.sqrt(((exact / unit) ** 2).sum(over, keepdims=bool(kept)))
    return np.asarray(norms, v.dtype)


class WeightNorm(Layer):
    """A weight that is held as its direction v and its length g.

    A call returns the weight for the forward pass; `backward` takes the weight's gradient.

    Parameters
    ----------
    v : array_like, float32 or float64
        Initial direction, which is copied. ``params["weight_v"]``.
    g : array_like, optional
        Initial length, of the shape of :func:`weight_norm`; the norms of v, so that the weight is v
        itself, without. ``params["weight_g"]``, of torch's shape: v's with 1 for all axes but
        `axis`, or ().
    axis, eps
        As in :func:`weight_norm`.

    Notes
    -----
    ``load_state_dict`` takes the names of ``torch.nn.utils.weight_norm`` (``weight_g, weight_v``)
    and of ``torch.nn.utils.parametrizations.weight_norm``
    (``parametrizations.weight.original0, parametrizations.weight.original1``).

    References
    ----------
    Salimans, Kingma, 2016. arXiv:1602.07868

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.WeightNorm(np.array([[3.0, 4.0], [6.0, 8.0]]))
    >>> weight = layer()
    >>> layer.backward(np.ones_like(weight))
    >>> layer.params["weight_g"].ravel(), layer.grads["weight_g"].ravel()
    (array([ 5., 10.]), array([1.4, 1.4]))
    """

    def __init__(self, v: ArrayLike, g: ArrayLike | None = None, *, axis: int | None = 0,
                 eps: float = 0.0) -> None:  # fmt: skip
        v = np.array(check.array(v, "v"), order="C")
        check.layer_dtype(v, "v")
        if v.ndim == 0:
            raise ValueError("v: expected at least 1 dimension, got a scalar")
        super().__init__(v.dtype)
        norms = _norms(v, axis)
        given = norms if g is None else np.array(check.array(g, "g"))
        weight_norm(v, given, axis=axis, eps=eps)  # for its checks
        self.axis, self.eps = axis, eps
        self.params = {"weight_g": given.reshape(norms.shape), "weight_v": v}

    def __call__(self) -> Array:
        """Return the weight."""
        self._ctx = None
        w, self._ctx = weight_norm(
            self.params["weight_v"], self.params["weight_g"], axis=self.axis, eps=self.eps,
            return_ctx=True,
        )  # fmt: skip
        return w

    def backward(self, dw: ArrayLike) -> None:
        """Fill `grads` from the gradient of the last call's weight.

        Raises
        ------
        RuntimeError
            Without a call before.
        """
        if self._ctx is None:
            raise RuntimeError("WeightNorm.backward: expected a call of the layer before")
        grads = backward(dw, self._ctx)
        assert isinstance(grads, WeightGradients)
        self.grads = {"weight_g": grads.g, "weight_v": grads.x}

    def __repr__(self) -> str:
        return (
            f"WeightNorm(shape={self.params['weight_v'].shape}, axis={self.axis}, eps={self.eps})"
        )
