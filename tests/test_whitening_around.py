"""Whitening with what stands around it: as separate calls; masks: as calls of the valid values."""

import copy
import functools
import pickle

import ml_dtypes
import numpy as np
import pytest

import fastnorm as fn
from fastnorm import activations

N, C, H, W = 5, 8, 4, 3
NORMS = [fn.decorrelated_batch_norm, fn.iter_norm]
same = np.testing.assert_array_equal


def state(dtype):
    return {"running_mean": np.full(C, 0.1, dtype), "running_cov": np.ones((2, 1, 1), dtype)
            * np.eye(4, dtype=dtype)}  # fmt: skip


def rounded(function, a, b):
    wide = np.float64 if a.dtype == np.float64 else np.float32
    return function(a.astype(wide), b.astype(wide)).astype(a.dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_around_has_the_bits_of_separate_calls(norm, training, dtype, rng):
    x, z, g, r, dy, ds = rng.standard_normal((6, N, C, H, W)).astype(dtype)
    affine = rng.standard_normal((2, C)).astype(dtype)
    norm = functools.partial(norm, training=training, group_size=4, return_ctx=True)
    one, other = state(dtype), state(dtype)
    y, s, ctx = norm(x, *affine, residual=r, shortcut=z, gate=g, activation="gelu", **one)
    total = rounded(np.add, x, r)
    u, own = norm(total, *affine, **other)
    v = rounded(np.add, u, z)
    gated = activations.silu(g)
    same(s, total)
    same(y, rounded(np.multiply, activations.gelu(v), gated))
    for name, a in one.items():
        same(a, other[name])
    grads = fn.backward(dy, pickle.loads(pickle.dumps(ctx)), ds=ds)
    dv = activations.backward(rounded(np.multiply, dy, gated), v, "gelu")
    dgate = activations.backward(rounded(np.multiply, dy, activations.gelu(v)), g, "silu")
    want = fn.backward(dv, own)
    same(grads.x, rounded(np.add, want.x, ds))
    same(grads.weight, want.weight)
    same(grads.bias, want.bias)
    same(grads.shortcut, dv)
    same(grads.gate, dgate)


@pytest.mark.parametrize("around", [{}, {"activation": "relu"}], ids=str)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_a_mask_is_a_call_of_the_valid_values(norm, training, layout, around, rng):
    def last(a):
        return np.moveaxis(a, 1, -1) if layout == "NCHW" else a

    shape = (N, C, H, W) if layout == "NCHW" else (N, H, W, C)
    mask = rng.random((N, H, W)) < 0.6
    x, dy = rng.standard_normal((2, *shape))
    whole = np.broadcast_to(np.expand_dims(mask, 1 if layout == "NCHW" else -1), shape)
    affine = rng.standard_normal((2, C))
    norm = functools.partial(norm, training=training, group_size=4, return_ctx=True, **around)
    one, other = state(np.float64), state(np.float64)
    given = whole[:, :1] if layout == "NCHW" else whole[..., :1]
    y, ctx = norm(np.where(whole, x, np.nan), *affine, mask=given, layout=layout, **one)
    want, own = norm(last(x)[mask], *affine, layout="NC", **other)
    same(last(y)[mask], want)
    assert not y[~whole].any()
    for name, a in one.items():
        same(a, other[name])
    grads, wanted = fn.backward(np.where(whole, dy, np.nan), ctx), fn.backward(last(dy)[mask], own)
    same(last(grads.x)[mask], wanted.x)
    assert not grads.x[~whole].any()
    same(grads.weight, wanted.weight)
    same(grads.bias, wanted.bias)
    same(ctx.mean, own.mean)


def test_lengths_and_a_mask_of_nothing(rng):
    x, running = rng.standard_normal((N, C, H)), state(np.float64)
    lengths = [4, 0, 2, 1, 3]
    y = fn.iter_norm(x, training=True, lengths=lengths)
    mask = np.arange(H) < np.array(lengths)[:, None, None]
    same(y, fn.iter_norm(x, training=True, mask=mask))
    before = copy.deepcopy(running)
    y, ctx = fn.iter_norm(x, np.ones(C), training=True, lengths=[0] * N, return_ctx=True,
                          group_size=4, **running)  # fmt: skip
    assert not y.any()
    assert not fn.backward(x, ctx).x.any()
    for name, a in running.items():
        same(a, before[name])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(N, C), (N, C, 24, 24), (1, 1, 24, 24)])
def test_weights_that_differ(norm, shape, rng):
    """y is the whitened x times the weight; gradients are those of the product."""
    x, dy = rng.standard_normal((2, N, C, 24, 24))  # where a sample could be a call of its own
    w, b = rng.standard_normal((2, *shape))
    y, ctx = norm(x, w, b, training=True, return_ctx=True)
    x_hat, own = norm(x, training=True, return_ctx=True)
    view = w.reshape(*w.shape, *(1,) * (4 - w.ndim))
    np.testing.assert_allclose(y, x_hat * view + b.reshape(view.shape), rtol=1e-12, atol=1e-12)
    grads = fn.backward(dy, ctx)
    np.testing.assert_allclose(grads.x, fn.backward(dy * view, own).x, rtol=1e-9, atol=1e-12)
    over = tuple(i for i, n in enumerate(view.shape) if n == 1)
    for found, product in ((grads.weight, dy * x_hat), (grads.bias, dy)):
        want = product.sum(over).reshape(w.shape)
        np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)


def test_weights_of_gemma(rng):
    x, w = rng.standard_normal((N, C)), rng.standard_normal(C)
    y = fn.iter_norm(x, w, training=True, weight_offset=1.0)
    same(y, fn.iter_norm(x, w + 1, training=True))


@pytest.mark.parametrize("layer", [fn.DecorrelatedBatchNorm, fn.IterNorm])
def test_layers(layer, rng):
    x, z, dy = rng.standard_normal((3, N, C, H, W), dtype=np.float32)
    made, plain = layer(C, 4, activation="relu"), layer(C, 4)
    assert "activation='relu'" in repr(made)
    y = made(x, shortcut=z)
    same(y, np.maximum(plain(x) + z, 0))
    dx = made.backward(dy)
    dv = np.where(y > 0, dy, np.float32(0))
    same(dx, plain.backward(dv))
    same(made.input_grads["shortcut"], dv)
    same(made.buffers["running_cov"], plain.buffers["running_cov"])
    made(x, lengths=[0] * N)
    assert made.buffers["num_batches_tracked"] == 1
    with pytest.raises(ValueError, match="activation: expected one of"):
        layer(C, activation="nothing")


X = np.ones((N, C, H, W))
ERRORS = [
    ({"activation": "nothing"}, ValueError, "activation: expected one of"),
    ({"shortcut": X[:1]}, ValueError, "shortcut: expected"),
    ({"gate": X.astype(np.float32)}, TypeError, "gate: "),
    ({"mask": np.ones((N, C, H, W), bool)}, ValueError, "mask: expected size 1 along the channels"),
    ({"mask": X[:, :1]}, TypeError, "mask: expected dtype bool"),
    ({"lengths": [9] * N}, ValueError, "lengths: expected at least 0 and at most 4"),
    ({"weight": np.ones((N, C + 1))}, ValueError, r"weight: expected shape \(8,\), got \(5, 9\)"),
    ({"moments": fn.Moments.from_array(X, layout="NCHW")}, ValueError, "moments: expected None"),
    ({"offsets": [0, N]}, ValueError, "offsets: expected None"),
    ({"out_dtype": "int8", "scale": 1.0}, ValueError, "out_dtype: expected None"),
    ({"nothing": 1}, TypeError, "unexpected keyword argument 'nothing'"),
]


@pytest.mark.parametrize(("around", "error", "message"), ERRORS)
def test_what_is_wrong_is_named_and_nothing_is_written(around, error, message):
    out, running = np.full_like(X, 7), state(np.float64)
    before = copy.deepcopy(running)
    with pytest.raises(error, match=message):
        fn.decorrelated_batch_norm(X, training=True, group_size=4, out=out, **running, **around)
    assert (out == 7).all()
    for name, a in running.items():
        same(a, before[name])


@pytest.mark.parametrize("around", [{"activation": "relu"}, {"lengths": [1] * N}], ids=str)
def test_running_covariances_are_apart_from_what_is_written(around):
    memory = np.zeros(X.size)
    cov, mean = memory[:32].reshape(2, 4, 4), np.zeros(C)
    call = functools.partial(fn.iter_norm, training=True, group_size=4, running_mean=mean,
                             running_cov=cov, **around)  # fmt: skip
    with pytest.raises(ValueError, match="out: expected an array apart from running_cov"):
        call(X, out=memory.reshape(X.shape))
    for more in ({}, {"residual": X}):
        with pytest.raises(ValueError, match="running_cov: expected an array apart from x"):
            call(memory.reshape(X.shape), **more)


def test_an_x_that_was_changed_is_named(rng):
    x = rng.standard_normal((N, C, H, W))
    y, ctx = fn.iter_norm(x, training=True, activation="relu", return_ctx=True)
    x.shape = (N, C, H * W)
    with pytest.raises(ValueError, match="ctx: expected x as it was in the forward call"):
        fn.backward(y, ctx)
