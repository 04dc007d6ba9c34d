"""A context shows its statistics, can be copied and pickled, and is refused once its arrays have
been changed in a way that would let the C library read beside them."""

import copy
import pickle
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from cases import SHAPES, case_id, cases, make_input

import fastnorm
from fastnorm.blocked import to_blocked

X = np.random.default_rng(0).standard_normal((3, 6, 5, 4)) * 3 + 10
W, B = np.linspace(0.5, 2, 6), np.linspace(-1, 1, 6)
MEAN, VAR = np.linspace(9, 11, 6), np.linspace(1, 4, 6)
RUNNING = {"running_mean": MEAN, "running_var": VAR}
LOGITS = np.array([0.3, -0.2, 1.0]), np.array([1.0, 0.1, -0.7])


def forward(name, x, *args, **kwargs):
    kwargs = {k: v.copy() if k.startswith("running") else v for k, v in kwargs.items()}
    return getattr(fastnorm, name)(x, *args, return_ctx=True, **kwargs)


def own(axes, **kwargs):
    """Mean and variance over `axes`, which are removed or, with keepdims, kept."""
    return X.mean(axes, **kwargs), X.var(axes, **kwargs)


def mixed():
    parts = [own(axes, keepdims=True) for axes in ((2, 3), (1, 2, 3), (0, 2, 3))]
    softmax = [np.exp(a) / np.exp(a).sum() for a in LOGITS]
    return tuple(
        sum(w * part[i] for w, part in zip(softmax[i], parts, strict=True))[..., 0, 0]
        for i in (0, 1)
    )


def groups():
    x = X.reshape(3, 2, -1)
    return x.mean(2), x.var(2)


STATISTICS = {
    "batch_norm": ((), {"training": True}, own((0, 2, 3))),
    "batch_norm-eval": ((), RUNNING, (MEAN, VAR)),
    "batch_renorm": ((), {"training": True, **RUNNING}, own((0, 2, 3))),
    "instance_norm": ((), {}, own((2, 3))),
    "instance_norm-eval": ((), {"use_input_stats": False, **RUNNING}, (MEAN, VAR)),
    "instance_renorm": ((), RUNNING, own((2, 3))),
    "group_norm": ((2,), {}, groups()),
    "switchable_norm": ((W, B, *LOGITS), {"training": True}, mixed()),
    "layer_norm": ((), {"axis": (2, 3)}, own((2, 3))),
    "layer_norm-channels": ((), {"axis": 1}, own(1)),
    "layer_norm-apart": ((), {"axis": [0, -1]}, own((0, 3))),
    "layer_norm-all": ((), {"axis": (0, 1, 2, 3)}, own((0, 1, 2, 3))),
    "rms_norm": ((), {}, (np.zeros((3, 6, 5)), (X**2).mean(-1))),
    "weight_norm": ((B,), {"axis": 1}, (np.zeros(6), (X**2).sum((0, 2, 3)))),
    "weight_norm-one": ((np.float64(2),), {"axis": None}, (np.zeros(()), (X**2).sum())),
}


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics(name):
    args, kwargs, (mean, var) = STATISTICS[name]
    name = name.partition("-")[0]
    eps = {} if name == "weight_norm" else {"eps": 0.25}
    _, ctx = forward(name, X, *args, **kwargs, **eps)
    for got, want in ((ctx.mean, mean), (ctx.var, var)):
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, want, rtol=1e-13, atol=1e-13)
        assert got.shape == np.shape(want)
    np.testing.assert_allclose(ctx.rstd, 1 / np.sqrt(var + eps.get("eps", 0)), rtol=1e-13)
    for got in (ctx.mean, ctx.var, ctx.rstd):
        with pytest.raises(ValueError, match="read-only"):
            got[...] = 0


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize(
    "name", [name for name in STATISTICS if name[:5] not in ("layer", "rms_n", "weigh")]
)
def test_statistics_in_blocks_and_channels_last(name, block):
    args, kwargs, (mean, var) = STATISTICS[name]
    name = name.partition("-")[0]
    if name == "group_norm":
        kwargs = {"weight": W}
    elif name != "switchable_norm":
        args = (W,)
    for x, layout in (
        (to_blocked(X, block), f"NCHW{block}c"),
        (np.ascontiguousarray(np.moveaxis(X, 1, -1)), "NHWC"),
    ):
        _, ctx = forward(name, x, *args, **kwargs, layout=layout)
        np.testing.assert_allclose(ctx.mean, mean, rtol=1e-12)
        np.testing.assert_allclose(ctx.var, var, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 6, 2, 2), (3, 6, 0, 2), (0, 6, 0, 0)])
def test_an_empty_input_has_no_statistics(shape):
    x = np.zeros(shape)
    for name, args, kwargs, kept in [
        ("batch_norm", (), {"training": True}, (6,)),
        ("instance_norm", (), {}, (shape[0], 6)),
        ("switchable_norm", (None, None, *LOGITS), {"training": True}, (shape[0], 6)),
        ("layer_norm", (), {}, shape[:3]),
    ]:
        _, ctx = forward(name, x, *args, **kwargs)
        for got in (ctx.mean, ctx.var, ctx.rstd):
            assert got.shape == kept
            assert np.isnan(got).all()


def test_infinite_reciprocals_do_not_warn():
    _, ctx = fastnorm.layer_norm(np.ones((2, 3)), eps=0, return_ctx=True)
    with np.errstate(all="raise"):
        np.testing.assert_array_equal(ctx.rstd, np.inf)


# ---- copies ----------------------------------------------------------------------------------


def same(got, want):
    assert type(got) is type(want)
    for g, w in zip(got, want, strict=True):
        assert (g is None) == (w is None)
        if g is not None:
            assert g.dtype == w.dtype
            np.testing.assert_array_equal(g, w)


WAYS = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle-{i}": lambda ctx, i=i: pickle.loads(pickle.dumps(ctx, i))
        for i in range(2, pickle.HIGHEST_PROTOCOL + 1)
    },
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", cases(ranks=(2, 4)), ids=case_id)
def test_round_trip(case, way, rng):
    norm, rank, layout = case
    x = make_input(rng, SHAPES[rank], layout, np.float32)
    dy = rng.standard_normal(x.shape).astype(np.float32)
    args, kwargs = norm.arguments(rng, x, layout)
    _, ctx = forward(norm.name, x, *args, **kwargs)
    want = fastnorm.backward(dy, ctx)
    other = WAYS[way](ctx)
    assert type(other) is fastnorm.Context
    same(fastnorm.backward(dy, other), want)
    same((other.mean, other.var, other.rstd), (ctx.mean, ctx.var, ctx.rstd))
    if way != "copy":  # it has arrays of its own
        x[...] = 0
        same(fastnorm.backward(dy, other), want)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("params", ["own", "float32"])
def test_round_trip_of_16_bits(dtype, params, rng):
    x = X.astype(dtype)
    weight, bias = (a.astype(dtype if params == "own" else np.float32) for a in (W, B))
    _, ctx = fastnorm.group_norm(x, 3, weight, bias, return_ctx=True)
    want = fastnorm.backward(x, ctx)
    assert want.weight.dtype == weight.dtype
    for way in WAYS.values():
        same(fastnorm.backward(x, way(ctx)), want)


@pytest.mark.parametrize("layout", ["NCHW16c", "NCHW8c"])
def test_round_trip_of_blocks(layout):
    x = to_blocked(X, int(layout[4:-1]))
    _, ctx = fastnorm.switchable_norm(
        x, W, B, *LOGITS, training=True, layout=layout, return_ctx=True
    )
    same(fastnorm.backward(x, copy.deepcopy(ctx)), fastnorm.backward(x, ctx))


def test_round_trip_of_an_empty_one():
    x = np.zeros((0, 6, 4))
    _, ctx = fastnorm.batch_norm(x, W, B, training=True, return_ctx=True)
    grads = fastnorm.backward(x, copy.deepcopy(ctx))
    np.testing.assert_array_equal(grads.weight, np.zeros(6))


def test_unpickled_in_another_process(tmp_path):
    x = X.astype(ml_dtypes.bfloat16)
    _, ctx = fastnorm.layer_norm(x, x[0, 0, 0], return_ctx=True)
    want = fastnorm.backward(x, ctx)
    (tmp_path / "ctx").write_bytes(pickle.dumps((ctx, x)))
    program = f"""
import pickle, fastnorm
ctx, x = pickle.load(open({str(tmp_path / "ctx")!r}, "rb"))
pickle.dump(fastnorm.backward(x, ctx), open({str(tmp_path / "grads")!r}, "wb"))
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=600)
    same(pickle.loads((tmp_path / "grads").read_bytes()), want)


def test_a_pickle_that_does_not_fit_is_refused():
    _, ctx = fastnorm.layer_norm(X, np.ones(4), return_ctx=True)
    restore, state = ctx.__reduce__()
    names = ("problem", "shape", "over", "axes", "param_shape", "x", "params", "types", "stats",
             "around")  # fmt: skip
    wrong = {
        "problem": {**state[0], "n": state[0]["n"] * 1000},
        "shape": (3, 6, 5, 5),
        "param_shape": (5,),
        "x": X[1:],
        "params": [np.ones(3), None, None, None, None],
        "stats": state[8][:-1],
        "around": (1, 7, 0.0, X[1:], None, False),
    }
    assert fastnorm.backward(X, restore(*state)).x.shape == X.shape
    for name, value in wrong.items():
        changed = [value if n == name else s for n, s in zip(names, state, strict=True)]
        with pytest.raises(ValueError, match="statistics: expected those of the pickled context"):
            restore(*changed)
    with pytest.raises(TypeError, match="ctx: expected the Context of a forward call"):
        pickle.dumps(fastnorm.Context())


def test_gradients_as_its_parameter():
    assert fastnorm.Context[fastnorm.Gradients].__origin__ is fastnorm.Context


# ---- arrays that have changed since ----------------------------------------------------------


def to_float16(a):
    a.dtype = np.float16


def to_int(a):
    a.dtype = a.dtype.str.replace("f", "i")


def swap_bytes(a):
    a.dtype = a.dtype.newbyteorder()


def reshape(a):
    a.shape = (a.size,) if a.ndim > 1 else (1, a.size)


def flatten_strides(a):
    a.strides = (0,) * a.ndim


def resize(a):
    a.resize((1000,) * a.ndim, refcheck=False)


def shrink(a):
    a.resize((1,) * a.ndim, refcheck=False)


CHANGES = [to_float16, to_int, swap_bytes, reshape, flatten_strides, resize, shrink]
FUNCTIONS = {
    "layer_norm": (["x", "weight", "bias"], {"axis": 1}),
    "batch_norm": (["x", "weight", "bias"], {"training": True, "layout": "NC"}),
    "switchable_norm": (
        ["x", "weight", "bias", "mean_logits", "var_logits"],
        {"training": True, "layout": "NC"},
    ),
    "weight_norm": (["v", "g"], {"axis": 1}),
}


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    ("name", "which"), [(name, i) for name in FUNCTIONS for i in range(len(FUNCTIONS[name][0]))]
)
def test_changed_arrays_are_refused(name, which, change):
    names, kwargs = FUNCTIONS[name]
    sizes = {"x": (40, 30), "v": (40, 30), "mean_logits": 3, "var_logits": 3}
    rng = np.random.default_rng(0)
    arrays = [rng.uniform(1, 2, sizes.get(n, 30)).astype(np.float32) for n in names]
    dy = arrays[0].copy()
    _, ctx = forward(name, *arrays, **kwargs)
    change(arrays[which])
    changed = f"ctx: expected {names[which]} as it was in the forward call, got one whose"
    for g in (dy, dy.astype(np.float16), np.resize(dy, np.shape(arrays[0]))):
        with pytest.raises((ValueError, TypeError), match=changed):
            fastnorm.backward(g, ctx)
    for use in (lambda: ctx.mean, lambda: pickle.dumps(ctx), lambda: copy.copy(ctx)):
        with pytest.raises(ValueError, match=changed):
            use()


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_changed_while_dy_is_read():
    class Meddler:
        def __array__(self, dtype=None, copy=None):
            x.shape = (-1,)
            return X.copy()

    x = X.copy()
    _, ctx = fastnorm.layer_norm(x, return_ctx=True)
    with pytest.raises(ValueError, match="ctx: expected x as it was in the forward call"):
        fastnorm.backward(Meddler(), ctx)


def test_new_values_are_not_a_change():
    x, weight = X.copy(), W.copy()
    _, ctx = fastnorm.group_norm(x, 2, weight, return_ctx=True)
    weight *= 2
    before = fastnorm.backward(X, ctx).x
    weight /= 2
    np.testing.assert_allclose(before, 2 * fastnorm.backward(X, ctx).x, rtol=1e-12)


@pytest.mark.filterwarnings("ignore:Setting the:DeprecationWarning")
def test_the_own_copy_of_a_strided_array_is_not_looked_after():
    x, weight = X[::2].copy()[:, ::-1], W.copy()
    want = fastnorm.backward(x, fastnorm.batch_norm(x, weight, training=True, return_ctx=True)[1])
    base = np.ascontiguousarray(x).repeat(2, axis=-1)
    strided = base[..., ::2]
    _, ctx = fastnorm.batch_norm(strided, weight, training=True, return_ctx=True)
    base[...] = 0
    strided.strides = (0, 0, 0, 0)
    same(fastnorm.backward(np.ascontiguousarray(x), ctx), want)


def test_a_pickle_with_wrong_types_is_refused():
    """Gradients are written into arrays of these types."""
    weight = np.ones(4, "f4")
    _, ctx = fastnorm.batch_norm(np.ones((3, 4), "f4"), weight, training=True, return_ctx=True)
    restore, state = ctx.__reduce__()
    for kind in ("i1", "f8"):
        types = [np.dtype(kind), None, None, None, None]
        with pytest.raises(ValueError, match="statistics: expected those"):
            restore(*state[:7], types, *state[8:])
