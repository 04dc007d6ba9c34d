"""Backward calls that a stage takes apart: their arrays, and what they return."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .._types import (
    Array,
    DerivedContext,
    FilterResponseGradients,
    FusedGradients,
    Gradients,
    MaybeArray,
    Param,
    RepeatableContext,
    SwitchableGradients,
)
from ._arrays import BESIDE, Laid, Like, delivered, like, overlap, target
from ._call import Call
from ._parameters import Parameter

OTHERS = ("tau", "mean_logits", "var_logits")  # parameters beside weight and bias


def others_of(call: Call) -> dict[str, Array]:
    """Return tau and the logits, where they are given."""
    given = {name: call.arguments.get(name) for name in OTHERS}
    return {name: _core.as_array(a, name) for name, a in given.items() if a is not None}


def gradients_of(call: Call, numbers: Any) -> type[Any]:
    """Return the type of what backward returns; numbers: None where nothing is around."""
    if numbers is not None:
        return FusedGradients
    kinds = {"switchable": SwitchableGradients, "filter_response": FilterResponseGradients}
    return kinds.get(call.norm, Gradients)


def made(kind: type[Any], x: Array, found: Mapping[str, MaybeArray]) -> Any:
    """Return gradients of this type; those that are missing are None."""
    fields = kind._fields[1:]
    return kind(x, *(found.get(name) for name in fields))


class DerivedFromCore(DerivedContext):
    """A context that has the statistics that one of the core has.

    Attributes
    ----------
    mean, var, rstd : ndarray, float64
        As those of :class:`fastnorm.Context`.
    """

    @abstractmethod
    def statistic(self, name: str) -> Array:
        """Return one of them."""

    @property
    def mean(self) -> Array:
        """Of x, as in the core."""
        return self.statistic("mean")

    @property
    def var(self) -> Array:
        """Of x, as in the core."""
        return self.statistic("var")

    @property
    def rstd(self) -> Array:
        """Of x, as in the core."""
        return self.statistic("rstd")


class Wrapping(DerivedFromCore):
    """A context around another one, whose statistics it shows."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    @property
    def inner(self) -> Any:
        """The other one."""
        return self._inner

    def statistic(self, name: str) -> Array:
        """Return "mean", "var" or "rstd"."""
        found: Array = getattr(self._inner, name)
        return found


class Kept:
    """The arrays that backward reads, and where they lay."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self.arrays = dict(arrays)
        self._remember()

    def _remember(self) -> None:
        self._places = {name: _place(a) for name, a in self.arrays.items()}

    def check(self) -> None:
        """Raise where an array is no longer what it was."""
        for name, a in self.arrays.items():
            if _place(a) != self._places[name]:
                _arguments.refuse_changed(name)

    def check_out(self, out: MaybeArray, x: Array | Like) -> None:
        """Raise where the gradient of x cannot be written to `out`."""
        if out is None:
            return
        _arguments.check_out(out, x.dtype, x.shape)
        for name, a in self.arrays.items():
            if overlap(out, a):
                _arguments.refuse_shared("out", f"the {name} of the forward call")

    def __getstate__(self) -> dict[str, Any]:
        return {"arrays": self.arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.arrays = state["arrays"]
        self._remember()


def kept(laid: Laid, given: Mapping[str, Parameter], reads_bias: bool) -> Kept:
    """Return what backward reads of a forward call."""
    read = {name: p.value for name, p in given.items() if name != "bias" or reads_bias}
    beside = {name: laid.beside[name] for name in BESIDE[:2] if name in laid.beside}
    return Kept({"x": laid.normalized, **read, **beside})


def output_of(own: RepeatableContext, ctx: DerivedContext) -> Array:
    """Return what a normalizer gave, for the context around its own."""
    try:
        return own.output()
    except Exception as error:
        ctx.fail(error)
        raise


def kept_behind(beside: Mapping[str, Array], bias: Any) -> Kept:
    """Return what backward reads: shortcut and gate, and the bias, with which y is made again."""
    read = {name: a for name, a in beside.items() if name in BESIDE[:2]}
    if isinstance(bias, np.ndarray):
        read["bias"] = bias
    return Kept(read)


def _place(a: Array) -> tuple[Any, ...]:
    return a.ctypes.data, a.dtype, a.shape, a.strides


@dataclass
class LaidBack:
    """The arrays of a backward call."""

    dy: Array
    dx: Array
    ds: MaybeArray
    out: MaybeArray

    def result(self) -> Array:
        """Return the gradient of x, where the caller wants it."""
        return delivered(self.dx, self.out)


def checked_back(ctx: DerivedContext, x: Array | Like, kept: Kept, dy: ArrayLike, out: MaybeArray,
                 ds: Param) -> tuple[Array, MaybeArray]:  # fmt: skip
    """Return dy and ds of a backward call; raise where they, or `out`, are not as they must be."""
    try:
        kept.check()
        g = like(dy, "dy", x)
        total = None if ds is None else like(ds, "ds", x)
        kept.check_out(out, x)
        if total is not None and overlap(out, total):  # it is read when `out` has been written
            total = total.copy()
    except Exception as error:
        ctx.fail(error)
        raise
    return g, total


def lay_back(ctx: DerivedContext, x: Array, kept: Kept, dy: ArrayLike, out: MaybeArray,
             ds: Param) -> LaidBack:  # fmt: skip
    """Check the arrays of a backward call; nothing is written yet."""
    g, total = checked_back(ctx, x, kept, dy, out, ds)
    return LaidBack(g, target(out, x, g), total, out)
