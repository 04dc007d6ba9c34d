"""Weight Norm against torch and the oracle; data-dependent initialization; the layer.

The tests that run over all normalizers (oracle, gradients, bits, 16 bits, arrays) have it too.
"""

import pickle

import numpy as np
import pytest
from cases import TOLERANCE, assert_close

import fastnorm
from fastnorm import reference

SHAPES = [(5, 7), (6, 4, 3, 3), (3, 130, 5), (40, 2)]


def draw(rng, shape, axis, dtype, keepdims=False):
    v = rng.standard_normal(shape).astype(dtype)
    kept = () if axis is None else (axis % len(shape),)
    ones = tuple(n if i in kept else 1 for i, n in enumerate(shape))
    g_shape = ones if keepdims and kept else tuple(shape[i] for i in kept)
    g = rng.uniform(0.5, 2, g_shape).astype(dtype)
    return v, g, rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("axis", [0, -1, None])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_norm_of_all_and_of_one_axis(shape, axis, dtype, rng):
    v, g, dw = draw(rng, shape, axis, dtype)
    w, ctx = fastnorm.weight_norm(v, g, axis=axis, return_ctx=True)
    want, cache = reference.weight_norm(v, g, axis=axis)
    grads, want_grads = fastnorm.backward(dw, ctx), reference.backward(dw, cache)
    tolerance = TOLERANCE[np.dtype(dtype)]
    assert isinstance(grads, fastnorm.WeightGradients)
    assert_close(w, want, tolerance[0], "w")
    assert_close(grads.x, want_grads.x, tolerance[2], "dv")
    assert_close(grads.g, want_grads.g, tolerance[2], "dg")


def test_a_large_norm_of_all(rng):
    """Chunks of one domain, shared among threads."""
    v, g, dw = draw(rng, (400, 1000), None, np.float32)
    v += 30  # most of the sum of squares is in the mean
    w, ctx = fastnorm.weight_norm(v, g, axis=None, return_ctx=True)
    want, cache = reference.weight_norm(v, g, axis=None)
    assert_close(w, want, 2e-6, "w")
    assert_close(fastnorm.backward(dw, ctx).x, reference.backward(dw, cache).x, 1e-5, "dv")


@pytest.mark.parametrize("dim", [0, 1, -1, None])
@pytest.mark.parametrize("keepdims", [False, True])
def test_as_torch(dim, keepdims, rng):
    torch = pytest.importorskip("torch")
    v, g, dw = draw(rng, (6, 4, 3, 3), dim, np.float64, keepdims)
    tv = torch.tensor(v, requires_grad=True)
    torch_dim = -1 if dim is None else dim % 4  # torch's -1 means None
    tg = torch.tensor(g.reshape(tuple(torch.norm_except_dim(tv, 2, torch_dim).shape)))
    tg.requires_grad_()
    tw = torch._weight_norm(tv, tg, torch_dim)
    tw.backward(torch.tensor(dw))
    w, ctx = fastnorm.weight_norm(v, g, axis=dim, return_ctx=True)
    grads = fastnorm.backward(dw, ctx)
    np.testing.assert_allclose(w, tw.detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(grads.x, tv.grad.numpy(), rtol=1e-10, atol=1e-13)
    assert grads.g.shape == g.shape
    np.testing.assert_allclose(grads.g.ravel(), tg.grad.numpy().ravel(), rtol=1e-11)


@pytest.mark.filterwarnings("error")
def test_a_row_of_zeros_has_no_direction_and_stays_zero(rng):
    v, g, dw = draw(rng, (4, 9), 0, np.float32)
    v[2] = 0
    w, ctx = fastnorm.weight_norm(v, g, return_ctx=True)
    dv, dg = fastnorm.backward(dw, ctx)
    for array in (w, dv, dg):
        assert (array[2] == 0).all()
        assert (np.delete(array, 2, 0) != 0).all()


@pytest.mark.parametrize("axis", [0, -1, None])
@pytest.mark.parametrize("eps", [0.0, 1e-3, 50.0])
def test_eps_is_the_least_length(axis, eps, rng):
    v, _, dw = draw(rng, (4, 9), 0, np.float64)
    v[2] *= 1e-6
    layer = fastnorm.WeightNorm(v, axis=axis, eps=eps)
    g = layer.params["weight_g"]
    want, cache = reference.weight_norm(v, g.ravel() if axis is not None else g, axis=axis, eps=eps)
    np.testing.assert_allclose(layer(), want, rtol=1e-13)
    layer.backward(dw)
    grads = reference.backward(dw, cache)
    np.testing.assert_allclose(layer.grads["weight_v"], grads.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(layer.grads["weight_g"].ravel(), grads.g.ravel(), rtol=1e-12)


def test_in_place_and_empty(rng):
    v, g, _ = draw(rng, (4, 9), 0, np.float32)
    want = fastnorm.weight_norm(v, g)
    assert fastnorm.weight_norm(v, g, out=v) is v
    np.testing.assert_array_equal(v, want)
    w, ctx = fastnorm.weight_norm(np.empty((3, 0)), np.ones(3), return_ctx=True)
    dv, dg = fastnorm.backward(w, ctx)
    assert dv.shape == (3, 0)
    np.testing.assert_array_equal(dg, np.zeros(3))


@pytest.mark.parametrize(
    ("v", "g", "kwargs", "error", "message"),
    [
        (np.float64(3.0), np.ones(()), {}, ValueError, "v: expected at least 1 dimension"),
        (np.ones((2, 3), int), np.ones(2), {}, TypeError, "v: expected dtype float32"),
        (np.ones((2, 3)), np.ones(3), {}, ValueError, r"g: expected shape \(2,\), got \(3,\)"),
        (np.ones((2, 3)), np.ones((1, 3)), {}, ValueError, r"g: expected shape \(2,\)"),
        (np.ones((2, 3)), np.ones(2, np.float32), {}, TypeError, "g: expected dtype float64"),
        (np.ones((2, 3)), None, {}, ValueError, "g: expected an array"),
        (np.ones((2, 3)), np.ones(2), {"axis": 2}, ValueError, "axis: expected"),
        (np.ones((2, 3)), np.ones(2), {"axis": (0,)}, TypeError, "axis: expected an int or None"),
        (np.ones((2, 3)), np.ones(2), {"axis": 0.5}, TypeError, "axis: expected"),
        (np.ones((2, 3)), np.ones(2), {"eps": -1.0}, ValueError, "eps: expected a finite number"),
        (np.ones((2, 3)), np.ones(2), {"eps": None}, TypeError, "eps: expected a number"),
        (np.ones((2, 3)), np.ones(2), {"axis": None}, ValueError, r"g: expected shape \(\)"),
        (np.ones((2, 3)), np.ones(2), {"out": np.ones((3, 2))}, ValueError, "out: expected shape"),
    ],
)  # fmt: skip
def test_errors(v, g, kwargs, error, message):
    with pytest.raises(error, match=message):
        fastnorm.weight_norm(v, g, **kwargs)


# ---- initialization ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initialization_of_a_linear_layer(dtype, rng):
    x = rng.uniform(3, 9, (500, 20)).astype(dtype)
    v, g, bias = fastnorm.weight_norm_init(x, (30, 20), rng=np.random.default_rng(1))
    assert v.dtype == g.dtype == bias.dtype == dtype
    drawn = np.random.default_rng(1).normal(0, 0.05, (30, 20)).astype(dtype)
    np.testing.assert_array_equal(v, drawn)
    t = x @ (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).T
    tolerance = 1e-12 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(g, 1 / t.std(0), rtol=tolerance)
    np.testing.assert_allclose(bias, -t.mean(0) / t.std(0), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_initialization_of_a_convolution(layout, rng):
    """By a transposed 1 x 1 convolution, whose outputs are along axis 1 of the weight."""
    x = rng.uniform(3, 9, (8, 4, 5, 5))
    outputs = "nohw" if layout == "NCHW" else "nhwo"

    def convolve(x, weight):
        return np.einsum(f"nihw,ioyz->{outputs}", x, weight)

    v, g, bias = fastnorm.weight_norm_init(x, (4, 6, 1, 1), axis=1, layout=layout, forward=convolve)
    y = convolve(x, fastnorm.weight_norm(v, g, axis=1))
    y = np.moveaxis(y, 1 if layout == "NCHW" else -1, -1) + bias
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1)


def test_initialization_errors(rng):
    x = rng.standard_normal((10, 4))
    init = fastnorm.weight_norm_init
    with pytest.raises(TypeError, match="x: expected dtype float32 or float64, got int64"):
        init(x.astype(int), (3, 4))
    with pytest.raises(ValueError, match="x: expected"):
        init(x, (3, 5))
    with pytest.raises(ValueError, match="axis: expected one in"):
        init(x, (3, 4), axis=2)
    for axis in (None, "a", True):
        with pytest.raises(TypeError, match="axis: expected an int"):
            init(x, (3, 4), axis=axis)
    with pytest.raises(TypeError, match="shape: expected a tuple of ints, got 4"):
        init(x, 4)
    with pytest.raises(TypeError, match="shape: expected an int, got str"):
        init(x, (3, "4"))
    with pytest.raises(ValueError, match="shape: expected at least 1, got 0"):
        init(x, (0, 4))
    with pytest.raises(TypeError, match=r"rng: expected a numpy\.random\.Generator, got int"):
        init(x, (3, 4), rng=1)
    with pytest.raises(TypeError, match="forward: expected a callable, got int"):
        init(x, (3, 4), forward=1)
    with pytest.raises(ValueError, match="forward: expected 4 channels, got 3"):
        init(x, (3, 4), axis=1, forward=lambda x, w: x @ w.T)
    with pytest.raises(ValueError, match=r"x: expected outputs that vary.* in 3 of 3 channels"):
        init(np.ones((10, 4)), (3, 4))


# ---- layer -------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, None])
def test_layer_starts_at_its_weight_and_goes_back(axis, rng):
    v, g, dw = draw(rng, (3, 5), axis, np.float64)
    layer = fastnorm.WeightNorm(v, axis=axis)
    np.testing.assert_allclose(layer(), v, rtol=1e-14)
    layer = fastnorm.WeightNorm(v, g, axis=axis)
    w, ctx = fastnorm.weight_norm(v, g, axis=axis, return_ctx=True)
    np.testing.assert_array_equal(layer(), w)
    layer.backward(dw)
    grads = fastnorm.backward(dw, ctx)
    np.testing.assert_array_equal(layer.grads["weight_v"], grads.x)
    np.testing.assert_array_equal(layer.grads["weight_g"].ravel(), grads.g.ravel())
    assert layer.grads["weight_g"].shape == layer.params["weight_g"].shape
    v[...] = 0  # the layer has a copy
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(), w)
    assert repr(layer) == f"WeightNorm(shape=(3, 5), axis={axis}, eps=0.0)"


def test_layer_loads_both_of_torchs_forms(rng):
    torch = pytest.importorskip("torch")
    module = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(3, 4, 5, bias=False))
    with torch.no_grad():
        module.parametrizations.weight.original0.mul_(1.5)
    state = {name: value.numpy() for name, value in module.state_dict().items()}
    layer = fastnorm.WeightNorm(np.ones((4, 3, 5), np.float32))
    layer.load_state_dict(state)
    np.testing.assert_allclose(layer(), module.weight.detach().numpy(), rtol=1e-6)
    other = fastnorm.WeightNorm(np.ones((4, 3, 5), np.float32))
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other(), layer())
    with pytest.warns(FutureWarning):
        old = torch.nn.utils.weight_norm(torch.nn.Conv1d(3, 4, 5, bias=False))
    layer.load_state_dict({name: value.numpy() for name, value in old.state_dict().items()})
    np.testing.assert_allclose(layer(), old.weight.detach().numpy(), rtol=1e-6)


def test_layer_errors_leave_it_alone(rng):
    layer = fastnorm.WeightNorm(rng.standard_normal((3, 5)))
    before = layer.state_dict()
    with pytest.raises(RuntimeError, match="expected a call of the layer before"):
        layer.backward(np.ones((3, 5)))
    with pytest.raises(ValueError, match="missing"):
        layer.load_state_dict({"weight_v": np.ones((3, 5))})
    with pytest.raises(ValueError, match="expected shape"):
        layer.load_state_dict({"weight_v": np.ones((3, 5)), "weight_g": np.ones(3)})
    with pytest.raises(TypeError, match="state: expected a mapping"):
        layer.load_state_dict([1])
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])
    for bad, error, message in [
        ({"axis": 2}, ValueError, "axis: expected one in"),
        ({"axis": "a"}, TypeError, "axis: expected an int or None"),
        ({"g": np.ones(4)}, ValueError, "g: expected shape"),
    ]:
        with pytest.raises(error, match=message):
            fastnorm.WeightNorm(np.ones((3, 5)), **bad)
    with pytest.raises(TypeError, match="v: expected dtype float32 or float64"):
        fastnorm.WeightNorm(np.ones((3, 5), int))
