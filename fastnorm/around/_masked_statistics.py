"""What a mask asks of statistics beyond a call of the valid elements.

Running statistics that are taken from several samples, whose parts are calls of their own, and
switchable norm, whose three statistics cross the parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .. import _check as check
from .._types import Array, DerivedContext, FusedGradients, MaybeArray, Param
from ._arrays import Like, check_updated, delivered
from ._back import Kept, checked_back
from ._call import Call, Result
from ._parameters import Parameter
from ._separate import Behind, add

# of a part of the call and what it gave, all of them; the view; the mask; what was normalized
Update = Callable[[list[Any], Any, Array, Array], None]


def without_running(call: Call) -> tuple[Call, Update | None]:
    """Return the call of a part, and what updates the running statistics when all are done."""
    norm = call.norm
    check_updated(call)
    if call.states() and norm in ("instance", "instance_renorm"):  # parts show too little of them
        call.check(call["x"])
    given = call.arguments.get("running_mean") is not None
    if not given or not call["training"] or norm not in ("instance", "instance_renorm"):
        return call, None
    if norm == "instance_renorm":  # it corrects by them, and takes the moments of the batch
        return call.but(training=False), _update_by_batch(call)
    return call.but(running_mean=None, running_var=None), _update_by_means(call)


def _move(call: Call, mean: Array, var: Array) -> None:
    momentum = call["momentum"]
    for running, new in ((call["running_mean"], mean), (call["running_var"], var)):
        moved = (1 - momentum) * running.astype(np.float64) + momentum * new
        running[...] = moved.astype(running.dtype)


def _update_by_means(call: Call) -> Update:
    """As torch: the means over the samples of their means and variances."""

    def update(made: list[Any], view: Any, valid: Array, x: Array) -> None:
        means, variances = [], []
        for part, found in made:
            count = part.shape[1]
            if not part.shape[0]:  # nothing is valid
                return
            if count <= call["ddof"]:
                _arguments.refuse_count("channel of a sample", count, count, call["ddof"], x.shape)
            means.append(found.ctx.mean)
            variances.append(found.ctx.var * count / (count - call["ddof"]))
        _move(call, np.concatenate(means).mean(0), np.concatenate(variances).mean(0))

    return update


def _update_by_batch(call: Call) -> Update:
    def update(made: list[Any], view: Any, valid: Array, x: Array) -> None:
        from ..statistics.moments import Moments

        whole = view.moved(x)
        index = np.broadcast_to(valid[..., 0], whole.shape[:-1])
        if not index.any():
            return
        moments = Moments.from_array(whole[index])
        if moments.count <= max(1, call["ddof"]):
            count = int(moments.count)
            _arguments.refuse_count("channel", count, count, call["ddof"], x.shape)
        _move(call, moments.mean, moments.var(call["ddof"]))

    return update


# ---- switchable norm -------------------------------------------------------------------------


def switchable(
    call: Call, view: Any, valid: Array, given: dict[str, Parameter], beside: dict[str, Array]
) -> Result:
    """Switchable norm of the valid elements, in float64; what is around in calls of its own."""
    from ._stages import numbered

    if "rounds" in call.around:
        raise ValueError("cast: expected None for switchable norm with a mask")
    x, numbers = call["x"], numbered(call.around)
    call.check(x)
    check_updated(call)
    total = add(x, beside["residual"]) if "residual" in beside else None
    ctx = _Switched(call, x if total is None else total, view, valid, given)
    y = ctx.normalized
    if numbers is not None:
        ctx.behind, ctx.beside = Behind(numbers[:3]), beside
        y = np.empty_like(y)
        ctx.behind.forward(ctx.normalized, beside.get("shortcut"), beside.get("gate"), y)
    y = ctx.masked(y)
    ctx.has_sum = total is not None
    total = None if total is None else ctx.masked(total)
    if call["training"] and call["running_mean"] is not None:
        ctx.update(call)
    y = delivered(y, call["out"])
    if total is not None:
        total = delivered(total, call.around.get("sum_out"))
    return Result(y, total, ctx if call["return_ctx"] else None)


class _Switched(DerivedContext):
    """Statistics over (samples, space, channels) of a view with the channels last.

    With n the valid elements of a sample and N those of all, the layer statistics are means over
    the channels, and the batch statistics means over the samples weighted by n / N.
    """

    behind: Behind | None = None
    beside: dict[str, Array]

    def __init__(
        self, call: Call, x: Array, view: Any, valid: Array, given: dict[str, Parameter]
    ) -> None:
        names = ("training", "eps", "running_mean", "running_var", "mean_logits", "var_logits")
        copies: dict[str, Any] = {
            name: None if call[name] is None else np.array(call[name]) for name in names
        }
        self._call, self._view, self._given, self.beside = copies, view, given, {}
        self._like = Like(x.shape, x.dtype)
        self._kept = Kept({name: own.value for name, own in given.items()})
        self._moved = view.moved(x).shape
        rows = (self._moved[0], math.prod(self._moved[1:-1]))
        self.is_empty = not valid.any()
        self._valid = np.broadcast_to(valid, (*self._moved[:-1], 1)).reshape(*rows, 1)
        exact = view.moved(x).astype(np.float64).reshape(*rows, self._moved[-1])
        self._x = np.where(self._valid, exact, 0)
        self._n = self._valid.sum(1).astype(np.float64)  # (samples, 1)
        self._part = np.divide(self._n, self._n.sum(), where=self._n > 0,
                               out=np.zeros_like(self._n))  # fmt: skip
        logits = [np.asarray(call[name], np.float64) for name in ("mean_logits", "var_logits")]
        self._w, self._wv = (np.array(_core.softmax3(*a)) for a in logits)
        self._measure()
        y = self._back(self._hat)
        y = y * given["weight"].view if "weight" in given else y
        y = y + given["bias"].view if "bias" in given else y
        self.normalized = self.masked(y.astype(self._like.dtype))

    def _back(self, a: Array) -> Array:
        """Return an array of (samples, space, channels) in x's shape."""
        last = range(-len(self._view.last), 0)
        return np.moveaxis(a.reshape(self._moved), last, self._view.last)

    def _there(self, a: Array) -> Array:
        """Return an array of x's shape as (samples, space, channels), with 0 where not valid."""
        moved = self._view.moved(a).astype(np.float64).reshape(self._x.shape)
        return np.where(self._valid, moved, 0)

    def masked(self, a: Array) -> Array:
        """Return an array of x's shape with 0 where it is not valid."""
        found = np.zeros(self._like.shape, a.dtype)
        view, index = self._view.moved(found), self._valid.reshape(self._moved[:-1])
        view[index] = self._view.moved(a)[index]
        return found

    def _measure(self) -> None:
        n = np.maximum(self._n, 1)
        self._mean = self._x.sum(1) / n
        self._xc = np.where(self._valid, self._x - self._mean[:, None], 0)
        self._var = (self._xc**2).sum(1) / n
        lmean = self._mean.mean(1, keepdims=True)
        lvar = (self._var + (self._mean - lmean) ** 2).mean(1, keepdims=True)
        if self._call["training"]:
            bmean = (self._part * self._mean).sum(0, keepdims=True)
            bvar = (self._part * (self._var + (self._mean - bmean) ** 2)).sum(0, keepdims=True)
        else:
            states = (self._call["running_mean"], self._call["running_var"])
            bmean, bvar = (state.astype(np.float64)[None] for state in states)
        self._means = [self._mean, lmean, bmean]
        self._vars = [self._var, lvar, bvar]
        mixed = sum(w * m for w, m in zip(self._w, self._means, strict=True))
        var = sum(w * v for w, v in zip(self._wv, self._vars, strict=True))
        self._k = 1 / np.sqrt(var + self._call["eps"])
        self._hat = np.where(self._valid, (self._x - mixed[:, None]) * self._k[:, None], 0)

    def update(self, call: Call) -> None:
        """Let the running statistics take those of the batch."""
        count, ddof = int(self._n.sum()), int(call["ddof"])
        if not count or not self._x.size:
            return
        values = count * self._moved[-1]
        if values == 1 or count <= ddof:
            _arguments.refuse_count("batch", values, count, ddof, self._like.shape)
        _move(call, self._means[2][0], self._vars[2][0] * (count / (count - ddof)))

    @check.as_the_core
    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`."""
        g, extra = checked_back(self, self._like, self._kept, dy, out, ds)
        g0 = self.masked(g)
        extra = None if extra is None else self.masked(extra)
        dz = dgate = None
        if self.behind is not None:
            shortcut, gate = self.beside.get("shortcut"), self.beside.get("gate")
            g0, dz, dgate = self.behind.backward(g0, self.normalized, shortcut, gate)
            dz, dgate = (None if a is None else self.masked(a) for a in (dz, dgate))
        g = self._back(self._there(g0))  # zeros where x is not valid, whatever a gate holds
        found = {}
        for name, product in (("weight", g * self._back(self._hat)), ("bias", g)):
            if name in self._given:
                total = self._given[name].total()
                self._given[name].add(total, (), product)
                found[name] = self._given[name].gradient(total)
        g = g * self._given["weight"].view if "weight" in self._given else g
        exact, logits = self._grad_x(self._there(g))
        dx = np.ascontiguousarray(self._back(exact).astype(self._like.dtype))
        if extra is not None:
            dx = add(dx, extra)
        kinds = [self._call[n].dtype for n in ("mean_logits", "var_logits")]
        logits = [a.astype(kind) for a, kind in zip(logits, kinds, strict=True)]
        dx = delivered(dx, out)
        return FusedGradients(dx, found.get("weight"), found.get("bias"), dz, dgate, None, *logits)

    def _grad_x(self, g: Array) -> tuple[Array, list[Array]]:
        """From the gradient of x_hat to that of x, and of the logits."""
        n, channels = np.maximum(self._n, 1), self._x.shape[-1]
        dmu = -(g * self._k[:, None]).sum(1)
        dvar = -0.5 * (g * self._hat).sum(1) * self._k**2
        logits = []
        for w, d, stats in ((self._w, dmu, self._means), (self._wv, dvar, self._vars)):
            dw = np.array([(d * np.broadcast_to(s, d.shape)).sum() for s in stats])
            logits.append(w * (dw - (w * dw).sum()))
        of_mean, of_var = self._w[0] * dmu, self._wv[0] * dvar
        # the layer's, of means over the channels
        of_lvar = self._wv[1] * dvar.sum(1, keepdims=True)
        of_mean = of_mean + (self._w[1] * dmu.sum(1, keepdims=True)
                             + 2 * of_lvar * (self._mean - self._means[1])) / channels  # fmt: skip
        of_var = of_var + of_lvar / channels
        if self._call["training"]:
            of_bvar = self._wv[2] * dvar.sum(0, keepdims=True)
            of_mean = of_mean + self._part * (
                self._w[2] * dmu.sum(0, keepdims=True) + 2 * of_bvar * (self._mean - self._means[2])
            )
            of_var = of_var + self._part * of_bvar
        dx = g * self._k[:, None] + (of_mean / n)[:, None] + 2 * self._xc * (of_var / n)[:, None]
        return np.where(self._valid, dx, 0), logits
