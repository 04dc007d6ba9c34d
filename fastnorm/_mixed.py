"""The normalizers that combine the statistics of several domains.

Batch Renorm and Instance Renorm correct by the running statistics, Switchable Norm mixes three
domains. What :mod:`fastnorm.functional` says of all normalizers holds here.
"""

from __future__ import annotations

from typing import Literal, overload

from numpy.typing import ArrayLike

from . import _core
from ._core import Context
from ._types import Array, MaybeArray, Param, SwitchableGradients, WithContext

_BATCH_RENORM, _INSTANCE_RENORM, _SWITCHABLE = map(
    _core.NORMS.index, ("batch_renorm", "instance_renorm", "switchable")
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
def batch_renorm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: Array,
    running_var: Array, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    r_max: float = 3.0, d_max: float = 5.0, ddof: int = 0, layout: str = "NCHW",
    out: MaybeArray = None, return_ctx: bool = False,
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
        Scale and shift of each channel; x's dtype.
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
        layout, out, return_ctx, None, None, None, r_max, d_max,
    )  # fmt: skip


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
def instance_renorm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: Array,
    running_var: Array, r_max: float = 3.0, d_max: float = 5.0, blend: float = 1.0,
    training: bool = False, momentum: float = 0.1, eps: float = 1e-5, ddof: int = 0,
    layout: str = "NCHW", out: MaybeArray = None, return_ctx: bool = False,
) -> Array | WithContext:  # fmt: skip
    """Instance Renorm: Batch Renorm's correction applied to the statistics of each instance.

    ``x_hat = (x - mean) / sigma * (1 + blend * (r - 1)) + blend * d`` with the moments of each
    sample and channel, in training and in inference; r and d as in :func:`batch_renorm`.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype.
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
        layout, out, return_ctx, None, None, None, r_max, d_max, blend,
    )  # fmt: skip


@overload
def switchable_norm(
    x: ArrayLike, weight: Param, bias: Param, mean_logits: ArrayLike, var_logits: ArrayLike, *,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def switchable_norm(
    x: ArrayLike, weight: Param, bias: Param, mean_logits: ArrayLike, var_logits: ArrayLike, *,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[True],
) -> tuple[Array, Context[SwitchableGradients]]: ...  # fmt: skip
@overload
def switchable_norm(
    x: ArrayLike, weight: Param, bias: Param, mean_logits: ArrayLike, var_logits: ArrayLike, *,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool,
) -> Array | tuple[Array, Context[SwitchableGradients]]: ...  # fmt: skip
def switchable_norm(
    x: ArrayLike, weight: Param, bias: Param, mean_logits: ArrayLike, var_logits: ArrayLike, *,
    running_mean: MaybeArray = None, running_var: MaybeArray = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5, ddof: int = 0, layout: str = "NCHW",
    out: MaybeArray = None, return_ctx: bool = False,
) -> Array | tuple[Array, Context[SwitchableGradients]]:  # fmt: skip
    """Switchable Norm: a learned mixture of the Instance, Layer and Batch Norm statistics.

    ``mean = sum_k softmax(mean_logits)[k] * mean_k`` and likewise the variance, with
    k = (in, ln, bn).

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), or None
        Scale and shift of each channel; x's dtype.
    mean_logits, var_logits : array_like, shape (3,)
        What the two softmaxes are taken of, in the order (in, ln, bn); x's dtype.
    running_mean, running_var : ndarray, shape (C,), optional
        In inference the Batch Norm component, and both required; updated in training, when given.
    training : bool
        Whether the Batch Norm component is that of the batch (True) or the running one.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the mixed variance, at least 0.
    ddof : {0, 1}
        Whether `running_var` takes the biased (0) or the unbiased variance (1).
    layout : str
        "NCHW" or "NHWC", for any rank, or in blocks of channels, as "NCHW16c".
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
        A wrong shape or value; inference without running statistics; running statistics that
        would take the variance of one value; arrays that share memory, as
        :mod:`fastnorm.functional` says.

    Notes
    -----
    The gradient runs through all three statistics and both softmaxes.

    References
    ----------
    Luo, Ren, Peng, Zhang, Li: Differentiable Learning-to-Normalize via Switchable Normalization,
    2018. arXiv:1806.10779

    Examples
    --------
    The third logit alone gives Batch Norm.

    >>> import numpy as np, fastnorm
    >>> x, batch_only = np.array([[1.0, 0.0], [3.0, 8.0]]), np.array([0.0, 0.0, 100.0])
    >>> fastnorm.switchable_norm(x, None, None, batch_only, batch_only, training=True).round(3)
    array([[-1., -1.],
           [ 1.,  1.]])
    """
    return _core.channel_norm(
        _SWITCHABLE, x, weight, bias, running_mean, running_var, training, momentum, eps, ddof,
        layout, out, return_ctx, None, mean_logits, var_logits,
    )  # fmt: skip
