"""Global Response Norm: each channel of a sample scaled by its length among those of the others."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _core
from .._core import Context
from .._types import Array, MaybeArray, Param, WithContext
from ..around import Around, AroundSettings
from ._base import ChannelNorm

__all__ = ["GlobalResponseNorm", "global_response_norm"]

_GLOBAL_RESPONSE = _core.NORMS.index("global_response")


@overload
def global_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[False] = ...,
) -> Array: ...  # fmt: skip
@overload
def global_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: Literal[True],
) -> WithContext: ...  # fmt: skip
@overload
def global_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool,
) -> Array | WithContext: ...  # fmt: skip
@overload
def global_response_norm(
    x: ArrayLike, weight: Param = ..., bias: Param = ..., *, eps: float = ..., layout: str = ...,
    out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def global_response_norm(
    x: ArrayLike, weight: Param = None, bias: Param = None, *, eps: float = 1e-6,
    layout: str = "NCHW", out: MaybeArray = None, return_ctx: bool = False,
    **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """Global Response Norm: ``weight * (x * N) + bias + x``, with ``N = G / (mean(G) + eps)``.

    G is the Euclidean length of a channel of a sample, over space; its mean that of the channels of
    the sample. So channels that respond more than the others grow: they compete.

    Parameters
    ----------
    x, weight, bias, layout, out, return_ctx
        As in :func:`instance_norm`.
    eps : float
        Added to the mean length, at least 0.

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
    The gradient runs through N. A context has mean 0, the squares of G as `var`, and N as `rstd`.

    References
    ----------
    Woo et al.: ConvNeXt V2, 2023. arXiv:2301.00808

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.array([[[3.0, 4.0], [0.0, 15.0]]])  # lengths 5 and 15: N is 0.5 and 1.5
    >>> fastnorm.global_response_norm(x).round(3)
    array([[[ 4.5,  6. ],
            [ 0. , 37.5]]])
    """
    return _core.channel_norm(
        _GLOBAL_RESPONSE,
        x,
        weight,
        bias,
        None,
        None,
        True,
        0.0,
        eps,
        0,
        layout,
        out,
        return_ctx,
        around,
    )


class GlobalResponseNorm(ChannelNorm):
    """Global Response Norm, which starts as the identity: weight and bias are 0.

    Parameters
    ----------
    num_features, eps, layout, dtype, **around
        As in :class:`BatchNorm`.

    References
    ----------
    Woo et al.: ConvNeXt V2, 2023. arXiv:2301.00808

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.GlobalResponseNorm(1)(np.float32([[[1, 2, 3]]]))
    array([[[1., 2., 3.]]], dtype=float32)
    """

    def __init__(self, num_features: int, eps: float = 1e-6, *, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(num_features, eps, layout, dtype, **around)
        self._affine(self.num_features)
        self.params["weight"][...] = 0

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        return global_response_norm(
            x, **self.params, eps=self.eps, layout=self.layout, return_ctx=True, **around
        )
