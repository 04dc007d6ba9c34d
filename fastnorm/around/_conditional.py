"""Batch norm in training whose weights differ between samples: conditional batch norm.

The moments are those of the batch. Then each sample is a call of the core with its own weight, as a
micro-batch of one is in gradient accumulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _check as check
from .. import _core
from .._types import Array, Gradients, MaybeArray, Param, RepeatableContext
from ._arrays import Index, computed_in, delivered, overlap, target
from ._back import DerivedFromCore, Kept, lay_back
from ._call import STATES
from ._parameters import Form, Parameter
from ._separate import with_around

Given = Mapping[str, Parameter]


class Entry:
    """What a stage calls in place of the core."""

    def __init__(self, core: Callable[..., Any], form: Form, given: Given) -> None:
        self._core, self._form, self._given = core, form, given

    def __call__(self, around: Any = None, **arguments: Any) -> Any:
        return with_around(self._normalize, arguments, around)

    @check.as_the_core
    def _normalize(self, **arguments: Any) -> Any:
        x, out, keep = (arguments[name] for name in ("x", "out", "return_ctx"))
        y = target(out, x, x)
        states = {name: arguments[name] for name in STATES if arguments.get(name) is not None}
        moved = {name: a.copy() for name, a in states.items()}
        # in blocks a weight says how many channels there are
        ones = np.ones(self._form.shared, computed_in(x.dtype)) if self._form.is_blocked else None
        own = {"weight": ones, "bias": None, "out": None if overlap(y, x) else y, **moved}
        _, whole = self._core(**{**arguments, **own, "return_ctx": True})
        count = x.size // math.prod(self._form.padded)
        moments = np.concatenate(([count], whole.mean, np.sqrt(whole.var * count)))
        contexts = []
        rows = {name: _rows(parameter) for name, parameter in self._given.items()}
        for n, at in enumerate(_samples(x)):
            own = {name: a[n % len(a)] for name, a in rows.items()}
            ctx = _core.start_batch_norm(
                x[at], own.get("weight"), own.get("bias"), None, None, True, 0.1,
                arguments["eps"], 1, arguments["layout"], y[at], keep,
            )  # fmt: skip
            _core.finish_batch_norm(ctx, moments, y[at], keep)
            contexts.append(ctx)
        for name, a in moved.items():
            states[name][...] = a
        y = delivered(y, out)
        return (y, _Conditional(x, self._given, whole, count, contexts)) if keep else y


class _Conditional(DerivedFromCore, RepeatableContext):
    """The contexts of the samples.

    With the gradient sums S1 = sum dy and S2 = sum dy (x - mean) of each sample and its weight w,
    dx takes the sums over the samples of w S1 and w S2; those of weight and bias are S2 / sigma and
    S1.
    """

    def __init__(self, x: Array, given: Given, whole: _core.Context, count: int,
                 contexts: list[_core.Context]) -> None:  # fmt: skip
        self._x, self._given, self._contexts = x, given, contexts
        self._count = count
        self._statistics = {"mean": whole.mean, "var": whole.var, "rstd": whole.rstd}
        read = {"weight": given["weight"].value} if "weight" in given else {}
        self._kept = Kept({"x": x, **read})

    def statistic(self, name: str) -> Array:
        """Return "mean", "var" or "rstd": that of the batch, which all samples have."""
        return self._statistics[name]

    def output(self) -> Array:
        """Return y."""
        self._kept.check()
        y = _core.empty_like(self._x)
        for at, ctx in zip(_samples(self._x), self._contexts, strict=True):
            y[at] = _core.output_again(ctx)
        return y

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> Gradients:
        """As :func:`fastnorm.backward`."""
        laid = lay_back(self, self._x, self._kept, dy, out, ds)
        calls = list(zip(_samples(self._x), self._contexts, strict=True))
        own = [_core.measure_grad(laid.dy[at], ctx, None) for at, ctx in calls]
        weights = _rows(self._given["weight"]) if "weight" in self._given else np.ones((1, 1))
        total = (weights[:, np.newaxis] * np.reshape(own, (len(own), 2, -1))).sum(0).reshape(-1)
        rstd = self._statistics["rstd"]
        grads = {name: parameter.total() for name, parameter in self._given.items()}
        for (at, ctx), sums in zip(calls, own, strict=True):
            one = _core.finish_backward(
                laid.dy[at], ctx, sums, total, self._count, rstd, laid.dx[at], True
            )
            for name, parameter in self._given.items():
                parameter.add_core(grads[name], at, getattr(one, name))
        found = {name: parameter.gradient(grads[name]) for name, parameter in self._given.items()}
        return Gradients(laid.result(), found.get("weight"), found.get("bias"))


def _rows(parameter: Parameter) -> Array:
    """Return one row for each sample, or one for all: (N, C) or (1, C)."""
    view = parameter.view
    return view.reshape(len(view), -1)[:, : parameter.form.shared[0]]


def _samples(x: Array) -> Iterator[Index]:
    return ((slice(n, n + 1),) for n in range(len(x)))
