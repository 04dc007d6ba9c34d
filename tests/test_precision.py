"""Section 5 of the design: exact at means far above the standard deviation, and at the edges."""

import numpy as np
import pytest
from cases import (
    NORMS,
    assert_close,
    case_id,
    check_against_oracle,
    is_last,
    make_input,
    run,
    run_reference,
)

import fastnorm
from fastnorm import reference

FAR = [
    (norm, shape, layout)
    for norm in NORMS
    for shape in [(9, 9, 7, 9), (8, 9, 90, 80), (300, 9, 3, 3)]
    for layout in (["NCHW", "NHWC"] if norm.channels else ["NCHW"])
    if norm.running != "read" and norm.name != "rms_norm" and norm.domain(shape) > 7
]


@pytest.mark.parametrize("ratio", [1e3, 1e6])
@pytest.mark.parametrize("case", FAR, ids=case_id)
def test_mean_far_above_the_standard_deviation(case, ratio, isa, rng):
    norm, shape, layout = case
    x = (rng.standard_normal(shape) + ratio).astype(np.float32)
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if is_last(layout) else x
    args, kwargs = norm.arguments(rng, x, layout)
    if norm.running == "update":  # statistics at the scale of the data, as they would be
        kwargs["running_mean"] = kwargs["running_mean"] + np.float32(ratio)
    check_against_oracle(norm, x, args, kwargs, rng.standard_normal(x.shape).astype(np.float32))


@pytest.mark.parametrize("ratio", [1e3, 1e6])
def test_float64_too(ratio, rng):
    x = rng.standard_normal((16, 5000)) + ratio
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    assert_close(fastnorm.layer_norm(x), want, 1e-9, "y")


def test_the_known_failure_of_float32_sums_is_not_ours(rng):
    """np.var(axis=0) of these is off by a factor of a hundred."""
    x = (rng.standard_normal((200_000, 2)) + 1e4).astype(np.float32)
    mean, var = np.zeros(2, np.float32), np.ones(2, np.float32)
    fastnorm.batch_norm(
        x, running_mean=mean, running_var=var, training=True, momentum=1.0, ddof=0, layout="NC"
    )
    exact = x.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-7)
    np.testing.assert_allclose(var, exact.var(0), rtol=1e-6)


@pytest.mark.parametrize("pattern", ["first", "middle", "last", "step"])
def test_outliers_wherever_they_lie(pattern, isa):
    """A block that starts with an outlier has a bad pivot; a step moves the mean for good."""
    x = np.sin(np.arange(40_000)).astype(np.float32) * 1e-3
    if pattern == "step":
        x[20_000:] += 1000
    else:
        x[{"first": 0, "middle": 20_001, "last": -1}[pattern]] = 1000
    mean, var = np.zeros(1, np.float32), np.ones(1, np.float32)
    for layout, shape in (("NCL", (1, 1, -1)), ("NC", (-1, 1))):
        fastnorm.batch_norm(
            x.reshape(shape), running_mean=mean, running_var=var, training=True, momentum=1.0,
            ddof=0, layout=layout,
        )  # fmt: skip
        exact = x.astype(np.float64)
        np.testing.assert_allclose(mean, exact.mean(), atol=1e-8 * exact.std(), rtol=1e-7)
        np.testing.assert_allclose(var, exact.var(), rtol=1e-6)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("layout", "shape"), [
    ("NCHW", (17, 16, 28, 5)), ("NCHW", (3, 4, 30, 30)), ("NCHW16c", (3, 1, 14, 2, 16)),
    ("NCHW16c", (2, 1, 28, 3, 16)), ("NCHW8c", (8, 4, 14, 14, 8)), ("NHWC", (64, 16, 9, 1)),
])  # fmt: skip
@pytest.mark.parametrize(("first", "loc"), [(1000, 0), (0, 100)])
def test_an_outlier_first_in_every_form(layout, shape, first, loc, seed):
    x = (np.random.default_rng(seed).standard_normal(shape) + loc).astype("f4")
    x[(0, slice(None), 0, 0) if layout != "NHWC" else (0, 0, 0)] = first
    y, ctx = fastnorm.batch_norm(x, training=True, layout=layout, return_ctx=True)
    axes = (0, 1, 2) if layout == "NHWC" else (0, 2, 3)
    exact = x.astype("f8")
    mean, var = (f(exact, axes, keepdims=True) for f in (np.mean, np.var))
    assert_close(y, (exact - mean) / np.sqrt(var + 1e-5), 2e-6, "y")
    np.testing.assert_allclose(ctx.var, var.ravel(), rtol=1e-6)


CENTERED = [n for n in NORMS if (n.running == "none" and n.centered) or n.id == "bn-train"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("value", [0.0, 1.1, -3e5, 1e-8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", CENTERED, ids=lambda n: n.id)
def test_a_constant_domain_gives_the_bias_exactly(norm, dtype, value, layout, rng):
    if not norm.channels:
        layout = "NCHW"
    shape = (5, 6, 13, 11)
    x = np.full(shape, value, dtype)
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if is_last(layout) else x
    args, kwargs = norm.arguments(rng, x, layout)
    y, _, _ = run(norm, x, args, kwargs)
    bias = args[-1]
    if norm.channels:
        want = bias if is_last(layout) else bias.reshape(1, -1, 1, 1)
    else:
        axes = norm.axis if isinstance(norm.axis, tuple) else (norm.axis,)
        axes = [a % 4 for a in axes]
        want = bias.reshape([n if a in axes else 1 for a, n in enumerate(x.shape)])
    np.testing.assert_array_equal(y, np.broadcast_to(want, y.shape))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", [(5, 6, 13, 11), (3, 6, 1, 1)])
@pytest.mark.parametrize("value", [0.0, 3.3, -3e5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("norm", CENTERED, ids=lambda n: n.id)
def test_gradients_of_a_constant_domain(norm, dtype, value, shape, layout, rng):
    """dweight is exactly 0; so is dx where weight and dy are constant too. NaN does not vanish."""
    if not norm.channels:
        layout = "NCHW"
    x = np.full(shape, value, dtype)
    x = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if is_last(layout) else x
    args, kwargs = norm.arguments(rng, x, layout)
    dy = rng.standard_normal(x.shape).astype(dtype)
    _, grads, _ = run(norm, x, args, kwargs, dy)
    np.testing.assert_array_equal(grads.weight, 0)
    for given in args:
        if np.ndim(given):  # weight, and bias
            given[...] = 1.7
    dy[...] = 0.7
    _, grads, _ = run(norm, x, args, kwargs, dy)
    np.testing.assert_array_equal(grads.x, 0)
    np.testing.assert_array_equal(grads.weight, 0)
    dy[1, ..., -1] = np.nan
    _, grads, _ = run(norm, x, args, kwargs, dy)
    _, want, _ = run_reference(norm, x, args, kwargs, dy)
    np.testing.assert_array_equal(np.isnan(grads.x), np.isnan(want[0]))


DOMAIN_AXES = {  # of an NCHW array, where one bad value spreads to
    "bn-train": (0, 2, 3),
    "in": (2, 3),
    "gn-3": (2, 3),
    "ln": (3,),
    "ln-channel": (1,),
    "rms": (3,),
}


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", DOMAIN_AXES)
def test_nan_and_inf_stay_inside_their_domain(name, bad, layout, isa, rng):
    norm = next(n for n in NORMS if n.id == name)
    if not norm.channels:
        layout = "NCHW"
    x = make_input(rng, (3, 6, 20, 17), "NCHW", np.float32)
    at = (1, 2, 3, 4)
    x[at] = bad
    inside = np.zeros(x.shape, bool)
    inside[tuple(slice(None) if a in DOMAIN_AXES[name] else i for a, i in enumerate(at))] = True
    if name == "gn-3":  # channels 2 and 3 are one group
        inside[1, 3] = True
    given = np.ascontiguousarray(np.moveaxis(x, 1, -1)) if is_last(layout) else x
    args, kwargs = norm.arguments(rng, given, layout)
    kwargs = {k: v for k, v in kwargs.items() if not k.startswith("running")}
    y, grads, _ = run(norm, given, args, kwargs, np.ones_like(given))
    y, dx = (np.moveaxis(a, -1, 1) if is_last(layout) else a for a in (y, grads.x))
    assert np.isnan(y[at])
    assert np.isfinite(y[~inside]).all()
    assert np.isfinite(dx[~inside]).all()
    if norm.centered:  # else the other values are finite over inf: zero
        assert not np.isfinite(y[inside]).any()


@pytest.mark.parametrize("far", [1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_switchable_norm_far_from_its_running_mean(far, layout, rng):
    """Three means, of which one is far from x: dx must not be the difference of two large terms."""
    shape = (4, 6, 9, 9) if layout == "NCHW" else (4, 9, 9, 6)
    x = (rng.standard_normal(shape) + far).astype(np.float32)
    dy = rng.standard_normal(shape).astype(np.float32)
    args = [a.astype(np.float32) for a in (*rng.uniform(0.5, 1.5, (2, 6)),
                                           *rng.standard_normal((2, 3)))]  # fmt: skip
    more = {"running_mean": np.zeros(6, np.float32), "running_var": np.ones(6, np.float32),
            "layout": layout}  # fmt: skip
    y, ctx = fastnorm.switchable_norm(x, *args, **more, return_ctx=True)
    want, cache = reference.switchable_norm(x, *args, **more)
    assert_close(y, want, 2e-6, "y")
    pairs = zip(fastnorm.backward(dy, ctx), reference.backward(dy, cache), strict=True)
    for got, exact in pairs:
        assert_close(got, exact, 1e-5, "gradient")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [17, 20, 24])
def test_switchable_norm_of_one_spatial_element_in_blocks(channels, training, rng):
    x, dy = rng.standard_normal((2, 9, channels, 1))
    args = [*rng.uniform(0.5, 1.5, (2, channels)), *rng.standard_normal((2, 3))]
    state = {"running_mean": rng.standard_normal(channels), "training": training,
             "running_var": rng.uniform(0.5, 2, channels)}  # fmt: skip
    own = {k: np.copy(v) if k.startswith("run") else v for k, v in state.items()}
    y, ctx = fastnorm.switchable_norm(fastnorm.to_blocked(x, 8), *args, **own, layout="NCL8c",
                                      return_ctx=True)  # fmt: skip
    want, cache = reference.switchable_norm(x, *args, **state, layout="NCL")
    assert_close(fastnorm.from_blocked(y, channels), want, 1e-13, "y")
    dx, *rest = fastnorm.backward(fastnorm.to_blocked(dy, 8), ctx)
    want_dx, *want_rest = reference.backward(dy, cache)
    assert_close(fastnorm.from_blocked(dx, channels), want_dx, 1e-12, "dx")
    for got, exact in zip(rest, want_rest, strict=True):
        assert_close(got, exact, 1e-11, "gradient of a parameter")


@pytest.mark.parametrize("name", ["instance_renorm", "batch_renorm"])
@pytest.mark.parametrize("seed", range(6))
def test_renorm_against_a_much_smaller_running_deviation(name, seed):
    """What rounding takes from the mean of x is divided by a sigma 100,000 times smaller."""
    x = (np.random.default_rng(seed).standard_normal((30, 190, 16)) * 1e6).astype(np.float32)
    options = {"r_max": 4.98, "d_max": 7.97, "training": True, "layout": "NCL"}
    results = []
    for module in (fastnorm, reference):
        state = {"running_mean": np.zeros(190, np.float32),
                 "running_var": np.full(190, 7.5, np.float32)}  # fmt: skip
        results.append(getattr(module, name)(x, None, None, **state, **options))
    assert_close(results[0], results[1][0], 2e-6, "y")


@pytest.mark.parametrize("rows", [*range(2, 12), 16, 17, 31, 33, 48, 64, 65, 100, 129])
@pytest.mark.parametrize("outlier", [0, 5, 1000])
@pytest.mark.parametrize("channels", [6, 64, 300])
def test_columns_of_few_rows(rows, outlier, channels):
    """Their moments must not be taken around an element that lies far out."""
    for seed in range(8):
        x = np.random.default_rng(seed).standard_normal((rows, channels)).astype(np.float32)
        if outlier:
            x[seed % rows] = outlier
        mean, var = np.zeros(channels, np.float32), np.ones(channels, np.float32)
        y = fastnorm.batch_norm(x, running_mean=mean, running_var=var, training=True, momentum=1.0,
                                ddof=0, layout="NC")  # fmt: skip
        exact = x.astype(np.float64)
        deviation = np.sqrt(exact.var(0).max())
        assert np.abs(mean - exact.mean(0)).max() <= 1e-6 * max(
            np.abs(exact.mean(0)).max(), 0.3 * deviation
        )
        assert_close(var, exact.var(0), 1e-6, "variance")
        assert_close(y, reference.batch_norm(x, training=True, layout="NC")[0], 2e-6, "y")


FLAT_SHAPES = [(4, 6, 9, 5), (3, 6, 1, 1), (1, 6, 5, 4), (2, 6, 40, 41), (9, 6, 3, 3)]


@pytest.mark.parametrize("shape", FLAT_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.id)
def test_gradients_that_are_zero_are_exactly_zero(norm, dtype, shape, rng):
    """x and dy * weight are constant: nothing but eps is left of dx, and no x_hat for dweight."""
    if norm.spatial and norm.running == "update" and np.prod(shape[2:]) == 1:
        return  # no variance to keep
    for layout in ["channels_first", "channels_last"] if norm.channels else ["channels_first"]:
        for value, gradient in ((3.3, 0.7), (0.0, 0.7), (-1e-3, 1.3), (1.1, -0.37)):
            x, dy = np.full(shape, value, dtype), np.full(shape, gradient, dtype)
            if is_last(layout):
                x, dy = (np.ascontiguousarray(np.moveaxis(a, 1, -1)) for a in (x, dy))
            params = x if x.itemsize > 2 else x.astype(np.float32)
            args, kwargs = norm.arguments(rng, params, layout)
            args = [np.full_like(a, 1.7) if isinstance(a, np.ndarray) else a for a in args]
            if norm.name in ("rms_norm", "filter_response_norm"):
                kwargs["eps"] = 1e-5
            _, grads, _ = run(norm, x, args, kwargs, dy)
            _, want, _ = run_reference(norm, x, args, kwargs, dy)
            for name, got, exact in zip(grads._fields, grads, want, strict=True):
                if exact is None:
                    continue
                largest = np.abs(np.asarray(exact)).max()
                if norm.centered and largest < 1e-10 * x.size:  # the oracle rounds
                    np.testing.assert_array_equal(got, 0, err_msg=name)
                elif largest > 1e3 * np.finfo(dtype).smallest_normal:
                    assert_close(got, exact, 1e-5 if x.itemsize > 2 else 2e-3, name)
