"""The normalizers as functions of NumPy arrays, and their one backward.

All compute ``y = weight * (x - mean) / sqrt(var + eps) + bias`` with a biased variance, and differ
in which elements share a mean and a variance. What holds for all of them:

- x is float32, float64, float16 or bfloat16 (of the package ml_dtypes), of any strides, alignment
  and byte order (an array that is not C-contiguous, aligned and native is copied first). Every
  other array must have x's dtype; parameters of a float16 or bfloat16 x may be float32 too, in
  which all is computed. Their gradients have their dtype.
- In the ``(N, C, *)`` normalizers x has rank 2 or more: N samples, C channels, any number of
  spatial axes. `layout` says where the channels are: first, ``(N, C, *)``, for "NCHW", "NC",
  "NCL", "NCDHW" or "channels_first"; last, ``(N, *, C)``, for "NHWC", "NLC", "NDHWC" or
  "channels_last"; or in blocks of 16 (8) channels, ``(N, ceil(C / 16), *, 16)``, for "NCHW16c"
  ("NCHW8c"), "NCL16c" or "NCDHW16c". There C is the length of the weight, the bias or the running
  mean, else that of all blocks; what is behind the last channel must be finite in x and is 0 in
  y: see :func:`fastnorm.to_blocked`.
- ``weight=None`` means 1 and ``bias=None`` means 0.
- Running statistics are updated in place, ``running = (1 - momentum) * running + momentum * new``,
  so they must be writeable, native, C-contiguous arrays.
- `out` may be x itself, but for a context, which refers to x. Where it shares memory with x in
  another way, or with the weight, the bias or the logits, all is as if it did not. Over running
  statistics it is refused; so are running statistics that are to be updated and share memory with
  each other, with x or with a parameter. Strided arrays of which NumPy cannot tell with little work
  whether they overlap count as if they did.
- A masked array is refused, as its mask would be lost.
- An error is raised before anything is written, also where memory is missing.
"""

# The overloads tell type checkers that `return_ctx` decides what is returned. Signatures are
# packed (fmt: skip), because one parameter a line would hide the functions between them.

from __future__ import annotations

from typing import Literal, TypeAlias, TypeVar, overload

from numpy.typing import ArrayLike

from . import _core
from ._core import Context
from ._mixed import batch_renorm, instance_renorm, switchable_norm
from ._rows import layer_norm, rms_norm
from ._types import (
    AnyContext,
    Array,
    DerivedContext,
    Gradients,
    MaybeArray,
    Param,
    SwitchableGradients,
    WeightGradients,
    WithContext,
)

__all__ = [
    "backward",
    "batch_norm",
    "batch_renorm",
    "group_norm",
    "instance_norm",
    "instance_renorm",
    "layer_norm",
    "rms_norm",
    "switchable_norm",
]

_BATCH, _GROUP, _INSTANCE = map(_core.NORMS.index, ("batch", "group", "instance"))

AnyGradients: TypeAlias = Gradients | SwitchableGradients | WeightGradients
G = TypeVar("G", bound=AnyGradients)


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
def batch_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: MaybeArray = None,
    running_var: MaybeArray = None, training: bool = False, momentum: float = 0.1,
    eps: float = 1e-5, ddof: int = 1, layout: str = "NCHW", out: MaybeArray = None,
    return_ctx: bool = False,
) -> Array | WithContext:  # fmt: skip
    """Batch Norm: statistics of each channel over samples and space.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype.
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
        out, return_ctx,
    )  # fmt: skip


@overload
def group_norm(
    x: ArrayLike, num_groups: int, weight: Param = ..., bias: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def group_norm(
    x: ArrayLike, num_groups: int, weight: Param = ..., bias: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def group_norm(
    x: ArrayLike, num_groups: int, weight: Param = ..., bias: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
def group_norm(
    x: ArrayLike, num_groups: int, weight: Param = None, bias: Param = None, *, eps: float = 1e-5,
    layout: str = "NCHW", out: MaybeArray = None, return_ctx: bool = False,
) -> Array | WithContext:  # fmt: skip
    """Group Norm: statistics of each sample over groups of neighbouring channels and space.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    num_groups : int
        Number of groups; divides C. 1 is Layer Norm over channels and space, C Instance Norm.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype.
    eps : float
        Added to the variance, at least 0.
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
        A wrong shape or value; `num_groups` that does not divide C; `out` that overlaps x with
        `return_ctx`.

    Notes
    -----
    The gradient is that of :func:`layer_norm`, with means over each group.

    References
    ----------
    Wu, He: Group Normalization, 2018. arXiv:1803.08494

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.group_norm(np.array([[1.0, 3.0, 10.0, 30.0]]), 2).round(3)
    array([[-1.,  1., -1.,  1.]])
    """
    return _core.channel_norm(
        _GROUP, x, weight, bias, None, None, True, 0.0, eps, 0, layout, out, return_ctx, num_groups
    )


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
def instance_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: MaybeArray = None,
    running_var: MaybeArray = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5, ddof: int = 1, layout: str = "NCHW", out: MaybeArray = None,
    return_ctx: bool = False,
) -> Array | WithContext:  # fmt: skip
    """Instance Norm: statistics of each sample and channel over space.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype.
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
        layout, out, return_ctx,
    )  # fmt: skip


@overload
def backward(dy: ArrayLike, ctx: Context[G], out: MaybeArray = ...) -> G: ...
@overload
def backward(dy: ArrayLike, ctx: DerivedContext, out: MaybeArray = ...) -> Gradients: ...
def backward(dy: ArrayLike, ctx: AnyContext, out: MaybeArray = None) -> AnyGradients:
    """Gradients of ``sum(dy * y)`` for the forward call that made `ctx`.

    Parameters
    ----------
    dy : array_like
        Gradient of y: its shape and dtype.
    ctx : Context or DerivedContext
        From a forward with ``return_ctx=True``, in training or in inference. It refers to x and
        the parameters, which must be unchanged since. It can be used again.
    out : ndarray, optional
        Where to write the gradient of x. It may share memory with dy, but not with x, weight or
        logits. Not after :func:`cosine_norm`.

    Returns
    -------
    Gradients, SwitchableGradients or WeightGradients
        Named tuple ``(x, weight, bias)``, after :func:`switchable_norm` with ``mean_logits`` and
        ``var_logits``; weight or bias is None where there was none. ``(x, g)`` after
        :func:`weight_norm`.

    Raises
    ------
    TypeError
        `ctx` is not a context; dy or `out` of another dtype than y.
    ValueError
        dy or `out` of another shape than y; `out` that overlaps x, weight or logits; one of these
        arrays, or the bias, whose memory, dtype, shape or strides have changed since the forward.

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x, weight = np.array([[1.0, 2.0, 4.0]]), np.ones(3)
    >>> y, ctx = fastnorm.layer_norm(x, weight, return_ctx=True)
    >>> grads = fastnorm.backward(np.array([[1.0, 0.0, 0.0]]), ctx)
    >>> grads.x.round(3)
    array([[ 0.229, -0.344,  0.115]])
    >>> grads.weight.round(3), grads.bias
    (array([-1.069,  0.   ,  0.   ]), None)
    >>> ctx.mean.round(3), ctx.rstd.round(3)
    (array([2.333]), array([0.802]))
    """
    if isinstance(ctx, DerivedContext):
        return ctx.backward(dy, out)
    return _core.backward(dy, ctx, out)
