"""Ghost Batch Norm: virtual batches, each with statistics of its own (Hoffer et al. 2017)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .._types import Array, DerivedContext, FusedGradients, MaybeArray, Param
from ._call import Call, Result

KEY = frozenset({"virtual_batch_size"})
LIKE_X = ("shortcut", "gate", "residual", "sum_out", "mask")
_NORMS = ("batch", "batch_renorm")


def needed(call: Call) -> bool:
    """Whether a call asks for virtual batches."""
    return "virtual_batch_size" in call.around


def stage(call: Call) -> Result:
    """Call the normalizer for so many samples at a time; running statistics take each in turn."""
    from ._stages import proceed

    x = _core.as_array(call["x"], "x")
    each = _size(call)
    y = _outputs(call, x)
    total = _core.empty_like(np.ascontiguousarray(x)) if "residual" in call.around else None
    if total is not None and call.around.get("sum_out") is not None:
        total = call.around["sum_out"]
    found = []
    for start in range(0, max(x.shape[0], 1), each):
        at = slice(start, start + each)
        found.append(proceed(_part(call, x, y, total, at)))
    contexts = [part.ctx for part in found]
    ctx = None if found[0].ctx is None else _GhostContext(contexts, each, x, total is not None)
    return Result(y, total, ctx)


def checked_size(value: Any, name: str = "virtual_batch_size") -> int:
    """Return a number of samples; raise where it is none."""
    each = _arguments.integer(value, name)
    if each < 1:
        raise ValueError(f"{name}: expected an int of at least 1, got {each}")
    return each


def _size(call: Call) -> int:
    each = checked_size(call.around["virtual_batch_size"])
    norm = _core.NORMS[call["norm"]]
    if norm not in _NORMS:
        raise ValueError(
            "virtual_batch_size: expected None, as the statistics are not those of the batch"
        )
    for name in ("lengths", "offsets", "moments"):
        if name in call.around:
            raise ValueError(f"{name}: expected None with virtual_batch_size")
    return each


def _outputs(call: Call, x: Array) -> Array:
    """Where y goes; what the whole call would refuse is refused before anything is written."""
    for name in LIKE_X:
        array = call.around.get(name)
        if array is not None and name != "mask" and np.shape(array) != x.shape:
            raise ValueError(f"{name}: expected x's shape {x.shape}, got {np.shape(array)}")
    if call["out"] is None:
        return _core.empty_like(np.ascontiguousarray(x))
    _arguments.check_out(call["out"], x, x.shape)
    out: Array = call["out"]
    return out


def _part(call: Call, x: Array, y: Array, total: MaybeArray, at: slice) -> Call:
    around = {k: v for k, v in call.around.items() if k not in KEY}
    for name in LIKE_X:
        if around.get(name) is not None:
            around[name] = np.broadcast_to(
                around[name],
                x.shape
                if name != "mask"
                else np.broadcast_shapes(
                    np.shape(around[name]), (x.shape[0],) + (1,) * (x.ndim - 1)
                ),
            )[at]
    if total is not None:
        around["sum_out"] = total[at]
    return call.but(around, x=x[at], out=y[at])


class _GhostContext(DerivedContext):
    """The contexts of the virtual batches."""

    def __init__(self, parts: list[Any], each: int, x: Array, has_sum: bool) -> None:
        self.parts, self.each, self.has_sum = parts, each, has_sum
        self._shape, self._dtype = x.shape, x.dtype

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`; gradients of the parameters are added in float64."""
        from ..norms import backward

        g = _core.as_array(dy, "dy")
        if g.shape != self._shape or g.dtype != self._dtype:
            _arguments.refuse_gradient(g, "dy", self._dtype, self._shape)
        if out is not None:
            _arguments.check_out(out, g, self._shape)
        parts = []
        for i, ctx in enumerate(self.parts):
            at = slice(i * self.each, (i + 1) * self.each)
            parts.append(backward(g[at], ctx, ds=None if ds is None else np.asarray(ds)[at]))
        return joined(parts, out)


def joined(parts: list[Any], out: MaybeArray, axis: int = 0) -> FusedGradients:
    """Gradients of parts of a batch as those of the batch.

    Parts lie side by side along `axis`; of axis 1 they are samples of which each has an axis 0.
    """
    found: dict[str, Any] = {}
    for name in parts[0]._fields:
        arrays = [getattr(part, name) for part in parts]
        if arrays[0] is None:
            continue
        if name in ("x", "shortcut", "gate"):
            whole = np.concatenate(arrays, axis)
            whole = whole[0] if axis else whole
            if name == "x" and out is not None:
                out[...] = whole
                whole = out
            found[name] = whole
        else:
            total = np.sum([a.astype(np.float64) for a in arrays], axis=0)
            found[name] = total.astype(arrays[0].dtype)
    return FusedGradients(**{"weight": None, "bias": None, **found})
