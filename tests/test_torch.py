"""Against torch, where torch has the normalizer: functions, and layers that load its state."""

import numpy as np
import pytest
from cases import assert_close

import fastnorm

torch = pytest.importorskip("torch")


def parameters(module, rng):
    for param in module.parameters():
        param.data = torch.tensor(rng.uniform(0.5, 1.5, tuple(param.shape)), dtype=param.dtype)


def state_of(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def both(layer, module, x, dy):
    """One call and its gradient by both; compares y, gradients and state."""
    given = torch.tensor(x, requires_grad=True)
    module.zero_grad()
    want = module(given)
    want.backward(torch.tensor(dy))
    assert_close(layer(x), want.detach().numpy(), 4e-6, "y")
    assert_close(layer.backward(dy), given.grad.numpy(), 2e-5, "dx")
    for name, param in module.named_parameters():
        assert_close(layer.grads[name], param.grad.numpy(), 2e-5, name)
    for name, value in state_of(module).items():
        # torch keeps a count of batches in InstanceNorm, but never counts
        if name != "num_batches_tracked" or not isinstance(module, torch.nn.InstanceNorm2d):
            assert_close(layer.state_dict()[name], value, 4e-6, name)


PAIRS = {
    "BatchNorm2d": (lambda: torch.nn.BatchNorm2d(6), lambda: fastnorm.BatchNorm(6)),
    "BatchNorm2d-cumulative": (
        lambda: torch.nn.BatchNorm2d(6, momentum=None),
        lambda: fastnorm.BatchNorm(6, momentum=None),
    ),
    "BatchNorm2d-plain": (
        lambda: torch.nn.BatchNorm2d(6, affine=False, track_running_stats=False, eps=1e-3),
        lambda: fastnorm.BatchNorm(6, affine=False, track_running_stats=False, eps=1e-3),
    ),
    "LayerNorm": (lambda: torch.nn.LayerNorm((9, 8)), lambda: fastnorm.LayerNorm((9, 8))),
    "LayerNorm-no-bias": (
        lambda: torch.nn.LayerNorm(8, bias=False),
        lambda: fastnorm.LayerNorm(8, bias=False),
    ),
    "GroupNorm": (lambda: torch.nn.GroupNorm(3, 6), lambda: fastnorm.GroupNorm(3, 6)),
    "InstanceNorm2d": (lambda: torch.nn.InstanceNorm2d(6), lambda: fastnorm.InstanceNorm(6)),
    "InstanceNorm2d-tracking": (
        lambda: torch.nn.InstanceNorm2d(6, affine=True, track_running_stats=True, momentum=0.3),
        lambda: fastnorm.InstanceNorm(6, affine=True, track_running_stats=True, momentum=0.3),
    ),
    "RMSNorm": (lambda: torch.nn.RMSNorm(8, eps=1e-6), lambda: fastnorm.RMSNorm(8, eps=1e-6)),
    "RMSNorm-default": (lambda: torch.nn.RMSNorm(8), lambda: fastnorm.RMSNorm(8)),
    "BatchNorm2d-no-bias": (
        lambda: torch.nn.BatchNorm2d(6, bias=False),
        lambda: fastnorm.BatchNorm(6, bias=False),
    ),
    "InstanceNorm2d-no-bias": (
        lambda: torch.nn.InstanceNorm2d(6, affine=True, bias=False),
        lambda: fastnorm.InstanceNorm(6, affine=True, bias=False),
    ),
    "GroupNorm-no-bias": (
        lambda: torch.nn.GroupNorm(3, 6, bias=False),
        lambda: fastnorm.GroupNorm(3, 6, bias=False),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_layers_load_torch_state_and_follow_it(name, rng):
    module, layer = (make() for make in PAIRS[name])
    parameters(module, rng)
    shape = (5, 6, 9, 8)
    module(torch.tensor(rng.standard_normal(shape), dtype=torch.float32))  # state to load
    layer.load_state_dict(state_of(module))
    for training in (True, True, False, True, False):
        module.train(training)
        layer.train(training)
        x = (rng.standard_normal(shape) * 2 + 1).astype(np.float32)
        both(layer, module, x, rng.standard_normal(shape).astype(np.float32))


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_batch_norm_of_other_ranks(rank, rng):
    module = {2: torch.nn.BatchNorm1d, 3: torch.nn.BatchNorm1d, 5: torch.nn.BatchNorm3d}[rank](6)
    parameters(module, rng)
    layer = fastnorm.BatchNorm(6)
    layer.load_state_dict(state_of(module))
    shape = (12, 6, 4, 3, 5)[:rank]
    x = rng.standard_normal(shape).astype(np.float32)
    both(layer, module, x, rng.standard_normal(shape).astype(np.float32))


def test_channels_last(rng):
    module = torch.nn.BatchNorm2d(6)
    parameters(module, rng)
    layer = fastnorm.BatchNorm(6, layout="NHWC")
    layer.load_state_dict(state_of(module))
    x = rng.standard_normal((4, 9, 8, 6)).astype(np.float32)
    want = module(torch.tensor(np.ascontiguousarray(np.moveaxis(x, -1, 1)))).detach().numpy()
    assert_close(np.moveaxis(layer(x), -1, 1), want, 4e-6, "y")
    np.testing.assert_allclose(layer.buffers["running_var"], module.running_var.numpy(), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("own", [np.float32, np.float64])
def test_state_dicts_as_torch_gives_them(dtype, own, rng):
    """Tensors of any precision, that want gradients too, on any strides."""
    module = torch.nn.BatchNorm1d(6)
    parameters(module, rng)
    module.running_mean = torch.tensor(rng.standard_normal((6, 2)))[:, 0]
    module = module.to(getattr(torch, dtype))
    module.num_batches_tracked += 7
    layer = fastnorm.BatchNorm(6, dtype=own)
    for state in (module.state_dict(), module.state_dict(keep_vars=True)):
        layer.load_state_dict(state)
        for name, tensor in state.items():
            want = tensor.detach().double().numpy().astype(own)
            np.testing.assert_array_equal(layer.state_dict()[name], want, name)
    assert any(tensor.requires_grad for tensor in state.values())
    assert layer.buffers["num_batches_tracked"] == 7


@pytest.mark.parametrize("track", [False, True])
def test_one_sample_of_instance_norm(track, rng):
    module = torch.nn.InstanceNorm1d(6, affine=True, track_running_stats=track)
    layer = fastnorm.InstanceNorm(6, affine=True, track_running_stats=track)
    x, dy = (rng.standard_normal((6, 20)).astype(np.float32) for _ in range(2))
    given = torch.tensor(x, requires_grad=True)
    want = module(given)
    want.backward(torch.tensor(dy))
    assert_close(layer(x), want.detach().numpy(), 4e-6, "y")
    assert_close(layer.backward(dy), given.grad.numpy(), 2e-5, "dx")
    for name, param in module.named_parameters():
        assert_close(layer.grads[name], param.grad.numpy(), 2e-5, name)
    if track:
        assert_close(layer.buffers["running_var"], module.running_var.numpy(), 4e-6, "var")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_functions_in_both_precisions(dtype, rng):
    x = rng.standard_normal((4, 6, 7, 5)).astype(dtype)
    weight, bias = (rng.standard_normal(6).astype(dtype) for _ in range(2))
    t = [torch.tensor(a) for a in (x, weight, bias)]
    tolerance = 4e-6 if dtype is np.float32 else 1e-13
    want = torch.nn.functional.group_norm(t[0], 2, t[1], t[2]).numpy()
    assert_close(fastnorm.group_norm(x, 2, weight, bias), want, tolerance, "group_norm")
    want = torch.nn.functional.instance_norm(t[0], None, None, t[1], t[2]).numpy()
    assert_close(fastnorm.instance_norm(x, weight, bias), want, tolerance, "instance_norm")


def test_the_default_of_ddof_is_torchs(rng):
    x = rng.standard_normal((2, 3, 2, 2)).astype(np.float32)
    mean, var = np.zeros(3, np.float32), np.ones(3, np.float32)
    fastnorm.batch_norm(x, running_mean=mean, running_var=var, training=True)
    t_mean, t_var = torch.zeros(3), torch.ones(3)
    torch.nn.functional.batch_norm(torch.tensor(x), t_mean, t_var, training=True)
    np.testing.assert_allclose(mean, t_mean.numpy(), atol=1e-8)
    np.testing.assert_allclose(var, t_var.numpy(), rtol=1e-6)
