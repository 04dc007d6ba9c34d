"""Filter and Global Response Norm: what the lists of cases do not say of them."""

import numpy as np
import pytest

import fastnorm as fn


@pytest.fixture
def x(rng):
    return rng.standard_normal((3, 5, 6, 4))


def test_without_tau_there_is_no_activation(x):
    w, b, dy = np.full(5, 0.7), np.linspace(-2, 2, 5), np.ones_like(x)
    y, ctx = fn.filter_response_norm(x, w, b, return_ctx=True)
    floored, with_tau = fn.filter_response_norm(x, w, b, np.full(5, -np.inf), return_ctx=True)
    np.testing.assert_array_equal(y, floored)
    plain, all_above = fn.backward(dy, ctx), fn.backward(dy, with_tau)
    assert plain.tau is None
    np.testing.assert_array_equal(plain.x, all_above.x)
    np.testing.assert_array_equal(all_above.tau, 0)


def test_a_tie_is_the_thresholds(x):
    """Where weight is 0 y is bias; equal to tau, all of dy goes to tau."""
    zero, one = np.zeros(5), np.ones(5)
    y, ctx = fn.filter_response_norm(x, zero, one, one, return_ctx=True)
    grads = fn.backward(np.ones_like(x), ctx)
    np.testing.assert_array_equal(y, 1)
    np.testing.assert_array_equal(grads.tau, 3 * 6 * 4)
    for gradient in (grads.x, grads.weight, grads.bias):
        np.testing.assert_array_equal(gradient, 0)


def test_nan_goes_through_the_threshold(x):
    x[1, 2, 3, 1] = np.nan
    y = fn.filter_response_norm(x, tau=np.zeros(5))
    assert np.isnan(y[1, 2]).all()
    assert np.isfinite(y[0]).all()
    assert np.isnan(fn.filter_response_norm(x, tau=np.full(5, np.nan))).all()


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_gradients_by_finite_differences(x, rng, layout):
    given = x if layout == "NCHW" else np.ascontiguousarray(np.moveaxis(x, 1, -1))
    for norm, count in ((fn.filter_response_norm, 3), (fn.global_response_norm, 2)):
        arrays = [given, *(rng.uniform(0.2, 0.9, 5) for _ in range(count))]
        dy, step = rng.standard_normal(given.shape), 1e-6

        def loss(arrays, norm=norm, dy=dy):
            return (norm(*arrays, layout=layout) * dy).sum()

        grads = fn.backward(dy, norm(*arrays, layout=layout, return_ctx=True)[1])
        for k, gradient in enumerate(grads):
            for at in rng.integers(0, gradient.size, 4):
                moved = [a.copy() for a in arrays]
                moved[k].flat[at] += step
                more = loss(moved)
                moved[k].flat[at] -= 2 * step
                slope = (more - loss(moved)) / (2 * step)
                assert abs(slope - gradient.flat[at]) < 1e-6 * (1 + abs(slope))


def test_global_response_starts_as_the_identity(x):
    layer = fn.GlobalResponseNorm(5, dtype=np.float64)
    np.testing.assert_array_equal(layer(x), x)
    assert set(layer.state_dict()) == {"weight", "bias"}
    assert set(fn.FilterResponseNorm(5).state_dict()) == {"weight", "bias", "tau"}


def test_statistics_of_a_context(x):
    _, ctx = fn.filter_response_norm(x, return_ctx=True)
    np.testing.assert_allclose(ctx.var, (x**2).mean((2, 3)))
    _, ctx = fn.global_response_norm(x, return_ctx=True)
    length = np.sqrt((x**2).sum((2, 3)))
    np.testing.assert_allclose(ctx.rstd, length / (length.mean(1, keepdims=True) + 1e-6))


def test_arguments_are_named(x):
    with pytest.raises(ValueError, match="tau"):
        fn.filter_response_norm(x, tau=np.zeros(4))
    with pytest.raises(TypeError, match="tau"):
        fn.filter_response_norm(x, tau=np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="eps"):
        fn.global_response_norm(x, eps=-1)


def test_tau_tells_how_many_channels_the_blocks_have(x, rng):
    tau, dy = np.full(5, 0.3), rng.standard_normal(x.shape)
    y, ctx = fn.filter_response_norm(fn.to_blocked(x, 8), tau=tau, layout="NCHW8c", return_ctx=True)
    want, plain = fn.filter_response_norm(x, tau=tau, return_ctx=True)
    grads, wanted = fn.backward(fn.to_blocked(dy, 8), ctx), fn.backward(dy, plain)
    np.testing.assert_allclose(fn.from_blocked(y, 5), want, rtol=1e-13)
    np.testing.assert_allclose(grads.tau, wanted.tau, rtol=1e-13)
    assert not y[..., 5:].any(), "tau is not what is behind the last channel"
    with pytest.raises(ValueError, match=r"^tau: expected 1 to 8 channels"):
        fn.filter_response_norm(fn.to_blocked(x, 8), tau=np.zeros(9), layout="NCHW8c")


@pytest.mark.parametrize("name", ["weight", "bias", "tau"])
def test_backward_reads_all_parameters_where_there_is_a_threshold(x, name):
    memory = np.zeros(x.size + 5)
    out = memory[: x.size].reshape(x.shape)
    params = {"weight": np.ones(5), "bias": np.zeros(5), "tau": np.zeros(5), name: memory[-10:-5]}
    _, ctx = fn.filter_response_norm(x, **params, return_ctx=True)
    with pytest.raises(ValueError, match=f"^out: expected an array apart from the {name} of"):
        fn.backward(np.ones_like(x), ctx, out)
    if name == "bias":  # which is not read without one
        _, ctx = fn.filter_response_norm(x, **{**params, "tau": None}, return_ctx=True)
        assert fn.backward(np.ones_like(x), ctx, out).x is out


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_other_names_of_the_parameters(dtype):
    state = {"gamma": np.full(3, 2.0), "beta": np.full(3, 3.0), "tau": np.full(3, 4.0)}
    layer = fn.FilterResponseNorm(3, dtype=dtype)
    layer.load_state_dict(state)
    for name, value in (("weight", 2), ("bias", 3), ("tau", 4)):
        np.testing.assert_array_equal(layer.params[name], np.full(3, value, dtype))
    del state["tau"]
    for layer in (fn.FilterResponseNorm(3, tau=False), fn.GlobalResponseNorm(3)):
        layer.load_state_dict(state)
        assert layer.params.keys() == {"weight", "bias"}
        assert layer.params["bias"][0] == 3
