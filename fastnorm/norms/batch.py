"""Batch Norm and Batch Renorm: statistics of each channel over samples and space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _check as check
from .. import _core
from .._core import Context
from .._types import AnyContext, Array, MaybeArray, Param, WithContext
from ..around import Around, AroundSettings
from ._base import RunningNorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "batch_norm",
    "batch_renorm",
    "batch_renorm_d_max",
    "batch_renorm_r_max",
]

_BATCH, _BATCH_RENORM = map(_core.NORMS.index, ("batch", "batch_renorm"))

Schedule: TypeAlias = float | Callable[[int], float]


@overload
def batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., training: bool = ..., momentum: float = ..., eps: float = ...,
    ddof: int = ..., layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., training: bool = ..., momentum: float = ..., eps: float = ...,
    ddof: int = ..., layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., training: bool = ..., momentum: float = ..., eps: float = ...,
    ddof: int = ..., layout: str = ..., out: MaybeArray = ..., return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
@overload
def batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., training: bool = ..., momentum: float = ..., eps: float = ...,
    ddof: int = ..., layout: str = ..., out: MaybeArray = ..., return_ctx: bool = ...,
    **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def batch_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: MaybeArray = None,
    running_var: MaybeArray = None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5, ddof: int = 1, layout: str = "NCHW", out: MaybeArray = None,
    return_ctx: bool = False, **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """Batch Norm: statistics of each channel over samples and space.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position.
    running_mean, running_var : ndarray, shape (C,), optional
        Read in inference, where both are required; updated in training, when given.
    training : bool
        Whether to use the batch's statistics (True) or the running ones.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the variance, at least 0.
    ddof : {1, 0}
        Whether `running_var` takes the unbiased (1, as torch) or the biased variance (0, as Keras,
        flax and ONNX). The variance that normalizes is always biased.
    layout : str
        "NCHW" or "NHWC", for any rank, or in blocks of channels, as "NCHW16c".
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
        An argument of the wrong type or dtype; ``momentum=None``, which belongs to
        :class:`BatchNorm`.
    ValueError
        A wrong shape or value; inference without running statistics; running statistics that
        would take the variance of one value; arrays that share memory, as
        :mod:`fastnorm.functional` says.

    Notes
    -----
    In training the gradient is that of :func:`layer_norm`, with means over samples and space. In
    inference the statistics are constants: ``dx = weight * dy / sigma``.

    References
    ----------
    Ioffe, Szegedy: Batch Normalization, 2015. arXiv:1502.03167

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[1.0, 0.0], [3.0, 8.0]])
    >>> mean, var = np.zeros(2), np.ones(2)
    >>> fastnorm.batch_norm(x, running_mean=mean, running_var=var, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    >>> mean.round(3), var.round(3)
    (array([0.2, 0.4]), array([1.1, 4.1]))
    """
    return _core.channel_norm(
        _BATCH, x, weight, bias, running_mean, running_var, training, momentum, eps, ddof, layout,
        out, return_ctx, around,
    )  # fmt: skip


class BatchNorm(RunningNorm):
    """Batch Norm over the channels of (N, C, *) or (N, *, C).

    Parameters
    ----------
    num_features : int
        C.
    eps : float
        Added to the variance.
    momentum : float or None
        Weight of a batch in the running statistics; None: the average of all batches.
    affine : bool
        Whether there are a weight and, with `bias`, a bias, of shape (C,).
    track_running_stats : bool
        Whether there are running statistics; without, batch statistics serve in eval too.
    bias : bool
        Whether there is a bias where there is a weight.
    ddof : int
        Of the variance that ``running_var`` takes: 1 as torch, 0 as Keras and ONNX.
    layout : str
        "NCHW", "NHWC", ..., "channels_first" or "channels_last".
    dtype : dtype
        float32, of an input in float32, float16 or bfloat16; or float64, of one in float64.
    **around
        What each call has around it, but where it says otherwise: `activation`, `slope`,
        `gate_activation`, `weight_offset` (the weight starts at 1 less that), `cast` and
        `virtual_batch_size` of :class:`fastnorm.Around`.

    References
    ----------
    Ioffe, Szegedy: Batch Normalization, 2015. arXiv:1502.03167

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.BatchNorm(3)
    >>> y = layer(np.random.default_rng(0).standard_normal((8, 3, 4, 4), dtype=np.float32))
    >>> dx = layer.backward(np.ones_like(y))
    >>> dx.shape, sorted(layer.grads), int(layer.buffers["num_batches_tracked"])
    ((8, 3, 4, 4), ['bias', 'weight'], 1)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, track_running_stats: bool = True, *, bias: bool = True,
                 ddof: int = 1, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, bias, track_running_stats, ddof, layout, dtype,
            **around,
        )  # fmt: skip

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, AnyContext]:
        return batch_norm(
            x,
            training=self.training or not self.buffers,
            return_ctx=True,
            **self._common(),
            **around,
        )


@overload
def batch_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, training: bool = ..., momentum: float = ..., eps: float = ...,
    r_max: float = ..., d_max: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def batch_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, training: bool = ..., momentum: float = ..., eps: float = ...,
    r_max: float = ..., d_max: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def batch_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, training: bool = ..., momentum: float = ..., eps: float = ...,
    r_max: float = ..., d_max: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
@overload
def batch_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, training: bool = ..., momentum: float = ..., eps: float = ...,
    r_max: float = ..., d_max: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def batch_renorm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: Array,
    running_var: Array, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    r_max: float = 3.0, d_max: float = 5.0, ddof: int = 0, layout: str = "NCHW",
    out: MaybeArray = None, return_ctx: bool = False, **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """Batch Renorm: Batch Norm that pulls small batches toward the running statistics.

    In training ``x_hat = (x - mean) / sigma * r + d`` with the batch's moments and, from the
    running statistics as they were before, ``r = clip(sigma / running_sigma, 1 / r_max, r_max)``,
    ``d = clip((mean - running_mean) / running_sigma, -d_max, d_max)`` and
    ``sigma = sqrt(var + eps)``. Inference is that of Batch Norm.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position.
    running_mean, running_var : ndarray, shape (C,)
        Read always, updated in training.
    training : bool
        Whether to use the corrected statistics of the batch (True) or the running ones.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the variances, at least 0.
    r_max, d_max : float
        Limits of the correction, at least 1 and 0; 1 and 0 give Batch Norm.
    ddof : {0, 1}
        Whether `running_var` takes the biased (0) or the unbiased variance (1).
    layout : str
        "NCHW" or "NHWC", for any rank, or in blocks of channels, as "NCHW16c".
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
        A wrong shape or value; running statistics that would take the variance of one value;
        arrays that share memory, as :mod:`fastnorm.functional` says.

    Notes
    -----
    r and d are constants in the gradient: ``dx`` is r times that of :func:`batch_norm`. The paper
    averages sigma; here the variance is averaged, so that Batch Norm's checkpoints load.

    References
    ----------
    Ioffe: Batch Renormalization, 2017. arXiv:1702.03275

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[1.0], [3.0]])
    >>> mean, var = np.zeros(1), np.ones(1)
    >>> fastnorm.batch_renorm(x, running_mean=mean, running_var=var, training=True).round(3)
    array([[1.],
           [3.]])
    """
    return _core.channel_norm(
        _BATCH_RENORM, x, weight, bias, running_mean, running_var, training, momentum, eps, ddof,
        layout, out, return_ctx, around, None, None, None, r_max, d_max,
    )  # fmt: skip


def batch_renorm_r_max(step: int) -> float:
    """Return r_max of the Batch Renorm paper: 1 up to step 5000, then linear to 3 at 40000."""
    return float(np.interp(check.number(step, "step"), [5000, 40000], [1.0, 3.0]))


def batch_renorm_d_max(step: int) -> float:
    """Return d_max of the Batch Renorm paper: 0 up to step 5000, then linear to 5 at 25000."""
    return float(np.interp(check.number(step, "step"), [5000, 25000], [0.0, 5.0]))


def schedule(value: Schedule, name: str, low: float) -> Schedule:
    """Check a number now; what a callable returns is checked by the function that it goes to."""
    return value if callable(value) else check.number(value, name, low, np.inf)


def at_step(schedule: Schedule, step: int) -> float:
    return schedule(step) if callable(schedule) else schedule


class BatchRenorm(RunningNorm):
    """Batch Renorm: Batch Norm whose training output is what inference would give.

    Parameters
    ----------
    num_features, eps, momentum, affine, bias, ddof, layout, dtype, **around
        As in :class:`BatchNorm`; ddof is 0, as in the paper.
    r_max, d_max : float or callable
        Bounds of the corrections; a callable takes the number of batches seen so far. The
        default is the paper's schedule, which begins as Batch Norm.

    Notes
    -----
    The paper averages the standard deviation; here ``running_var`` averages the variance, so that
    a checkpoint of Batch Norm loads.

    References
    ----------
    Ioffe: Batch Renormalization, 2017. arXiv:1702.03275

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.BatchRenorm(3, r_max=2.0, d_max=lambda step: min(step / 1000, 1.0))
    >>> layer(np.ones((4, 3, 2, 2), np.float32)).shape
    (4, 3, 2, 2)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, *, r_max: Schedule = batch_renorm_r_max,
                 d_max: Schedule = batch_renorm_d_max, bias: bool = True, ddof: int = 0,
                 layout: str = "NCHW", dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, bias, True, ddof, layout, dtype, **around
        )
        self.r_max, self.d_max = schedule(r_max, "r_max", 1.0), schedule(d_max, "d_max", 0.0)

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        step = int(self.buffers["num_batches_tracked"])
        return batch_renorm(
            x, training=self.training, r_max=at_step(self.r_max, step),
            d_max=at_step(self.d_max, step), return_ctx=True, **self._common(), **around,
        )  # fmt: skip
