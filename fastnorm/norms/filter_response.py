"""Filter Response Norm: each channel of each sample divided by its root mean square."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _check as check
from .. import _core
from .._core import Context
from .._types import Array, FilterResponseGradients, MaybeArray, Param
from ..around import Around, AroundSettings
from ._base import ChannelNorm

__all__ = ["FilterResponseNorm", "filter_response_norm"]

_FILTER_RESPONSE = _core.NORMS.index("filter_response")
_WithContext: TypeAlias = tuple[Array, Context[FilterResponseGradients]]


@overload
def filter_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., tau: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def filter_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., tau: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: Literal[True],
) -> _WithContext: ...  # fmt: skip
@overload
def filter_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., tau: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: bool,
) -> Array | _WithContext: ...  # fmt: skip
@overload
def filter_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., tau: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def filter_response_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, tau: Param = None, *,
    eps: float = 1e-6, layout: str = "NCHW", out: MaybeArray = None, return_ctx: bool = False,
    **around: Unpack[Around],
) -> Array | _WithContext:  # fmt: skip
    """Filter Response Norm: ``max(weight * x / sqrt(mean(x**2) + eps) + bias, tau)``.

    The mean is that of one channel of one sample, over space. The maximum is the paper's
    activation, the thresholded linear unit: a ReLU whose threshold is learned.

    Parameters
    ----------
    x, weight, bias, layout, out, return_ctx
        As in :func:`instance_norm`.
    tau : array_like, shape (C,), optional
        What y is at least in each channel; x's dtype. None: there is no activation.
    eps : float
        Added to the mean square, at least 0.

    Returns
    -------
    y : ndarray
        Shape and dtype of x.

    Raises
    ------
    TypeError, ValueError
        As :func:`group_norm`.

    Notes
    -----
    The gradient is that of :func:`rms_norm` over space, where y is above tau. Elsewhere, at a tie
    too, dy is the gradient of tau.

    References
    ----------
    Singh, Krishnan: Filter Response Normalization Layer, 2019. arXiv:1911.09737

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[[1.0, -7.0]]])  # of which the root mean square is 5
    >>> fastnorm.filter_response_norm(x, tau=np.zeros(1)).round(3)
    array([[[0.2, 0. ]]])
    """
    return _core.channel_norm(
        _FILTER_RESPONSE, x, weight, bias, None, None, True, 0.0, eps, 0, layout, out, return_ctx,
        around, tau=tau,
    )  # fmt: skip


class FilterResponseNorm(ChannelNorm):
    """Filter Response Norm, with its activation.

    Parameters
    ----------
    num_features, eps, layout, dtype, **around
        As in :class:`BatchNorm`. ``params`` has ``weight``, ``bias`` and ``tau``, of shape (C,).
    tau : bool
        Whether there is a ``tau``: the activation, which starts as a ReLU.

    References
    ----------
    Singh, Krishnan: Filter Response Normalization Layer, 2019. arXiv:1911.09737

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.FilterResponseNorm(1, eps=0)(np.float32([[[3, 3, -3]]]))
    array([[[1., 1., 0.]]], dtype=float32)
    """

    def __init__(self, num_features: int, eps: float = 1e-6, tau: bool = True, *,
                 layout: str = "NCHW", dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(num_features, eps, layout, dtype, **around)
        self.tau = check.flag(tau, "tau")
        self._affine(self.num_features)
        if self.tau:
            self.params["tau"] = np.zeros(self.num_features, self.dtype)

    def _forward(self, x: ArrayLike, **around: Any) -> _WithContext:
        return filter_response_norm(
            x, **self.params, eps=self.eps, layout=self.layout, return_ctx=True, **around
        )
