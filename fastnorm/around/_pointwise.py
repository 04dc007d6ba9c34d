"""Parameters of any shape, applied to what the core has normalized without them.

Where samples have statistics of their own, by pieces of x that stay in the cache: widened to
float32 where they have 16 bits, normalized, multiplied, and rounded once. Else, as in batch norm in
training, the core takes all of x, and the rest goes by pieces. Nothing is kept for backward but
what the caller gave: it normalizes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._types import AnyContext, Array, MaybeArray, Param, RepeatableContext
from ._arrays import BESIDE, Index, Laid, computed_in, is_same, overlap, pieces
from ._back import (
    DerivedFromCore,
    LaidBack,
    gradients_of,
    kept,
    lay_back,
    made,
    others_of,
    output_of,
)
from ._call import Call, Result
from ._parameters import Form, Parameter
from ._separate import Behind, add


@dataclass(frozen=True)
class Plain:
    """A normalizer without its parameters.

    Attributes
    ----------
    dtype : dtype
        Of the x that the core gets, and of x_hat.
    adds_x : bool
        Whether y is what the parameters make, plus x, as of global response norm: x_hat is then
        what the core returns less x, in float64, where that loses nothing.
    states : dict
        Running statistics as they were before the forward call.
    """

    entry: Callable[..., Any]
    arguments: Mapping[str, Any]
    dtype: np.dtype[Any]
    adds_x: bool
    states: Mapping[str, Array]

    def __call__(
        self, x: Array, out: MaybeArray, keep: bool
    ) -> tuple[Array, AnyContext | None, dict[str, Array]]:
        """Return x_hat, what leads back, where that is to be kept, and the running statistics."""
        given = x.astype(self.dtype, copy=False)
        states = {name: a.copy() for name, a in self.states.items()}
        own = {**self.arguments, **states, "x": given, "out": out, "return_ctx": keep}
        found = self.entry(**own, around=None)
        x_hat, ctx = found if keep else (found, None)
        return (x_hat - given if self.adds_x else x_hat), ctx, states


def plain_of(call: Call, x: Array, form: Form) -> Plain:
    """Return the normalizer of a call without its parameters."""
    wide = computed_in(x.dtype)
    ones = np.ones(form.shared, wide) if form.is_blocked else None  # which says how many there are
    arguments = {**call.arguments, "weight": ones, "bias": None}
    for name, a in others_of(call).items():
        arguments[name] = None if name == "tau" else a.astype(wide)
    states = {name: np.array(a, wide) for name, a in call.states().items()}
    adds_x = call.norm == "global_response"
    dtype = np.dtype(np.float64) if adds_x else x.dtype if "rounds" in call.around else wide
    if adds_x and ones is not None:
        arguments["weight"] = ones.astype(dtype)
    return Plain(call.entry, arguments, dtype, adds_x, states)


class Pointwise(DerivedFromCore):
    """A forward call, and what leads back through it.

    Attributes
    ----------
    coupled : bool
        Whether all of x is one call of the core.
    """

    def __init__(self, call: Call, laid: Laid, form: Form, given: dict[str, Parameter],
                 numbers: Any, coupled: bool) -> None:  # fmt: skip
        self._x, self._form, self._given = laid.normalized, form, dict(given)
        self._plain = plain_of(call, self._x, form)
        self._rounds = "rounds" in call.around
        tau = call.arguments.get("tau")
        if tau is not None:
            written = (laid.out, laid.sum_out)
            self._given["tau"] = Parameter(tau, "tau", self._x, form, *written)
        self._beside = {name: laid.beside[name] for name in BESIDE[:2] if name in laid.beside}
        self._behind = Behind(numbers) if numbers and (numbers[0] or self._beside) else None
        self._coupled = coupled or 0 in form.axes
        self._logits = {name: a.dtype for name, a in others_of(call).items() if name != "tau"}
        self._kind = gradients_of(call, numbers)
        self.has_sum = laid.sum is not None
        self._kept = kept(laid, self._given, numbers is not None or tau is not None)
        self._keeps = laid.keep
        self._own: RepeatableContext | None = None

    @property
    def inner(self) -> Any:
        """Of a normalizer outside the core, as of sync batch norm: all of x is one call."""
        return self._own

    # ---- forward -----------------------------------------------------------------------------

    def forward(self, laid: Laid) -> dict[str, Array]:
        """Write y, and the sum; return the running statistics."""
        states: dict[str, Array] = {}
        for unit in self._units():
            x = laid.x[unit]
            if laid.sum is not None:
                x = add(x, laid.beside["residual"][unit])
            keep = self._keeps and self._coupled
            x_hat, ctx, states = self._plain(x, self._place(laid.y, unit), keep)
            if isinstance(ctx, RepeatableContext):
                self._own = ctx
            if laid.sum is not None:
                laid.sum[unit] = x
            for part in pieces(x.shape, x.ndim):
                index = within(unit, part)
                found = self._affine(x_hat[part], x[part], index, is_lost=True)
                self._finish(self._rounded(found, index), index, laid.y[index])
        self._form.zero_padding(laid.y)
        return states

    def _units(self) -> Iterator[Index]:
        """Pieces that are one call of the core."""
        if self._coupled:
            return iter([()])
        form = self._form
        return pieces(form.x, 1 if form.of_channels else min(form.axes))

    def _place(self, y: Array, unit: Index) -> MaybeArray:
        """Return the unit of y, where x_hat may be written there."""
        if y.dtype != self._plain.dtype or self._plain.adds_x:
            return None
        return None if any(overlap(y, a) for a in self._beside.values()) else y[unit]

    def _part(self, name: str, index: Index) -> MaybeArray:
        return self._given[name].part(index) if name in self._given else None

    def _affine(self, x_hat: Array, x: Array, index: Index, is_lost: bool = False) -> Array:
        """Return what is computed of x_hat, in the dtype in which that is done.

        It may lie in the memory of x_hat where that is lost.
        """
        weight, bias = self._part("weight", index), self._part("bias", index)
        wide = computed_in(self._x.dtype)
        found: Array = x_hat.astype(wide, copy=not is_lost)
        if weight is not None:
            found *= weight
            if self._rounds:
                found = found.astype(self._x.dtype).astype(wide)
        if bias is not None:
            found += bias
        if self._plain.adds_x:
            found += x.astype(wide, copy=False)
        return found

    def _rounded(self, found: Array, index: Index) -> Array:
        tau = self._part("tau", index)
        if tau is not None:
            found = np.maximum(found, tau)
        return np.ascontiguousarray(found, self._x.dtype)

    def _finish(self, u: Array, index: Index, y: Array) -> None:
        if self._behind is None:
            if not is_same(u, y):
                y[...] = u
        else:
            self._behind.forward(u, *self._beside_at(index), y)

    def _beside_at(self, index: Index) -> tuple[MaybeArray, MaybeArray]:
        shortcut, gate = (self._beside.get(name) for name in BESIDE[:2])
        return None if shortcut is None else shortcut[index], None if gate is None else gate[index]

    # ---- backward ----------------------------------------------------------------------------

    def _again(self, x: Array) -> tuple[Array, Any]:
        """Return x_hat of a unit, and what leads back through it."""
        if self._own is not None:
            return output_of(self._own, self), self._own
        x_hat, ctx, _ = self._plain(x, None, True)
        return x_hat, ctx

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Any:
        """As :func:`fastnorm.backward`."""
        laid = lay_back(self, self._x, self._kept, dy, out, ds)
        sums = {name: _room(parameter) for name, parameter in self._given.items()}
        beside = {name: np.empty_like(a) for name, a in self._beside.items()}
        logits = {name: np.zeros(3) for name in self._logits}
        for unit in self._units():
            x = self._x[unit]
            x_hat, ctx = self._again(x)
            straight = np.empty_like(x_hat) if self._plain.adds_x else None
            for part in pieces(x.shape, x.ndim):
                index = within(unit, part)
                g, found = self._before(laid.dy[index], x_hat[part], x[part], index, sums)
                for name, array in beside.items():
                    array[index] = found[name]
                weighted = self._weighted(g, x_hat[part], index, sums)
                if straight is not None:
                    straight[part] = g
                    straight[part] -= weighted
            for name, a in self._back_through(x_hat, ctx, straight, unit, laid).items():
                logits[name] += a
        self._form.zero_padding(laid.dx, *beside.values())
        grads = {name: p.gradient(sums[name]) for name, p in self._given.items()}
        grads |= {name: a.astype(self._logits[name]) for name, a in logits.items()}
        return made(self._kind, laid.result(), {**grads, **beside})

    def _before(self, dy: Array, x_hat: Array, x: Array, index: Index,
                sums: dict[str, Array]) -> tuple[Array, dict[str, MaybeArray]]:  # fmt: skip
        """Go back to what the parameters made: its gradient, in the dtype computed in."""
        wide = computed_in(self._x.dtype)
        tau, found = self._part("tau", index), {}
        if self._behind is None and tau is None:
            return dy.astype(wide, copy=False), {}
        made_it = self._affine(x_hat, x, index)
        if self._behind is not None:
            u = self._rounded(made_it, index)
            dy, *rest = self._behind.backward(dy, u, *self._beside_at(index))
            found = dict(zip(BESIDE[:2], rest, strict=True))
        g = dy.astype(wide, copy=False)
        if tau is not None:
            is_above = made_it > tau
            _take(self._given["tau"], sums["tau"], index, np.where(is_above, g.dtype.type(0), g))
            g = np.where(is_above, g, g.dtype.type(0))
        return g, found

    def _weighted(self, g: Array, x_hat: Array, index: Index, sums: dict[str, Array]) -> Array:
        """Add to the sums of weight and bias; put the gradient of x_hat in its place."""
        bias, weight = self._given.get("bias"), self._given.get("weight")
        if bias is not None:
            _take(bias, sums["bias"], index, g)
        if weight is None:
            x_hat[...] = g
            return x_hat
        wide = x_hat.astype(computed_in(x_hat.dtype), copy=False)
        if weight.is_whole:
            np.multiply(g, wide, out=sums["weight"][index])
        else:
            product = np.multiply(g, wide, dtype=weight.sums_in, casting="same_kind")
            weight.add(sums["weight"], index, product)
        if wide is not x_hat:  # of 16 bits
            x_hat[...] = g * weight.part(index)
            return x_hat
        return np.multiply(g, weight.part(index), out=x_hat)

    def _back_through(self, g: Array, ctx: Any, straight: MaybeArray, unit: Index,
                      laid: LaidBack) -> dict[str, Array]:  # fmt: skip
        """Write dx of a unit; return the gradients of logits."""
        from ..norms import backward

        dx = laid.dx[unit]
        if self._plain.dtype == dx.dtype and straight is None:
            found = backward(g, ctx, dx)
        else:
            found = backward(g, ctx, g)
            wide = computed_in(dx.dtype)
            dx[...] = found.x if straight is None else (found.x + straight).astype(wide)
        if laid.ds is not None:
            add(dx, laid.ds[unit], dx)
        return {name: getattr(found, name) for name in self._logits}

    # ---- statistics --------------------------------------------------------------------------

    def statistic(self, name: str) -> Array:
        """Return "mean", "var" or "rstd"."""
        ctx = self._own if self._own is not None else self._again(self._x)[1]
        found: Array = getattr(ctx, name)
        return found


def _room(parameter: Parameter) -> Array:
    """Return zeros, or of a parameter as large as x, whose gradient is no sum, any numbers."""
    return _core.empty_like(parameter.view) if parameter.is_whole else parameter.total()


def _take(parameter: Parameter, total: Array, index: Index, found: Array) -> None:
    """Take what a piece, which comes once, brings to a gradient."""
    if parameter.is_whole:
        total[index] = found
    else:
        parameter.add(total, index, found.astype(parameter.sums_in, copy=False))


def within(unit: Index, part: Index) -> Index:
    """Return the index into the whole of a piece of a unit, which extends as far as the unit."""
    both = [slice(0, None)] * max(len(unit), len(part))
    both[: len(unit)] = unit
    for axis, piece in enumerate(part):
        first = both[axis].start
        both[axis] = slice(first + piece.start, first + piece.stop)
    return tuple(both)


def run(call: Call, laid: Laid, form: Form, given: dict[str, Parameter], numbers: Any,
        coupled: bool) -> Result:  # fmt: skip
    """Do it."""
    ctx = Pointwise(call, laid, form, given, numbers, coupled)
    states = ctx.forward(laid)
    if coupled:
        for name, a in states.items():
            call[name][...] = a
    y, total = laid.delivered()
    return Result(y, total, ctx if laid.keep else None)
