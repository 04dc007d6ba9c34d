"""Cosine Norm against torch, finite differences and its definition; linear and convolution."""

import pickle

import numpy as np
import pytest

import fastnorm

LINEAR = [((7, 5), (4, 5), {}), ((2, 3, 9), (6, 9), {}), ((5,), (4, 5), {})]
CONV = [
    ((2, 3, 8), (4, 3, 3), {}),
    ((2, 3, 8, 7), (5, 3, 3, 2), {"stride": 2, "padding": 1}),
    ((1, 2, 9, 6), (3, 2, 2, 3), {"stride": (3, 1), "padding": (0, 2)}),
    ((2, 2, 4, 5, 4), (3, 2, 2, 2, 2), {"stride": 2}),
]


def draw(rng, x_shape, weight_shape, dtype=np.float64):
    """Not centered: the plain and the centered form differ."""
    x = (rng.standard_normal(x_shape) + 0.7).astype(dtype)
    return x, (rng.standard_normal(weight_shape) - 0.4).astype(dtype)


def definition(x, weight, centered):
    """Cosines of rows, one by one, in float64."""
    y = np.zeros((len(x), len(weight)))
    for i, a in enumerate(np.asarray(x, np.float64)):
        for j, b in enumerate(np.asarray(weight, np.float64)):
            if centered:
                y[i, j] = np.corrcoef(a, b)[0, 1]
            else:
                y[i, j] = a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
    return y


def patches_of(x, kernel, stride=1, padding=0):
    """Patches of (N, C, H, W), one by one, as (N, H', W', C, kh, kw)."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    rows = range(0, x.shape[2] - kernel[0] + 1, stride)
    cols = range(0, x.shape[3] - kernel[1] + 1, stride)
    return np.array(
        [[[image[:, i : i + kernel[0], j : j + kernel[1]] for j in cols] for i in rows]
         for image in x]
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("centered", [False, True])
def test_linear_by_its_definition(centered, dtype, rng):
    x, weight = draw(rng, (11, 33), (7, 33), dtype)
    y = fastnorm.cosine_norm(x, weight, centered=centered)
    assert y.dtype == dtype
    tolerance = 2e-6 if dtype is np.float32 else 1e-14
    np.testing.assert_allclose(y, definition(x, weight, centered), atol=tolerance)
    stacked = fastnorm.cosine_norm(x.reshape(1, 11, 33), weight, centered=centered)
    np.testing.assert_allclose(stacked[0], y, atol=tolerance)
    scaled = fastnorm.cosine_norm(x * 8, weight / 4, centered=centered)
    np.testing.assert_allclose(scaled, y, atol=tolerance)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1)])
def test_convolution_is_that_of_its_patches(stride, padding, centered, rng):
    x, weight = draw(rng, (2, 3, 7, 6), (5, 3, 3, 2))
    y = fastnorm.cosine_norm(x, weight, centered=centered, stride=stride, padding=padding)
    patches = patches_of(x, (3, 2), stride, padding)
    want = definition(patches.reshape(-1, 18), weight.reshape(5, 18), centered)
    want = np.moveaxis(want.reshape(*patches.shape[:3], 5), -1, 1)
    np.testing.assert_allclose(y, want, atol=1e-13)


def test_large_means_do_not_cancel(rng):
    x, weight = draw(rng, (20, 50), (7, 50))
    x = (x + 1e4).astype(np.float32)
    y = fastnorm.cosine_norm(x, weight.astype(np.float32), centered=True)
    np.testing.assert_allclose(y, definition(x, weight, True), atol=2e-6)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize(("x_shape", "weight_shape", "kwargs"), LINEAR + CONV)
def test_finite_differences(x_shape, weight_shape, kwargs, centered, rng):
    x, weight = draw(rng, x_shape, weight_shape)
    kwargs = {**kwargs, "centered": centered}
    y, ctx = fastnorm.cosine_norm(x, weight, return_ctx=True, **kwargs)
    dy = rng.standard_normal(y.shape)
    grads = fastnorm.backward(dy, ctx)
    assert grads.x.shape == x.shape
    assert grads.weight.shape == weight.shape
    for array, gradient in ((x, grads.x), (weight, grads.weight)):
        for _ in range(3):
            direction = rng.standard_normal(array.shape)
            start, values = array.copy(), []
            for sign in (1, -1):
                array[...] = start + sign * 1e-6 * direction
                values.append((fastnorm.cosine_norm(x, weight, **kwargs) * dy).sum())
            array[...] = start
            measured = (values[0] - values[1]) / 2e-6
            assert measured == pytest.approx((gradient * direction).sum(), rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("centered", [False, True])
def test_linear_as_torch(centered, dtype, rng):
    torch = pytest.importorskip("torch")
    x, weight = draw(rng, (6, 40), (9, 40), dtype)
    dy = rng.standard_normal((6, 9)).astype(dtype)
    tx, tw = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (x, weight))
    a, b = (t - t.mean(1, keepdim=True) if centered else t for t in (tx, tw))
    ty = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    ty.backward(torch.tensor(dy, dtype=torch.float64))
    y, ctx = fastnorm.cosine_norm(x, weight, centered=centered, return_ctx=True)
    grads = fastnorm.backward(dy, ctx)
    assert grads.x.dtype == grads.weight.dtype == dtype
    tolerance = 1e-5 if dtype is np.float32 else 1e-13
    for got, want in ((y, ty.detach()), (grads.x, tx.grad), (grads.weight, tw.grad)):
        np.testing.assert_allclose(got, want.numpy(), atol=tolerance * float(want.abs().max()))
    again = fastnorm.backward(dy, ctx)
    np.testing.assert_array_equal(again.x, grads.x)


@pytest.mark.parametrize("centered", [False, True])
def test_convolution_as_torch(centered, rng):
    torch = pytest.importorskip("torch")
    x, weight = draw(rng, (2, 3, 9, 8), (5, 3, 3, 3))
    tx, tw = (torch.tensor(a, requires_grad=True) for a in (x, weight))
    patches = torch.nn.functional.unfold(tx, 3, padding=1, stride=2).transpose(1, 2)
    a, b = patches, tw.reshape(5, -1)
    if centered:
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    ty = torch.nn.functional.cosine_similarity(a[:, :, None], b, dim=-1).transpose(1, 2)
    y, ctx = fastnorm.cosine_norm(
        x, weight, centered=centered, padding=1, stride=2, return_ctx=True
    )
    np.testing.assert_allclose(y.reshape(2, 5, -1), ty.detach().numpy(), atol=1e-13)
    dy = rng.standard_normal(y.shape)
    ty.backward(torch.tensor(dy.reshape(2, 5, -1)))
    grads = fastnorm.backward(dy, ctx)
    np.testing.assert_allclose(grads.x, tx.grad.numpy(), atol=1e-12)
    np.testing.assert_allclose(grads.weight, tw.grad.numpy(), atol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("centered", [False, True])
def test_vectors_without_a_direction_give_zero(centered, dtype, rng):
    x, weight = draw(rng, (6, 10), (4, 10), dtype)
    x[1], weight[2] = (3 if centered else 0), 0
    y, ctx = fastnorm.cosine_norm(x, weight, centered=centered, return_ctx=True)
    assert not y[1].any()
    assert not y[:, 2].any()
    assert (np.delete(np.delete(y, 1, 0), 2, 1) != 0).all()
    grads = fastnorm.backward(np.ones_like(y), ctx)
    assert np.isfinite(grads.x).all()
    assert np.isfinite(grads.weight).all()
    without = fastnorm.cosine_norm(x, weight, centered=centered, eps=0)
    assert np.isnan(without[1]).all()


@pytest.mark.parametrize("length", [3e-10, 1e-8, 3e-8, 1.0])
def test_eps_is_the_least_length_as_in_torch(length):
    torch = pytest.importorskip("torch")
    x, w = np.array([[0.6, 0.8], [3.0, -4.0]]), np.array([[1.0, 2.0]])
    x[0] *= length
    want = torch.nn.functional.cosine_similarity(torch.tensor(x), torch.tensor(w), dim=1)
    np.testing.assert_allclose(fastnorm.cosine_norm(x, w)[:, 0], want.numpy(), rtol=1e-14)
    if length == 1e-8:  # where it has no slope
        return
    y, ctx = fastnorm.cosine_norm(x, w, return_ctx=True)
    dx = fastnorm.backward(np.ones_like(y), ctx).x
    h = 1e-6 * length
    for j in range(2):  # a length below eps is a constant
        step = np.zeros_like(x)
        step[0, j] = h
        slope = (fastnorm.cosine_norm(x + step, w) - fastnorm.cosine_norm(x - step, w)) / (2 * h)
        np.testing.assert_allclose(dx[0, j], slope[0, 0], rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e37])
def test_long_and_short_vectors(size, rng):
    x, w = (rng.standard_normal(shape) for shape in ((4, 50), (3, 50)))
    want = definition(x, w, False)
    got = fastnorm.cosine_norm((x * size).astype("f4"), w.astype("f4"), eps=0)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_empty_batches_and_strides(rng):
    x, weight = draw(rng, (4, 10, 6), (5, 10))
    y = fastnorm.cosine_norm(x[:, :, 0], weight)
    np.testing.assert_allclose(y, definition(x[:, :, 0], weight, False), atol=1e-14)
    swapped = fastnorm.cosine_norm(x[:, :, 0].astype(">f8"), weight)
    np.testing.assert_array_equal(swapped, y)
    for x_shape, weight_shape in (((0, 10), (5, 10)), ((0, 3, 8, 8), (5, 3, 2, 2))):
        x, weight = draw(rng, x_shape, weight_shape)
        y, ctx = fastnorm.cosine_norm(x, weight, return_ctx=True)
        grads = fastnorm.backward(y, ctx)
        assert y.shape[0] == grads.x.shape[0] == 0
        np.testing.assert_array_equal(grads.weight, np.zeros(weight_shape))


X, W = np.ones((2, 3)), np.ones((4, 3))
IMAGE, KERNEL = np.ones((2, 3, 4, 4)), np.ones((5, 3, 2, 2))


@pytest.mark.parametrize(
    ("x", "weight", "kwargs", "error", "message"),
    [
        (X.astype(int), W, {}, TypeError, "x: expected dtype float32 or float64, got int64"),
        (X.astype(np.float16), W, {}, TypeError, "x: expected dtype"),
        (X, W.astype(np.float32), {}, TypeError, "weight: expected x's dtype float64"),
        (X, np.ones(3), {}, ValueError, "weight: expected at least 2 dimensions"),
        (X, np.ones((0, 3)), {}, ValueError, "weight: expected"),
        (X, np.ones((4, 2)), {}, ValueError, r"x: expected shape \(\*, 2\), got \(2, 3\)"),
        (np.ones(()), W, {}, ValueError, "x: expected shape"),
        (IMAGE[0], KERNEL, {}, ValueError, "x: expected 4 dimensions with 3 channels"),
        (IMAGE[:, :2], KERNEL, {}, ValueError, "x: expected 4 dimensions with 3 channels"),
        (IMAGE[..., :1], KERNEL, {}, ValueError, r"x: expected at least the kernel \(2, 2\)"),
        (X, W, {"centered": 1.0}, TypeError, "centered: expected a bool"),
        (X, W, {"eps": -1.0}, ValueError, "eps: expected"),
        (X, W, {"eps": "1"}, TypeError, "eps: expected a number"),
        (X, W, {"eps": np.nan}, ValueError, "eps: expected"),
        (IMAGE, KERNEL, {"stride": 0}, ValueError, r"stride: expected 2 int\(s\) from 1 to"),
        (IMAGE, KERNEL, {"stride": (1, 1, 1)}, ValueError, "stride: expected 2 int"),
        (IMAGE, KERNEL, {"padding": -1}, ValueError, "padding: expected"),
        (IMAGE, KERNEL, {"padding": 0.5}, TypeError, "padding: expected an int"),
        (X, W, {"stride": 2}, ValueError, "stride: expected 1 without a convolution"),
        (X, W, {"padding": 1}, ValueError, "padding: expected 0 without a convolution"),
    ],
)
def test_errors(x, weight, kwargs, error, message):
    with pytest.raises(error, match=message):
        fastnorm.cosine_norm(x, weight, **kwargs)


def test_errors_of_backward():
    y, ctx = fastnorm.cosine_norm(X, W, return_ctx=True)
    with pytest.raises(ValueError, match=r"dy: expected y's shape \(2, 4\), got \(2, 3\)"):
        fastnorm.backward(X, ctx)
    with pytest.raises(TypeError, match="dy: expected x's dtype float64, got float32"):
        fastnorm.backward(y.astype(np.float32), ctx)
    with pytest.raises(TypeError, match="out: expected None"):
        fastnorm.backward(y, ctx, out=np.empty_like(X))


@pytest.mark.parametrize(("x_shape", "weight_shape", "kwargs"), [LINEAR[0], CONV[1]])
def test_layer(x_shape, weight_shape, kwargs, rng):
    x, weight = draw(rng, x_shape, weight_shape, np.float32)
    layer = fastnorm.CosineNorm(weight, centered=True, **kwargs)
    y, ctx = fastnorm.cosine_norm(x, weight, centered=True, return_ctx=True, **kwargs)
    np.testing.assert_array_equal(layer(x), y)
    grads = fastnorm.backward(y, ctx)
    np.testing.assert_array_equal(layer.backward(y), grads.x)
    np.testing.assert_array_equal(layer.grads["weight"], grads.weight)
    weight[...] = 0  # the layer has a copy
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(layer))(x), y)
    assert repr(layer).startswith(f"CosineNorm(shape={weight_shape}, centered=True")
    other = fastnorm.CosineNorm(np.ones(weight_shape, np.float32), centered=True, **kwargs)
    other.load_state_dict(layer.state_dict())
    np.testing.assert_array_equal(other(x), y)


def test_layer_errors(rng):
    with pytest.raises(ValueError, match="stride: expected"):
        fastnorm.CosineNorm(KERNEL, stride=0)
    with pytest.raises(ValueError, match="weight: expected at least 2 dimensions"):
        fastnorm.CosineNorm(np.ones(3))
    with pytest.raises(TypeError, match="weight: expected dtype float32 or float64, got int64"):
        fastnorm.CosineNorm(np.ones((3, 2), int))
    layer = fastnorm.CosineNorm(W)
    layer(X)
    with pytest.raises(ValueError, match="x: expected shape"):
        layer(np.ones((2, 5)))
    with pytest.raises(RuntimeError, match="expected a call of the layer before"):
        layer.backward(np.ones((2, 4)))


def test_a_step_down_the_gradient_learns(rng):
    """Directions that two layers agree on are found by gradient descent."""
    x = rng.standard_normal((200, 6))
    goal = fastnorm.cosine_norm(x, rng.standard_normal((3, 6)))
    layer = fastnorm.CosineNorm(rng.standard_normal((3, 6)))
    first = None
    for _ in range(300):
        error = layer(x) - goal
        first = np.mean(error**2) if first is None else first
        layer.backward(2 * error / error.size)
        layer.params["weight"] -= 10 * layer.grads["weight"]
    assert np.mean((layer(x) - goal) ** 2) < 1e-4 * first
