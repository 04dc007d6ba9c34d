"""Group Norm: statistics of each sample over groups of channels and space."""

from __future__ import annotations

from typing import Any, Literal, Unpack, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from .. import _check as check
from .. import _core
from .._core import Context
from .._types import Array, MaybeArray, Param, WithContext
from ..around import Around, AroundSettings
from ._base import Norm, check_channels

__all__ = ["GroupNorm", "group_norm"]

_GROUP = _core.NORMS.index("group")


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
@overload
def group_norm(
    x: ArrayLike, num_groups: int, weight: Param = ..., bias: Param = ..., *, eps: float = ...,
    layout: str = ..., out: MaybeArray = ..., return_ctx: bool = ..., **around: Unpack[Around],
) -> Any: ...  # fmt: skip
def group_norm(
    x: ArrayLike, num_groups: int, weight: Param = None, bias: Param = None, *, eps: float = 1e-5,
    layout: str = "NCHW", out: MaybeArray = None, return_ctx: bool = False,
    **around: Unpack[Around],
) -> Array | WithContext:  # fmt: skip
    """Group Norm: statistics of each sample over groups of neighbouring channels and space.

    Parameters
    ----------
    x : array_like, float32, float64, float16 or bfloat16
        Input, ``(N, C, *)`` or, by `layout`, ``(N, *, C)``.
    num_groups : int
        Number of groups; divides C. 1 is Layer Norm over channels and space, C Instance Norm.
    weight, bias : array_like, shape (C,), optional
        Scale and shift of each channel; x's dtype. Also (N, C), of each sample, or of x's number of
        dimensions, broadcasting against x: of each position.
    eps : float
        Added to the variance, at least 0.
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
        _GROUP,
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
        num_groups,
    )


class GroupNorm(Norm):
    """Group Norm.

    Parameters
    ----------
    num_groups : int
        Divides `num_channels`; 1 is Layer Norm over channels and space, `num_channels` is
        Instance Norm.
    num_channels : int
        C.
    eps, affine, bias, layout, dtype, **around
        As in :class:`BatchNorm`.

    References
    ----------
    Wu, He: Group Normalization, 2018. arXiv:1803.08494

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> fastnorm.GroupNorm(2, 4)(np.ones((1, 4, 3, 3), np.float32)).max()
    np.float32(0.0)
    """

    def __init__(self, num_groups: int, num_channels: int, eps: float = 1e-5, affine: bool = True,
                 *, bias: bool = True, layout: str = "NCHW",
                 dtype: DTypeLike = np.float32,
                 **around: Unpack[AroundSettings]) -> None:  # fmt: skip
        super().__init__(dtype, **around)
        self.num_groups = check.count(num_groups, "num_groups")
        self.num_channels = check.count(num_channels, "num_channels")
        if num_channels % num_groups:
            raise ValueError(
                f"num_groups: expected a divisor of the {num_channels} channels, got {num_groups}"
            )
        self.eps, self.layout = check.number(eps, "eps"), check.layout(layout)
        self.affine, self.bias = check.flag(affine, "affine"), check.flag(bias, "bias")
        if self.affine:
            self._affine(self.num_channels, bias=self.bias)

    def _check_sizes(self, x: Array) -> None:
        check_channels(x, self.num_channels, self.layout)

    def _forward(self, x: ArrayLike, **around: Any) -> tuple[Array, Context]:
        params = self.params
        if not params and self.layout.endswith("c"):  # tells padding from channels
            params = {"weight": np.ones(self.num_channels, self.dtype)}
        return group_norm(
            x,
            self.num_groups,
            **params,
            eps=self.eps,
            layout=self.layout,
            return_ctx=True,
            **around,
        )
