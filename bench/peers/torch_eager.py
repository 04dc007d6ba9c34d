"""torch's eager kernels, called directly where it has them, so that autograd costs nothing."""

import numpy as np
import torch

aten = torch.ops.aten
ALL = [True, True, True]


def version():
    return torch.__version__


set_threads = torch.set_num_threads


def tensor(array, layout="NCHW"):
    """Share the memory; channels last becomes torch's memory format of that name."""
    if array.dtype.name == "bfloat16":
        t = torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    else:
        t = torch.from_numpy(array)
    return t.permute(0, 3, 1, 2) if layout == "NHWC" else t


def prepare(arrays):
    case = arrays.case
    make = CALLS.get(case.norm)
    if make is None or case.layout == "NCHW16c":
        return None
    x = tensor(arrays.x, case.layout)
    dy = None if arrays.dy is None else tensor(arrays.dy, case.layout)
    weight, bias, mean, var = map(torch.from_numpy, (arrays.weight, arrays.bias, *arrays.running()))
    return make(case, x, dy, weight, bias, mean, var)


def batch_norm(case, x, dy, weight, bias, mean, var):
    training = case.direction != "inference"
    forward = lambda: aten.native_batch_norm(  # noqa: E731
        x, weight, bias, mean, var, training, 0.1, 1e-5
    )
    if dy is None:
        return lambda: forward()[0]
    _, saved_mean, saved_rstd = forward()
    return lambda: aten.native_batch_norm_backward(
        dy, x, weight, mean, var, saved_mean, saved_rstd, True, 1e-5, ALL
    )


def layer_norm(case, x, dy, weight, bias, mean, var):
    axes = [case.channels]
    if dy is None:
        return lambda: aten.native_layer_norm(x, axes, weight, bias, 1e-5)[0]
    _, mean, rstd = aten.native_layer_norm(x, axes, weight, bias, 1e-5)
    return lambda: aten.native_layer_norm_backward(dy, x, axes, mean, rstd, weight, bias, ALL)


def group_norm(case, x, dy, weight, bias, mean, var):
    n, c, *space = case.shape
    sizes = (n, c, int(np.prod(space)), case.groups)
    if dy is None:
        return lambda: aten.native_group_norm(x, weight, bias, *sizes, 1e-5)[0]
    _, mean, rstd = aten.native_group_norm(x, weight, bias, *sizes, 1e-5)
    return lambda: aten.native_group_norm_backward(dy, x, mean, rstd, weight, *sizes, ALL)


def instance_norm(case, x, dy, weight, bias, mean, var):
    own = case.direction != "inference"
    return composite(
        lambda x, w, b: torch.instance_norm(x, w, b, mean, var, own, 0.1, 1e-5, False),
        x, dy, weight, bias,
    )  # fmt: skip


def rms_norm(case, x, dy, weight, bias, mean, var):
    axes = [case.channels]
    # bfloat16 and float16 want a weight of their own dtype
    return composite(
        lambda x, w: torch.nn.functional.rms_norm(x, axes, w, 1e-6), x, dy, weight.to(x.dtype)
    )


def composite(function, x, dy, *parameters):
    """Return the call of an operation that has no backward kernel of its own: autograd runs it."""
    if dy is None:
        return lambda: function(x, *parameters)
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (x, *parameters)]
        y = function(*inputs)
    return lambda: torch.autograd.grad(y, inputs, dy, retain_graph=True)


CALLS = {f.__name__: f for f in (batch_norm, layer_norm, group_norm, instance_norm, rms_norm)}
