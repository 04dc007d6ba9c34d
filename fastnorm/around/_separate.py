"""What is behind a normalizer, one by one: shortcut, activation, gate; and sums of two arrays.

With the bits that the core gives them in its pass: each rounds to x's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _check as check
from .. import _core
from .._types import Array, MaybeArray
from ._arrays import computed_in



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

    @property
    def is_needed(self) -> bool:
        """Whether there is an activation; with arrays beside, it is needed anyway."""
        return self.numbers[0] != 0

    @check.as_the_core
    def forward(self, u: Array, shortcut: MaybeArray, gate: MaybeArray, out: Array) -> None:
        """Write it to `out`, dense, which may be one of the arrays."""
        activation, gate_activation, slope = self.numbers[:3]
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
        activation, gate_activation, slope = self.numbers[:3]
        v = u if shortcut is None else add(u, shortcut)
        dgate = None
        if gate is not None:
            active = _core.activate(activation, slope, v, None)
            dgate = _core.activate_grad(gate_activation, slope, times(dy, active), gate, None)
            dy = times(dy, _core.activate(gate_activation, slope, gate, None))
        du = _core.activate_grad(activation, slope, dy, v, None)
        return du, None if shortcut is None else du, dgate
