"""Arrays of a call that a stage takes apart: checked, and where the results go.

A stage that goes through x piece by piece has to see at once what the core would see of the whole:
shapes and dtypes, and memory that is written before it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from .. import _arguments, _core
from .._types import Array, MaybeArray
from ._call import Call

Index: TypeAlias = tuple[slice, ...]

# elements of a piece, 256 KB in float32: with smaller ones Python takes longer than the arrays
PIECE = 1 << 16

BESIDE = ("shortcut", "gate", "residual")
PARAMETERS = ("weight", "bias", "tau", "mean_logits", "var_logits")
_DTYPES = ("float32", "float64", "float16", "bfloat16")


def float_dtype(value: Any, name: str) -> np.dtype[Any]:
    """Return the dtype of an array that has one of ours, in native byte order."""
    dtype = _core.as_array(value, name).dtype
    if dtype.name not in _DTYPES:
        _arguments.refuse_dtype(name, dtype)
    return dtype.newbyteorder("=")


def dense(value: Any, name: str) -> Array:
    """Return an array of floats, C-contiguous, aligned and in native byte order."""
    a = _core.as_array(value, name)
    dtype = float_dtype(a, name)
    if a.flags.c_contiguous and a.flags.aligned and a.dtype.isnative:
        return a  # itself, as `Kept` looks at its attributes later
    return np.array(a, dtype, order="C")


class Like(NamedTuple):
    """Shape and dtype of an array that is not kept."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def like(value: Any, name: str, x: Array | Like) -> Array:
    """Return a dense array of x's shape and dtype."""
    a = dense(value, name)
    if a.dtype != x.dtype or a.shape != x.shape:
        _arguments.refuse_gradient(a, name, x.dtype, x.shape)
    return a


def computed_in(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return float64 for float64, and float32 for all others."""
    return np.dtype(np.float64 if dtype.itemsize == 8 else np.float32)  # in any byte order


def overlap(a: Any, b: Any) -> bool:
    """Tell whether both are arrays and share memory."""
    arrays = isinstance(a, np.ndarray) and isinstance(b, np.ndarray)
    return arrays and a.size > 0 and b.size > 0 and _arguments.may_overlap(a, b)


def is_same(a: Array, b: Array) -> bool:
    """Tell whether they are the same elements, so that one may be written once the other was read.

    Both of the same shape and dtype.
    """
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides


def is_dense(a: Array) -> bool:
    """Tell whether the core could write it directly."""
    return a.flags.carray and a.dtype.isnative


def target(out: MaybeArray, like_it: Array, *read: Array) -> Array:
    """Return `out`, where it can be written piece by piece after these were read, or an array."""
    if out is None or not is_dense(out):
        return _core.empty_like(like_it)
    is_free = all(is_same(out, a) or not overlap(out, a) for a in read)
    return out if is_free else _core.empty_like(like_it)


def delivered(result: Array, out: MaybeArray) -> Array:
    """Return the result in `out`, where that was given."""
    if out is None or out is result:
        return result
    out[...] = result
    return out


def pieces(shape: tuple[int, ...], lead: int, most: int = PIECE) -> Iterator[Index]:
    """Cut the first `lead` axes so that a piece has at most so many elements, where that goes.

    Each piece is contiguous: of shape (4, 6, 99) with lead 2 and at most 250 elements, (1, 2, 99).
    """
    if 0 in shape:
        return
    if lead == 0:
        yield ()
        return
    axis = 0
    while axis < lead - 1 and math.prod(shape[axis + 1 :]) > most:
        axis += 1
    step = max(1, most // math.prod(shape[axis + 1 :]))
    for first in np.ndindex(*shape[:axis]):
        for start in range(0, shape[axis], step):
            stop = min(start + step, shape[axis])
            yield (*(slice(i, i + 1) for i in first), slice(start, stop))


@dataclass
class Laid:
    """What a call reads and writes that is as large as x. All of it is dense."""

    x: Array
    beside: dict[str, Array]  # of BESIDE those that were given
    y: Array
    sum: MaybeArray  # where x plus the residual goes
    out: MaybeArray  # the caller's, for y and the sum
    sum_out: MaybeArray
    keep: bool  # whether a context is wanted

    @property
    def normalized(self) -> Array:
        """What is normalized: x, or the sum, once it was written."""
        return self.x if self.sum is None else self.sum

    def delivered(self) -> tuple[Array, MaybeArray]:
        """Return y and the sum where the caller wants them."""
        total = None if self.sum is None else delivered(self.sum, self.sum_out)
        return delivered(self.y, self.out), total

    def around(self, index: Index) -> tuple[MaybeArray, ...]:
        """Return a piece of the shortcut, the gate and the residual, and of where the sum goes."""
        beside = (self.beside.get(name) for name in BESIDE)
        return tuple(None if a is None else a[index] for a in (*beside, self.sum))


def lay(call: Call, has_y: bool = True) -> Laid:
    """Check the arrays of a call that are as large as x; nothing is written yet.

    Without `has_y` there is no array for y, but an empty one.
    """
    x = dense(call["x"], "x")
    beside, keep = beside_of(call, x)
    out, sum_out = call["out"], call.around.get("sum_out")
    total = target(sum_out, x, x, *beside.values()) if "residual" in beside else None
    y = target(out, x, x, *beside.values()) if has_y else np.empty(0, x.dtype)
    return Laid(x, beside, y, total, out, sum_out, keep)


def beside_of(call: Call, x: Array) -> tuple[dict[str, Array], bool]:
    """Return what is beside x, and whether a context is wanted; raise where a call cannot be.

    What is written before it is read for the last time, as by backward, is a copy.
    """
    around = call.around
    beside = {name: like(around[name], name, x) for name in BESIDE if name in around}
    keep = check_written(call, x)
    for name, a in beside.items():
        if _is_lost(a, name, call["out"], around.get("sum_out"), keep):
            beside[name] = a.copy()
    return beside, keep


def parameters_apart(call: Call) -> dict[str, Array]:
    """Return copies of the parameters that lie where y or the sum is written."""
    written = (call["out"], call.around.get("sum_out"))
    given: dict[str, Any] = {name: call.arguments.get(name) for name in PARAMETERS}
    return {name: a.copy() for name, a in given.items() if any(overlap(to, a) for to in written)}


def check_written(call: Call, x: Array) -> bool:
    """Raise where `out` or `sum_out` cannot be written; return whether a context is wanted."""
    out, sum_out = call["out"], call.around.get("sum_out")
    keep = bool(_arguments.flag(call["return_ctx"], "return_ctx"))
    for name, to in (("out", out), ("sum_out", sum_out)):
        if to is None:
            continue
        _arguments.check_out(to, x.dtype, x.shape, name)
        for state, a in call.states().items():
            if overlap(to, a):
                _arguments.refuse_shared(name, state)
    if sum_out is not None and "residual" not in call.around:
        raise ValueError("sum_out: expected None, as there is no residual")
    if overlap(out, sum_out):
        _arguments.refuse_shared("sum_out", "out")
    if keep and "residual" not in call.around and overlap(out, x):
        _arguments.refuse_out_over_x()
    return keep


def check_updated(call: Call) -> None:
    """Raise where running statistics that are updated share memory with what is read."""
    if not call.arguments.get("training"):
        return
    for state, a in call.states().items():
        for name in ("x", *PARAMETERS):
            if overlap(a, call.arguments.get(name)):
                _arguments.refuse_shared(state, name, "since it is updated, ")


def _is_lost(a: Array, name: str, out: MaybeArray, sum_out: MaybeArray, keep: bool) -> bool:
    """Tell whether an array is written before it is read: by y, by the sum, or for backward."""
    if out is not None and overlap(out, a) and (keep or not is_same(out, a)):
        return True
    same = name == "residual" and sum_out is not None and is_same(sum_out, a)
    return overlap(sum_out, a) and not same
