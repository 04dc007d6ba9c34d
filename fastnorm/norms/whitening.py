"""Whitening: Decorrelated Batch Norm and IterNorm, batch norm that takes the correlations out too.

The statistics of a group of channels are its mean and its covariance S, and the channels of each
value are multiplied by a matrix W near the inverse root of S: ``y = weight * W (x - mean) + bias``.
`_whitened` computes it, and says in what precision; `_roots` has W.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _arguments
from .. import _check as check
from .._arguments import LAYOUTS
from .._types import Array, DerivedContext, MaybeArray, Param
from ..around import Around, AroundSettings, Outside, is_wide, run
from ._base import RunningNorm
from ._whitened import whiten

__all__ = ["DecorrelatedBatchNorm", "IterNorm", "decorrelated_batch_norm", "iter_norm"]

_WithContext: TypeAlias = tuple[Array, DerivedContext]


@overload
def decorrelated_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    momentum: float = ..., eps: float = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def decorrelated_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    momentum: float = ..., eps: float = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: Literal[True],
) -> _WithContext: ...  # fmt: skip
@overload
def decorrelated_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    momentum: float = ..., eps: float = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: bool,
) -> Array | _WithContext: ...  # fmt: skip
@overload
def decorrelated_batch_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    momentum: float = ..., eps: float = ..., layout: str = ..., out: MaybeArray = ...,
    return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def decorrelated_batch_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: MaybeArray = None,
    running_cov: MaybeArray = None, training: bool = False, group_size: int = 16,
    momentum: float = 0.1, eps: float = 1e-5, layout: str = "NCHW", out: MaybeArray = None,
    return_ctx: bool = False, **around: Unpack[Around],
) -> Array | _WithContext:  # fmt: skip
    """Decorrelated Batch Norm: channels of a group get mean 0, variance 1 and no correlation.

    ``y = weight * W (x - mean) + bias`` with ``W = (cov + eps I)**-0.5`` of each group of
    neighbouring channels, over samples and space: ZCA whitening, which of all that whitens moves
    the channels least.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position.
    running_mean : ndarray, shape (C,), optional
        Read in inference, where it is required; updated in training, when given.
    running_cov : ndarray, shape (C / group_size, group_size, group_size), optional
        With `running_mean`: the unbiased covariance of each group, without eps. So a group of one
        channel has the ``running_var`` of :func:`batch_norm`.
    training : bool
        Whether to use the batch's statistics (True) or the running ones.
    group_size : int
        Channels of a group; divides C. More than C is C: all channels are one group. 1 is
        :func:`batch_norm`.
    momentum : float
        Share of the batch in the running statistics, in [0, 1].
    eps : float
        Added to the variances, above 0: a group may have fewer values than channels.
    layout : str
        "NCHW" or "NHWC", for any rank; no blocks of channels.
    out : ndarray, optional
        Where to write y.
    return_ctx : bool
        Whether to return ``(y, ctx)``; ctx is what :func:`backward` takes.
    **around
        What stands around it, an activation, a shortcut, a mask...: see :class:`fastnorm.Around`.
        They are passes of their own.

    Returns
    -------
    y : ndarray
        Shape and dtype of x.

    Raises
    ------
    TypeError
        An argument of the wrong type or dtype; ``momentum=None``, which belongs to
        :class:`DecorrelatedBatchNorm`.
    ValueError
        A wrong shape or value; inference without running statistics; one value of each channel in
        training; arrays that share memory, as :mod:`fastnorm.functional` says.

    Notes
    -----
    With dW the sum of ``dy (x - mean)^T``, made symmetric, and W = U diag(1 / a) U^T,
    ``dx = W (dy - mean(dy)) + 2 / m * D (x - mean)`` over m values, where
    ``D = U ((U^T dW U) * K) U^T`` and ``K_ij = -1 / (a_i a_j (a_i + a_j))``: finite for equal
    eigenvalues, where others divide by their difference. In inference ``dx = W dy``.

    NaN or infinity in a channel makes its group NaN, and so do values of float64 above 1e150.
    BLAS multiplies: unlike those of the other normalizers, the last bits may depend on its version
    and on the number of its threads.

    References
    ----------
    Huang, Yang, Lang, Deng: Decorrelated Batch Normalization, 2018. arXiv:1804.08450

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0], [6.0, 6.0]])
    >>> y = fastnorm.decorrelated_batch_norm(x, training=True)
    >>> np.cov(x.T, ddof=0).tolist(), (np.cov(y.T, ddof=0).round(3) + 0).tolist()
    ([[3.5, 3.25], [3.25, 3.5]], [[1.0, 0.0], [0.0, 1.0]])
    """
    return _call(
        None, around, x=x, weight=weight, bias=bias, running_mean=running_mean,
        running_cov=running_cov, training=training, group_size=group_size, momentum=momentum,
        eps=eps, layout=layout, out=out, return_ctx=return_ctx,
    )  # fmt: skip


@overload
def iter_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    iterations: int = ..., momentum: float = ..., eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def iter_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    iterations: int = ..., momentum: float = ..., eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[True],
) -> _WithContext: ...  # fmt: skip
@overload
def iter_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    iterations: int = ..., momentum: float = ..., eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool,
) -> Array | _WithContext: ...  # fmt: skip
@overload
def iter_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, running_mean: MaybeArray = ...,
    running_cov: MaybeArray = ..., training: bool = ..., group_size: int = ...,
    iterations: int = ..., momentum: float = ..., eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def iter_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, running_mean: MaybeArray = None,
    running_cov: MaybeArray = None, training: bool = False, group_size: int = 16,
    iterations: int = 5, momentum: float = 0.1, eps: float = 1e-5, layout: str = "NCHW",
    out: MaybeArray = None, return_ctx: bool = False, **around: Unpack[Around],
) -> Array | _WithContext:  # fmt: skip
    """IterNorm: whitening by some steps of Newton, which leaves small directions small.

    As :func:`decorrelated_batch_norm`, but that W is ``P / sqrt(trace(S))`` with
    ``S = cov + eps I`` and P what `iterations` steps ``P <- (3 P - P^3 S / trace(S)) / 2`` make of
    I. The large directions of S are whitened first; those that are mostly noise are not blown up,
    as ZCA does.

    Parameters
    ----------
    x, weight, bias, running_mean, running_cov, training, group_size, momentum, eps, layout, out, \
return_ctx, **around
        As in :func:`decorrelated_batch_norm`. Running statistics are the same for both: the
        covariance, where the paper's code averages W.
    iterations : int
        Steps, 1 to 1000; 5 in the paper. With many, y is that of :func:`decorrelated_batch_norm`.

    Returns
    -------
    y : ndarray
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`decorrelated_batch_norm`.

    Notes
    -----
    The steps, and the gradient back through them, are done on the eigenvalues of S: the result is
    that of the steps on matrices, but rounding does not grow in them, however many there are.

    References
    ----------
    Huang, Zhou, Zhu, Liu, Shao: Iterative Normalization: Beyond Standardization towards Efficient
    Whitening, 2019. arXiv:1904.03441

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[1.0, 1.0], [2.0, 3.0], [3.0, 2.0], [6.0, 6.0]])
    >>> for iterations in (1, 5, 50):
    ...     y = fastnorm.iter_norm(x, training=True, iterations=iterations)
    ...     print((np.cov(y.T, ddof=0).round(2) + 0).tolist())
    [[0.54, 0.46], [0.46, 0.54]]
    [[0.93, 0.07], [0.07, 0.93]]
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return _call(
        _arguments.iterations(iterations), around, x=x, weight=weight, bias=bias,
        running_mean=running_mean, running_cov=running_cov, training=training,
        group_size=group_size, momentum=momentum, eps=eps, layout=layout, out=out,
        return_ctx=return_ctx,
    )  # fmt: skip


def _call(
    iterations: int | None, around: Around, **arguments: Any
) -> Array | tuple[Array, DerivedContext]:
    if not around and not is_wide(arguments):
        return whiten(**arguments, iterations=iterations)
    found: Array | tuple[Array, DerivedContext] = run(
        _Entry(iterations), {"norm": "whitening", **arguments}, around
    )
    return found


@dataclass(frozen=True)
class _Entry(Outside):
    """What :func:`fastnorm.around.run` calls in place of the core."""

    iterations: int | None

    def normalize(self, *, norm: str, **arguments: Any) -> Any:  # type: ignore[override]
        """Whiten."""
        return whiten(**arguments, iterations=self.iterations)


class _WhiteningLayer(RunningNorm):
    """A layer of groups of channels, with a running covariance of each."""

    def __init__(
        self, num_features: int, group_size: int, eps: float, momentum: float | None, affine: bool,
        bias: bool, layout: str, dtype: DTypeLike, **around: Unpack[AroundSettings],
    ) -> None:  # fmt: skip
        super().__init__(
            num_features, eps, momentum, affine, bias, True, 1, layout, dtype, **around
        )
        if self.eps == 0:
            raise ValueError("eps: expected a number above 0, got 0")
        if LAYOUTS[self.layout][2] > 1:
            raise ValueError(
                f"layout: expected channels first or last, got {self.layout!r}, in blocks"
            )
        self.group_size = check.integer(group_size, "group_size")
        size = _arguments.group_size(self.group_size, self.num_features)
        cov = np.zeros((self.num_features // size, size, size), self.dtype)
        cov[:] = np.eye(size)
        del self.buffers["running_var"]
        # as the others: the count is the last
        count = self.buffers.pop("num_batches_tracked")
        self.buffers |= {"running_cov": cov, "num_batches_tracked": count}

    def _common(self) -> dict[str, Any]:
        common = super()._common()
        del common["ddof"]
        return {**common, "group_size": self.group_size}


class DecorrelatedBatchNorm(_WhiteningLayer):
    """Decorrelated Batch Norm over the channels of (N, C, *) or (N, *, C).

    Parameters
    ----------
    num_features : int
        C.
    group_size : int
        Channels of a group; divides C. More than C is C.
    eps : float
        Added to the variances, above 0.
    momentum, affine, bias, layout, dtype, **around
        As in :class:`BatchNorm`; no blocks of channels.

    Notes
    -----
    ``buffers`` has ``running_mean``, ``running_cov`` of shape (groups, group_size, group_size),
    which begins as the identity, and ``num_batches_tracked``. :class:`IterNorm` has the same.

    References
    ----------
    Huang, Yang, Lang, Deng: Decorrelated Batch Normalization, 2018. arXiv:1804.08450

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.DecorrelatedBatchNorm(32)
    >>> y = layer(np.random.default_rng(0).standard_normal((8, 32, 4, 4), dtype=np.float32))
    >>> layer.backward(np.ones_like(y)).shape, layer.buffers["running_cov"].shape
    ((8, 32, 4, 4), (2, 16, 16))
    """

    def __init__(self, num_features: int, group_size: int = 16, eps: float = 1e-5,
                 momentum: float | None = 0.1, affine: bool = True, *, bias: bool = True,
                 layout: str = "NCHW", dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, group_size, eps, momentum, affine, bias, layout, dtype, **around
        )

    def _forward(self, x: ArrayLike, **around: Any) -> _WithContext:
        return decorrelated_batch_norm(
            x, training=self.training, return_ctx=True, **self._common(), **around
        )


class IterNorm(_WhiteningLayer):
    """IterNorm over the channels of (N, C, *) or (N, *, C).

    Parameters
    ----------
    num_features, group_size, eps, momentum, affine, bias, layout, dtype, **around
        As in :class:`DecorrelatedBatchNorm`, whose checkpoints load.
    iterations : int
        Steps, 1 to 1000.

    References
    ----------
    Huang, Zhou, Zhu, Liu, Shao: Iterative Normalization: Beyond Standardization towards Efficient
    Whitening, 2019. arXiv:1904.03441

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> layer = fastnorm.IterNorm(8, iterations=3)
    >>> layer(np.random.default_rng(0).standard_normal((4, 8, 5), dtype=np.float32)).shape
    (4, 8, 5)
    >>> layer
    IterNorm(8, group_size=16, eps=1e-05, momentum=0.1, affine=True, iterations=3)
    """

    def __init__(self, num_features: int, group_size: int = 16, eps: float = 1e-5,
                 momentum: float | None = 0.1, affine: bool = True, *, iterations: int = 5,
                 bias: bool = True, layout: str = "NCHW", dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(
            num_features, group_size, eps, momentum, affine, bias, layout, dtype, **around
        )
        self.iterations = _arguments.iterations(iterations)

    def _forward(self, x: ArrayLike, **around: Any) -> _WithContext:
        return iter_norm(
            x, training=self.training, iterations=self.iterations, return_ctx=True,
            **self._common(), **around,
        )  # fmt: skip
