"""Decorrelated Batch Norm and IterNorm: against torch, chainer, finite differences, and plainly."""

import functools

import ml_dtypes
import numpy as np
import pytest
from cases import assert_close, is_last
from whitening_cases import FUNCTIONS, LAYOUTS, draw, grouped, parameters, plain, root

import fastnorm
from fastnorm.norms import _groups

SIXTEEN = [np.float16, ml_dtypes.bfloat16]
# by chainer 7.8.1 with numpy 1.23.5: functions.decorrelated_batch_normalization(x, groups=2,
# eps=1e-3) of chainer_case(), whose groups are numbers of groups; y and the gradient of x
CHAINER_Y = """-0.10550821076 1.22499472169 -1.25493949281 0.75942668501 0.13569382211 0.41438267921
-1.02424204338 -1.01896550044 1.24086923564 -0.82413521716 -0.74538296615 1.57082286637
-0.74656453218 -0.46327917743 1.36412443432 -0.86746966992 -1.50190067785 -0.03431985156
-0.779187434 0.44926034159 -1.21917605284 1.87894326112 0.55624781215 0.99030496728"""
CHAINER_DX = """0.64383458421 0.73194188505 -0.33836889597 -0.58326933799 0.01210759126
0.62612450549 -0.48453493414 -0.72969154911 -1.28293597878 0.05090533673 0.60594886694
0.86226032297 1.24867397801 -1.70564787061 0.29042531801 1.34420714818 -0.53976746702 0.39602163981
0.52056696527 -1.06713792123 -0.07508427585 -0.1061739283 0.12586326711 -0.54626925004"""


def chainer_case():
    n = np.arange(24.0)
    return np.sin(n**2).reshape(3, 4, 2), np.cos(n**3).reshape(3, 4, 2)


def torch_version(x, weight, bias, size, layout, iterations, statistics, eps=1e-5):
    torch = pytest.importorskip("torch")
    axis = x.ndim - 1 if is_last(layout) else 1
    groups = x.movedim(axis, 0)
    moved, groups = groups.shape, groups.reshape(len(weight) // size, size, -1)
    if statistics is None:
        centered = groups - groups.mean(2, keepdim=True)
        cov = centered @ centered.mT / groups.shape[2]
    else:
        mean, cov = map(torch.tensor, statistics)
        centered = groups - mean.reshape(-1, size, 1)
    cov = cov + eps * torch.eye(size, dtype=x.dtype)
    if iterations is None:
        values, vectors = torch.linalg.eigh(cov)
        matrix = vectors / values.sqrt()[:, None] @ vectors.mT
    else:
        trace = cov.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
        matrix = torch.eye(size, dtype=x.dtype)
        for _ in range(iterations):
            matrix = (3 * matrix - matrix @ matrix @ matrix @ cov / trace) / 2
        matrix = matrix / trace.sqrt()
    y = weight.reshape(-1, size, 1) * (matrix @ centered) + bias.reshape(-1, size, 1)
    return y.reshape(moved).movedim(0, axis)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_forward_and_backward_are_those_of_torch(layout, name, size, training, rng):
    torch = pytest.importorskip("torch")
    function, iterations = FUNCTIONS[name]
    x = draw(rng, layout)
    w, b, mean, cov = parameters(rng, 8, size)
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    ty = torch_version(*leaves, size, layout, iterations, None if training else (mean, cov))
    y, ctx = function(
        x, w, b, running_mean=mean, running_cov=cov, training=training, group_size=size,
        layout=layout, return_ctx=True,
    )  # fmt: skip
    dy = rng.standard_normal(y.shape)
    ty.backward(torch.tensor(dy))
    assert_close(y, ty.detach().numpy(), 1e-11, "y")
    for _ in range(2):  # a context can be used again
        for got, leaf, what in zip(fastnorm.backward(dy, ctx), leaves, "xwb", strict=True):
            assert_close(got, leaf.grad.numpy(), 1e-10, what)


def test_forward_and_backward_are_those_of_chainer():
    x, dy = chainer_case()
    y, ctx = fastnorm.decorrelated_batch_norm(
        x, training=True, group_size=2, eps=1e-3, return_ctx=True
    )
    for got, text in ((y, CHAINER_Y), (fastnorm.backward(dy, ctx).x, CHAINER_DX)):
        want = np.array(text.split(), float).reshape(x.shape)
        np.testing.assert_allclose(got, want, atol=1e-10)


def assert_slopes(call, arrays, dy, gradients, rng):
    """Compare with central differences along random directions."""
    for array, gradient in zip(arrays, gradients, strict=True):
        for _ in range(3):
            direction, start, values = rng.standard_normal(array.shape), array.copy(), []
            for sign in (1, -1):
                array[...] = start + sign * 1e-6 * direction
                values.append((call() * dy).sum())
            array[...] = start
            measured = (values[0] - values[1]) / 2e-6
            assert measured == pytest.approx((gradient * direction).sum(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_finite_differences(name, training, rng):
    x = draw(rng, "NCHW")
    w, b, mean, cov = parameters(rng, 8, 4)

    def call(**more):
        return FUNCTIONS[name][0](
            x, w, b, running_mean=mean.copy(), running_cov=cov.copy(), training=training,
            group_size=4, eps=1e-3, **more,
        )  # fmt: skip

    y, ctx = call(return_ctx=True)
    dy = rng.standard_normal(y.shape)
    assert_slopes(call, (x, w, b), dy, fastnorm.backward(dy, ctx), rng)


def equal_eigenvalues(kind, rng):
    """Covariances I, diag(1, 1, 4, 4), and of rank 1 of 4, so that three are eps."""
    hadamard = functools.reduce(np.kron, [np.array([[1.0, 1.0], [1.0, -1.0]])] * 3)
    if kind == "rank":
        return rng.standard_normal((6, 1)) * np.array([1.0, 2.0, -1.0, 0.5])
    return hadamard[:, 1:5] * ([1, 1, 1, 1] if kind == "identity" else [1, 1, 2, 2])


@pytest.mark.parametrize("kind", ["identity", "pairs", "rank"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equal_eigenvalues_have_gradients(name, kind, rng):
    x = equal_eigenvalues(kind, rng)
    function = functools.partial(FUNCTIONS[name][0], x, training=True, eps=0.1)
    y, ctx = function(return_ctx=True)
    dy = rng.standard_normal(y.shape)
    dx = fastnorm.backward(dy, ctx).x
    assert np.isfinite(dx).all()
    assert_slopes(function, (x,), dy, (dx,), rng)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_layouts_agree(name, rng):
    x, dy = rng.standard_normal((2, 3, 32, 5, 7))
    w, b, *running = parameters(rng, 32, 16)
    found = []
    for layout in ("NCHW", "channels_first", "NHWC", "channels_last"):
        last = is_last(layout)
        states = [a.copy() for a in running]
        y, ctx = FUNCTIONS[name][0](
            np.moveaxis(x, 1, -1) if last else x, w, b, running_mean=states[0],
            running_cov=states[1], training=True, layout=layout, return_ctx=True,
        )  # fmt: skip
        dx, *others = fastnorm.backward(np.moveaxis(dy, 1, -1) if last else dy, ctx)
        y, dx = (np.moveaxis(a, -1, 1) if last else a for a in (y, dx))
        found.append([y, dx, *others, *states])
    for one in found[1:]:
        for got, want in zip(one, found[0], strict=True):
            assert_close(got, want, 1e-12, "in another layout")


@pytest.mark.parametrize("chunk", [200, 1000])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_do_not_matter(layout, chunk, rng, monkeypatch):
    shape = [n if n == 8 or i > 2 else 3 * n for i, n in enumerate(LAYOUTS[layout])]
    x = draw(rng, layout, shape=shape)
    dy = rng.standard_normal(x.shape)
    call = functools.partial(
        fastnorm.decorrelated_batch_norm, x, *parameters(rng, 8, 4)[:2], group_size=4,
        training=True, layout=layout, return_ctx=True,
    )  # fmt: skip
    want, ctx = call()
    wanted = fastnorm.backward(dy, ctx)
    for name, value in {"CHUNK": chunk, "PRODUCT": 1, "MANY": 1, "FEW": chunk // 100}.items():
        monkeypatch.setattr(_groups, name, value)
    y, ctx = call()
    assert_close(y, want, 1e-12, "y")
    for got, all_at_once in zip(fastnorm.backward(dy, ctx), wanted, strict=True):
        assert_close(got, all_at_once, 1e-11, "gradient")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC"])
def test_the_output_is_white(layout, rng):
    x = draw(rng, layout, np.float32, {"NC": (900, 32)}.get(layout, (9, 32, 10, 32)))
    y = fastnorm.decorrelated_batch_norm(x, training=True, layout=layout, eps=1e-9)
    for group in grouped(y, 16, layout):
        np.testing.assert_allclose(group.mean(1), 0, atol=1e-5)
        np.testing.assert_allclose(np.cov(group, ddof=0), np.eye(16), atol=1e-5)


@pytest.mark.parametrize("smallest", [1e-1, 1e-8])
def test_many_iterations_are_zca(smallest, rng):
    """On matrices the steps would lose all digits of the second covariance before that."""
    turn = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    x = rng.standard_normal((500, 6)) * np.geomspace(1, smallest**0.5, 6) @ turn
    dy = rng.standard_normal(x.shape)
    want, ctx = fastnorm.decorrelated_batch_norm(x, training=True, eps=1e-12, return_ctx=True)
    y, of_iter = fastnorm.iter_norm(x, training=True, eps=1e-12, iterations=80, return_ctx=True)
    assert_close(y, want, 1e-10, "y")
    assert_close(fastnorm.backward(dy, of_iter).x, fastnorm.backward(dy, ctx).x, 1e-9, "dx")
    few = fastnorm.iter_norm(x, training=True, eps=1e-12)
    assert np.trace(np.cov(few.T)) < 5.9


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_channel_in_a_group_is_batch_norm(dtype, training, rng):
    x = draw(rng, "NCHW", dtype)
    w, b, mean, var = parameters(rng, 8, 1, dtype)
    dy = rng.standard_normal(x.shape).astype(dtype)
    results = []
    for function, more in (
        (fastnorm.batch_norm, {"running_mean": mean.copy(), "running_var": var.ravel().copy()}),
        (
            fastnorm.decorrelated_batch_norm,
            {"running_mean": mean.copy(), "running_cov": var.copy(), "group_size": 1},
        ),
    ):
        y, ctx = function(x, w, b, training=training, return_ctx=True, **more)
        states = [v.ravel() for k, v in more.items() if k != "group_size"]
        results.append([y, *fastnorm.backward(dy, ctx), *states])
    for got, want in zip(*results[::-1], strict=True):
        assert_close(got, want, 3e-6 if dtype is np.float32 else 1e-13, "of batch norm")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_running_statistics_are_those_of_the_batches_then_read(name, rng):
    function, iterations = FUNCTIONS[name]
    mean, cov = np.zeros(8), np.tile(np.eye(4), (2, 1, 1))
    states = mean.copy(), cov.copy()
    for _ in range(3):
        x = draw(rng, "NHWC")
        kwargs = {"running_mean": states[0], "running_cov": states[1], "layout": "NHWC"}
        function(x, **kwargs, training=True, group_size=4, momentum=0.3)
        _, batch_mean, batch_cov = plain(x, 4, "NHWC")
        mean = 0.7 * mean + 0.3 * batch_mean
        cov = 0.7 * cov + 0.3 * batch_cov * 120 / 119
    for got, want in zip(states, (mean, cov), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)
    y = function(x, **kwargs, group_size=4)
    matrices = [root(c, 1e-5, iterations) for c in cov]
    want = np.concatenate([(x - mean)[..., 4 * i : 4 * i + 4] @ matrices[i] for i in (0, 1)], -1)
    assert_close(y, want, 1e-12, "y")
    for got, want in zip(states, (mean, cov), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("correlated", [0, 300])
@pytest.mark.parametrize("name", ["dbn", "iter-5"])
def test_float32_is_right_at_large_means_and_correlations(name, correlated, training, rng):
    """Also where products of float32 would not be: channels that nearly are multiples of one."""
    noise = rng.standard_normal((4, 16, 20, 20))
    x = noise + correlated * noise[:, :1] * rng.uniform(0.5, 1, (1, 16, 1, 1))
    x = (x + 1e4 * x.std()).astype(np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    want, *running = plain(x.astype(np.float64), 16, "NCHW", FUNCTIONS[name][1], 1e-3)
    results = []
    for dtype in (np.float64, np.float32):
        states = (a.astype(np.float32).astype(dtype) for a in running)
        more = {} if training else dict(zip(("running_mean", "running_cov"), states, strict=True))
        y, ctx = FUNCTIONS[name][0](
            x.astype(dtype), *np.ones((2, 16), dtype), **more, training=training, eps=1e-3,
            return_ctx=True,
        )  # fmt: skip
        results.append([y, *fastnorm.backward(dy.astype(dtype), ctx)])
    if training:
        assert_close(results[1][0], want + 1, 2e-6, "y")
    for got, wanted in zip(*results[::-1], strict=True):
        assert_close(got, wanted, 1e-5 if got.ndim == 1 else 2e-6, "of float32")


@pytest.mark.parametrize("power", [-450, -90, 110, 450])
@pytest.mark.parametrize("name", ["dbn", "iter-5"])
def test_every_size_is_as_exact(name, power, rng):
    """A power of two changes no digit; float32 where dx is one too."""
    x, dy = draw(rng, "NCHW", np.float32), draw(rng, "NCHW", np.float32)
    for dtype in (np.float32, np.float64)[abs(power) > 120 :]:
        found = []
        for p in (0, power):
            y, ctx = FUNCTIONS[name][0](
                np.ldexp(x.astype(dtype), p), training=True, eps=1e-5 * 4.0**p, return_ctx=True
            )
            found.append((y, np.ldexp(fastnorm.backward(dy.astype(dtype), ctx).x, p)))
        for got, want in zip(*found[::-1], strict=True):
            assert_close(got, want, 1e-6 if dtype is np.float32 else 1e-12, f"at 2**{p}")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC"])
def test_16_bits_are_the_float32_result_rounded(layout, dtype, training, rng):
    x = draw(rng, layout, dtype)
    dy = draw(rng, layout, dtype)
    results = []
    params = [a.astype(dtype) for a in parameters(rng, 8, 4)]
    # of x in float32; of x in 16 bits with parameters in float32, and with those of 16 bits
    for kind, of in ((np.float32, np.float32), (dtype, np.float32), (dtype, dtype)):
        w, b, mean, cov = (a.astype(of) for a in params)
        y, ctx = fastnorm.decorrelated_batch_norm(
            x.astype(kind), w, b, running_mean=mean, running_cov=cov, training=training,
            group_size=4, layout=layout, return_ctx=True,
        )  # fmt: skip
        grads = fastnorm.backward(dy.astype(kind), ctx)
        assert {a.dtype for a in (y, grads.x)} == {np.dtype(kind)}
        assert {a.dtype for a in (grads.weight, grads.bias)} == {np.dtype(of)}
        results.append([y, *grads, mean, cov])
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(got, want.astype(got.dtype))


def test_what_was_computed_in_float64_is_rounded_to_float32_first(rng):
    """Once in 2**14 times float64 is another float16 than its float32."""
    correlated = (rng.standard_normal((40000, 1)) * 30 + rng.standard_normal((40000, 8))) / 8
    for x, size in ((correlated, 8), (rng.standard_normal((3, 60000)), 1)):
        x, dy = x.astype(np.float16), rng.standard_normal(x.shape).astype(np.float16)
        results = []
        for dtype in (np.float32, np.float16):
            states = np.zeros(x.shape[1], dtype), np.zeros((x.shape[1] // size, size, size), dtype)
            y, ctx = fastnorm.decorrelated_batch_norm(
                x.astype(dtype), np.ones(x.shape[1], dtype), running_mean=states[0],
                running_cov=states[1], training=True, group_size=size, return_ctx=True,
            )  # fmt: skip
            grads = fastnorm.backward(dy.astype(dtype), ctx)
            results.append([y, grads.x, grads.weight, *states])
        for wide, narrow in zip(*results, strict=True):
            np.testing.assert_array_equal(narrow, wide.astype(np.float16))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC"])
@pytest.mark.parametrize("name", ["dbn", "iter-5"])
def test_nan_and_infinity_stay_in_their_group(name, layout, bad, rng):
    x = draw(rng, layout, np.float32)
    other = x.copy()
    last = (0,) * (x.ndim - 1)
    other[(*last, 6) if is_last(layout) else (0, 6, *last[2:])] = bad
    dy = draw(rng, layout, np.float32)
    found = []
    for a in (x, other):
        states = {"running_mean": np.zeros(8, "f4"), "running_cov": np.ones((2, 4, 4), "f4")}
        y, ctx = FUNCTIONS[name][0](
            a, **states, training=True, group_size=4, layout=layout, return_ctx=True
        )
        dx = fastnorm.backward(dy, ctx).x
        # and what the running statistics make of data without it
        after = FUNCTIONS[name][0](x, **states, group_size=4, layout=layout)
        found.append([grouped(v, 4, layout) for v in (y, dx, after)])
        found[-1] += [states["running_mean"].reshape(2, 4), states["running_cov"]]
    for got, want in zip(*found[::-1], strict=True):
        np.testing.assert_array_equal(got[0], want[0])
        assert np.isfinite(want).all()
        assert not np.isfinite(got[1][2]).any()
    for got in found[1][:3]:
        assert np.isnan(got[1]).all()
