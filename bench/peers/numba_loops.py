"""Numba: the loops that one would write, compiled, and shared among threads."""

import numba
import numpy as np

jit = numba.njit(parallel=True, fastmath=True)
PARTS = 32  # of the rows: gradients of parameters are summed in each


def version():
    return numba.__version__


set_threads = numba.set_num_threads


def prepare(arrays):
    case = arrays.case
    make = CALLS.get(case.norm)
    if make is None or case.layout not in ("NCHW", "rows") or case.dtype not in TYPES:
        return None
    return make(arrays, case.shape if case.layout == "rows" else (*case.shape[:2], -1))


@jit
def moments_of_rows(x, centered, eps):
    mean, rstd = np.zeros(len(x)), np.empty(len(x))
    for i in numba.prange(len(x)):
        total = 0.0
        for j in range(x.shape[1]):
            total += x[i, j]
        mean[i] = total / x.shape[1] if centered else 0.0
        total = 0.0
        for j in range(x.shape[1]):
            total += (x[i, j] - mean[i]) ** 2
        rstd[i] = 1 / np.sqrt(total / x.shape[1] + eps)
    return mean, rstd


@jit
def rows_forward(x, y, weight, bias, centered, eps):
    for i in numba.prange(len(x)):
        total = 0.0
        for j in range(x.shape[1]):
            total += x[i, j]
        mean = x.dtype.type(total / x.shape[1] if centered else 0.0)
        total = 0.0
        for j in range(x.shape[1]):
            total += (x[i, j] - mean) ** 2
        rstd = x.dtype.type(1 / np.sqrt(total / x.shape[1] + eps))
        for j in range(x.shape[1]):
            y[i, j] = (x[i, j] - mean) * rstd * weight[j] + bias[j]


@jit
def rows_backward(x, dy, dx, weight, mean, rstd, centered, dweight, dbias):
    columns = x.shape[1]
    for part in numba.prange(PARTS):
        dweight[part], dbias[part] = 0, 0
        for i in range(part * len(x) // PARTS, (part + 1) * len(x) // PARTS):
            sum_g = sum_gx = 0.0
            for j in range(columns):
                x_hat, g = (x[i, j] - mean[i]) * rstd[i], dy[i, j] * weight[j]
                sum_g += g
                sum_gx += g * x_hat
                dweight[part, j] += dy[i, j] * x_hat
                dbias[part, j] += dy[i, j]
            sum_g = sum_g / columns if centered else 0.0
            for j in range(columns):
                x_hat = (x[i, j] - mean[i]) * rstd[i]
                dx[i, j] = rstd[i] * (dy[i, j] * weight[j] - sum_g - x_hat * sum_gx / columns)


def rows(arrays, shape):
    centered = arrays.case.norm == "layer_norm"
    eps = 1e-5 if centered else 1e-6
    x, dy, out, weight = arrays.x, arrays.dy, arrays.out, arrays.weight
    bias = arrays.bias if centered else np.zeros_like(weight)
    if dy is None:
        return lambda: (rows_forward(x, out, weight, bias, centered, eps), out)[1]
    mean, rstd = moments_of_rows(x, centered, eps)
    sums = np.empty((2, PARTS, len(weight)))

    def call():
        rows_backward(x, dy, out, weight, mean, rstd, centered, *sums)
        return out, *sums.sum(1)

    return call


@jit
def moments_of_channels(x, running_mean, running_var, mean, rstd, eps):
    count = x.shape[0] * x.shape[2]
    for c in numba.prange(x.shape[1]):
        total = 0.0
        for n in range(x.shape[0]):
            for s in range(x.shape[2]):
                total += x[n, c, s]
        mean[c] = total / count
        total = 0.0
        for n in range(x.shape[0]):
            for s in range(x.shape[2]):
                total += (x[n, c, s] - mean[c]) ** 2
        rstd[c] = 1 / np.sqrt(total / count + eps)
        running_mean[c] += 0.1 * (mean[c] - running_mean[c])
        running_var[c] += 0.1 * (total / (count - 1) - running_var[c])


@jit
def channels_forward(x, y, weight, bias, mean, rstd):
    for plane in numba.prange(x.shape[0] * x.shape[1]):
        n, c = plane // x.shape[1], plane % x.shape[1]
        scale = weight[c] * rstd[c]
        shift = bias[c] - mean[c] * scale
        for s in range(x.shape[2]):
            y[n, c, s] = x[n, c, s] * scale + shift


@jit
def channels_backward(x, dy, dx, weight, mean, rstd, dweight, dbias):
    count = x.shape[0] * x.shape[2]
    for c in numba.prange(x.shape[1]):
        sum_dy = sum_dy_x = 0.0
        for n in range(x.shape[0]):
            for s in range(x.shape[2]):
                sum_dy += dy[n, c, s]
                sum_dy_x += dy[n, c, s] * (x[n, c, s] - mean[c])
        dweight[c], dbias[c] = sum_dy_x * rstd[c], sum_dy
        scale = weight[c] * rstd[c]
        b, e = dweight[c] * rstd[c] / count, sum_dy / count
        for n in range(x.shape[0]):
            for s in range(x.shape[2]):
                dx[n, c, s] = scale * (dy[n, c, s] - e - (x[n, c, s] - mean[c]) * b)


def channels(arrays, shape):
    x, out, weight, bias = arrays.x.reshape(shape), arrays.out, arrays.weight, arrays.bias
    running_mean, running_var = arrays.running()
    flat, mean, rstd = out.reshape(shape), np.empty_like(weight), np.empty_like(weight)
    if arrays.case.direction == "inference":

        def call():
            rstd = 1 / np.sqrt(running_var + running_var.dtype.type(1e-5))
            channels_forward(x, flat, weight, bias, running_mean, rstd)
            return out

        return call

    def forward():
        moments_of_channels(x, running_mean, running_var, mean, rstd, 1e-5)
        channels_forward(x, flat, weight, bias, mean, rstd)
        return out

    if arrays.dy is None:
        return forward
    forward()
    dy, dweight, dbias = arrays.dy.reshape(shape), np.empty_like(weight), np.empty_like(weight)

    def call():
        channels_backward(x, dy, flat, weight, mean, rstd, dweight, dbias)
        return out, dweight, dbias

    return call


TYPES = ("float32", "float64")
CALLS = {"layer_norm": rows, "rms_norm": rows, "batch_norm": channels}
