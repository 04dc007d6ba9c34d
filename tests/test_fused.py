"""What stands around a normalizer has the bits of separate calls, and its gradients are right."""

import ml_dtypes
import numpy as np
import pytest
from cases import same, some
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnorm as fn

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
ACTIVATIONS = [None, *fn.activations.NAMES]
SHAPES = [
    (2, 6, 5, 7),
    (1, 64, 14, 14),
    (3, 12, 40, 40),
    (9, 130, 3, 3),
    (16, 6, 7, 7),
    (5, 70, 1, 1),
]
LOGITS = [1.0, 0.5, -0.5]


def of(dtype, *values):
    return np.array(values, dtype)


def norms(channels, axis, weight, bias):
    """Each normalizer, as a function of x and its keywords."""
    dtype = weight.dtype
    mean, var = of(dtype, *[0.25] * channels), of(dtype, *[1.5] * channels)
    running = {"running_mean": mean, "running_var": var}
    logits = of(dtype, *LOGITS), of(dtype, *LOGITS[::-1])
    affine, half = (weight, bias), of(dtype, 0.5)[0]
    return {
        "batch": lambda x, **k: fn.batch_norm(x, *affine, training=True, **k),
        "inference": lambda x, **k: fn.batch_norm(x, *affine, **running, **k),
        "renorm": lambda x, **k: fn.batch_renorm(x, *affine, **running, momentum=0.0,
                                                 training=True, **k),
        "group": lambda x, **k: fn.group_norm(x, 2, *affine, **k),
        "instance": lambda x, **k: fn.instance_norm(x, *affine, **k),
        "filter": lambda x, **k: fn.filter_response_norm(x, *affine, tau=bias * half, **k),
        "global": lambda x, **k: fn.global_response_norm(x, *affine, **k),
        "switchable": lambda x, **k: fn.switchable_norm(x, *affine, *logits, training=True, **k),
        "layer": lambda x, layout, **k: fn.layer_norm(x, *affine, axis=axis, **k),
        "rms": lambda x, layout, **k: fn.rms_norm(x, weight, axis=axis, **k),
        "bare": lambda x, layout, **k: fn.rms_norm(x, axis=axis, **k),
    }  # fmt: skip


def rounded(function, a, b):
    """As NumPy, in the type that is computed in."""
    wide = np.float64 if a.dtype == np.float64 else np.float32
    return function(a.astype(wide), b.astype(wide)).astype(a.dtype)


def active(x, name, slope):
    if name is None:
        return x.copy()
    function = getattr(fn.activations, name)
    return function(x, slope) if name == "leaky_relu" else function(x)


def slope_of(dy, x, name, slope):
    return dy.copy() if name is None else fn.activations.backward(dy, x, name, slope=slope)


def separate(norm, x, dy, ds, layout, beside, names, slope):
    """y, the sum, and the gradients, by calls one by one."""
    s = rounded(np.add, x, beside["residual"]) if "residual" in beside else x
    u, ctx = norm(s, layout=layout, return_ctx=True)
    v = rounded(np.add, u, beside["shortcut"]) if "shortcut" in beside else u
    y = a = active(v, names[0], slope)
    grads = {}
    if "gate" in beside:
        gated = active(beside["gate"], names[1], slope)
        y = rounded(np.multiply, a, gated)
        grads["gate"] = slope_of(rounded(np.multiply, dy, a), beside["gate"], names[1], slope)
        dy = rounded(np.multiply, dy, gated)
    g = slope_of(dy, v, names[0], slope)
    if "shortcut" in beside:
        grads["shortcut"] = g
    grads.update(fn.backward(g, ctx)._asdict())
    if "residual" in beside:
        grads["x"] = rounded(np.add, grads["x"], ds)
    return y, s, grads


@st.composite
def calls(draw):
    some = draw(st.sets(st.sampled_from(["shortcut", "gate", "residual"])))
    first = draw(st.sampled_from(ACTIVATIONS))
    if not some and first is None:
        first = "relu"
    return {
        "norm": draw(st.sampled_from(sorted(norms(2, 1, np.ones(2), np.ones(2))))),
        "shape": draw(st.sampled_from(SHAPES)),
        "layout": draw(st.sampled_from(["NCHW", "NHWC"])),
        "dtype": draw(st.sampled_from(DTYPES)),
        "beside": some,
        "names": (first, draw(st.sampled_from(ACTIVATIONS[1:]))),
        "slope": draw(st.sampled_from([0.01, 0.25])),
        "threads": draw(st.sampled_from([1, 2])),
        "large": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


def arrays(call):
    rng = np.random.default_rng(call["seed"])
    n, c, h, w = call["shape"]
    shape = (n, c, h, w) if call["layout"] == "NCHW" else (n, h, w, c)
    made = [rng.standard_normal(shape).astype(call["dtype"]) for _ in range(6)]
    if call["large"]:  # the first sample leaves the range of ordinary kernels
        made[0][0] *= call["dtype"](1e30 if call["dtype"] != np.float16 else 200)
    weight, bias = (rng.standard_normal(c).astype(call["dtype"]) for _ in range(2))
    axis = 1 if call["layout"] == "NCHW" else -1
    beside = dict(zip(("shortcut", "gate", "residual"), made[3:], strict=True))
    beside = {name: a for name, a in beside.items() if name in call["beside"]}
    return made[:3], beside, norms(c, axis, weight, bias)[call["norm"]]


@settings(max_examples=250, deadline=None)
@given(calls())
def test_fused_calls_have_the_bits_of_separate_calls(call):
    (x, dy, ds), beside, norm = arrays(call)
    around = dict(beside, slope=call["slope"])
    if call["names"][0] is not None:
        around["activation"] = call["names"][0]
    if "gate" in beside:
        around["gate_activation"] = call["names"][1]
    before = fn.get_num_threads()
    fn.set_num_threads(call["threads"])
    try:
        y, s, wanted = separate(
            norm, x, dy, ds, call["layout"], beside, call["names"], call["slope"]
        )
        found = norm(x, layout=call["layout"], return_ctx=True, **around)
        bare = norm(x, layout=call["layout"], **around)
        grads = fn.backward(dy, found[-1], ds=ds if "residual" in beside else None)
    finally:
        fn.set_num_threads(before)
    same(found[0], y)
    if "residual" in beside:
        same(found[1], s)
        bare = bare[0]
    same(bare, y)
    for name, value in grads._asdict().items():
        if value is None:
            assert wanted.get(name) is None
        else:
            same(value, wanted[name])


FINITE = ["sigmoid", "tanh", "silu", "gelu", "gelu_tanh"]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", ["batch", "group", "layer", "rms", "instance", "switchable"])
@pytest.mark.parametrize("activation", FINITE)
def test_gradients_are_those_of_finite_differences(name, activation, layout):
    call = {"seed": 3, "shape": (2, 4, 3, 3), "layout": layout, "dtype": np.float64, "norm": name,
            "beside": {"shortcut", "gate", "residual"}, "large": False}  # fmt: skip
    (x, dy, ds), beside, norm = arrays(call)
    inputs = {"x": x, **beside}

    def loss(**arrays):
        x = arrays.pop("x")
        y, s = norm(x, layout=layout, activation=activation, **arrays)
        return float((dy * y).sum() + (ds * s).sum())

    *_, ctx = norm(x, layout=layout, activation=activation, return_ctx=True, **beside)
    grads = fn.backward(dy, ctx, ds=ds)
    for of_name, a in inputs.items():
        exact = grads.x if of_name in ("x", "residual") else getattr(grads, of_name)
        for at in ((0, 0, 0, 0), (1, 2, 1, 2), (0, 1, 2, 1)):
            step = np.zeros_like(a)
            step[at] = 1e-5
            up, down = (loss(**{**inputs, of_name: a + sign * step}) for sign in (1, -1))
            assert abs((up - down) / 2e-5 - exact[at]) < 1e-6


# ---- where results go ------------------------------------------------------------------------


def test_the_sum_is_written_over_x_or_the_residual():
    x, r, w = some(40, 96), some(40, 96)[::-1].copy(), some(96)
    y, s = fn.rms_norm(x, w, residual=r)
    for over in (0, 1):
        arrays = [x.copy(), r.copy()]
        found = fn.rms_norm(arrays[0], w, residual=arrays[1], sum_out=arrays[over])
        assert found[1] is arrays[over]
        same(found[0], y)
        same(found[1], s)
        same(arrays[1 - over], (x, r)[1 - over])


def test_y_may_be_written_over_what_it_is_made_of():
    x, z, w = some(8, 6, 9, 9), some(8, 6, 9, 9) + 1, some(6)
    y = fn.batch_norm(x, w, training=True, shortcut=z, activation="relu")
    for i in (0, 1):
        arrays = [x.copy(), z.copy()]
        fn.batch_norm(arrays[0], w, training=True, shortcut=arrays[1], activation="relu",
                      out=arrays[i])  # fmt: skip
        same(arrays[i], y)


def test_padding_channels_of_blocks_are_zero():
    x, z = some(2, 5, 4, 4), some(2, 5, 4, 4)
    blocked = [fn.to_blocked(a, 16) for a in (x, z)]
    y, ctx = fn.batch_norm(blocked[0], np.ones(5, np.float32), training=True, layout="NCHW16c",
                           shortcut=blocked[1], activation="sigmoid", return_ctx=True)  # fmt: skip
    assert (y[..., 5:] == 0).all()
    grads = fn.backward(y, ctx)
    assert (grads.x[..., 5:] == 0).all()
    assert (grads.shortcut[..., 5:] == 0).all()


# ---- rows that lie apart ---------------------------------------------------------------------


def views(qkv):
    yield qkv[:, :, 0]
    yield qkv[:, :, 1, 2]
    yield qkv[:, :, 2].transpose(0, 2, 1, 3)
    yield qkv[::-1, :, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 128, 3000])
def test_rows_that_lie_apart_give_the_bits_of_a_copy(dtype, width):
    qkv = some(2, 6, 3, 4, width, dtype=dtype)
    w, b = some(width, dtype=dtype), some(width, dtype=dtype)
    functions = [
        lambda x, **k: fn.layer_norm(x, w, b, **k),
        lambda x, **k: fn.rms_norm(x, w, activation="silu", **k),
        lambda x, **k: fn.rms_norm(x, **k),
        lambda x, **k: fn.normalize(x, axis=-1, **k),
    ]
    for i, _ in enumerate(views(qkv)):
        for function in functions:
            (x, dy, to) = (list(views(a))[i] for a in (qkv, qkv[::-1].copy(), qkv.copy()))
            y, ctx = function(np.ascontiguousarray(x), return_ctx=True)
            found, apart = function(x, return_ctx=True, out=to)
            assert found is to
            same(np.ascontiguousarray(to), y)
            wanted, grads = fn.backward(np.ascontiguousarray(dy), ctx), fn.backward(dy, apart)
            for a, c in zip(wanted, grads, strict=True):
                assert (a is None) == (c is None)
                if a is not None:
                    same(c, a)
            fn.backward(dy, apart, out=to)
            same(np.ascontiguousarray(to), wanted.x)


def test_a_view_is_not_copied(monkeypatch):
    x = some(4, 6, 3, 8, 16)[:, :, 1]
    _, ctx = fn.rms_norm(x, return_ctx=True)
    state = ctx.__reduce__()[1]
    assert np.shares_memory(state[5], x)


# ---- errors ----------------------------------------------------------------------------------

X = some(2, 4, 3, 3)
BAD = [
    ({"activation": "swish"}, ValueError, "activation: expected one of relu, leaky_relu"),
    ({"activation": 3}, TypeError, "activation: expected a str"),
    ({"gate": X, "gate_activation": "relu7"}, ValueError, "gate_activation: expected one of relu"),
    ({"gate_activation": "relu"}, ValueError, "gate_activation: expected None"),
    ({"activation": "leaky_relu", "slope": np.inf}, ValueError, "slope: expected a finite number"),
    ({"shortcut": X[:1]}, ValueError, "shortcut: expected x's shape"),
    ({"shortcut": X.astype(np.float64)}, TypeError, "shortcut: expected x's dtype float32"),
    ({"gate": X[..., :1]}, ValueError, "gate: expected x's shape"),
    ({"residual": X.astype(np.float16)}, TypeError, "residual: expected x's dtype"),
    ({"sum_out": X.copy()}, ValueError, "sum_out: expected None"),
    ({"residual": X, "sum_out": X[:1].copy()}, ValueError, "sum_out: expected shape"),
    ({"relu": True}, TypeError, "got an unexpected keyword argument 'relu'"),
    ({"virtual_batch_size": 0}, ValueError, "virtual_batch_size: expected an int of at least 1"),
    ({"virtual_batch_size": 1.5}, TypeError, "virtual_batch_size: expected an int"),
    ({"moments": 3}, TypeError, "moments: expected Moments"),
]  # fmt: skip


@pytest.mark.parametrize(("around", "error", "message"), BAD)
def test_bad_input_is_named_and_nothing_written(around, error, message):
    out, mean, var = np.full_like(X, 7), np.zeros(4, np.float32), np.ones(4, np.float32)
    with pytest.raises(error, match=message):
        fn.batch_norm(X, training=True, running_mean=mean, running_var=var, out=out, **around)
    assert (out == 7).all()
    assert (mean == 0).all()


def test_outputs_that_overlap_are_refused():
    out = X.copy()
    with pytest.raises(ValueError, match="sum_out: expected an array apart from out"):
        fn.rms_norm(X, residual=X, out=out, sum_out=out)
