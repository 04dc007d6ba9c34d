"""Instance Norm and Instance Renorm: statistics of each sample and channel over space."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _check as check
from .. import _core
from .._arguments import LAYOUTS
from .._core import Context
from .._types import (
    AnyContext,
    Array,
    DerivedContext,
    Gradients,
    MaybeArray,
    Param,
    WithContext,
)
from ..around import Around, AroundSettings
from ._base import RunningNorm
from ._gradients import backward
from .batch import Schedule, at_step, schedule

__all__ = ["InstanceNorm", "InstanceRenorm", "instance_norm", "instance_renorm"]

_INSTANCE, _INSTANCE_RENORM = map(_core.NORMS.index, ("instance", "instance_renorm"))


@overload
def instance_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., use_input_stats: bool = ..., momentum: float = ...,
    eps: float = ..., ddof: int = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def instance_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., use_input_stats: bool = ..., momentum: float = ...,
    eps: float = ..., ddof: int = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def instance_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., use_input_stats: bool = ..., momentum: float = ...,
    eps: float = ..., ddof: int = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
@overload
def instance_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_var: MaybeArray = ..., use_input_stats: bool = ..., momentum: float = ...,
    eps: float = ..., ddof: int = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def instance_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: MaybeArray = None,
    running_var: MaybeArray = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5, ddof: int = 1, layout: str = "NCHW", out: MaybeArray = None,
    return_ctx: bool = False, **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """Instance Norm: statistics of each sample and channel over space.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position.
    running_mean, running_var : ndarray, shape (C,), optional
        With input statistics updated, when given, by the means over the samples of the instances'
        means and variances; else used, and both required.
    use_input_stats : bool
        Whether to use the input's statistics (True) or the running ones.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the variance, at least 0.
    ddof : {1, 0}
        Whether `running_var` takes unbiased (1, as torch) or biased variances (0).
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
        A wrong shape or value; running statistics that would take the variance of one spatial
        element; arrays that share memory, as :mod:`fastnorm.functional` says.

    Notes
    -----
    The gradient is that of :func:`layer_norm`, with means over space; with running statistics
    ``dx = weight * dy / sigma``.

    References
    ----------
    Ulyanov, Vedaldi, Lempitsky: Instance Normalization, 2016. arXiv:1607.08022

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[[1.0, 3.0], [10.0, 30.0]]])
    >>> fastnorm.instance_norm(x, layout="NCL").round(3)
    array([[[-1.,  1.],
            [-1.,  1.]]])
    """
    return _core.channel_norm(
        _INSTANCE, x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, ddof,
        layout, out, return_ctx, around,
    )  # fmt: skip


class _OneSample(DerivedContext):
    """Context of a call with one sample, without the axis of samples."""

    def __init__(self, ctx: Context, shape: tuple[int, ...]) -> None:
        self._ctx, self._shape = ctx, shape

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Gradients:
        """As :func:`fastnorm.backward`; a layer has no `out`."""
        dy = check.array(dy, "dy")
        if dy.shape != self._shape:
            raise ValueError(f"dy: expected x's shape {self._shape}, got {dy.shape}")
        grads = backward(dy[None], self._ctx)._asdict()
        return Gradients(grads["x"][0], grads["weight"], grads["bias"])


class _InstanceLayer(RunningNorm):
    """Statistics of each sample: x may be one alone, ``(C, L)``.

    In a layout of any number of dimensions only two are one sample, since ``(N, C)`` has a single
    value in each instance; three could be ``(N, C, L)`` or ``(C, H, W)``, and are the first. In a
    layout that has its number, as "NC" and "NCDHW", one less is one sample.
    """

    def _normalize(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        """Return what the functional form returns with `return_ctx`, of samples."""
        raise AssertionError("a layer defines its call")

    def _is_one_sample(self, x: Array) -> bool:
        rank = LAYOUTS.get(self.layout, (0, 1, 1))[0]
        return x.ndim == (rank - 1 if rank else 2)

    def _check_sizes(self, x: Array) -> None:
        super()._check_sizes(x[None] if self._is_one_sample(x) else x)

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, AnyContext]:
        x = check.array(x, "x")
        if not self._is_one_sample(x):
            return self._normalize(x, **around)
        if around:
            raise ValueError(
                f"x: expected samples with {min(around)}, got one sample of shape {x.shape}"
            )
        y, ctx = self._normalize(x[None])
        return y[0], _OneSample(ctx, x.shape)


class InstanceNorm(_InstanceLayer):
    """Instance Norm.

    Parameters
    ----------
    num_features, eps, momentum, bias, ddof, layout, dtype, **around
        As in :class:`BatchNorm`.
    affine : bool
        Whether there are a weight and a bias; as in torch, not by default.
    track_running_stats : bool
        Whether running statistics are kept, and used in eval; as in torch, not by default.

    Notes
    -----
    x of two dimensions is one sample ``(C, L)``, or ``(L, C)`` with channels last, and so are y and
    dx: ``(N, C)`` has one value in each instance, and needs ``layout="NC"``. x of three dimensions
    is ``(N, C, L)``: of one image ``(C, H, W)`` give ``x[None]``. In a layout that has its number
    of dimensions, as "NCDHW", one less is one sample.

    ``momentum=None`` averages over all batches, as everywhere; torch's InstanceNorm never updates
    its running statistics then.

    References
    ----------
    Ulyanov, Vedaldi, Lempitsky: Instance Normalization, 2016. arXiv:1607.08022

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.arange(8, dtype=np.float32).reshape(1, 2, 4)
    >>> fastnorm.InstanceNorm(2)(x)[0, 1].round(2)
    array([-1.34, -0.45,  0.45,  1.34], dtype=float32)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = False, track_running_stats: bool = False, *, bias: bool = True,
                 ddof: int = 1, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, bias, track_running_stats, ddof, layout, dtype,
            **around,
        )  # fmt: skip

    def _normalize(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        return instance_norm(
            x,
            use_input_stats=self.training or not self.buffers,
            return_ctx=True,
            **self._common(),
            **around,
        )


@overload
def instance_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, r_max: float = ..., d_max: float = ..., blend: float = ...,
    training: bool = ..., momentum: float = ..., eps: float = ..., ddof: int = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def instance_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, r_max: float = ..., d_max: float = ..., blend: float = ...,
    training: bool = ..., momentum: float = ..., eps: float = ..., ddof: int = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def instance_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, r_max: float = ..., d_max: float = ..., blend: float = ...,
    training: bool = ..., momentum: float = ..., eps: float = ..., ddof: int = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
@overload
def instance_renorm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: Array,
    running_var: Array, r_max: float = ..., d_max: float = ..., blend: float = ...,
    training: bool = ..., momentum: float = ..., eps: float = ..., ddof: int = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def instance_renorm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: Array,
    running_var: Array, r_max: float = 3.0, d_max: float = 5.0, blend: float = 1.0,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, ddof: int = 0,
    layout: str = "NCHW", out: MaybeArray = None, return_ctx: bool = False,
    **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """Instance Renorm: Batch Renorm's correction applied to the statistics of each instance.

    ``x_hat = (x - mean) / sigma * (1 + blend * (r - 1)) + blend * d`` with the moments of each
    sample and channel, in training and in inference; r and d as in :func:`batch_renorm`.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position.
    running_mean, running_var : ndarray, shape (C,)
        Population statistics: read always, in training updated by the batch's moments.
    r_max, d_max : float
        Limits of the correction, at least 1 and 0.
    blend : float
        From 0, Instance Norm, to 1, which without limits is Batch Norm's inference.
    training : bool
        Whether to update the running statistics.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the variances, at least 0.
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
    r and d are constants in the gradient, which is that of :func:`instance_norm` times
    ``1 + blend * (r - 1)``.

    References
    ----------
    The correction: Ioffe: Batch Renormalization, 2017. arXiv:1702.03275
    The statistics: Ulyanov, Vedaldi, Lempitsky: Instance Normalization, 2016. arXiv:1607.08022

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x, mean, var = np.array([[[1.0, 3.0]]]), np.zeros(1), np.ones(1)
    >>> for blend in 0.0, 1.0:
    ...     y = fastnorm.instance_renorm(x, running_mean=mean, running_var=var, blend=blend)
    ...     print(y.round(3).tolist())
    [[[-1.0, 1.0]]]
    [[[1.0, 3.0]]]
    """
    return _core.channel_norm(
        _INSTANCE_RENORM, x, weight, bias, running_mean, running_var, training, momentum, eps, ddof,
        layout, out, return_ctx, around, None, None, None, r_max, d_max, blend,
    )  # fmt: skip


class InstanceRenorm(_InstanceLayer):
    """Instance Renorm: instance statistics, corrected toward the running ones.

    Parameters
    ----------
    num_features, eps, momentum, affine, bias, ddof, layout, dtype, **around
        As in :class:`BatchNorm`; ddof is 0.
    r_max, d_max : float or callable
        As in :class:`BatchRenorm`.
    blend : float
        From 0, plain Instance Norm, to 1, the whole correction.

    Notes
    -----
    x may be one sample ``(C, L)``, as in :class:`InstanceNorm`.

    References
    ----------
    The identity of Ioffe: Batch Renormalization, 2017, arXiv:1702.03275, applied to instance
    statistics.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.InstanceRenorm(2, blend=0.0)(np.arange(8, dtype=np.float32).reshape(1, 2, 4))[0, 0]
    ... # doctest: +ELLIPSIS
    array([-1.341..., -0.447...,  0.447...,  1.341...], dtype=float32)
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1,
                 affine: bool = True, *, r_max: Schedule = 3.0, d_max: Schedule = 5.0,
                 blend: float = 1.0, bias: bool = True, ddof: int = 0, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, bias, True, ddof, layout, dtype, **around
        )
        self.r_max, self.d_max = schedule(r_max, "r_max", 1.0), schedule(d_max, "d_max", 0.0)
        self.blend = check.number(blend, "blend", 0.0, 1.0)

    def _normalize(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        step = int(self.buffers["num_batches_tracked"])
        return instance_renorm(
            x, training=self.training, r_max=at_step(self.r_max, step),
            d_max=at_step(self.d_max, step), blend=self.blend, return_ctx=True, **self._common(),
            **around,
        )  # fmt: skip
