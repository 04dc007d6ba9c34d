"""Right for every finite value whose exact result the dtype holds: long, short and subnormal ones.

The oracle gets the same numbers in units of a power of two, which changes no digit: with
``x = ldexp(z, p)`` and eps 0, y is that of z, and dx that of z times 2**-p. Where y grows with x,
as in global response norm, both have 2**p more; the bias is 0 then.
"""

import ml_dtypes
import numpy as np
import pytest
from cases import NORMS, assert_close, case_id, is_last, run, run_reference

import fastnorm
from fastnorm import Moments, outofcore, preprocessing

SIZES = [
    *[("f4", p) for p in (123, 100, 66, 64, 63, 33, -33, -60, -67, -74, -83, -100, -124, -133)],
    *[("f8", p) for p in (996, 664, 515, -515, -541, -664, -963)],
]
MOST = {"f4": 60, "f8": 500}  # of p, where 4**p is the size of running variances
CASES = [
    (norm, layout, dtype, p)
    for norm in NORMS
    for layout in (["NCHW", "NHWC"] if norm.channels else ["NCHW"])
    for dtype, p in SIZES
    if norm.running == "none" or abs(p) <= MOST[dtype]
]
TOLERANCE = {"f4": (2e-6, 1e-6, 1e-5), "f8": (1e-12, 1e-13, 1e-11)}


def problem(norm, layout, dtype, p, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((4, 6, 9, 5)) + 0.3
    z = np.moveaxis(z, 1, -1) if is_last(layout) else z
    x = np.ascontiguousarray(np.ldexp(z, p).astype(dtype))
    exact = np.ldexp(x.astype(np.float64), -p)
    args, kwargs = norm.arguments(rng, x, layout)
    if norm.sized:
        args[1] = np.zeros_like(args[1])
    scaled = dict(kwargs)
    if norm.name != "weight_norm":
        kwargs["eps"] = scaled["eps"] = 0.0
    if "running_mean" in kwargs:
        for name, power in (("running_mean", p), ("running_var", 2 * p)):
            scaled[name] = kwargs[name].astype("f8")
            kwargs[name] = np.ldexp(kwargs[name], power)
            assert np.isfinite(kwargs[name]).all()
    return x, exact, args, kwargs, scaled, rng.standard_normal(x.shape).astype(dtype)


def compare(got, want, dtype, p, tolerance, what):
    """`want` in units of 2**p, where the dtype holds its largest."""
    with np.errstate(over="ignore", under="ignore"):
        largest = np.ldexp(np.abs(want).max(), p)
    if np.finfo(dtype).smallest_normal * 1e3 < largest < np.finfo(dtype).max / 10:
        assert_close(np.ldexp(got.astype("f8"), -p), want, tolerance, what)


@pytest.mark.parametrize("case", CASES, ids=case_id)
def test_every_normalizer_at_every_size(case):
    norm, layout, dtype, p = case
    x, exact, args, kwargs, scaled, dy = problem(norm, layout, dtype, p)
    y_tol, stat_tol, grad_tol = TOLERANCE[dtype]
    size = p if norm.sized else 0
    gradients = (0, -66, 50) if dtype == "f4" else (0, -200, 150)  # small and large ones
    for q in gradients:
        dyq = np.ldexp(dy, q)
        y, grads, own = run(norm, x, args, kwargs, dyq)
        want_y, want_grads, want_own = run_reference(norm, exact, args, scaled, dy)
        compare(y, want_y, dtype, size, y_tol, "y")
        compare(grads[0], want_grads[0], dtype, q - p + size, grad_tol, "dx")
        for name, got, want in list(zip(grads._fields, grads, want_grads, strict=True))[1:]:
            if want is not None:
                power = q + size if name == "weight" else q
                compare(got, np.asarray(want), dtype, power, grad_tol, f"gradient of {name}")
    if norm.running == "update":
        compare(own["running_mean"], want_own["running_mean"], dtype, p, stat_tol, "mean")
        compare(own["running_var"], want_own["running_var"], dtype, 2 * p, stat_tol, "var")


@pytest.mark.parametrize("p", [120, 64, -70, -120])
@pytest.mark.parametrize("norm", [n for n in NORMS if n.running == "none"], ids=lambda n: n.id)
def test_bfloat16_has_the_range_of_float32(norm, p):
    x, exact, args, kwargs, scaled, dy = problem(norm, "NCHW", "f4", p)
    x = x.astype(ml_dtypes.bfloat16)
    exact = np.ldexp(x.astype("f8"), -p)
    y, grads, _ = run(norm, x, args, kwargs, dy.astype(x.dtype))
    want_y, want_grads, _ = run_reference(norm, exact, args, scaled, dy.astype(x.dtype))
    size = p if norm.sized else 0
    compare(y, want_y, "f4", size, 2**-8, "y")
    compare(grads[0], want_grads[0], "f4", size - p, 2**-8, "dx")


@pytest.mark.parametrize("norm", [n for n in NORMS if n.id in ("ln", "rms", "bn-train", "gn-3")],
                         ids=lambda n: n.id)  # fmt: skip
def test_long_domains_beside_ordinary_ones(norm, rng):
    """The ordinary ones keep their bits."""
    x = rng.standard_normal((6, 6, 9, 5)).astype("f4")
    args, kwargs = norm.arguments(rng, x, "NCHW")
    kwargs["eps"] = 1e-12
    want, want_grads, _ = run(norm, x, args, kwargs, x)
    large = x.copy()
    where = (slice(None), 0) if norm.id == "bn-train" else (2,)
    large[where] *= np.float32(1e25)
    y, grads, _ = run(norm, large, args, kwargs, x)
    others = np.ones(x.shape, bool)
    others[where] = False
    np.testing.assert_array_equal(y[others], want[others])
    np.testing.assert_array_equal(grads[0][others], want_grads[0][others])
    assert_close(y[where], want[where], 2e-6, "y")
    assert (grads[0][where] != 0).all()


def test_the_examples_that_were_reported():
    r = np.random.default_rng(0)
    x = (r.standard_normal((8, 64)) * 1e20).astype("f4")
    small = x.astype("f8") * 1e-20
    for got, want in [
        (fastnorm.layer_norm(x), fastnorm.layer_norm(small, eps=1e-45)),
        (fastnorm.rms_norm(x, eps=1e-6), fastnorm.rms_norm(small, eps=1e-46)),
        (fastnorm.batch_norm(x, training=True), fastnorm.batch_norm(small, training=True, eps=0)),
    ]:
        assert_close(got, want, 2e-6, "y")
    mean, var = np.zeros(64, "f4"), np.ones(64, "f4")
    fastnorm.batch_norm(x / 10, running_mean=mean, running_var=var, training=True, momentum=1.0)
    np.testing.assert_allclose(var, (x / 10).astype("f8").var(0, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-42, 1e-30, 1e-26, 1e20, 1e37])
@pytest.mark.parametrize("order", ["C", "F"])
def test_scalers_of_float32(order, size, rng):
    x = np.asarray(rng.standard_normal((500, 3)) * size + size, "f4", order=order)
    y = preprocessing.StandardScaler().fit_transform(x).astype("f8")
    np.testing.assert_allclose(y.std(0), 1, rtol=1e-5)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    y = preprocessing.MinMaxScaler().fit_transform(x)
    np.testing.assert_allclose([y.min(0), y.max(0)], [[0] * 3, [1] * 3], atol=1e-6)


@pytest.mark.parametrize(("dtype", "size"), [("f4", 1e-40), ("f4", 1e-26), ("f4", 1e19),
                                             ("f4", 1e37), ("f8", 1e-200), ("f8", 1e160),
                                             ("f8", 1e300)])  # fmt: skip
@pytest.mark.parametrize("method", ["standard", "minmax"])
def test_files_and_dask(method, dtype, size, rng, tmp_path):
    array = pytest.importorskip("dask.array")
    x = (rng.standard_normal((300, 4)) * size).astype(dtype)
    np.save(tmp_path / "x.npy", x)
    outofcore.scale_file(tmp_path / "x.npy", tmp_path / "y.npy", method=method, block_bytes=999)
    lazily = outofcore.scale(array.from_array(x, chunks=(70, 2)), method=method).compute()
    exact = x.astype("f8") / size
    low, width = exact.min(0), np.ptp(exact, 0)
    want = (exact - low) / width if method == "minmax" else (exact - exact.mean(0)) / exact.std(0)
    for y in (np.load(tmp_path / "y.npy"), lazily):
        assert_close(y, want, 2e-6 if dtype == "f4" else 1e-13, "y")


@pytest.mark.parametrize(("dtype", "size"), [("f4", 1e-40), ("f4", 1e19), ("f4", 3e37),
                                             ("f8", 1e-290), ("f8", 1e300)])  # fmt: skip
def test_moments(dtype, size, rng):
    x = (rng.standard_normal((300, 4)) * size).astype(dtype)
    exact = x.astype("f8") / size
    parts = [Moments.from_array(part) for part in np.array_split(x, 7)]
    for found in (Moments.from_array(x), Moments.merge(parts), Moments.merge(parts[::-1])):
        np.testing.assert_allclose(found.mean / size, exact.mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.std() / size, exact.std(0), rtol=1e-13)


def test_moments_of_very_different_sizes():
    x = np.array([[1e-200, 1.0], [3e-200, 1e200], [5e-200, -1e200]])
    found = Moments.from_array(x[:1]) + Moments.from_array(x[1:])
    np.testing.assert_allclose(found.std()[0], np.sqrt(8 / 3) * 1e-200, rtol=1e-14)
    np.testing.assert_allclose(found.std()[1], np.sqrt(2 / 3) * 1e200, rtol=1e-14)
    assert np.isinf(found.var()[1])


@pytest.mark.parametrize(("dtype", "size"), [("f4", 1e20), ("f4", 1e-25), ("f8", 1e300)])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_sync_batch_norm(layout, dtype, size, rng):
    shape = (4, 3, 5, 6) if layout == "NCHW" else (4, 5, 6, 3)
    x = (rng.standard_normal(shape) * size).astype(dtype)
    dy = rng.standard_normal(shape).astype(dtype)
    kwargs = {"training": True, "eps": 0.0, "layout": layout, "return_ctx": True}
    y, ctx = fastnorm.sync_batch_norm(x, **kwargs)
    want, want_ctx = fastnorm.batch_norm(x, **kwargs)
    y_tol, _, grad_tol = TOLERANCE[dtype]
    assert_close(y, want, y_tol, "y")
    dx, want_dx = (fastnorm.backward(dy, c).x.astype("f8") * size for c in (ctx, want_ctx))
    assert_close(dx, want_dx, grad_tol, "dx")


@pytest.mark.parametrize("layout", ["NCL", "NLC", "NCL8c"])
@pytest.mark.parametrize("size", [1e-160, 1e-200, 1e200])
def test_a_channel_without_deviations_beside_others(layout, size, rng):
    """What the first channel of a group has none of, the unit of the group must not come from."""
    z = rng.standard_normal((2, 8, 5))
    z[:, 0] = 0
    x = np.ascontiguousarray(z * size if layout != "NLC" else np.moveaxis(z * size, 1, -1))
    x = fastnorm.to_blocked(x, 8) if layout == "NCL8c" else x
    y = fastnorm.group_norm(x, 2, eps=0, layout=layout)
    y = fastnorm.from_blocked(y, 8) if layout == "NCL8c" else y
    y = np.moveaxis(y, -1, 1) if layout == "NLC" else y
    assert_close(y, fastnorm.reference.group_norm(z, 2, eps=0)[0], 1e-13, "y")


def test_differences_that_no_float_holds():
    x, mean, var = (np.array(v, "f4") for v in ([[-3e38], [1e38]], [1e38], [1e38]))
    dy = np.ones_like(x)
    calls = [
        lambda: fastnorm.batch_norm(x, running_mean=mean, running_var=var, return_ctx=True),
        lambda: fastnorm.batch_renorm(x, running_mean=mean, running_var=var, return_ctx=True),
        lambda: fastnorm.instance_norm(x[..., np.newaxis], running_mean=mean, running_var=var,
                                       use_input_stats=False, return_ctx=True),
    ]  # fmt: skip
    for call in calls:
        y, ctx = call()
        np.testing.assert_allclose(y.ravel(), [-4e19, 0], rtol=1e-6)
        dx = fastnorm.backward(dy.reshape(y.shape), ctx)[0]
        np.testing.assert_allclose(dx.ravel(), [1e-19, 1e-19], rtol=1e-6)


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(("size", "weight"), [(1e-43, 1e20), (1e-38, 1e15), (1e-36, 1e10)])
def test_weights_that_make_subnormal_numbers_large(norm, size, weight, rng):
    x = (rng.standard_normal((4, 9)) * size).astype("f4")
    w, dy = np.full(9, weight, "f4"), (rng.standard_normal((4, 9)) * 1e10).astype("f4")
    y, ctx = getattr(fastnorm, norm)(x, w, eps=1e-5, return_ctx=True)
    want, _ = getattr(fastnorm.reference, norm)(x.astype("f8"), w.astype("f8"), eps=1e-5)
    assert_close(y, want, 2e-6, "y")
    grads = fastnorm.backward(dy, ctx)
    x_hat = want / weight
    assert_close(grads[1], (dy * x_hat).sum(0), 1e-5, "dweight")


def test_gradients_of_a_running_variance_of_zero(rng):
    x = (rng.standard_normal((50, 3)) * 1e-21).astype("f4")
    dy = (rng.standard_normal((50, 3)) * 1e-26).astype("f4")
    one, zero = np.ones(3, "f4"), np.zeros(3, "f4")
    _, ctx = fastnorm.batch_norm(
        x, one, zero, running_mean=zero, running_var=zero, eps=1e-46, return_ctx=True
    )
    want = (dy.astype("f8") * x).sum(0) / np.sqrt(1e-46)
    assert_close(fastnorm.backward(dy, ctx)[1], want, 1e-5, "dweight")
