"""What is behind a normalizer, one by one: shortcut, activation, gate; and sums of two arrays.

With the bits that the core gives them in its pass: each rounds to x's dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._types import Array, FusedGradients, MaybeArray, Param, RepeatableContext
from ._arrays import (
    BESIDE,
    Like,
    beside_of,
    check_updated,
    computed_in,
    delivered,
    dense,
    parameters_apart,
)
from ._back import Kept, Wrapping, checked_back, kept_behind, output_of
from ._call import Call
from ._parameters import Form, form_of


def add(a: Array, b: Array, out: MaybeArray = None) -> Array:
    """Return the sum of two arrays of one dtype, rounded to it."""
    wide = computed_in(a.dtype)
    total = np.empty_like(a) if out is None else out
    if wide == a.dtype:
        np.add(a, b, out=total)
    else:
        total[...] = a.astype(wide) + b.astype(wide)
    return total


def times(a: Array, b: Array, out: MaybeArray = None) -> Array:
    """Return the product of two arrays of one dtype, rounded to it."""
    wide = computed_in(a.dtype)
    product = np.empty_like(a) if out is None else out
    if wide == a.dtype:
        np.multiply(a, b, out=product)
    else:
        product[...] = a.astype(wide) * b.astype(wide)
    return product


@dataclass(frozen=True)
class Behind:
    """``activation(u + shortcut) * gate_activation(gate)`` of a dense u.

    Attributes
    ----------
    numbers : tuple
        Of the activations, and the slope, as the core takes them.
    """

    numbers: tuple[Any, ...]

    @check.as_the_core
    def forward(self, u: Array, shortcut: MaybeArray, gate: MaybeArray, out: Array) -> None:
        """Write it to `out`, dense, which may be one of the arrays."""
        activation, gate_activation, slope = self.numbers
        gated = None if gate is None else _core.activate(gate_activation, slope, gate, None)
        v = u if shortcut is None else add(u, shortcut)
        _core.activate(activation, slope, v, out)
        if gated is not None:
            times(out, gated, out)

    @check.as_the_core
    def backward(
        self, dy: Array, u: Array, shortcut: MaybeArray, gate: MaybeArray
    ) -> tuple[Array, MaybeArray, MaybeArray]:
        """Return the gradients of u, the shortcut and the gate."""
        activation, gate_activation, slope = self.numbers
        v = u if shortcut is None else add(u, shortcut)
        dgate = None
        if gate is not None:
            active = _core.activate(activation, slope, v, None)
            dgate = _core.activate_grad(gate_activation, slope, times(dy, active), gate, None)
            dy = times(dy, _core.activate(gate_activation, slope, gate, None))
        du = _core.activate_grad(activation, slope, dy, v, None)
        return du, None if shortcut is None else du, dgate


class Outside(ABC):
    """A normalizer that the core does not know, to be called in place of a function of the core."""

    @abstractmethod
    def normalize(self, **arguments: Any) -> Any:
        """Return y, and with `return_ctx` a :class:`RepeatableContext`; with nothing around."""

    @check.as_the_core
    def __call__(self, around: Any = None, **arguments: Any) -> Any:
        """Return y, or with a residual the sum too, and with `return_ctx` a context.

        What is around, as `numbered` gives it, is done in calls of its own.
        """
        if around is None:
            return self.normalize(**arguments)
        return _with_around(self.normalize, arguments, around)


def _with_around(normalize: Callable[..., Any], arguments: Mapping[str, Any], numbers: Any) -> Any:
    x = dense(arguments["x"], "x")
    named = zip((*BESIDE, "sum_out"), numbers[3:], strict=True)
    call = Call(normalize, arguments, {name: a for name, a in named if a is not None})
    beside, _ = beside_of(call, x)
    check_updated(call)
    form = form_of(call, x)
    total = add(x, beside["residual"]) if "residual" in beside else None
    own = {"x": x if total is None else total, "out": None, **parameters_apart(call)}
    found = normalize(**{**arguments, **own})
    y, ctx = found if isinstance(found, tuple) else (found, None)
    behind = Behind(numbers[:3])
    behind.forward(y, beside.get("shortcut"), beside.get("gate"), y)
    form.zero_padding(y)
    result: list[Any] = [delivered(y, arguments["out"])]
    if total is not None:
        result.append(delivered(total, numbers[6]))
    if ctx is not None:
        kept = kept_behind(beside, own.get("bias", arguments.get("bias")))
        result.append(_Around(ctx, behind, form, x.dtype, kept, total is not None))
    return tuple(result) if len(result) > 1 else result[0]


class _Around(Wrapping):
    """Context of a normalizer and, in calls of their own, of what is around it."""

    def __init__(
        self, own: RepeatableContext, behind: Behind, form: Form, dtype: np.dtype[Any], kept: Kept,
        has_sum: bool,
    ) -> None:  # fmt: skip
        super().__init__(own)
        self._behind, self.has_sum = behind, has_sum
        self._form, self._like = form, Like(form.x, dtype)
        self._kept = kept

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`."""
        from ..norms import backward

        g, extra = checked_back(self, self._like, self._kept, dy, out, ds)
        beside = self._kept.arrays
        u = output_of(self.inner, self)
        g, dshortcut, dgate = self._behind.backward(
            g, u, beside.get("shortcut"), beside.get("gate")
        )
        found = backward(g, self.inner, out)
        if extra is not None:
            add(found.x, extra, found.x)
        self._form.zero_padding(found.x, dshortcut, dgate)
        return FusedGradients(found.x, found.weight, found.bias, dshortcut, dgate)
