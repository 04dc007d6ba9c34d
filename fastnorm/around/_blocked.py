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
from ._arrays import Like, beside_of, check_updated, delivered, dense, parameters_apart
from ._back import Kept, Wrapping, checked_back
from ._call import Call, Result
from ._masks import AFFINE, KEYS, checked_mask
from ._parameters import check_rest, form_of


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
    check_updated(call)
    check_rest(call, form, x)
    beside, keep = beside_of(call, x)
    own: dict[str, Any] = parameters_apart(call)
    call = call.but(x=x, **own)
    for name in AFFINE:
        value = call.arguments.get(name)
        if value is not None and _core.as_array(value, name).ndim > 2:
            raise ValueError(
                f"{name}: expected shape ({channels},) or ({len(x)}, {channels}) with a mask in "
                f"{call['layout']}, got {_core.as_array(value, name).shape}"
            )
    around = {k: v for k, v in call.around.items() if k != "sum_out"}
    around |= {name: from_blocked(a, channels) for name, a in beside.items()}
    if "mask" in around:
        around["mask"] = _without_blocks(around["mask"], x)
    first = call.but(around, x=from_blocked(x, channels), layout="channels_first", out=None)
    found = proceed(first)
    y = delivered(to_blocked(found.y, block), call["out"])
    total = None
    if found.sum is not None:
        total = delivered(to_blocked(found.sum, block), call.around.get("sum_out"))
    if not keep:
        return Result(y, total)
    given = {name: call.arguments.get(name) for name in AFFINE}
    read = {name: a for name, a in given.items() if isinstance(a, np.ndarray)}
    return Result(y, total, _Blocked(found.ctx, x, channels, read))


def _without_blocks(mask: Any, x: Array) -> Array:
    """Return a mask for channels first."""
    whole = checked_mask(_core.as_array(mask, "mask"), x)
    if whole.shape[1] != 1 or whole.shape[-1] != 1:
        raise ValueError(
            f"mask: expected size 1 along the channels, axes 1 and {x.ndim - 1}, got shape "
            f"{np.shape(mask)}"
        )
    return whole[..., 0]


class _Blocked(Wrapping):
    """Context of a call with channels first, for gradients in blocks."""

    def __init__(self, ctx: Any, x: Array, channels: int, read: Mapping[str, Array]) -> None:
        super().__init__(ctx)
        self._like, self._channels = Like(x.shape, x.dtype), channels
        self.has_sum, self.is_empty, self._kept = ctx.has_sum, ctx.is_empty, Kept(read)

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`."""
        g, total = checked_back(self, self._like, self._kept, dy, out, ds)
        extra = None if total is None else from_blocked(total, self._channels)
        grads = self.inner.backward(from_blocked(g, self._channels), None, extra)
        arrays = {
            name: to_blocked(a, self._like.shape[-1])
            for name, a in grads._asdict().items()
            if name in ("x", "shortcut", "gate") and a is not None
        }
        arrays["x"] = delivered(arrays["x"], out)
        found: FusedGradients = grads._replace(**arrays)
        return found
