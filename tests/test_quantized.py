"""Outputs in 8 bits: the y of a call without, divided by its scale and rounded."""

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from cases import uniform

import fastnorm

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
KINDS = {"int8": 127, E4M3: 448, E5M2: 57344}
DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]


def oracle(y, scale, kind):
    """q of y, by NumPy and ml_dtypes."""
    v = y.astype(np.float32) / scale
    if kind == "int8":
        v = np.clip(np.rint(v), -128, 127)
        return np.where(np.isnan(v), 0, v).astype(np.int8)
    return np.clip(v, -KINDS[kind], KINDS[kind]).astype(kind)


def row_scales(y, axes, kind):
    largest = np.abs(y.astype(np.float32)).max(axes, keepdims=True, initial=0)
    scale = largest / np.float32(KINDS[kind])
    return np.where(scale == 0, np.float32(1), scale)


def same(got, want):
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


def arrays(rng, shape, dtype, number):
    return [rng.standard_normal(shape).astype(dtype) for _ in range(number)]


# ---- layer norm and RMS norm -----------------------------------------------------------------

SHAPES = {(40, 1100): [-1, 0], (3, 7, 5, 64): [-1, 1, (-2, -1), (0, -1)], (2, 3, 40000): [-1]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [fastnorm.layer_norm, fastnorm.rms_norm])
def test_rows(function, dtype, kind, rng):
    for shape, all_axes in SHAPES.items():
        (x,) = arrays(rng, shape, dtype, 1)
        for axis in all_axes:
            axes = tuple(a % x.ndim for a in (axis if isinstance(axis, tuple) else (axis,)))
            weight = uniform(rng, [x.shape[a] for a in sorted(axes)], dtype)
            y = function(x, weight, axis=axis)
            want = row_scales(y, axes, kind)
            q, scales = function(x, weight, axis=axis, out_dtype=kind)
            assert scales.dtype == np.float32
            assert scales.shape == tuple(n for a, n in enumerate(shape) if a not in axes)
            same(scales, want.reshape(scales.shape))
            same(q, oracle(y, want, kind))
            # and with scales that are given: those found, one for all, and in between
            same(function(x, weight, axis=axis, out_dtype=kind, scale=want), q)
            same(function(x, weight, axis=axis, out_dtype=kind, scale=0.01),
                 oracle(y, np.float32(0.01), kind))  # fmt: skip
            some = want.mean(tuple(range(x.ndim - 1)), keepdims=True)
            if x.ndim - 1 in axes:
                some = some.reshape(1)
            same(function(x, weight, axis=axis, out_dtype=kind, scale=some.astype(np.float64)),
                 oracle(y, some, kind))  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_brings_y_back(dtype, rng):
    (x,) = arrays(rng, (16, 300), dtype, 1)
    y = fastnorm.layer_norm(x).astype(np.float64)
    for kind, step in (("int8", 0.5 / 127), (E4M3, 2.0**-4), (E5M2, 2.0**-3)):
        q, scales = fastnorm.layer_norm(x, out_dtype=kind)
        error = np.abs(q.astype(float) * scales[:, None] - y).max(1)
        assert (error <= step * np.abs(y).max(1) * 1.001).all()
        assert np.abs(q.astype(float)).max() == KINDS[kind]


# ---- batch norm ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_channels(dtype, kind, rng):
    for layout, shape in [
        ("NC", (12, 6)), ("NC", (3, 70000)), ("NCHW", (4, 6, 7, 7)), ("NCHW", (2, 6, 64, 96)),
        ("NCHW", (2, 3, 256, 200)), ("NHWC", (2, 64, 96, 6)), ("NLC", (3, 5, 8)),
    ]:  # fmt: skip
        (x,) = arrays(rng, shape, dtype, 1)
        axis = x.ndim - 1 if layout in ("NHWC", "NLC") else 1
        params = [uniform(rng, shape[axis], dtype) for _ in range(4)]
        states = dict(zip(("running_mean", "running_var"), params[2:], strict=True))
        y = fastnorm.batch_norm(x, *params[:2], **states, layout=layout)
        own = [n if a == axis else 1 for a, n in enumerate(shape)]
        each = rng.uniform(0.005, 0.05, shape[axis]).astype(np.float32)
        for scale, want in ((0.02, np.float32(0.02)), (each, each.reshape(own)),
                            (each.reshape(own), each.reshape(own))):  # fmt: skip
            q = fastnorm.batch_norm(
                x, *params[:2], **states, layout=layout, out_dtype=kind, scale=scale
            )  # fmt: skip
            same(q, oracle(y, want, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_channels_of_blocks(kind, rng):
    x = fastnorm.to_blocked(rng.standard_normal((3, 11, 6, 5)).astype(np.float32), 8)
    params = [uniform(rng, 11, np.float32) for _ in range(5)]
    call = {"running_mean": params[2], "running_var": params[3], "layout": "NCHW8c"}
    y = fastnorm.batch_norm(x, *params[:2], **call)
    scale = np.pad(params[4], (0, 5), constant_values=1).reshape(1, 2, 1, 1, 8)
    q = fastnorm.batch_norm(x, *params[:2], **call, out_dtype=kind, scale=params[4])
    same(q, oracle(y, scale, kind))


# ---- numbers ---------------------------------------------------------------------------------


def identity(y, **more):
    """Quantize y: a batch norm that changes nothing."""
    y = np.asarray(y, np.float32)[:, None]
    one = np.ones(1, np.float32)
    return fastnorm.batch_norm(
        y, running_mean=0 * one, running_var=one, eps=0, layout="NC", **more
    )[:, 0]  # fmt: skip


def test_ties_and_ends_and_nan():
    inf, nan = np.inf, np.nan
    y = [0.5, 1.5, -0.5, -2.5, 126.5, 127.4, 127.5, 200, -127.5, -128.4, -500, inf, -inf, nan, -0.0]
    want = [0, 2, 0, -2, 126, 127, 127, 127, -128, -128, -128, 127, -128, 0, 0]
    assert identity(y, out_dtype=np.int8, scale=1).tolist() == want
    for kind, most in ((E4M3, 448.0), (E5M2, 57344.0)):
        ends = identity([most * 1.05, 1e30, inf, -inf, -most, nan], out_dtype=kind, scale=1.0)
        np.testing.assert_array_equal(ends.astype(float), [most, most, most, -most, -most, nan])


@pytest.mark.parametrize("kind", [E4M3, E5M2])
def test_every_float8_and_what_is_between(kind):
    """All numbers, the middles between neighbours, which are ties, and their neighbours."""
    codes = np.arange(256, dtype=np.uint8).view(kind).astype(np.float32)
    codes = np.unique(codes[np.isfinite(codes)])
    middles = (codes[1:] + codes[:-1]) / 2
    y = np.concatenate(
        [codes, middles, *(np.nextafter(middles, s * np.float32(1e9)) for s in (1, -1))]
    )
    same(identity(y, out_dtype=kind, scale=1), y.astype(kind))
    same(identity(y * 3, out_dtype=kind, scale=3), oracle(y * 3, np.float32(3), kind))


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
def test_float8_of_torch(name, rng):
    torch = pytest.importorskip("torch")
    y = (rng.standard_normal(5000) * 2.0 ** rng.integers(-18, 8, 5000)).astype(np.float32)
    y = np.clip(y, -448, 448)
    want = torch.from_numpy(y).to(getattr(torch, name)).float().numpy()
    q = identity(y, out_dtype=name, scale=1)
    assert q.dtype.name == name
    np.testing.assert_array_equal(q.astype(np.float32), want)


def test_rows_of_zeros_of_tiny_and_of_infinite_values():
    x = np.zeros((4, 3), np.float32)
    x[1], x[2], x[3] = [1e-45, 0, -1e-45], [1, 2, 3], [1, np.nan, 3]
    weight = np.array([1e-43, 1e-43, 1e-43], np.float32)
    q, scales = fastnorm.layer_norm(x, weight, out_dtype="int8")
    assert scales[:2].tolist() == [1, 1]  # 1.2e-43 / 127 is no float32
    assert q[0].tolist() == [0, 0, 0]
    assert np.isnan(scales[3])
    assert q[3].tolist() == [0, 0, 0]
    weight = np.array([1, 3e38, 1], np.float32)
    q, scales = fastnorm.rms_norm(np.array([[0.1, 3, 0]], np.float32), weight, out_dtype="int8")
    assert np.isinf(scales[0])
    assert q.tolist() == [[0, 0, 0]]

    q, scales = fastnorm.layer_norm(np.zeros((3, 4), np.float32), axis=0, out_dtype="int8")
    assert (q.any(), scales.tolist()) == (False, [1, 1, 1, 1])


@pytest.mark.parametrize("size", [1, 63, 64, 65, 200])
def test_the_largest_is_found_everywhere(size):
    x = np.eye(size, dtype=np.float32) * -8 + 1
    q, _ = fastnorm.rms_norm(x, out_dtype="int8")
    assert np.diagonal(q).tolist() == [-127] * size


def test_division_and_not_multiplication_by_an_inverse(rng):
    """7 * (1 / 0.7) is not 7 / 0.7 in float32 for some."""
    y = rng.integers(-100, 100, 20000).astype(np.float32) + np.float32(0.5)
    scale = np.float32(0.49)
    y *= scale
    want = oracle(y, scale, "int8")
    same(identity(y, out_dtype="int8", scale=scale), want)
    assert (want != np.clip(np.rint(y * (1 / scale)), -128, 127)).any()


# ---- with what is around ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_all_at_once_is_as_separate_calls(dtype, kind, rng):
    x, other, z, gate = arrays(rng, (9, 50, 200), dtype, 4)
    around = {"activation": "relu", "shortcut": z, "gate": gate, "gate_activation": "relu"}
    for shape in ((200,), (9, 1, 200), (1, 50, 1), (9, 50, 200)):
        weight = rng.standard_normal(shape).astype(dtype)
        for more in ({}, {"weight_offset": 1.0}, {"cast": "before_weight", "weight_offset": 0.5}):
            call = {**around, **more, "residual": other}
            y, s = fastnorm.rms_norm(x, weight, **call)
            q, scales, sum_ = fastnorm.rms_norm(x, weight, **call, out_dtype=kind)
            want = row_scales(y, (2,), kind)
            same(scales, want[..., 0])
            same(q, oracle(y, want, kind))
            same(sum_, s)
            q, sum_ = fastnorm.rms_norm(x, weight, **call, out_dtype=kind, scale=want)
            same(q, oracle(y, want, kind))
            same(sum_, s)


def test_a_mask_is_as_without(rng):
    """There are several pieces of x, but the mask is not cut."""
    x = rng.standard_normal((3, 300, 200)).astype(np.float32)
    mask = rng.random((3, 300, 1)) < 0.7
    weight, states = uniform(rng, 300, np.float32), {"running_mean": x[0, :, 0].copy()}
    states["running_var"] = uniform(rng, 300, np.float32)
    for function, args, call in (
        (fastnorm.layer_norm, (), {"mask": mask}),
        (fastnorm.batch_norm, (weight,), {"lengths": [200, 0, 50], "layout": "NCL", **states}),
    ):
        y = function(x, *args, **call)
        scale = np.float32(0.02)
        same(function(x, *args, **call, out_dtype="int8", scale=scale), oracle(y, scale, "int8"))


def test_batch_norm_with_parameters_of_samples_and_what_is_around(rng):
    for layout, shape in (("NCHW", (3, 8, 90, 70)), ("NHWC", (3, 90, 70, 8))):
        x, other, z = arrays(rng, shape, np.float16, 3)
        states = {
            "running_mean": uniform(rng, 8, np.float32),
            "running_var": uniform(rng, 8, np.float32),
        }
        full = rng.standard_normal(shape).astype(np.float16)
        per_sample = rng.standard_normal((3, 8)).astype(np.float16)
        for weight, bias in ((per_sample, full), (per_sample[0], per_sample), (full[:1], None)):
            call = {
                "activation": "relu",
                "shortcut": z,
                "residual": other,
                "layout": layout,
                **states,
            }
            y, s = fastnorm.batch_norm(x, weight, bias, **call)
            q, sum_ = fastnorm.batch_norm(x, weight, bias, **call, out_dtype="int8", scale=0.03)
            same(q, oracle(y, np.float32(0.03), "int8"))
            same(sum_, s)


# ---- arrays that are given -------------------------------------------------------------------


def test_outputs_that_are_given(rng):
    x, other = arrays(rng, (30, 2000), np.float32, 2)
    want = fastnorm.layer_norm(x, out_dtype="int8")
    for out in (np.empty(x.shape, np.int8), np.empty((30, 4000), np.int8)[:, ::2]):
        q, scales = fastnorm.layer_norm(x, out_dtype="int8", out=out)
        assert q is out
        same(q, want[0])
        same(scales, want[1])
    # over x itself
    own = x.copy()
    flat = own.reshape(-1).view(np.int8)
    for out in (
        own.view(np.int8)[:, :2000],
        own.view(np.int8)[:, 100:2100],
        flat[180000:].reshape(x.shape),  # of rows that are read later
    ):
        own[...] = x
        q, _ = fastnorm.layer_norm(own, out_dtype="int8", out=out)
        assert q is out
        same(q, want[0])
    # and the sum: in place of x, of the residual, and elsewhere
    want = fastnorm.layer_norm(x, residual=other, out_dtype="int8")
    places = np.empty((30, 4000), np.float32)
    for sum_out in (x.copy(), other.copy(), places[:, 1::2], places[:, :2000]):
        a = sum_out if sum_out.flags.c_contiguous and np.array_equal(sum_out, x) else x
        b = sum_out if sum_out.flags.c_contiguous and np.array_equal(sum_out, other) else other
        found = fastnorm.layer_norm(a, residual=b, out_dtype="int8", sum_out=sum_out)
        assert found[2] is sum_out
        for got, expected in zip(found, want, strict=True):
            same(got, expected)


def test_a_weight_that_lies_in_out(rng):
    (x,) = arrays(rng, (400, 400), np.float32, 1)
    memory = np.zeros(x.size, np.int8)
    weight = memory[:1600].view(np.float32)
    weight[...] = rng.standard_normal(400)
    want = fastnorm.rms_norm(x, weight.copy(), out_dtype="int8")[0]
    same(fastnorm.rms_norm(x, weight, out_dtype="int8", out=memory.reshape(x.shape))[0], want)


def test_inputs_that_are_not_dense(rng):
    (x,) = arrays(rng, (30, 400), np.float32, 1)
    want = fastnorm.layer_norm(x[:, ::2].copy(), out_dtype="int8")
    for given in (x[:, ::2], x[:, ::2].astype(">f4"), x[:, ::2].tolist()):
        given = np.asarray(given, np.float32) if isinstance(given, list) else given
        for got, expected in zip(fastnorm.layer_norm(given, out_dtype="int8"), want, strict=True):
            same(got, expected)


def test_empty():
    q, scales = fastnorm.layer_norm(np.zeros((0, 5), np.float32), out_dtype="int8")
    assert (q.shape, scales.shape) == ((0, 5), (0,))
    q, scales = fastnorm.layer_norm(np.zeros((3, 0), np.float32), out_dtype="int8")
    assert (q.shape, scales.tolist()) == ((3, 0), [1, 1, 1])


def test_no_y_of_the_whole_size_is_made(rng):
    x = rng.standard_normal((512, 2048)).astype(np.float32)
    states = {"running_mean": x[0, :512].copy(), "running_var": np.ones(512, np.float32)}
    image = x.reshape(1, 512, 32, 64)
    q = np.empty(x.shape, np.int8)
    tracemalloc.start()
    try:
        for call in (
            lambda: fastnorm.layer_norm(x, out=q, out_dtype="int8"),
            lambda: fastnorm.batch_norm(
                image, **states, out=q.reshape(image.shape), out_dtype="int8", scale=1.0
            ),
        ):  # fmt: skip
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            call()
            assert tracemalloc.get_traced_memory()[1] - before < x.nbytes / 8
    finally:
        tracemalloc.stop()


# ---- errors ----------------------------------------------------------------------------------

X = np.ones((3, 6, 4), np.float32)
C = np.ones(6, np.float32)
STATES = {"running_mean": C, "running_var": C}
NO_STATES = dict.fromkeys(STATES)
OUT = {"out_dtype": "int8"}
INT = {"out_dtype": "int8", "scale": 1}
CHOICES = "out_dtype: expected one of int8, float8_e4m3fn, float8_e5m2, got"
ABOVE = "scale: expected finite float32 numbers above 0, got"
OTHER = "out_dtype: expected None for this normalizer, got int8: only layer_norm"
TABLE = [
    ("layer_norm", {"out_dtype": "int4"}, TypeError, f"{CHOICES} 'int4'"),
    ("layer_norm", {"out_dtype": np.float32}, TypeError, CHOICES),
    ("layer_norm", {"out_dtype": np.uint8}, TypeError, CHOICES),
    ("layer_norm", {"out_dtype": ml_dtypes.float8_e4m3fnuz}, TypeError, CHOICES),
    ("layer_norm", {"out_dtype": [1]}, TypeError, CHOICES),
    ("layer_norm", {"scale": 1.0}, ValueError, "scale: expected None, as there is no out_dtype"),
    ("layer_norm", {**OUT, "return_ctx": True}, ValueError, "return_ctx: expected False with out"),
    ("layer_norm", {**OUT, "return_ctx": 2}, TypeError, "return_ctx: expected a bool, got int"),
    ("layer_norm", {**OUT, "scale": 0.0}, ValueError, f"{ABOVE} 0"),
    ("layer_norm", {**OUT, "scale": -1}, ValueError, f"{ABOVE} -1"),
    ("layer_norm", {**OUT, "scale": np.nan}, ValueError, f"{ABOVE} nan"),
    ("layer_norm", {**OUT, "scale": [[1e-60]]}, ValueError, f"{ABOVE} 1e-60"),
    ("layer_norm", {**OUT, "scale": "1"}, TypeError, "scale: expected numbers, got <U1"),
    ("layer_norm", {**OUT, "scale": [1, [2]]}, ValueError, "scale: expected an array, got"),
    ("layer_norm", {**OUT, "scale": C}, ValueError, r"scale: .* \(3, 6, 1\), got \(6,\)"),
    ("layer_norm", {**OUT, "scale": X}, ValueError, r"scale: .* \(3, 6, 1\), got \(3, 6, 4\)"),
    ("layer_norm", {**OUT, "out": X.copy()}, TypeError, "out: expected dtype int8, got float32"),
    ("layer_norm", {**OUT, "out": np.zeros((3, 6), np.int8)}, ValueError, "out: expected shape"),
    ("layer_norm", {**OUT, "x": X.astype(int)}, TypeError, "x: expected dtype float32"),
    ("layer_norm", {**OUT, "weight": C}, ValueError, r"weight: expected shape \(4,\), got \(6,\)"),
    ("layer_norm", {**OUT, "eps": -1}, ValueError, "eps: expected a finite number"),
    ("layer_norm", {**OUT, "axis": 3}, ValueError, "axis: expected axes in"),
    ("layer_norm", {**OUT, "activation": "sine"}, ValueError, "activation: expected one of"),
    ("layer_norm", {**OUT, "shortcut": X[:2]}, ValueError, "shortcut: expected x's shape"),
    ("layer_norm", {**OUT, "residual": None}, ValueError, "sum_out: expected None, as there is no"),
    ("layer_norm", {**OUT, "weight_offset": 1}, ValueError, "weight_offset: expected None, as"),
    ("batch_norm", {**INT, "training": True}, ValueError, "out_dtype: expected None in training"),
    ("batch_norm", {**OUT}, ValueError, "scale: expected a number, or an array of one for each c"),
    ("batch_norm", {**OUT, "scale": C[:3]}, ValueError, r"scale: .* \(1, 6, 1\), got \(3,\)"),
    ("batch_norm", {**OUT, "scale": X}, ValueError, r"scale: .* \(1, 6, 1\), got \(3, 6, 4\)"),
    ("batch_norm", {**INT, "weight": C[:5]}, ValueError, r"weight: expected shape \(6,\), got"),
    ("batch_norm", {**INT, "running_var": C[:5]}, ValueError, r"running_var: expected shape \(6,"),
    ("batch_norm", {**INT, "running_var": None}, ValueError, "running_mean, running_var: expecte"),
    ("batch_norm", {**INT, "layout": "NC"}, ValueError, "layout: expected one of"),
    ("instance_norm", INT, ValueError, OTHER),
    ("batch_renorm", INT, ValueError, OTHER),
    ("group_norm", {**INT, **NO_STATES, "num_groups": 2}, ValueError, OTHER),
    ("filter_response_norm", {**INT, **NO_STATES}, ValueError, OTHER),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]}-{row[3]:.30}")
def test_errors_name_the_argument_and_come_first(row):
    name, changes, error, message = row
    sum_out = np.full(X.shape, 7, np.float32)
    call = {"x": X, "residual": X, "sum_out": sum_out}
    if name != "layer_norm":
        call |= {"layout": "NCL", **STATES}
    call = {k: v for k, v in {**call, **changes}.items() if v is not None}
    with pytest.raises(error, match="^" + message):
        getattr(fastnorm, name)(**call)
    assert (sum_out == 7).all()


def test_wrong_sizes_where_channels_are_taken_apart():
    x = np.ones((2, 6, 200, 200), np.float32)
    for name in ("running_mean", "running_var", "weight", "bias"):
        call = {**STATES, name: np.ones(7, np.float32), "out": np.full(x.shape, 7, np.int8)}
        with pytest.raises(ValueError, match=rf"^{name}: expected shape \(6,\), got \(7,\)"):
            fastnorm.batch_norm(x, **call, **INT)
        assert (call["out"] == 7).all()


def test_a_sum_in_the_memory_of_the_output():
    memory = np.zeros(2 * X.nbytes, np.int8)
    sum_out = memory[: X.nbytes].view(np.float32).reshape(X.shape)
    out = memory[X.nbytes - 8 : X.nbytes - 8 + X.size].reshape(X.shape)
    with pytest.raises(ValueError, match=r"^sum_out: expected an array apart from out"):
        fastnorm.layer_norm(X, residual=X, sum_out=sum_out, out=out, out_dtype="int8")
    running = memory[: C.nbytes].view(np.float32)
    out = memory[C.nbytes - 8 :][: X.size].reshape(X.shape)
    with pytest.raises(ValueError, match=r"^out: expected an array apart from running_var"):
        fastnorm.batch_norm(
            X, running_mean=C, running_var=running, out=out, layout="NCL", **INT
        )  # fmt: skip
    assert not memory.any()
