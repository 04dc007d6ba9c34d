"""Weights as checkpoints have them: less 1, as Gemma's, or multiplied in 16 bits, as Llama's.

In bfloat16 an x_hat of 1.005859375, which is a float32 still, times a weight of 1.5 is
1.5087890625, and y is 1.5078125. With ``cast="before_weight"`` x_hat becomes 1.0078125 first, whose
product is 1.51171875, and y 1.515625, one step above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .. import _check as check
from .._types import AnyContext, DerivedContext, MaybeArray, Param
from ._arrays import computed_in, float_dtype
from ._back import Wrapping
from ._call import Call, Result
from ._stages import proceed

CASTS = ("before_weight",)


def needed(call: Call) -> bool:
    """Whether the weight is another than was given, or x is rounded before it."""
    return "weight_offset" in call.around or "cast" in call.around


def stage(call: Call) -> Result:
    """Add the offset; let the next stage round, where there are 16 bits."""
    around = {k: v for k, v in call.around.items() if k not in ("weight_offset", "cast")}
    for name in ("weight_offset", "cast"):
        if name in call.around and call["weight"] is None:
            raise ValueError(
                f"{name}: expected None, as there is no weight, got "
                f"{_arguments.shown(call.around[name])}"
            )
    dtype = float_dtype(call["x"], "x")
    if "cast" in call.around:
        _check_cast(call)
        if dtype.itemsize == 2:
            around["rounds"] = True
    if "weight_offset" not in call.around:
        return proceed(call.but(around))
    offset = check.number(call.around["weight_offset"], "weight_offset", low=-np.inf)
    given = _core.as_array(call["weight"], "weight")
    if not _arguments.is_parameter_type(given.dtype, dtype):
        _arguments.refuse_parameter(given, "weight", dtype, given.shape)
    wide = computed_in(dtype)
    with _core.FloatMode(), np.errstate(all="ignore"):
        weight = given.astype(wide) + wide.type(offset)
    found = proceed(call.but(around, weight=weight))
    if found.ctx is None or given.dtype == wide:
        return found
    ctx = Retyped(found.ctx, given.dtype.newbyteorder("="), found.sum is not None)
    return found._replace(ctx=ctx)


def checked_cast(cast: Any, name: str = "cast") -> str:
    """Return a cast; raise where it is none."""
    if not isinstance(cast, str):
        raise TypeError(f"{name}: expected a str, got {type(cast).__name__}")
    if cast not in CASTS:
        raise ValueError(
            f"{name}: expected one of {', '.join(CASTS)}, got {_arguments.shown(cast)}"
        )
    return cast


def _check_cast(call: Call) -> None:
    cast = checked_cast(call.around["cast"])
    if call.norm == "global_response":
        raise ValueError(
            f"cast: expected None for global response norm, which adds x to y, got {cast!r}"
        )


class Retyped(Wrapping):
    """A context whose weight was float32, for gradients in the dtype of the caller's."""

    def __init__(self, ctx: AnyContext, dtype: np.dtype[Any], has_sum: bool) -> None:
        super().__init__(ctx)
        self._dtype, self.has_sum = dtype, has_sum
        self.is_empty = getattr(ctx, "is_empty", False)

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Any:
        """As :func:`fastnorm.backward`."""
        ctx = self.inner
        if isinstance(ctx, DerivedContext):
            found = ctx.backward(dy, out, ds)
        else:
            found = _core.backward(dy, ctx, out, ds)
        with _core.FloatMode(), np.errstate(all="ignore"):
            return found._replace(weight=found.weight.astype(self._dtype))
