"""Weights less 1, and x_hat rounded before the weight, as checkpoints of Gemma and Llama need."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import NORMS, copy_running, make_input

import fastnorm

SHAPE = (4, 6, 31, 37)
HALVES = [np.float16, ml_dtypes.bfloat16]
WEIGHTED = [norm for norm in NORMS if norm.name != "weight_norm"]


def same(got, want):
    """Whether arrays have the same bytes, where zeros and NaN may have either sign."""
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))


def call(norm, dtype, rng, layout="NCHW"):
    x = make_input(rng, SHAPE, layout, dtype)
    args, kwargs = norm.arguments(rng, x, layout)
    return x, args, kwargs, rng.standard_normal(x.shape).astype(dtype)


def forward(norm, x, args, kwargs, **more):
    function = getattr(fastnorm, norm.name)
    return function(x, *args, **copy_running(kwargs), **more, return_ctx=True)


# ---- weight_offset ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", WEIGHTED, ids=lambda norm: norm.id)
def test_an_offset_is_as_a_weight_that_has_it(norm, rng):
    for dtype in (np.float32, np.float64, *HALVES):
        x, args, kwargs, dy = call(norm, dtype, rng)
        at = norm.name == "group_norm"
        y, ctx = forward(norm, x, args, kwargs, weight_offset=1.0)
        grads = fastnorm.backward(dy, ctx)
        wide = np.float64 if dtype == np.float64 else np.float32
        plain = [*args[:at], args[at].astype(wide) + wide(1), *args[at + 1 :]]
        want, want_ctx = forward(norm, x, plain, kwargs)
        same(y, want)
        for name, got, expected in zip(
            grads._fields, grads, fastnorm.backward(dy, want_ctx), strict=True
        ):
            if expected is not None:
                same(got, expected.astype(dtype) if name == "weight" else expected)
        np.testing.assert_array_equal(ctx.rstd, want_ctx.rstd)


def test_an_offset_of_a_bfloat16_weight_is_added_in_float32():
    """1 + 2**-9 is no bfloat16."""
    x = np.array([[3, -3]], ml_dtypes.bfloat16)
    weight = np.full(2, 2.0**-9, ml_dtypes.bfloat16)
    y, ctx = fastnorm.rms_norm(x, weight, eps=0.0, weight_offset=1, return_ctx=True)
    same(y, np.array([[1, -1]], ml_dtypes.bfloat16))
    dx = fastnorm.backward(np.array([[256, 0]], ml_dtypes.bfloat16), ctx)
    assert dx.weight.dtype == weight.dtype
    np.testing.assert_array_equal(dx.weight.astype(float), [256, 0])
    y = fastnorm.rms_norm(
        x * np.array(85, x.dtype), weight, eps=0.0, weight_offset=np.float32(511 / 512)
    )
    same(y, np.array([[1, -1]], x.dtype))


# ---- cast ------------------------------------------------------------------------------------


def separate(norm, x, args, kwargs, dy, at, axes, tau):
    """y and gradients by a call without parameters, whose y is multiplied and rounded."""
    own = [n if a in axes else 1 for a, n in enumerate(x.shape)]
    weight, bias, *rest = [*args[at:], None, None][: 2 + len(args[at + 2 :])]
    w = np.asarray(weight, np.float32).reshape(own)
    plain = [*args[:at], None, *[None] * (bias is not None), *rest]
    if tau is not None:
        plain[-1] = None
    x_hat, ctx = forward(norm, x, plain, kwargs)
    u = (x_hat.astype(np.float32) * w).astype(x.dtype).astype(np.float32)
    g = dy.astype(np.float32)
    if bias is not None:
        u = u + np.asarray(bias, np.float32).reshape(own)
    if tau is not None:
        t = tau.astype(np.float32).reshape(own)
        g = np.where(u > t, g, 0)
        u = np.maximum(u, t)
    over = tuple(a for a in range(x.ndim) if a not in axes)
    dw = (g * x_hat.astype(np.float64)).sum(over)
    found = fastnorm.backward((g * w).astype(x.dtype), ctx)
    dw, db = dw.astype(np.float32), g.sum(over, np.float64).astype(np.float32)
    return u.astype(x.dtype), found.x, dw.astype(weight.dtype), db


@pytest.mark.parametrize("norm", WEIGHTED, ids=lambda norm: norm.id)
def test_a_cast_is_as_separate_calls(norm, rng):
    for dtype in HALVES:
        for layout in ("NCHW", "NHWC") if norm.channels else ("NCHW",):
            x, args, kwargs, dy = call(norm, dtype, rng, layout)
            if norm.name == "global_response_norm":
                with pytest.raises(
                    ValueError, match="cast: expected None for global response norm"
                ):
                    forward(norm, x, args, kwargs, cast="before_weight")
                continue
            at = norm.name == "group_norm"
            axes = (3 if layout == "NHWC" else 1,)
            if not norm.channels:
                axes = norm.axis if isinstance(norm.axis, tuple) else (norm.axis,)
                axes = tuple(sorted(a % 4 for a in axes))
            tau = args[2] if norm.name == "filter_response_norm" else None
            y, ctx = forward(norm, x, args, kwargs, cast="before_weight")
            grads = fastnorm.backward(dy, ctx)
            want, dx, dw, db = separate(norm, x, args, kwargs, dy, at, axes, tau)
            same(y, want)
            same(grads.x, dx)
            same(grads.weight, dw)
            if grads.bias is not None:
                same(grads.bias, db.astype(grads.bias.dtype))


@pytest.mark.parametrize("norm", WEIGHTED, ids=lambda norm: norm.id)
def test_a_cast_changes_nothing_where_x_is_computed_in_its_dtype(norm, rng):
    if norm.name == "global_response_norm":
        pytest.skip("refused")
    for dtype in (np.float32, np.float64):
        x, args, kwargs, dy = call(norm, dtype, rng)
        y, ctx = forward(norm, x, args, kwargs, cast="before_weight")
        want, want_ctx = forward(norm, x, args, kwargs)
        assert y.tobytes() == want.tobytes()
        for got, expected in zip(
            fastnorm.backward(dy, ctx), fastnorm.backward(dy, want_ctx), strict=True
        ):
            assert got is expected is None or got.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", HALVES)
def test_a_cast_of_samples_with_what_is_behind(dtype, rng):
    """Weights of samples, an offset, a bias, a residual, an activation and a gate at once."""
    x, other, z, gate, dy, ds = (rng.standard_normal((3, 5, 700)).astype(dtype) for _ in range(6))
    weight, bias = (
        rng.standard_normal((3, 1, 700)).astype(dtype),
        rng.standard_normal(700).astype(dtype),
    )
    single = np.float32
    y, s, ctx = fastnorm.layer_norm(
        x, weight, bias, cast="before_weight", weight_offset=1.0, activation="relu", shortcut=z,
        gate=gate, gate_activation="relu", residual=other, return_ctx=True,
    )  # fmt: skip
    grads = fastnorm.backward(dy, ctx, ds=ds)
    same(s, (x.astype(single) + other.astype(single)).astype(dtype))
    x_hat, plain = fastnorm.layer_norm(s, return_ctx=True)
    w = weight.astype(single) + 1
    u = (x_hat.astype(single) * w).astype(dtype).astype(single)
    u = (u + bias.astype(single)).astype(dtype).astype(single)
    v = (u + z.astype(single)).astype(dtype)
    zero = dtype(0)
    a, b = np.maximum(v, zero).astype(single), np.maximum(gate, zero).astype(single)
    same(y, (a * b).astype(dtype))
    g = dy.astype(single)
    g1 = np.where(v > zero, (g * b).astype(dtype), zero).astype(single)
    same(grads.shortcut, g1.astype(dtype))
    same(grads.gate, np.where(gate > zero, (g * a).astype(dtype), zero))
    same(grads.bias, g1.sum((0, 1), np.float64).astype(single).astype(dtype))
    dw = (g1 * x_hat.astype(np.float64)).sum(1, keepdims=True)
    same(grads.weight, dw.astype(single).astype(dtype))
    dx = fastnorm.backward((g1 * w).astype(dtype), plain).x.astype(single)
    same(grads.x, (dx + ds.astype(single)).astype(dtype))


def test_contexts_are_pickled(rng):
    x, weight = rng.standard_normal((2, 64)).astype(np.float16), np.ones(64, np.float16)
    for more in ({"weight_offset": 0.5}, {"cast": "before_weight"}):
        _, ctx = fastnorm.rms_norm(x, weight, return_ctx=True, **more)
        want = fastnorm.backward(x, ctx)
        again = pickle.loads(pickle.dumps(ctx))
        for got, expected in zip(fastnorm.backward(x, again), want, strict=True):
            assert got is expected is None or got.tobytes() == expected.tobytes()
        np.testing.assert_array_equal(again.rstd, ctx.rstd)


# ---- as others -------------------------------------------------------------------------------


KINDS = [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)]


def of_torch(tensor, dtype):
    return tensor.detach().float().numpy().astype(dtype)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
def test_as_torch_does_it_bit_for_bit(kind, dtype, rng):
    """Llama's and Gemma's formulas, behind an x_hat in float32 that is ours."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, kind)
    x = torch.tensor(rng.standard_normal((64, 512)), dtype=kind)
    weight = torch.tensor(rng.standard_normal(512), dtype=kind)
    own, w = of_torch(x, dtype), of_torch(weight, dtype)
    x_hat = torch.from_numpy(fastnorm.rms_norm(x.float().numpy(), eps=1e-6))
    llama = fastnorm.rms_norm(own, w, eps=1e-6, cast="before_weight")
    same(llama, of_torch(weight * x_hat.to(kind), dtype))
    wide = fastnorm.rms_norm(own, w.astype(np.float32), eps=1e-6, cast="before_weight")
    same(wide, of_torch((weight.float() * x_hat.to(kind)).to(kind), dtype))
    gemma = fastnorm.rms_norm(own, w, eps=1e-6, weight_offset=1.0)
    same(gemma, of_torch((x_hat * (1.0 + weight.float())).type_as(x), dtype))
    assert (llama.astype(float) != fastnorm.rms_norm(own, w, eps=1e-6).astype(float)).mean() > 0.1


def llama(hidden, weight, eps):
    """transformers' LlamaRMSNorm.forward."""
    dtype = hidden.dtype
    hidden = hidden.float()
    variance = hidden.pow(2).mean(-1, keepdim=True)
    hidden = hidden * (variance + eps).rsqrt()
    return weight * hidden.to(dtype)


def gemma(x, weight, eps):
    """transformers' GemmaRMSNorm.forward."""
    out = x.float() * (x.float().pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    return (out * (1.0 + weight.float())).type_as(x)


@pytest.mark.parametrize(("kind", "dtype"), KINDS)
@pytest.mark.parametrize(
    ("formula", "more"), [(llama, {"cast": "before_weight"}), (gemma, {"weight_offset": 1.0})]
)
def test_gradients_of_torch(formula, more, kind, dtype, rng):
    torch = pytest.importorskip("torch")
    kind = getattr(torch, kind)
    x = torch.tensor(rng.standard_normal((64, 512)), dtype=kind, requires_grad=True)
    weight = torch.tensor(rng.standard_normal(512), dtype=kind, requires_grad=True)
    dy = torch.tensor(rng.standard_normal((64, 512)), dtype=kind)
    want = formula(x, weight, 1e-6)
    want.backward(dy)
    own = [of_torch(t, dtype) for t in (x, weight, dy)]
    y, ctx = fastnorm.rms_norm(*own[:2], eps=1e-6, return_ctx=True, **more)
    # x_hat in float32 differs in its last bit, and where it lies between two of 16 bits that shows
    assert (y.astype(np.float32) != want.detach().float().numpy()).mean() < 2e-3
    grads = fastnorm.backward(own[2], ctx)
    step = float(ml_dtypes.finfo(dtype).eps)
    for got, t in ((y, want), (grads.x, x.grad), (grads.weight, weight.grad)):
        expected = t.detach().float().numpy()
        error = np.abs(got.astype(np.float32) - expected).max()
        assert error <= 2 * step * np.abs(expected).max()


# ---- errors ----------------------------------------------------------------------------------

X, W = np.ones((3, 4), np.float16), np.ones(4, np.float16)
NO_WEIGHT = "expected None, as there is no weight, got"
NUMBER = "weight_offset: expected a finite number, got"
SHORT, INTS = np.ones(5, np.float16), np.ones((3, 4), int)
TABLE = [
    ({"weight": None, "weight_offset": 1.0}, ValueError, f"weight_offset: {NO_WEIGHT} 1.0"),
    ({"weight": None, "cast": "before_weight"}, ValueError, f"cast: {NO_WEIGHT} 'before_w"),
    ({"weight_offset": "1"}, TypeError, "weight_offset: expected a number, got str"),
    ({"weight_offset": True}, TypeError, "weight_offset: expected a number, got bool"),
    ({"weight_offset": np.inf}, ValueError, f"{NUMBER} inf"),
    ({"weight_offset": np.nan}, ValueError, f"{NUMBER} nan"),
    ({"weight_offset": 10**400}, ValueError, f"{NUMBER} inf"),
    ({"cast": "after"}, ValueError, "cast: expected one of before_weight, got 'after'"),
    ({"cast": True}, TypeError, "cast: expected a str, got bool"),
    ({"weight": W.astype(float)}, TypeError, "weight: expected dtype float16 or float32, got floa"),
    ({"weight": SHORT}, ValueError, r"weight: expected shape \(4,\), got \(5,\)"),
    ({"weight": [[1], [1, 2]]}, ValueError, "weight: expected an array, got"),
    ({"x": INTS}, TypeError, "x: expected dtype float32, .*got int64"),
    ({"eps": -1.0}, ValueError, "eps: expected a finite number of at least 0, got -1"),
    ({"axis": 2}, ValueError, "axis: expected axes in"),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{list(row[0])}-{row[2]:.20}")
def test_errors_name_the_argument_and_come_first(row):
    changes, error, message = row
    out = np.full((3, 4), 7, np.float16)
    own = {"weight_offset", "cast"} & changes.keys()
    for more in ({},) if own else ({"weight_offset": 1.0}, {"cast": "before_weight"}):
        with pytest.raises(error, match="^" + message):
            fastnorm.layer_norm(**{"x": X, "weight": W, "out": out, **more, **changes})
        assert (out == 7).all()
