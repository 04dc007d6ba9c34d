"""Samples of different lengths that lie behind one another in one array (total, C)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from numpy.typing import ArrayLike

from .. import _arguments, _core
from .. import _check as check
from .._types import Array, DerivedContext, FusedGradients, MaybeArray, Param
from ._arrays import BESIDE, Like, beside_of, delivered, dense
from ._back import Kept, checked_back
from ._call import Call, Result
from ._parameters import Form, Parameter, parameters_of

_NORMS = ("instance", "group")


def needed(call: Call) -> bool:
    """Whether x holds several samples."""
    return "offsets" in call.around


def stage(call: Call) -> Result:
    """One call for each sample, of a view of its rows."""
    from ._stages import proceed

    x = dense(call["x"], "x")
    offsets = _offsets(call, x)
    beside, keep = beside_of(call, x)
    around = {k: v for k, v in call.around.items() if k != "offsets"}
    written = (call["out"], around.pop("sum_out", None))
    form = Form((len(offsets) - 1, x.shape[1]), (1,), x.shape[1:], True)
    given = parameters_of(call, x, form)
    y = _core.empty_like(x)
    total = _core.empty_like(x) if "residual" in beside else None
    contexts = []
    for i, (start, end) in enumerate(pairwise(offsets)):
        at = (None, slice(start, end))
        some = {**around, **{n: a[at] for n, a in beside.items()}}
        if total is not None:
            some["sum_out"] = total[at]
        own = {name: p.core((slice(i, i + 1),)) for name, p in given.items()}
        found = proceed(call.but(some, x=x[at], layout="NLC", out=y[at], **own))
        contexts.append(found.ctx)
    read = {n: a for n, a in beside.items() if n != "residual"}
    read["x"] = x if total is None else total
    ctx = _PackedContext(contexts, offsets, read, given, total is not None) if keep else None
    y = delivered(y, written[0])
    return Result(y, None if total is None else delivered(total, written[1]), ctx)


def _offsets(call: Call, x: Array) -> list[int]:
    for name in ("mask", "lengths"):
        if name in call.around:
            raise ValueError(f"{name}, offsets: expected one of them, got both")
    if call.norm not in _NORMS or call.states():
        raise ValueError(
            "offsets: expected None; instance and group norm, without running statistics, take them"
        )
    if x.ndim != 2:
        raise ValueError(f"offsets: expected x of shape (total, C), got {x.shape}")
    layout = call["layout"]
    if not isinstance(layout, str) or _arguments.LAYOUTS.get(layout, (9,))[0] not in (0, 2):
        _arguments.refuse_layout(layout, x.shape)
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

    def __init__(
        self, parts: list[Any], offsets: list[int], read: dict[str, Array],
        given: dict[str, Parameter], has_sum: bool,
    ) -> None:  # fmt: skip
        self._parts, self._offsets, self.has_sum = parts, offsets, has_sum
        self._given, self._beside = given, [n for n in BESIDE[:2] if n in read]
        self._kept = Kept({**{n: p.value for n, p in given.items()}, **read})
        self._like = Like(read["x"].shape, read["x"].dtype)

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`; gradients of the parameters are added in float64."""
        from ..norms import backward

        g, extra = checked_back(self, self._like, self._kept, dy, out, ds)
        arrays = {name: _core.empty_like(g) for name in ("x", *self._beside)}
        totals = {name: parameter.total() for name, parameter in self._given.items()}
        for i, (start, end) in enumerate(pairwise(self._offsets)):
            at = (None, slice(start, end))
            found = backward(g[at], self._parts[i], ds=None if extra is None else extra[at])
            for name, array in arrays.items():
                array[at] = getattr(found, name)
            for name, total in totals.items():
                self._given[name].add_core(total, (slice(i, i + 1),), getattr(found, name))
        sums = {name: self._given[name].gradient(total) for name, total in totals.items()}
        dx = delivered(arrays.pop("x"), out)
        return FusedGradients(dx, sums.get("weight"), sums.get("bias"), **arrays)
