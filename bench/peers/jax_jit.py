"""JAX: the formulas in jnp, compiled by XLA; backward is the compiled vjp with its residuals."""

import os

import jax
import jax.numpy as jnp
from jax.extend.backend import clear_backends

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)


def version():
    return jax.__version__


def set_threads(n):
    """XLA reads NPROC when it makes its threads, so a new number needs a new backend."""
    if os.environ.get("NPROC") != str(n):
        os.environ["NPROC"] = str(n)
        clear_backends()
        jax.clear_caches()


def prepare(arrays):
    case = arrays.case
    if case.layout == "NCHW16c":
        return None
    function = _functions(case)
    if function is None:
        return None
    x, *parameters = map(jnp.asarray, (arrays.x, arrays.weight, arrays.bias))
    parameters += map(jnp.asarray, (*arrays.running(), *arrays.logits()))
    if arrays.dy is None:
        call = jax.jit(function)
        return lambda: jax.block_until_ready(call(x, *parameters))[0]
    dy = jnp.asarray(arrays.dy)
    _, pull, _ = jax.jit(
        lambda x, w, b, *rest: jax.vjp(
            lambda x, w, b, p, q: _with_logits(function, x, w, b, rest[:2], p, q),
            x, w, b, *rest[2:], has_aux=True,
        )
    )(x, *parameters)  # fmt: skip
    back = jax.jit(lambda pull, dy: pull(dy))
    return lambda: jax.block_until_ready(back(pull, dy))


def _with_logits(function, x, w, b, running, p, q):
    y, *rest = function(x, w, b, *running, p, q)
    return y, rest


def _functions(case):
    """Return function(x, weight, bias, mean, var, mean_logits, var_logits) -> (y, running...).

    None where there is none.
    """
    layout = case.layout
    channel = 3 if layout == "NHWC" else 1
    space = (1, 2) if layout == "NHWC" else (2, 3)
    training = case.direction != "inference"
    make = {
        "layer_norm": lambda: layer_norm,
        "rms_norm": lambda: rms_norm,
        "group_norm": lambda: group_norm(case.groups, channel),
        "switchable_norm": lambda: switchable_norm(channel, space, training),
        "batch_norm": lambda: population(channel, (0, *space), space, training, False),
        "batch_renorm": lambda: population(channel, (0, *space), space, training, True),
        "instance_norm": lambda: population(channel, space, space, training, False),
        "instance_renorm": lambda: population(channel, space, space, True, True, training),
    }
    return make[case.norm]() if case.norm in make else None


def wide(x):
    """Compute halves in float32, as flax does."""
    return x if x.dtype == jnp.float64 else x.astype(jnp.float32)


def moments(x, axes):
    return x.mean(axes, keepdims=True), x.var(axes, keepdims=True)


def layer_norm(x, w, b, *_):
    wx = wide(x)
    mean, var = moments(wx, -1)
    return ((wx - mean) * jax.lax.rsqrt(var + 1e-5) * w + b).astype(x.dtype), ()


def rms_norm(x, w, *_):
    wx = wide(x)
    square = (wx * wx).mean(-1, keepdims=True)
    return (wx * jax.lax.rsqrt(square + 1e-6) * w).astype(x.dtype), ()


def broadcast(values, channel):
    shape = [1, 1, 1, 1]
    shape[channel] = -1
    return [v.reshape(shape) for v in values]


def group_norm(groups, channel):
    def function(x, w, b, *_):
        w, b = broadcast((w, b), channel)
        n, wx = x.shape[0], wide(x)
        if channel == 1:
            wx, axes = wx.reshape(n, groups, -1), (2,)
        else:
            wx, axes = wx.reshape(n, -1, groups, x.shape[3] // groups), (1, 3)
        mean, var = moments(wx, axes)
        z = ((wx - mean) * jax.lax.rsqrt(var + 1e-5)).reshape(x.shape)
        return (z * w + b).astype(x.dtype), ()

    return function


def population(channel, axes, space, own, renorm, update=True):
    """Return batch or instance norm, or their renorms: `axes` share statistics, if their own."""

    def function(x, w, b, mean, var, *_):
        w, b, old_mean, old_var = broadcast((w, b, mean, var), channel)
        wx = wide(x)
        if not own:
            z = (wx - old_mean) * jax.lax.rsqrt(old_var + 1e-5)
            return (z * w + b).astype(x.dtype), ()
        m, v = moments(wx, axes)
        z = (wx - m) * jax.lax.rsqrt(v + 1e-5)
        if renorm:
            sigma = jnp.sqrt(old_var + 1e-5)
            r = jnp.clip(jnp.sqrt(v + 1e-5) / sigma, 1 / 3, 3)
            d = jnp.clip((m - old_mean) / sigma, -5, 5)
            z = z * jax.lax.stop_gradient(r) + jax.lax.stop_gradient(d)
        running = ()
        if update:
            running = [0.9 * o + 0.1 * s.mean(0) for o, s in ((old_mean, m), (old_var, v))]
        return (z * w + b).astype(x.dtype), running

    return function


def switchable_norm(channel, space, training):
    def function(x, w, b, mean, var, mean_logits, var_logits):
        w, b, old_mean, old_var = broadcast((w, b, mean, var), channel)
        wx = wide(x)
        mean_in, var_in = moments(wx, space)
        square = var_in + mean_in**2
        mean_ln = mean_in.mean(channel, keepdims=True)
        var_ln = square.mean(channel, keepdims=True) - mean_ln**2
        mean_bn, var_bn = old_mean, old_var
        running = ()
        if training:
            mean_bn = mean_in.mean(0, keepdims=True)
            var_bn = square.mean(0, keepdims=True) - mean_bn**2
            running = (0.9 * old_mean + 0.1 * mean_bn, 0.9 * old_var + 0.1 * var_bn)
        p, q = jax.nn.softmax(mean_logits), jax.nn.softmax(var_logits)
        m = p[0] * mean_in + p[1] * mean_ln + p[2] * mean_bn
        v = q[0] * var_in + q[1] * var_ln + q[2] * var_bn
        return ((wx - m) * jax.lax.rsqrt(v + 1e-5) * w + b).astype(x.dtype), running

    return function
