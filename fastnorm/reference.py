"""The oracle: every normalizer in plain float64 NumPy, forward and backward.

For tests, and for reading: what the C library computes, without blocks, lanes or threads. The
functions take the arguments of their namesakes in `fastnorm`, but for `out` and `return_ctx`, and
return ``(y, cache)``, both in float64; :func:`backward` takes that cache.

x is brought to (N, C, S): samples, channels, spatial elements. Layer and RMS norm bring it to
(rows, L) instead. A domain is then a set of axes, and statistics keep theirs (``keepdims``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from ._types import (
    Array,
    Axes,
    FilterResponseGradients,
    Gradients,
    SwitchableGradients,
    WeightGradients,
)

__all__ = [
    "backward",
    "batch_norm",
    "batch_renorm",
    "filter_response_norm",
    "global_response_norm",
    "group_norm",
    "instance_norm",
    "instance_renorm",
    "layer_norm",
    "rms_norm",
    "switchable_norm",
    "weight_norm",
]

N, C, S = 0, 1, 2  # axes of the canonical form


class Cache(NamedTuple):
    """What the backward pass needs."""

    grad_x: Callable[[Array], tuple[Array, ...]]  # dy*weight -> dx, and more gradients
    x_hat: Array  # normalized x, before weight and bias
    weight: Array | None
    bias: Array | None
    param_shape: tuple[int, ...]  # of weight and bias, as the caller has them
    over: tuple[int, ...]  # axes that the gradients of weight and bias are summed over
    to_canonical: Callable[[ArrayLike], Array]
    from_canonical: Callable[[Array], Array]
    result: type = Gradients
    tau: Array | None = None  # of filter response norm
    at_tau: Any = False  # where y is tau, so that dy is the gradient of tau
    adds_x: bool = False  # whether y is what weight and bias make, plus x


# ---- shapes ----------------------------------------------------------------------------------


def _channels_last(layout: str) -> bool:
    return layout == "channels_last" or (
        len(layout) > 2 and layout.startswith("N") and layout[-1] == "C"
    )


def _canonical(x: ArrayLike, layout: str) -> tuple[Any, Any]:
    """Functions to (N, C, S) and back."""
    shape = np.shape(x)
    last = _channels_last(layout)

    def to(a: ArrayLike) -> Array:
        a = np.asarray(a, np.float64)
        a = np.moveaxis(a, -1, 1) if last else a
        return a.reshape(*a.shape[:2], int(np.prod(a.shape[2:])))

    def back(a: Array) -> Array:
        moved = (shape[0], shape[-1], *shape[1:-1]) if last else shape
        a = a.reshape(moved)
        return np.moveaxis(a, 1, -1) if last else a

    return to, back


def _rows(x: ArrayLike, axis: Axes) -> tuple[Any, Any]:
    """Functions to (rows, L), with the elements of `axis` along L, and back."""
    ndim, shape = np.ndim(x), np.shape(x)
    axes = sorted(a % ndim for a in np.atleast_1d(axis).tolist())
    order = [a for a in range(ndim) if a not in axes] + axes
    length = int(np.prod([shape[a] for a in axes]))

    def to(a: ArrayLike) -> Array:
        a = np.asarray(a, np.float64).transpose(order)
        return a.reshape(int(np.prod(a.shape[: ndim - len(axes)])), length)

    def back(a: Array) -> Array:
        return a.reshape([shape[i] for i in order]).transpose(np.argsort(order))

    return to, back


def _moments(x: Array, domain: tuple[int, ...]) -> tuple[Array, Array]:
    mean = x.mean(domain, keepdims=True)
    return mean, ((x - mean) ** 2).mean(domain, keepdims=True)


def _param(value: ArrayLike | None, shape: tuple[int, ...]) -> Array | None:
    return None if value is None else np.asarray(value, np.float64).reshape(shape)


def _finish(x_hat: Array, grad_x: Any, shapes: Any, weight: Any, bias: Any, param_shape: Any,
            over: tuple[int, ...]) -> tuple[Array, Cache]:  # fmt: skip
    """Apply weight and bias; back to the caller's shape."""
    to, back = shapes
    w, b = _param(weight, param_shape), _param(bias, param_shape)
    y = x_hat if w is None else x_hat * w
    y = y if b is None else y + b
    shape = np.shape(bias if weight is None else weight)
    return back(y), Cache(grad_x, x_hat, w, b, shape, over, to, back)


def _update(running: Any, batch: Array, momentum: float) -> None:
    running[...] = (1 - momentum) * np.asarray(running, np.float64) + momentum * batch.ravel()


def _update_batch(x: Array, mean: Any, var: Any, momentum: float, ddof: int) -> None:
    """Let the running statistics take the batch moments of each channel."""
    if mean is not None and x.size:
        m, v = _moments(x, (N, S))
        count = x.shape[N] * x.shape[S]
        _update(mean, m, momentum)
        _update(var, v * count / (count - ddof), momentum)


def _per_channel(a: ArrayLike) -> Array:
    return np.asarray(a, np.float64).copy().reshape(1, -1, 1)


# ---- forward ---------------------------------------------------------------------------------


def _standardize(x: Array, domain: tuple[int, ...], eps: float, r: Any = 1.0, d: Any = 0.0) -> Any:
    """x_hat = (x - mean) / sigma * r + d over `domain`, r and d constants, and its gradient."""
    mean, var = _moments(x, domain)
    sigma = np.sqrt(var + eps)
    z = (x - mean) / sigma

    def grad(g: Array) -> tuple[Array]:
        g = g * r
        return (
            (g - g.mean(domain, keepdims=True) - z * (g * z).mean(domain, keepdims=True)) / sigma,
        )

    return z * r + d, grad


def _constant(x: Array, mean: ArrayLike, var: ArrayLike, eps: float) -> Any:
    """x_hat by statistics that do not depend on x, and its gradient."""
    sigma = np.sqrt(_per_channel(var) + eps)
    return (x - _per_channel(mean)) / sigma, lambda g: (g / sigma,)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, *, axis: Any = -1,
               eps: float = 1e-5) -> tuple[Array, Cache]:  # fmt: skip
    """Layer Norm."""
    shapes = _rows(x, axis)
    rows = shapes[0](x)
    x_hat, grad = _standardize(rows, (1,), eps)
    return _finish(x_hat, grad, shapes, weight, bias, (1, rows.shape[1]), (0,))


def rms_norm(x: Any, weight: Any = None, *, axis: Any = -1,
             eps: float | None = None) -> tuple[Array, Cache]:  # fmt: skip
    """RMS Norm; eps=None is the machine epsilon of the type that x is computed in."""
    shapes = _rows(x, axis)
    rows = shapes[0](x)
    if eps is None:
        eps = 2.0**-52 if np.asarray(x).dtype == np.float64 else 2.0**-23
    rms = np.sqrt((rows**2).mean(1, keepdims=True) + eps)
    x_hat = rows / rms

    def grad(g: Array) -> tuple[Array]:
        return ((g - x_hat * (g * x_hat).mean(1, keepdims=True)) / rms,)

    return _finish(x_hat, grad, shapes, weight, None, (1, rows.shape[1]), (0,))


def batch_norm(x: Any, weight: Any = None, bias: Any = None, *, running_mean: Any = None,
               running_var: Any = None, training: bool = False, momentum: float = 0.1,
               eps: float = 1e-5, ddof: int = 1,
               layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Batch Norm."""
    shapes = _canonical(x, layout)
    x3 = shapes[0](x)
    if training:
        x_hat, grad = _standardize(x3, (N, S), eps)
        _update_batch(x3, running_mean, running_var, momentum, ddof)
    else:
        x_hat, grad = _constant(x3, running_mean, running_var, eps)
    return _finish(x_hat, grad, shapes, weight, bias, (1, -1, 1), (N, S))


def _renorm(x: Array, domain: tuple[int, ...], mean: Any, var: Any, eps: float, r_max: float,
            d_max: float) -> tuple[Array, Array]:  # fmt: skip
    """Compute r and d of Batch Renorm against running statistics."""
    batch_mean, batch_var = _moments(x, domain)
    sigma = np.sqrt(_per_channel(var) + eps)
    r = np.clip(np.sqrt(batch_var + eps) / sigma, 1 / r_max, r_max)
    return r, np.clip((batch_mean - _per_channel(mean)) / sigma, -d_max, d_max)


def batch_renorm(x: Any, weight: Any = None, bias: Any = None, *, running_mean: Any,
                 running_var: Any, training: bool = False, momentum: float = 0.1,
                 eps: float = 1e-5, r_max: float = 3.0, d_max: float = 5.0, ddof: int = 0,
                 layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Batch Renorm."""
    shapes = _canonical(x, layout)
    x3 = shapes[0](x)
    if training:
        r, d = _renorm(x3, (N, S), running_mean, running_var, eps, r_max, d_max)
        x_hat, grad = _standardize(x3, (N, S), eps, r, d)
        _update_batch(x3, running_mean, running_var, momentum, ddof)
    else:
        x_hat, grad = _constant(x3, running_mean, running_var, eps)
    return _finish(x_hat, grad, shapes, weight, bias, (1, -1, 1), (N, S))


def group_norm(x: Any, num_groups: int, weight: Any = None, bias: Any = None, *, eps: float = 1e-5,
               layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Group Norm."""
    shapes = _canonical(x, layout)
    x3 = shapes[0](x)
    grouped = (x3.shape[0], num_groups, x3.shape[1] // num_groups * x3.shape[2])
    x_hat, grad = _standardize(x3.reshape(grouped), (S,), eps)

    def grad_x(g: Array) -> tuple[Array]:
        return (grad(g.reshape(grouped))[0].reshape(x3.shape),)

    return _finish(x_hat.reshape(x3.shape), grad_x, shapes, weight, bias, (1, -1, 1), (N, S))


def instance_norm(x: Any, weight: Any = None, bias: Any = None, *, running_mean: Any = None,
                  running_var: Any = None, use_input_stats: bool = True, momentum: float = 0.1,
                  eps: float = 1e-5, ddof: int = 1,
                  layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Instance Norm; running statistics take the means over the samples, as in torch."""
    shapes = _canonical(x, layout)
    x3 = shapes[0](x)
    if use_input_stats:
        x_hat, grad = _standardize(x3, (S,), eps)
        if running_mean is not None and x3.size:
            mean, var = _moments(x3, (S,))
            _update(running_mean, mean.mean(N), momentum)
            _update(running_var, var.mean(N) * x3.shape[S] / (x3.shape[S] - ddof), momentum)
    else:
        x_hat, grad = _constant(x3, running_mean, running_var, eps)
    return _finish(x_hat, grad, shapes, weight, bias, (1, -1, 1), (N, S))


def instance_renorm(x: Any, weight: Any = None, bias: Any = None, *, running_mean: Any,
                    running_var: Any, r_max: float = 3.0, d_max: float = 5.0, blend: float = 1.0,
                    training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
                    ddof: int = 0, layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Instance Renorm."""
    shapes = _canonical(x, layout)
    x3 = shapes[0](x)
    r, d = _renorm(x3, (S,), running_mean, running_var, eps, r_max, d_max)
    x_hat, grad = _standardize(x3, (S,), eps, 1 + blend * (r - 1), blend * d)
    if training:
        _update_batch(x3, running_mean, running_var, momentum, ddof)
    return _finish(x_hat, grad, shapes, weight, bias, (1, -1, 1), (N, S))


def filter_response_norm(x: Any, weight: Any = None, bias: Any = None, tau: Any = None, *,
                         eps: float = 1e-6,
                         layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Filter Response Norm."""
    to, back = shapes = _canonical(x, layout)
    x3 = to(x)
    rms = np.sqrt((x3**2).mean(S, keepdims=True) + eps)
    x_hat = x3 / rms

    def grad(g: Array) -> tuple[Array]:
        return ((g - x_hat * (g * x_hat).mean(S, keepdims=True)) / rms,)

    y, cache = _finish(x_hat, grad, shapes, weight, bias, (1, -1, 1), (N, S))
    cache = cache._replace(result=FilterResponseGradients, tau=_param(tau, (1, -1, 1)))
    if cache.tau is None:
        return y, cache
    at_tau = ~(to(y) > cache.tau)
    return back(np.maximum(to(y), cache.tau)), cache._replace(at_tau=at_tau)


def global_response_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-6,
                         layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Global Response Norm."""
    shapes = _canonical(x, layout)
    x3 = shapes[0](x)
    length = np.sqrt((x3**2).sum(S, keepdims=True))
    mean = length.mean(C, keepdims=True) + eps
    response = length / mean

    def grad(g: Array) -> tuple[Array]:
        dresponse = (g * x3).sum(S, keepdims=True)
        dlength = (dresponse - (dresponse * response).mean(C, keepdims=True)) / mean
        unit = x3 / np.where(length > 0, length, 1)
        return (g * response + dlength * unit,)

    y, cache = _finish(x3 * response, grad, shapes, weight, bias, (1, -1, 1), (N, S))
    return y + np.asarray(x, np.float64), cache._replace(adds_x=True)


def _softmax(logits: ArrayLike) -> Array:
    e = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return np.asarray(e / e.sum())


def switchable_norm(x: Any, weight: Any, bias: Any, mean_logits: Any, var_logits: Any, *,
                    running_mean: Any = None, running_var: Any = None, training: bool = False,
                    momentum: float = 0.1, eps: float = 1e-5, ddof: int = 0,
                    layout: str = "NCHW") -> tuple[Array, Cache]:  # fmt: skip
    """Switchable Norm."""
    shapes = _canonical(x, layout)
    x3 = shapes[0](x)
    domains = [(S,), (C, S), (N, S)]  # instance, layer, batch
    moments = [_moments(x3, domain) for domain in domains]
    if not training:
        moments[2] = (_per_channel(running_mean), _per_channel(running_var))
    else:
        _update_batch(x3, running_mean, running_var, momentum, ddof)
    w, wv = _softmax(mean_logits), _softmax(var_logits)
    mean = sum(a * m for a, (m, _) in zip(w, moments, strict=True))
    var = sum(a * v for a, (_, v) in zip(wv, moments, strict=True))
    sigma = np.sqrt(var + eps)
    centered = x3 - mean

    def grad(g: Array) -> tuple[Array, ...]:
        # of the mixed mean and variance of each plane, then on through each component
        dmean = -(g / sigma).sum(S, keepdims=True)
        dvar = (-0.5 * g * centered / sigma**3).sum(S, keepdims=True)
        dx = g / sigma
        dw, dwv = np.empty(3), np.empty(3)
        for k, (domain, (m, v)) in enumerate(zip(domains, moments, strict=True)):
            dw[k], dwv[k] = (dmean * m).sum(), (dvar * v).sum()
            if training or k < 2:
                count = np.prod([x3.shape[a] for a in domain])
                planes = tuple(a for a in domain if a != S)
                dx = dx + w[k] * dmean.sum(planes, keepdims=True) / count
                dx = dx + wv[k] * dvar.sum(planes, keepdims=True) * 2 * (x3 - m) / count
        return dx, w * (dw - w @ dw), wv * (dwv - wv @ dwv)

    return _finish(centered / sigma, grad, shapes, weight, bias, (1, -1, 1), (N, S))


def weight_norm(v: Any, g: Any, *, axis: int | None = 0,
                eps: float = 0.0) -> tuple[Array, Cache]:  # fmt: skip
    """Weight Norm."""
    kept = () if axis is None else (axis % np.ndim(v),)
    shapes = _rows(v, tuple(i for i in range(np.ndim(v)) if i not in kept))
    rows = shapes[0](v)
    length = np.sqrt((rows**2).sum(1, keepdims=True))
    norm = np.maximum(length, eps)
    norm = np.where(norm > 0, norm, np.inf)  # zeros have no direction, and stay zero
    unit = rows / norm

    def grad(h: Array) -> tuple[Array]:
        along = np.where(length < eps, 0, (h * unit).sum(1, keepdims=True))
        return ((h - unit * along) / norm,)

    w, cache = _finish(unit, grad, shapes, g, None, (-1, 1), (1,))
    return w, cache._replace(result=WeightGradients)


# ---- backward --------------------------------------------------------------------------------


def backward(
    dy: Any, cache: Cache
) -> Gradients | FilterResponseGradients | SwitchableGradients | WeightGradients:
    """Gradients of ``sum(dy * y)``."""
    all_dy = cache.to_canonical(dy)
    g = np.where(cache.at_tau, 0, all_dy)
    dweight = dbias = dtau = None
    if cache.tau is not None:
        dtau = np.where(cache.at_tau, all_dy, 0).sum(cache.over)
    if cache.weight is not None:
        dweight = (g * cache.x_hat).sum(cache.over).reshape(cache.param_shape)
    if cache.bias is not None:
        dbias = g.sum(cache.over).reshape(cache.param_shape)
    dx, *logits = cache.grad_x(g if cache.weight is None else g * cache.weight)
    dx = cache.from_canonical(dx + g if cache.adds_x else dx)
    if cache.result is FilterResponseGradients:
        return FilterResponseGradients(dx, dweight, dbias, dtau)
    if cache.result is WeightGradients:
        return WeightGradients(dx, np.asarray(dweight))
    if logits:
        return SwitchableGradients(dx, dweight, dbias, *logits)
    return Gradients(dx, dweight, dbias)
