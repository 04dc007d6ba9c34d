"""Batch norm in training whose weights differ between samples: conditional batch norm.

The moments are those of the batch. Then each sample is a call of the core with its own weight, as a
micro-batch of one is in gradient accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._types import Array, Gradients, MaybeArray, Param, RepeatableContext
from ._arrays import Index, computed_in, delivered, overlap, target
from ._back import DerivedFromCore, Kept, lay_back
from ._parameters import Form, Parameter
from ._separate import Outside

Given = Mapping[str, Parameter]


class Conditional(Outside):
    """The normalizer, of an x of one form, with these parameters."""

    def __init__(self, core: Callable[..., Any], form: Form, given: Given,
                 states: Mapping[str, Array]) -> None:  # fmt: skip
        self._core, self._form, self._given, self._states = core, form, given, states

    @check.as_the_core
    def normalize(self, **arguments: Any) -> Any:
        """Normalize by the moments of the batch."""
        x, out, keep = (arguments[name] for name in ("x", "out", "return_ctx"))
        y = target(out, x, x)
        # running statistics are written last, when nothing can fail any more
        moved = {name: a.copy() for name, a in self._states.items()}
        whole = self._measure({**arguments, **moved}, None if overlap(y, x) else y)
        ctx = _Conditional(x, self._given, whole, arguments["eps"], arguments["layout"])
        ctx.write(y)
        for name, a in moved.items():
            self._states[name][...] = a
        y = delivered(y, out)
        return (y, ctx) if keep else y

    def _measure(self, arguments: Mapping[str, Any], out: MaybeArray) -> _core.Context:
        """Return the context of a plain call, which updates the running statistics.

        It takes half the time of `measure_started`, which is exact; its y is written over.
        """
        x = arguments["x"]
        # in blocks a weight says how many channels there are
        ones = np.ones(self._form.shared, computed_in(x.dtype)) if self._form.is_blocked else None
        own = {"weight": ones, "bias": None, "out": out, "return_ctx": True}
        ctx: _core.Context = self._core(**{**arguments, **own})[1]
        return ctx


class _Conditional(DerivedFromCore, RepeatableContext):
    """What leads back.

    With the gradient sums S1 = sum dy and S2 = sum dy (x - mean) of each sample and its weight w,
    dx takes the sums over the samples of w S1 and w S2; those of weight and bias are S2 / sigma and
    S1.
    """

    def __init__(self, x: Array, given: Given, whole: _core.Context, eps: float,
                 layout: str) -> None:  # fmt: skip
        self._x, self._given, self._eps, self._layout = x, given, eps, layout
        self._moments = _core.packed_moments(whole)
        self._statistics = {"mean": whole.mean, "var": whole.var, "rstd": whole.rstd}
        read = {"weight": given["weight"].value} if "weight" in given else {}
        self._kept = Kept({"x": x, **read})

    def statistic(self, name: str) -> Array:
        """Return "mean", "var" or "rstd": that of the batch, which all samples have."""
        return self._statistics[name]

    def _samples(self) -> list[tuple[Index, _core.Context]]:
        """Start the call of each sample."""
        rows = {name: parameter.rows() for name, parameter in self._given.items()}
        found: list[tuple[Index, _core.Context]] = []
        for n in range(len(self._x)):
            own = {name: a[n % len(a)] for name, a in rows.items()}
            ctx = _core.start_batch_norm(
                self._x[n : n + 1], own.get("weight"), own.get("bias"), None, None, True, 0.1,
                self._eps, 1, self._layout, None, False,
            )  # fmt: skip
            found.append(((slice(n, n + 1),), ctx))
        return found

    def write(self, y: Array) -> None:
        """Write y; it may be x."""
        for at, ctx in self._samples():
            _core.finish_batch_norm(ctx, self._moments, y[at], False)

    def output(self) -> Array:
        """Return y."""
        self._kept.check()
        y = _core.empty_like(self._x)
        self.write(y)
        return y

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Gradients:
        """As :func:`fastnorm.backward`."""
        laid = lay_back(self, self._x, self._kept, dy, out, ds)
        channels = len(self._moments) // 2
        weight = self._given["weight"].rows() if "weight" in self._given else np.ones((1, channels))
        weight = np.tile(weight.astype(np.float64), 2)  # of both sums
        samples, own, total = self._samples(), [], np.zeros(2 * channels)
        for n, (at, ctx) in enumerate(samples):
            rstd = _core.take_moments(ctx, self._moments)
            own.append(_core.measure_grad(laid.dy[at], ctx, None))
            total += weight[n % len(weight)] * own[n]
        grads = {name: parameter.total() for name, parameter in self._given.items()}
        for (at, ctx), sums in zip(samples, own, strict=True):
            found = _core.finish_backward(
                laid.dy[at], ctx, sums, total, self._moments[0], rstd, laid.dx[at], True
            )
            for name, parameter in self._given.items():
                parameter.add_core(grads[name], at, getattr(found, name))
        of = {name: parameter.gradient(grads[name]) for name, parameter in self._given.items()}
        return Gradients(laid.result(), of.get("weight"), of.get("bias"))
