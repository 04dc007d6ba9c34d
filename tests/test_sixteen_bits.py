"""float16 and bfloat16: the float32 result, rounded, to the last bit."""

import ml_dtypes
import numpy as np
import pytest
from cases import NORMS, SHAPES, case_id, cases, check_bits, make_input, run

import fastnorm

DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
LARGE = [
    (3, 33, 31, 29),
    (12, 96, 7, 7),
    (70, 1100),
    pytest.param((3, 33, 61, 63), marks=pytest.mark.long),
    pytest.param((40, 96, 7, 7), marks=pytest.mark.long),
]


def check(norm, shape, layout, dtype, rng, param_dtype=np.float32):
    """The result on x is that on x in float32, rounded; parameters and their gradients are not."""
    x = make_input(rng, shape, layout, dtype)
    wide = x.astype(np.float32)
    args, kwargs = norm.arguments(rng, wide, layout)
    args, kwargs = (as_dtype(values, param_dtype) for values in (args, kwargs))
    dy = rng.standard_normal(x.shape).astype(dtype)
    y, grads, own = run(norm, x, args, kwargs, dy)
    want, want_grads, want_own = run(
        norm, wide, as_dtype(args, np.float32), as_dtype(kwargs, np.float32), dy.astype(np.float32)
    )
    assert y.dtype == grads.x.dtype == dtype
    check_bits(norm, x, args, kwargs, dy)
    same(y, want)
    for name, got, expected in zip(grads._fields, grads, want_grads, strict=True):
        assert got is None if expected is None else got.dtype in (dtype, param_dtype)
        if expected is not None:
            same(got, expected, name)
    for name in ("running_mean", "running_var"):
        if name in own:
            assert own[name].dtype == param_dtype
            same(own[name], want_own[name], name)


def as_dtype(values, dtype):
    """Arrays among positional or keyword arguments in another dtype."""
    if isinstance(values, dict):
        return {k: v.astype(dtype) if isinstance(v, np.ndarray) else v for k, v in values.items()}
    return [v.astype(dtype) if isinstance(v, np.ndarray) else v for v in values]


def same(got, want, name="y"):
    np.testing.assert_array_equal(
        got.astype(np.float32), want.astype(got.dtype).astype(np.float32), err_msg=name
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", cases(), ids=case_id)
def test_small_arrays(case, dtype, rng):
    norm, rank, layout = case
    check(norm, SHAPES[rank], layout, dtype, rng)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.id)
def test_large_arrays(norm, shape, dtype, rng):
    if norm.spatial and len(shape) == 2:
        shape = (*shape, 3)
    if shape[1] % norm.kwargs.get("num_groups", 1):
        shape = (shape[0], 66, *shape[2:])
    for layout in ["channels_first", "channels_last"] if norm.channels else ["channels_first"]:
        check(norm, shape, layout, dtype, rng)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: norm.id)
def test_parameters_of_sixteen_bits(norm, dtype, rng):
    """They are read as float32; gradients and running statistics come back in their dtype."""
    check(norm, (4, 6, 7, 7), "NCHW", dtype, rng, param_dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_values_convert(dtype, isa):
    """Statistics 0 and 1 make a batch norm the identity: every bit pattern, and its rounding."""
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    for shape in [(1, 1, 65536), (65536 // 32, 32), (65536 // 16, 16)]:
        c = shape[1]
        y = fastnorm.batch_norm(
            x.reshape(shape), eps=0.0, layout="channels_first",
            running_mean=np.zeros(c, np.float32), running_var=np.ones(c, np.float32),
        ).ravel()  # fmt: skip
        number = ~np.isnan(x.astype(np.float32))
        assert np.array_equal(y[number].astype(np.float32), x[number].astype(np.float32))
        assert np.isnan(y[~number].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounding(dtype, isa, rng):
    """Halfway cases, denormals and overflow of the output: to nearest even."""
    a = rng.integers(0, 65536, 20_000).astype(np.uint16).view(dtype).astype(np.float32)
    with np.errstate(all="ignore"):
        a = np.where(np.isfinite(a), a, 1).astype(dtype)
        step = np.nextafter(a, dtype.type(np.inf)).astype(np.float32)
        halfway = a.astype(np.float32) / 2 + step / 2
        for values in (halfway, np.nextafter(halfway, np.float32(np.inf)), halfway * 7):
            values = np.where(np.isfinite(values), values, 1).astype(np.float32)
            y = fastnorm.layer_norm(np.zeros((1, values.size), dtype), bias=values)
            same(y[0], values)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_in_place_and_strides(dtype, rng):
    x = rng.standard_normal((4, 6, 9, 9)).astype(dtype)
    weight = rng.standard_normal(6).astype(np.float32)
    want = fastnorm.group_norm(x, 3, weight)
    strided = np.repeat(x, 2, axis=-1)[..., ::2]
    assert fastnorm.group_norm(strided, 3, weight).tobytes() == want.tobytes()
    assert fastnorm.group_norm(x, 3, weight, out=x) is x
    assert x.tobytes() == want.tobytes()


def test_errors_name_the_argument(rng):
    x = np.ones((2, 3), np.float16)
    with pytest.raises(TypeError, match="weight: expected dtype float16 or float32, got float64"):
        fastnorm.layer_norm(x, np.ones(3))
    with pytest.raises(TypeError, match="out: expected dtype float16, got float32"):
        fastnorm.layer_norm(x, out=np.empty((2, 3), np.float32))
    with pytest.raises(TypeError, match="x: expected dtype float32, float64, float16 or bfloat16"):
        fastnorm.layer_norm(np.ones((2, 3), ml_dtypes.float8_e4m3fn))
    _, ctx = fastnorm.layer_norm(x, return_ctx=True)
    with pytest.raises(TypeError, match="dy: expected x's dtype float16, got float32"):
        fastnorm.backward(np.ones((2, 3), np.float32), ctx)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layers_keep_parameters_in_float32(dtype, rng):
    layer = fastnorm.BatchNorm(6)
    x = rng.standard_normal((4, 6, 5, 5)).astype(dtype)
    y = layer(x)
    dx = layer.backward(y)
    assert y.dtype == dx.dtype == dtype
    assert layer.grads["weight"].dtype == layer.state_dict()["running_mean"].dtype == np.float32


@pytest.mark.filterwarnings("error")
def test_overflow_is_silent():
    """As in the output: an exception would come after y was written."""
    x = np.array([[3e4], [-3e4]], np.float16)
    mean, var = np.zeros(1, np.float16), np.ones(1, np.float16)
    y, ctx = fastnorm.batch_norm(
        x, np.ones(1, np.float16), running_mean=mean, running_var=var, training=True,
        momentum=1.0, layout="NC", return_ctx=True,
    )  # fmt: skip
    assert np.isinf(var[0])
    assert np.isinf(fastnorm.backward(np.full_like(x, 6e4) * np.sign(y), ctx).weight[0])


def test_running_statistics_share_no_memory_with_out():
    out = np.zeros((4, 6), np.float16)
    state = out[0]
    with pytest.raises(ValueError, match="out: expected an array apart from running_mean"):
        fastnorm.batch_norm(
            np.ones((4, 6), np.float16), running_mean=state, running_var=np.ones(6, np.float16),
            training=True, layout="NC", out=out,
        )  # fmt: skip
