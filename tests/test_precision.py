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
)

import fastnorm

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


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("value", [0.0, 1.1, -3e5, 1e-8])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "norm",
    [
        n
        for n in NORMS
        if (n.running == "none" and n.name not in ("rms_norm", "weight_norm")) or n.id == "bn-train"
    ],
    ids=lambda n: n.id,
)
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
    if norm.name != "rms_norm":  # whose other values are finite over inf: zero
        assert not np.isfinite(y[inside]).any()
