"""Batch norm in training with weights of samples: large samples are calls of their own, with the
moments of the batch. They give what pieces give."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from cases import assert_close

import fastnorm as fn
from fastnorm.around import _affine

N, C, H, W = 3, 12, 24, 20
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "float16": 3e-3, "bfloat16": 2e-2}


def by_pieces(monkeypatch):
    """Let no sample be large enough for a call of its own."""
    monkeypatch.setattr(_affine, "LEAST_SLICE", 1 << 40)


def laid(a, layout):
    if layout == "NHWC":
        return np.ascontiguousarray(np.moveaxis(a, 1, -1))
    return fn.to_blocked(a, 8) if layout == "NCHW8c" else a


def run(x, dy, weight, bias, layout, **around):
    dtype = np.float64 if x.dtype == np.float64 else np.float32
    running = {"running_mean": np.full(C, 0.5, dtype), "running_var": np.full(C, 2.0, dtype)}
    *y, ctx = fn.batch_norm(x, weight, bias, training=True, layout=layout, return_ctx=True,
                            **running, **around)  # fmt: skip
    more = {"ds": dy} if "residual" in around else {}
    grads = fn.backward(dy, ctx, **more)
    named = dict(zip(("y", "s"), y, strict=False)) | grads._asdict() | running
    return {name: a for name, a in named.items() if a is not None}


KINDS = {"both": (True, True), "weight alone": (True, None), "bias alone": (None, True),
         "a shared bias": (True, False), "a shared weight": (False, True)}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NCHW8c"])
@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS)
def test_samples_give_what_pieces_give(kinds, layout, dtype, rng, monkeypatch):
    x, dy, z = (laid(a.astype(dtype), layout) for a in rng.standard_normal((3, N, C, H, W)))
    given = [
        None if wide is None else a.astype(dtype) if wide else a[0].astype(dtype)
        for a, wide in zip(rng.standard_normal((2, N, C)), kinds, strict=True)
    ]
    if kinds == (True, True):
        given[0][1] = 0  # of a weight of 0 nothing comes back
    for around in ({}, {"activation": "silu", "residual": z, "gate": dy}):
        got = run(x, dy, *given, layout, **around)
        with monkeypatch.context() as patch:
            by_pieces(patch)
            want = run(x, dy, *given, layout, **around)
        assert got.keys() == want.keys()
        for name, a in want.items():
            assert got[name].dtype == a.dtype
            assert got[name].shape == a.shape
            assert_close(got[name], a, TOLERANCE[np.dtype(dtype).name], name)
            if name.startswith("running"):
                np.testing.assert_array_equal(got[name], a)


@pytest.mark.parametrize(("dtype", "scale"), [
    (np.float32, 1e-30), (np.float32, 1e-18), (np.float32, 1e18), (np.float32, 1e30),
    (np.float64, 1e-200), (np.float64, 1e200),
])  # fmt: skip
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_numbers_whose_squares_are_out_of_range(layout, dtype, scale, rng):
    """y is that of the same numbers without the scale; dx is by the scale."""
    x, dy = (laid(a, layout).astype(dtype) for a in rng.standard_normal((2, N, C, H, W)))
    affine = rng.standard_normal((2, N, C)).astype(dtype)
    tolerance = 1e-5 if dtype == np.float32 else 1e-12
    call = {"training": True, "layout": layout, "eps": 0.0, "return_ctx": True}
    y, ctx = fn.batch_norm(x * dtype(scale), *affine, **call)
    exact = (x * dtype(scale)).astype(np.float64) / scale  # what is left of x
    want, own = fn.batch_norm(exact, *affine.astype(np.float64), **call)
    assert_close(y, want, tolerance, "y")
    grads, wanted = fn.backward(dy, ctx), fn.backward(dy.astype(np.float64), own)
    assert_close(grads.x * np.float64(scale), wanted.x, tolerance, "dx")
    assert_close(grads.weight, wanted.weight, tolerance, "dweight")


SHAPES = [((N, 1, 1, 1), (N, C)), ((N, C), (1, 1, 1, 1)), ((1, C, 1, 1), (N, 1, 1, 1))]


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_parameters_that_broadcast(shapes, rng, monkeypatch):
    x, dy = rng.standard_normal((2, N, C, H, W))
    given = [rng.standard_normal(shape) for shape in shapes]
    got = run(x, dy, *given, "NCHW")
    by_pieces(monkeypatch)
    for name, a in run(x, dy, *given, "NCHW").items():
        assert got[name].shape == a.shape
        assert_close(got[name], a, 1e-12, name)


@pytest.mark.parametrize("layout", ["NCHW", "NCHW8c"])
@pytest.mark.parametrize("norm", ["batch_norm", "instance_norm"])
def test_an_empty_batch(norm, layout):
    x, weight = laid(np.ones((0, C, H, W)), layout), np.ones((0, C))
    training = {"training": True} if norm == "batch_norm" else {}
    y, ctx = getattr(fn, norm)(x, weight, layout=layout, return_ctx=True, **training)
    assert ctx.mean.shape[-1] == C
    grads = fn.backward(y, ctx)
    assert y.shape == grads.x.shape == x.shape
    assert grads.weight.shape == (0, C)


def test_x_is_kept_once(rng):
    """Beside x there are the parameters and the moments."""
    x, weight = rng.standard_normal((N, C, H, W)), rng.standard_normal((N, C))
    _, ctx = fn.batch_norm(x, weight, training=True, return_ctx=True)
    assert x.nbytes < len(pickle.dumps(ctx)) < 1.2 * x.nbytes


def test_constant_channels_have_no_gradient(rng):
    """Where x and dy * weight are constant, dx is 0, not what rounding leaves."""
    x, dy = rng.standard_normal((2, N, C, H, W)).astype(np.float32)
    weight = np.ones((N, C), np.float32)
    weight[:, 3], weight[:, 5] = [1, 3, 7], 0
    x[:, 3], dy[:, 3] = 7, 0.3 / weight[:, 3, None, None]
    _, ctx = fn.batch_norm(x, weight, training=True, return_ctx=True)
    dx = fn.backward(dy, ctx).x
    assert not dx[:, [3, 5]].any()
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("place", ["x itself", "over x", "strided", "over the weight"])
def test_results_go_where_they_are_wanted(place, rng):
    x, dy = rng.standard_normal((2, N, C, H, W))
    weight, bias = rng.standard_normal((2, N, C))
    want, ctx = fn.batch_norm(x, weight, bias, training=True, return_ctx=True)
    grads = fn.backward(dy, ctx)
    memory = np.zeros(3 * x.size)
    source = memory[: x.size].reshape(x.shape)
    source[...] = x
    out = {"x itself": source, "over x": memory[7 : 7 + x.size].reshape(x.shape),
           "strided": memory[x.size :: 2][: x.size].reshape(x.shape),
           "over the weight": memory[x.size : 2 * x.size].reshape(x.shape)}[place]  # fmt: skip
    if place == "over the weight":
        memory[x.size + 5 : x.size + 5 + N * C] = weight.ravel()
        weight = memory[x.size + 5 : x.size + 5 + N * C].reshape(N, C)
        y, ctx = fn.batch_norm(source, weight, bias, training=True, out=out, return_ctx=True)
        np.testing.assert_array_equal(fn.backward(dy, ctx).x, grads.x)
    else:
        y = fn.batch_norm(source, weight, bias, training=True, out=out)
    assert y is out
    np.testing.assert_array_equal(y, want)


def test_what_is_wrong_is_named_and_nothing_is_written(rng):
    x, weight = rng.standard_normal((N, C, H, W)), np.ones((N, C))
    out, before = np.full_like(x, 7), x.copy()
    mean, var = np.zeros(C), np.ones(C)
    call = {"training": True, "running_mean": mean, "running_var": var, "out": out}
    for changes, error, message in (
        ({"eps": -1}, ValueError, "eps: expected"),
        ({"ddof": 2}, ValueError, "ddof: expected"),
        ({"momentum": None}, TypeError, "momentum: expected"),
        ({"running_var": np.ones(C, "f4")}, TypeError, "running_var: expected dtype"),
        ({"running_var": x.reshape(-1)[:C]}, ValueError, "running_var: .* apart from x"),
        ({"running_var": out.reshape(-1)[:C]}, ValueError, "out: .* apart from running_var"),
        ({"out": out[:, :3]}, ValueError, "out: expected shape"),
        ({"out": x, "return_ctx": True}, ValueError, "out: expected an array apart from x"),
        ({"bias": np.ones((N, C + 1))}, ValueError, "bias: expected shape"),
        ({"layout": "NCL"}, ValueError, "layout: expected"),
    ):
        with pytest.raises(error, match=message):
            fn.batch_norm(x, weight, **{**call, **changes})
    assert (out == 7).all()
    assert not mean.any()
    np.testing.assert_array_equal(x, before)
    _, ctx = fn.batch_norm(x, weight, training=True, return_ctx=True)
    with pytest.raises(ValueError, match="out: expected an array apart from the x"):
        fn.backward(x, ctx, out=x)
