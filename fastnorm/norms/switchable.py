"""Switchable Norm: the statistics of three domains, mixed by learned weights."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _core
from .._core import Context
from .._types import Array, MaybeArray, Param, SwitchableGradients
from ..around import Around, AroundSettings
from ._base import RunningNorm

__all__ = ["SwitchableNorm", "switchable_norm"]

_SWITCHABLE = _core.NORMS.index("switchable")


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
@overload
def switchable_norm(
    x: ArrayLike, weight: Param, bias: Param, mean_logits: ArrayLike, var_logits: ArrayLike, *,
    running_mean: MaybeArray = ..., running_var: MaybeArray = ..., training: bool = ...,
    momentum: float = ..., eps: float = ..., ddof: int = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def switchable_norm(
    x: ArrayLike, weight: Param, bias: Param, mean_logits: ArrayLike, var_logits: ArrayLike, *,
    running_mean: MaybeArray = None, running_var: MaybeArray = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5, ddof: int = 0, layout: str = "NCHW",
    out: MaybeArray = None, return_ctx: bool = False, **around: Unpack[Around],
) -> Array | tuple[Array, Context[SwitchableGradients]]:  # fmt: skip
    """Switchable Norm: a learned mixture of the Instance, Layer and Batch Norm statistics.

    ``mean = sum_k softmax(mean_logits)[k] * mean_k`` and likewise the variance, with
    k = (in, ln, bn).

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), or None
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position.
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
        layout, out, return_ctx, around, None, mean_logits, var_logits,
    )  # fmt: skip


class SwitchableNorm(RunningNorm):
    """Switchable Norm: instance, layer and batch statistics mixed by learned weights.

    Parameters
    ----------
    num_features, eps, momentum, bias, ddof, layout, dtype, **around
        As in :class:`BatchNorm`; ddof is 0, as in the paper. ``params`` has ``mean_logits`` and
        ``var_logits`` of shape (3,), in the order instance, layer, batch, which start at 1.

    References
    ----------
    Luo, Ren, Peng, Zhang, Li: Differentiable Learning-to-Normalize via Switchable Normalization,
    2018. arXiv:1806.10779

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.SwitchableNorm(3)
    >>> y = layer(np.random.default_rng(0).standard_normal((4, 3, 5, 5), dtype=np.float32))
    >>> dx = layer.backward(y)
    >>> sorted(layer.grads)
    ['bias', 'mean_logits', 'var_logits', 'weight']
    """

    def __init__(self, num_features: int, eps: float = 1e-5, momentum: float | None = 0.1, *,
                 bias: bool = True, ddof: int = 0, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, True, bias, True, ddof, layout, dtype, **around
        )
        self.params["mean_logits"] = np.ones(3, self.dtype)
        self.params["var_logits"] = np.ones(3, self.dtype)

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        arguments = {"bias": None, **self._common()}
        return switchable_norm(x, training=self.training, return_ctx=True, **arguments, **around)
