"""Layouts in blocks of channels, as oneDNN and others keep them: "NCHW16c" and "NCHW8c"."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from . import _check as check
from . import _core
from ._types import Array

__all__ = ["from_blocked", "to_blocked"]


def to_blocked(x: ArrayLike, block: int = 16) -> Array:
    """Return a channels-first array in blocks of channels.

    Parameters
    ----------
    x : array_like
        Shape ``(N, C, *)``, of any dtype.
    block : int
        Channels of a block: 16 for "NCHW16c", 8 for "NCHW8c".

    Returns
    -------
    ndarray
        A copy of shape ``(N, ceil(C / block), *, block)``; the channels behind the last one are 0.

    Raises
    ------
    ValueError
        Another block, or fewer than two dimensions.

    See Also
    --------
    from_blocked : the way back

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.arange(20.0).reshape(1, 20, 1, 1)
    >>> fastnorm.to_blocked(x).shape
    (1, 2, 1, 1, 16)
    >>> fastnorm.to_blocked(x, 8)[0, 2, 0, 0]
    array([16., 17., 18., 19.,  0.,  0.,  0.,  0.])
    """
    x = _core.as_array(x, "x")
    if check.integer(block, "block") not in (8, 16):
        raise ValueError(f"block: expected 8 or 16, got {block!r}")
    if x.ndim < 2:
        raise ValueError(f"x: expected at least 2 dimensions (N, C, *), got shape {x.shape}")
    samples, channels, *space = x.shape
    blocks = -(-channels // block)
    try:
        out = np.empty((samples, blocks, *space, block), x.dtype)
    except ValueError as error:  # a size that no array has
        raise ValueError(f"x: expected a shape that blocks can have, got {x.shape}") from error
    if out.size == 0:
        return out
    for i in range(blocks):
        part = x[:, i * block : (i + 1) * block]
        count = part.shape[1]
        out[:, i, ..., :count] = np.moveaxis(part, 1, -1)
        out[:, i, ..., count:] = 0
    return out


def from_blocked(x: ArrayLike, channels: int) -> Array:
    """Return an array in blocks of channels as channels first.

    Parameters
    ----------
    x : array_like
        Shape ``(N, ceil(C / block), *, block)``.
    channels : int
        C.

    Returns
    -------
    ndarray
        A copy of shape ``(N, C, *)``.

    Raises
    ------
    ValueError
        The number of channels does not fit the blocks.

    See Also
    --------
    to_blocked : the way there

    Examples
    --------
    >>> import numpy as np, fastnorm
    >>> x = np.arange(20.0).reshape(1, 20, 1, 1)
    >>> (fastnorm.from_blocked(fastnorm.to_blocked(x), 20) == x).all()
    np.True_
    """
    x = _core.as_array(x, "x")
    if x.ndim < 3:
        raise ValueError(f"x: expected at least 3 dimensions, got shape {x.shape}")
    samples, blocks, *space, block = x.shape
    channels = check.integer(channels, "channels")
    if block not in (8, 16):
        raise ValueError(f"x: expected blocks of 8 or 16 channels, got shape {x.shape}")
    least = max(0, (blocks - 1) * block + 1)
    if not least <= channels <= blocks * block:
        raise ValueError(
            f"channels: expected {least} to {blocks * block} for x of shape "
            f"{x.shape}, got {channels!r}"
        )
    first = np.moveaxis(x, -1, 2).reshape(samples, blocks * block, *space)
    return np.ascontiguousarray(first[:, :channels])
