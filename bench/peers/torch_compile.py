"""torch.compile, for what eager torch composes of several operations."""

import torch
from torch._functorch import config
from torch._inductor import cpp_builder

from fastnorm.bench.peers import torch_eager

# a graph's buffers are needed again: backward is called many times
config.donated_buffer = False


def version():
    cpp_builder.get_cpp_compiler()  # raises an error where there is none
    return torch_eager.version()


set_threads = torch_eager.set_threads


def prepare(arrays):
    make = CALLS.get(arrays.case.norm)
    if make is None or arrays.case.layout == "NCHW16c":
        return None
    case = arrays.case
    torch._dynamo.reset()  # what was compiled for other shapes, or for other threads
    x = torch_eager.tensor(arrays.x, case.layout)
    dy = None if arrays.dy is None else torch_eager.tensor(arrays.dy, case.layout)
    parameters = map(torch.from_numpy, (arrays.weight, arrays.bias, *arrays.running()))
    return make(case, x, dy, *parameters)


@torch.compile(dynamic=False)
def _rms_norm(x, weight):
    return torch.nn.functional.rms_norm(x, weight.shape, weight, 1e-6)


@torch.compile(dynamic=False)
def _batch_renorm(x, weight, bias, old, old_var, training):
    """Return y and the batch's moments, with the limits that fastnorm has by default."""
    shape = (1, -1, 1, 1)
    old, sigma = old.view(shape), (old_var.view(shape) + 1e-5).sqrt()
    wide = x.to(weight.dtype)
    mean, var, z = old, old_var, (wide - old) / sigma
    if training:
        var, mean = torch.var_mean(wide, (0, 2, 3), correction=0, keepdim=True)
        own = (var + 1e-5).sqrt()
        r = (own / sigma).clamp(1 / 3, 3).detach()
        d = ((mean - old) / sigma).clamp(-5, 5).detach()
        z = (wide - mean) / own * r + d
    return (z * weight.view(shape) + bias.view(shape)).to(x.dtype), mean, var


def rms_norm(case, x, dy, weight, bias, mean, var):
    return torch_eager.composite(_rms_norm, x, dy, weight.to(x.dtype))


def batch_renorm(case, x, dy, weight, bias, running_mean, running_var):
    training = case.direction != "inference"
    count = x.numel() / len(weight)

    def function(x, weight, bias):
        old = running_mean.clone(), running_var.clone()  # backward reads them again
        y, mean, var = _batch_renorm(x, weight, bias, *old, training)
        if training:
            with torch.no_grad():
                running_mean.lerp_(mean.view(-1), 0.1)
                running_var.lerp_(var.view(-1) * (count / (count - 1)), 0.1)
        return y

    return torch_eager.composite(function, x, dy, weight, bias)


CALLS = {f.__name__: f for f in (rms_norm, batch_renorm)}
