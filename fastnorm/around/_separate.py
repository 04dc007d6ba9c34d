"""What is behind a normalizer, one by one: shortcut, activation, gate; and sums of two arrays.

With the bits that the core gives them in its pass: each rounds to x's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import _core
from .._types import Array, MaybeArray
from ._arrays import computed_in

_BATCH = _core.NORMS.index("batch")


def add(a: Array, b: Array, out: MaybeArray = None) -> Array:
    """Return the sum of two arrays of one dtype, rounded to it."""
    wide = computed_in(a.dtype)
    total = np.empty_like(a) if out is None else out
    if wide == a.dtype:
        np.add(a, b, out=total)
    else:
        total[...] = a.astype(wide) + b.astype(wide)
    return total


@dataclass(frozen=True)
class Behind:
    """``activation(u + shortcut) * gate_activation(gate)`` of a dense u.

    The core does it, around a batch norm that changes nothing: by a mean of 0 and a variance of 1,
    and an eps of 0.

    Attributes
    ----------
    numbers : tuple
        Of the activations, and the slope, as the core takes them.
    """

    numbers: tuple[Any, ...]

    def forward(self, u: Array, shortcut: MaybeArray, gate: MaybeArray, out: Array) -> None:
        """Write it to `out`, dense, which may be one of the arrays."""
        self._call(u, shortcut, gate, out.reshape(1, 1, -1), False)

    def backward(
        self, dy: Array, u: Array, shortcut: MaybeArray, gate: MaybeArray
    ) -> tuple[Array, MaybeArray, MaybeArray]:
        """Return the gradients of u, the shortcut and the gate."""
        _, ctx = self._call(u, shortcut, gate, None, True)
        found = _core.backward(dy.reshape(1, 1, -1), ctx, None, None)
        beside = (
            None if a is None else a.reshape(u.shape) for a in (found.shortcut, found.gate)
        )  # fmt: skip
        return found.x.reshape(u.shape), *beside

    def _call(self, u: Array, shortcut: MaybeArray, gate: MaybeArray, out: MaybeArray,
              keep: bool) -> Any:  # fmt: skip
        flat = [None if a is None else a.reshape(1, 1, -1) for a in (u, shortcut, gate)]
        one = np.ones(1, computed_in(u.dtype))
        around = (*self.numbers, *flat[1:], None, None)
        return _core.channel_norm(
            _BATCH, flat[0], None, None, 0 * one, one, False, 0.0, 0.0, 0, "NCL", out, keep, around
        )
