"""What a mask asks of statistics beyond a call of the valid elements.

Running statistics that are taken from several samples, whose parts are calls of their own, and
switchable norm, whose three statistics cross the parts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import _arguments, _core
from .._types import Array, DerivedContext, FusedGradients, MaybeArray, Param
from ._arrays import delivered, like
from ._call import Call, Result

Update = Callable[[list[Any], Array, Any, Array], None]


def without_running(call: Call) -> tuple[Call, Update | None]:
    """Return the call of a part, and what updates the running statistics when all are done."""
    norm = _core.NORMS[call["norm"]]
    given = call.arguments.get("running_mean") is not None
    if not given or not call["training"] or norm not in ("instance", "instance_renorm"):
        return call, None
    if norm == "instance_renorm":  # it corrects by them, and takes the moments of the batch
        return call.but(training=False), _update_by_batch(call)
    _check_states(call)
    return call.but(running_mean=None, running_var=None), _update_by_means(call)


def _check_states(call: Call) -> None:
    """Raise what the core would of running statistics: by a call of no samples."""
    x = call["x"]
    around = {k: v[:0] if k in ("shortcut", "gate", "residual") else v
              for k, v in call.around.items() if k != "sum_out"}  # fmt: skip
    narrow = {n: None for n in ("weight", "bias") if np.ndim(call[n]) > 1}
    from ._stages import proceed

    proceed(call.but(around, x=x[:0], out=None, return_ctx=False, **narrow))


def _move(call: Call, mean: Array, var: Array) -> None:
    momentum = call["momentum"]
    for running, new in ((call["running_mean"], mean), (call["running_var"], var)):
        moved = (1 - momentum) * running.astype(np.float64) + momentum * new
        running[...] = moved.astype(running.dtype)


def _update_by_means(call: Call) -> Update:
    """As torch: the means over the samples of their means and variances."""

    def update(made: list[Any], x: Array, view: Any, valid: Array) -> None:
        means, variances = [], []
        for part, found in made:
            count = part.shape[1]
            if count <= call["ddof"]:
                _arguments.refuse_count("channel of a sample", count, count, call["ddof"], x.shape)
            means.append(found.ctx.mean)
            variances.append(found.ctx.var * count / (count - call["ddof"]))
        if means:
            _move(call, np.concatenate(means).mean(0), np.concatenate(variances).mean(0))

    return update


def _update_by_batch(call: Call) -> Update:
    def update(made: list[Any], x: Array, view: Any, valid: Array) -> None:
        from ..statistics.moments import Moments

        whole = view.of(x if "residual" not in call.around else x + call.around["residual"])
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


def switchable(call: Call, x: Array, view: Any, valid: Array, keep: bool) -> Result:
    """Switchable norm of the valid elements, in float64; what is around in calls of its own."""
    from ._separate import Behind, add
    from ._stages import numbered

    _check_states(call)
    numbers = numbered(call.around)
    beside = {n: like(call.around[n], n, x) for n in ("shortcut", "gate", "residual")
              if n in call.around}  # fmt: skip
    total = None if "residual" not in beside else add(x, beside["residual"])
    ctx = _Switched(call, x if total is None else total, view, valid)
    u = ctx.forward()
    y = u
    if numbers is not None:
        ctx.behind, ctx.normalized, ctx.beside = Behind(numbers), u, beside
        y = np.empty_like(u)
        ctx.behind.forward(u, beside.get("shortcut"), beside.get("gate"), y)
    y = ctx.masked(y)
    if call["training"] and call["running_mean"] is not None:
        ctx.update(call)
    if total is not None:
        ctx.has_sum = True
        total = delivered(ctx.masked(total), call.around.get("sum_out"))
    return Result(delivered(y, call["out"]), total, ctx if keep else None)


class _Switched(DerivedContext):
    """Statistics over (samples, space, channels) of a view with the channels last.

    With n the valid elements of a sample and N those of all, the layer statistics are means over
    the channels, and the batch statistics means over the samples weighted by n / N.
    """

    behind: Any = None
    normalized: Array
    beside: dict[str, Array]

    def __init__(self, call: Call, x: Array, view: Any, valid: Array) -> None:
        moved = view.of(x)
        self._call, self._view, self._dtype, self._shape = call, view, x.dtype, x.shape
        index = np.broadcast_to(valid, (*moved.shape[:-1], 1))
        self._moved = moved.shape
        self._valid = index.reshape(moved.shape[0], -1, 1)
        exact = moved.astype(np.float64).reshape(moved.shape[0], -1, moved.shape[-1])
        self._x = np.where(self._valid, exact, 0)
        self._n = self._valid.sum(1).astype(np.float64)  # (samples, 1)
        self._part = np.divide(self._n, self._n.sum(), where=self._n > 0,
                               out=np.zeros_like(self._n))  # fmt: skip
        logits = [np.asarray(call[name], np.float64) for name in ("mean_logits", "var_logits")]
        self._w, self._wv = (np.array(_core.softmax3(*a)) for a in logits)

    def masked(self, a: Array) -> Array:
        """Return an array like x with zeros where it is not valid."""
        back = np.zeros(self._shape, a.dtype)
        view, index = self._view.of(back), self._valid.reshape(*self._moved[:-1])
        view[index] = self._view.of(a)[index]
        return back

    def _param(self, name: str, default: float) -> Any:
        value = self._call[name]
        return default if value is None else np.asarray(value, np.float64)

    def forward(self) -> Array:
        """Return weight * x_hat + bias, rounded."""
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
            bmean = self._param("running_mean", 0.0)[None]
            bvar = self._param("running_var", 1.0)[None]
        self._means = [self._mean, lmean, bmean]
        self._vars = [self._var, lvar, bvar]
        mixed = sum(w * m for w, m in zip(self._w, self._means, strict=True))
        var = sum(w * v for w, v in zip(self._wv, self._vars, strict=True))
        self._k = 1 / np.sqrt(var + self._call["eps"])
        self._hat = np.where(self._valid, (self._x - mixed[:, None]) * self._k[:, None], 0)
        y = self._hat * self._param("weight", 1.0) + self._param("bias", 0.0)
        return self._like_x(y)

    def _like_x(self, a: Array) -> Array:
        back = np.empty(self._shape, self._dtype)
        self._view.of(back)[...] = np.where(self._valid, a, 0).reshape(self._moved)
        return back

    def update(self, call: Call) -> None:
        """Let the running statistics take those of the batch."""
        count = float(self._n.sum())
        if count:
            bias = count / (count - call["ddof"])
            _move(call, self._means[2][0], self._vars[2][0] * bias)

    def backward(self, dy: ArrayLike, out: MaybeArray, ds: Param = None) -> FusedGradients:
        """As :func:`fastnorm.backward`."""
        zero = np.broadcast_to(np.zeros((), self._dtype), self._shape)
        g0 = self.masked(like(dy, "dy", zero))
        extra = None if ds is None else self.masked(like(ds, "ds", zero))
        if out is not None:
            _arguments.check_out(out, g0, self._shape)
        dz = dgate = None
        if self.behind is not None:
            shortcut, gate = self.beside.get("shortcut"), self.beside.get("gate")
            g0, dz, dgate = self.behind.backward(g0, self.normalized, shortcut, gate)
            dz = None if dz is None else self.masked(dz)
            dgate = None if dgate is None else self.masked(dgate)
        moved = self._view.of(g0).astype(np.float64).reshape(self._x.shape)
        g = np.where(self._valid, moved, 0)
        dx, logits = self._grad_x(g * self._param("weight", 1.0))
        whole = self._like_x(dx)
        if extra is not None:
            whole = whole + extra
        names = {"weight": (g * self._hat).sum((0, 1)), "bias": g.sum((0, 1))}
        params = {
            name: None if self._call[name] is None else v.astype(np.asarray(self._call[name]).dtype)
            for name, v in names.items()
        }
        kinds = [np.asarray(self._call[n]).dtype for n in ("mean_logits", "var_logits")]
        logits = [a.astype(k) for a, k in zip(logits, kinds, strict=True)]
        dx = delivered(whole, out)
        return FusedGradients(dx, params["weight"], params["bias"], dz, dgate, None, *logits)

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
