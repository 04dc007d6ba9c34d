"""Masks and lengths of arrays in blocks of channels: a call of channels first, and the way back.

What a mask lets through is copied anyway, and there all channels of a position lie side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._arguments import LAYOUTS
from .._types import Array, FusedGradients, MaybeArray, Param
from ..blocked import from_blocked, to_blocked
from ._arrays import Like, beside_of, delivered, dense, parameters_apart
from ._back import DerivedFromCore, Kept, checked_back
from ._call import Call, Result
from ._masks import KEYS, check_mask
from ._parameters import form_of

_PARAMETERS = ("weight", "bias", "tau")


def needed(call: Call) -> bool:
    """Whether there is a mask, and x lies in blocks."""
    layout = call.arguments.get("layout")
    is_blocked = isinstance(layout, str) and LAYOUTS.get(layout, (0, 0, 1))[2] > 1
    return is_blocked and not KEYS.isdisjoint(call.around)


@check.as_the_core
def stage(call: Call) -> Result:
    """Call the normalizer with channels first."""
    from ._stages import proceed

    x = dense(call["x"], "x")
    form = form_of(call, x)
    channels, block = form.shared[0], x.shape[-1]
    beside, keep = beside_of(call, x)
    own: dict[str, Any] = parameters_apart(call)
    call = call.but(x=x, **own)
    for name in _PARAMETERS:
        value = call.arguments.get(name)
        if value is not None and _core.as_array(value, name).ndim > 2:
            raise ValueError(
                f"{name}: expected shape ({channels},) or ({len(x)}, {channels}) with a mask in "
                f"{call['layout']}, got {_core.as_array(value, name).shape}"
            )
    around = {k: v for k, v in call.around.items() if k != "sum_out"}
    around |= {name: from_blocked(a, channels) for name, a in beside.items()}
    if "mask" in around:
        around["mask"] = _mask_of(around["mask"], x)
    first = call.but(around, x=from_blocked(x, channels), layout="channels_first", out=None)
    found = proceed(first)
    y = delivered(to_blocked(found.y, block), call["out"])
    total = None
    if found.sum is not None:
        total = delivered(to_blocked(found.sum, block), call.around.get("sum_out"))
    if not keep:
        return Result(y, total)
    given = {name: call.arguments.get(name) for name in _PARAMETERS}
    read = {name: a for name, a in given.items() if isinstance(a, np.ndarray)}
    return Result(y, total, _Blocked(found.ctx, x, channels, read))


def _mask_of(mask: Any, x: Array) -> Array:
    """Return a mask for channels first."""
    found = _core.as_array(mask, "mask")
    check_mask(found, x)
    sizes = found.shape[-1:] + found.shape[-x.ndim :][1:2] * (found.ndim == x.ndim)
    if any(n != 1 for n in sizes):
        raise ValueError(
            f"mask: expected size 1 along the channels, axes 1 and {x.ndim - 1}, got shape "
            f"{found.shape}"
        )
    return found.reshape(found.shape[:-1])


class _Blocked(DerivedFromCore):
    """Context of a call with channels first, for gradients in blocks."""

    def __init__(self, ctx: Any, x: Array, channels: int, read: Mapping[str, Array]) -> None:
        self._ctx, self._like, self._channels = ctx, Like(x.shape, x.dtype), channels
        self.has_sum, self.is_empty, self._kept = ctx.has_sum, ctx.is_empty, Kept(read)

    @property
    def inner(self) -> Any:
        """That of channels first."""
        return self._ctx

    def statistic(self, name: str) -> Array:
        """Return "mean", "var" or "rstd"."""
        found: Array = getattr(self._ctx, name)
        return found

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`."""
        g, total = checked_back(self, self._like, self._kept, dy, out, ds)
        extra = None if total is None else from_blocked(total, self._channels)
        grads = self._ctx.backward(from_blocked(g, self._channels), None, extra)
        arrays = {
            name: to_blocked(a, self._like.shape[-1])
            for name, a in grads._asdict().items()
            if name in ("x", "shortcut", "gate") and a is not None
        }
        found: FusedGradients = grads._replace(**arrays)
        return found._replace(x=delivered(found.x, out))
