"""What a person would write in NumPy: the other side of the comparison.

Float32 throughout, one expression after the other, no attempt at blocking; the arguments are those
of fastnorm. Each function returns y and what its backward pass needs.
"""

import numpy as np


def _axes(x, layout):
    """Axes of the samples and of space, and a shape to broadcast a channel vector."""
    if layout == "NHWC":
        return 0, tuple(range(1, x.ndim - 1)), (1,) * (x.ndim - 1) + (-1,)
    return 0, tuple(range(2, x.ndim)), (1, -1) + (1,) * (x.ndim - 2)


def _affine(x_hat, weight, bias, shape):
    return x_hat * weight.reshape(shape) + bias.reshape(shape)


def _standardize(x, axis, eps):
    mean = x.mean(axis, keepdims=True)
    var = x.var(axis, keepdims=True)
    rstd = 1 / np.sqrt(var + np.float32(eps))
    return (x - mean) * rstd, mean, var, rstd


def _update(running, new, momentum):
    running *= 1 - momentum
    running += momentum * new.ravel()


def layer_norm(x, weight, bias, eps=1e-5):
    x_hat, _, _, rstd = _standardize(x, -1, eps)
    return x_hat * weight + bias, (_backward_domain, x_hat, rstd, -1, weight, (0,), 1)


def rms_norm(x, weight, eps=1e-6):
    rstd = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps))
    x_hat = x * rstd
    return x_hat * weight, (_backward_rms, x_hat, rstd, weight)


def batch_norm(
    x, weight, bias, running_mean, running_var, training, layout, momentum=0.1, eps=1e-5
):
    n, space, shape = _axes(x, layout)
    axis = (n, *space)
    if not training:
        return _inference(x, weight, bias, running_mean, running_var, shape, eps)
    x_hat, mean, var, rstd = _standardize(x, axis, eps)
    _update(running_mean, mean, momentum)
    _update(running_var, var, momentum)
    w = weight.reshape(shape)
    return _affine(x_hat, weight, bias, shape), (_backward_domain, x_hat, rstd, axis, w, axis, 1)


def _inference(x, weight, bias, mean, var, shape, eps):
    rstd = 1 / np.sqrt(var + np.float32(eps))
    return _affine((x - mean.reshape(shape)) * rstd.reshape(shape), weight, bias, shape), None


def batch_renorm(x, weight, bias, running_mean, running_var, training, layout, momentum=0.1,
                 eps=1e-5, r_max=3.0, d_max=5.0):  # fmt: skip
    n, space, shape = _axes(x, layout)
    axis = (n, *space)
    if not training:
        return _inference(x, weight, bias, running_mean, running_var, shape, eps)
    z, mean, var, rstd = _standardize(x, axis, eps)
    r, d = _corrections(mean, rstd, running_mean, running_var, shape, eps, r_max, d_max)
    x_hat = z * r + d
    _update(running_mean, mean, momentum)
    _update(running_var, var, momentum)
    cache = (_backward_renorm, z, x_hat, rstd, axis, weight.reshape(shape), axis, r)
    return _affine(x_hat, weight, bias, shape), cache


def _corrections(mean, rstd, running_mean, running_var, shape, eps, r_max, d_max):
    sigma = np.sqrt(running_var + np.float32(eps)).reshape(shape)
    r = np.clip(1 / (rstd * sigma), 1 / r_max, r_max)
    return r, np.clip((mean - running_mean.reshape(shape)) / sigma, -d_max, d_max)


def instance_norm(x, weight, bias, running_mean, running_var, use_input_stats, layout,
                  momentum=0.1, eps=1e-5):  # fmt: skip
    n, space, shape = _axes(x, layout)
    if not use_input_stats:
        return _inference(x, weight, bias, running_mean, running_var, shape, eps)
    x_hat, mean, var, rstd = _standardize(x, space, eps)
    _update(running_mean, mean.mean(n), momentum)
    _update(running_var, var.mean(n), momentum)
    w = weight.reshape(shape)
    cache = (_backward_domain, x_hat, rstd, space, w, (n, *space), 1)
    return _affine(x_hat, weight, bias, shape), cache


def instance_renorm(x, weight, bias, running_mean, running_var, training, layout, momentum=0.1,
                    eps=1e-5, r_max=3.0, d_max=5.0):  # fmt: skip
    n, space, shape = _axes(x, layout)
    z, mean, _, rstd = _standardize(x, space, eps)
    r, d = _corrections(mean, rstd, running_mean, running_var, shape, eps, r_max, d_max)
    x_hat = z * r + d
    if training:
        _update(running_mean, x.mean((n, *space)), momentum)
        _update(running_var, x.var((n, *space)), momentum)
    cache = (_backward_renorm, z, x_hat, rstd, space, weight.reshape(shape), (n, *space), r)
    return _affine(x_hat, weight, bias, shape), cache


def filter_response_norm(x, weight, bias, tau, layout, eps=1e-6):
    n, space, shape = _axes(x, layout)
    rstd = 1 / np.sqrt((x * x).mean(space, keepdims=True) + np.float32(eps))
    x_hat = x * rstd
    y, tau = _affine(x_hat, weight, bias, shape), tau.reshape(shape)
    cache = (_backward_filter, x_hat, rstd, space, weight.reshape(shape), y > tau, (n, *space))
    return np.maximum(y, tau), cache


def global_response_norm(x, weight, bias, layout, eps=1e-6):
    n, space, shape = _axes(x, layout)
    channel = 1 if layout == "NCHW" else x.ndim - 1
    length = np.sqrt((x * x).sum(space, keepdims=True))
    mean = length.mean(channel, keepdims=True) + np.float32(eps)
    scale, weight = length / mean, weight.reshape(shape)
    cache = (_backward_global, x, length, mean, scale, weight, channel, space, (n, *space))
    return weight * (x * scale) + bias.reshape(shape) + x, cache


def group_norm(x, num_groups, weight, bias, layout, eps=1e-5):
    n, space, shape = _axes(x, layout)
    if layout == "NHWC":
        grouped, axis = x.reshape(*x.shape[:-1], num_groups, -1), (*space, x.ndim)
    else:
        grouped, axis = x.reshape(x.shape[0], num_groups, -1), 2
    x_hat, _, _, rstd = _standardize(grouped, axis, eps)
    cache = (_backward_group, x_hat, rstd, axis, weight.reshape(shape), (n, *space), x.shape)
    return _affine(x_hat.reshape(x.shape), weight, bias, shape), cache


def _softmax(logits):
    e = np.exp(logits - logits.max())
    return e / e.sum()


def switchable_norm(x, weight, bias, mean_logits, var_logits, running_mean, running_var, training,
                    layout, momentum=0.1, eps=1e-5):  # fmt: skip
    n, space, shape = _axes(x, layout)
    channel = 1 if layout == "NCHW" else x.ndim - 1
    mean_in, var_in = x.mean(space, keepdims=True), x.var(space, keepdims=True)
    square = var_in + mean_in**2
    mean_ln = mean_in.mean(channel, keepdims=True)
    var_ln = square.mean(channel, keepdims=True) - mean_ln**2
    if training:
        mean_bn = mean_in.mean(n, keepdims=True)
        var_bn = square.mean(n, keepdims=True) - mean_bn**2
        _update(running_mean, mean_bn, momentum)
        _update(running_var, var_bn, momentum)
    else:
        mean_bn, var_bn = running_mean.reshape(shape), running_var.reshape(shape)
    w, v = _softmax(mean_logits), _softmax(var_logits)
    means, variances = (mean_in, mean_ln, mean_bn), (var_in, var_ln, var_bn)
    mean = sum(a * b for a, b in zip(w, means, strict=True))
    var = sum(a * b for a, b in zip(v, variances, strict=True))
    rstd = 1 / np.sqrt(var + np.float32(eps))
    x_hat = (x - mean) * rstd
    cache = (_backward_switchable, x, x_hat, rstd, weight.reshape(shape), w, v, means, variances,
             n, channel, space)  # fmt: skip
    return _affine(x_hat, weight, bias, shape), cache


# ---- backward --------------------------------------------------------------------------------


def backward(dy, cache):
    return cache[0](dy, *cache[1:])


def _dx(g, z, rstd, axis, r=1):
    g = g * r
    return (g - g.mean(axis, keepdims=True) - z * (g * z).mean(axis, keepdims=True)) * rstd


def _backward_domain(dy, x_hat, rstd, axis, weight, over, r):
    return _dx(dy * weight, x_hat, rstd, axis, r), (dy * x_hat).sum(over), dy.sum(over)


def _backward_renorm(dy, z, x_hat, rstd, axis, weight, over, r):
    return _dx(dy * weight, z, rstd, axis, r), (dy * x_hat).sum(over), dy.sum(over)


def _backward_group(dy, x_hat, rstd, axis, weight, over, shape):
    dx = _dx((dy * weight).reshape(x_hat.shape), x_hat, rstd, axis).reshape(shape)
    return dx, (dy * x_hat.reshape(shape)).sum(over), dy.sum(over)


def _backward_filter(dy, x_hat, rstd, space, weight, above, over):
    kept = np.where(above, dy, 0)
    g = kept * weight
    dx = (g - x_hat * (g * x_hat).mean(space, keepdims=True)) * rstd
    return dx, (kept * x_hat).sum(over), kept.sum(over), (dy - kept).sum(over)


def _backward_global(dy, x, length, mean, scale, weight, channel, space, over):
    dot = (dy * x).sum(space, keepdims=True)
    dscale = dot * weight
    dlength = (dscale - (dscale * scale).mean(channel, keepdims=True)) / mean
    dx = dy * (1 + weight * scale) + x * (dlength / length)
    return dx, (dot * scale).sum(over), dy.sum(over)


def _backward_rms(dy, x_hat, rstd, weight):
    g = dy * weight
    return (g - x_hat * (g * x_hat).mean(-1, keepdims=True)) * rstd, (dy * x_hat).sum(0)


def _backward_switchable(dy, x, x_hat, rstd, weight, w, v, means, variances, n, channel, space):
    g = dy * weight
    dmean = -(g * rstd).sum(space, keepdims=True)
    dvar = -0.5 * (g * x_hat).sum(space, keepdims=True) * rstd**2
    dx = g * rstd
    size = np.prod([x.shape[a] for a in space])
    for k, planes in enumerate(((), (channel,), (n,))):
        count = size * np.prod([x.shape[a] for a in planes])
        dx = dx + w[k] * dmean.sum(planes, keepdims=True) / np.float32(count)
        dx = dx + v[k] * dvar.sum(planes, keepdims=True) * 2 / np.float32(count) * (x - means[k])
    dw = np.array([(dmean * m).sum() for m in means])
    dv = np.array([(dvar * s).sum() for s in variances])
    over = (n, *space)
    return dx, (dy * x_hat).sum(over), dy.sum(over), w * (dw - w @ dw), v * (dv - v @ dv)
