"""Samples of different lengths that lie behind one another in one array (total, C)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .._types import Array, DerivedContext, FusedGradients, MaybeArray, Param
from ._arrays import dense, like
from ._call import Call, Result

_NORMS = ("instance", "group")
LIKE_X = ("shortcut", "gate", "residual", "sum_out")


def needed(call: Call) -> bool:
    """Whether x holds several samples."""
    return "offsets" in call.around


def stage(call: Call) -> Result:
    """One call for each sample, of a view of its rows."""
    from ._stages import proceed

    x = dense(call["x"], "x")
    offsets = _offsets(call, x)
    around = {k: v for k, v in call.around.items() if k != "offsets"}
    for name in LIKE_X[:3]:
        if name in around:
            around[name] = like(around[name], name, x)
    for name, out in (("out", call["out"]), ("sum_out", around.get("sum_out"))):
        if out is not None:
            _arguments.check_out(out, x, x.shape, name)
    y = np.empty_like(x)
    total = np.empty_like(x) if "residual" in around else None
    contexts = []
    for start, end in pairwise(offsets):
        at = (None, slice(start, end))
        some = {k: v[at] if k in LIKE_X else v for k, v in around.items()}
        if total is not None:
            some["sum_out"] = total[at]
        found = proceed(call.but(some, x=x[at], layout="NLC", out=y[at]))
        contexts.append(found.ctx)
    y, total = _put(y, call["out"]), _put(total, call.around.get("sum_out"))
    keep = bool(contexts) and contexts[0] is not None
    return Result(
        y, total, _PackedContext(contexts, offsets, x, total is not None) if keep else None
    )


def _put(found: Any, out: MaybeArray) -> Any:
    if out is None or found is None:
        return found
    out[...] = found
    return out


def _offsets(call: Call, x: Array) -> list[int]:
    for name in ("mask", "lengths"):
        if name in call.around:
            raise ValueError(f"{name}: expected None with offsets")
    if _core.NORMS[call["norm"]] not in _NORMS or call.arguments.get("running_mean") is not None:
        raise ValueError(
            "offsets: expected None; instance and group norm, without running statistics, take them"
        )
    if x.ndim != 2:
        raise ValueError(f"offsets: expected x of shape (total, C), got {x.shape}")
    offsets = _core.as_array(call.around["offsets"], "offsets")
    if offsets.dtype.kind not in "iu":
        raise TypeError(f"offsets: expected integers, got {offsets.dtype}")
    values = offsets.tolist() if offsets.ndim == 1 else []
    if len(values) < 2 or values[0] != 0 or values[-1] != len(x) or sorted(values) != values:
        raise ValueError(
            f"offsets: expected 0, then where the samples end, up to {len(x)}, got "
            f"{_arguments.shown(offsets.tolist())}"
        )
    return [int(v) for v in values]


class _PackedContext(DerivedContext):
    """The contexts of the samples."""

    def __init__(self, parts: list[Any], offsets: list[int], x: Array, has_sum: bool) -> None:
        self._parts, self._offsets, self.has_sum = parts, offsets, has_sum
        self._like = np.broadcast_to(np.zeros((), x.dtype), x.shape)

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`; gradients of the parameters are added in float64."""
        from ..norms import backward
        from ._ghost import joined

        g = like(dy, "dy", self._like)
        extra = None if ds is None else like(ds, "ds", self._like)
        if out is not None:
            _arguments.check_out(out, g, g.shape)
        found = []
        for ctx, start, end in zip(self._parts, self._offsets[:-1], self._offsets[1:], strict=True):
            at = (None, slice(start, end))
            found.append(backward(g[at], ctx, ds=None if extra is None else extra[at]))
        return joined(found, out, axis=1)
