"""Parameters of samples: arrays in any memory, over one another, and empty."""

import copy
import pickle

import ml_dtypes
import numpy as np
import pytest
from affine_cases import CALLS, call_of, same
from cases import everywhere, uniform

import fastnorm

PLACES = {
    "dense": lambda m, shape: m[: np.prod(shape)].reshape(shape),
    "behind": lambda m, shape: m[33 : 33 + np.prod(shape)].reshape(shape),
    "strided": lambda m, shape: m.reshape(*shape[:-1], 2 * shape[-1])[..., ::2],
    "reversed": lambda m, shape: m[: np.prod(shape)].reshape(shape)[::-1],
    "swapped": lambda m, shape: m[: np.prod(shape)].view(m.dtype.newbyteorder()).reshape(shape),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_outputs_over_inputs_are_as_if_they_were_apart(name, place, rng):
    for dtype in (np.float32, np.float16):
        function, arrays, more = call_of(name, rng, dtype)
        shape = arrays["x"].shape
        want, s = function(**arrays, **more)
        del arrays["residual"]
        want_alone = function(**arrays, **more)
        for other in arrays:
            memory = np.zeros(2 * arrays["x"].size, dtype)
            a = memory[: arrays[other].size].reshape(arrays[other].shape)
            a[...] = arrays[other]
            out = PLACES[place](memory, shape)
            y = function(**{**arrays, other: a}, **more, out=out)
            assert y is out
            same(np.asarray(y, dtype), want_alone)
        function, arrays, more = call_of(name, np.random.default_rng(20240611), dtype)
    del want, s


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_sums_over_inputs_are_as_if_they_were_apart(name, place, rng):
    for dtype in (np.float32, np.float16):
        function, arrays, more = call_of(name, rng, dtype)
        dy = arrays["x"][::-1].copy()
        y, s, ctx = function(**arrays, **more, return_ctx=True)
        want = fastnorm.backward(dy, ctx, ds=dy)
        for other in arrays:
            memory = np.zeros(2 * arrays["x"].size, dtype)
            a = memory[: arrays[other].size].reshape(arrays[other].shape)
            a[...] = arrays[other]
            sum_out = PLACES[place](memory, arrays["x"].shape)
            call = {**arrays, other: a, **more, "return_ctx": True, "sum_out": sum_out}
            got, total, ctx = function(**call, out=np.empty_like(y))
            assert total is sum_out
            same(got, y)
            same(np.asarray(total, dtype), s)
            if other in ("x", "residual"):
                for grad, expected in zip(fastnorm.backward(dy, ctx, ds=dy), want, strict=True):
                    assert grad is expected is None or same(grad, expected)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", CALLS)
def test_gradients_over_dy(name, place, rng):
    function, arrays, more = call_of(name, rng)
    dy = arrays["x"][::-1].copy()
    _, _, ctx = function(**arrays, **more, return_ctx=True)
    want = fastnorm.backward(dy, ctx, ds=dy)
    memory = np.zeros(2 * dy.size, dy.dtype)
    own = memory[: dy.size].reshape(dy.shape)
    own[...] = dy
    out = PLACES[place](memory, dy.shape)
    grads = fastnorm.backward(own, ctx, out, ds=own)
    assert grads.x is out
    for grad, expected in zip(grads, want, strict=True):
        assert grad is expected is None or same(np.asarray(grad, np.float32), expected)


@pytest.mark.parametrize("other", ["shortcut", "gate"])
@pytest.mark.parametrize("name", CALLS)
def test_outputs_over_what_backward_reads_again(name, other, rng):
    function, arrays, more = call_of(name, rng)
    dy = rng.standard_normal(arrays["x"].shape).astype(np.float32)
    y, _, ctx = function(**arrays, **more, return_ctx=True)
    out = arrays[other].copy()
    got, _, again = function(**{**arrays, other: out}, **more, out=out, return_ctx=True)
    assert got is out
    same(got, y)
    grads = fastnorm.backward(dy, ctx, ds=dy)
    for found, expected in zip(fastnorm.backward(dy, again, ds=dy), grads, strict=True):
        assert found is expected is None or same(found, expected)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_over_what_is_read_are_refused(name, rng):
    function, arrays, more = call_of(name, rng)
    del arrays["residual"]
    dy = arrays["x"].copy()
    for other in arrays:
        memory = np.zeros(2 * dy.size, np.float32)
        a = memory[7 : 7 + arrays[other].size].reshape(arrays[other].shape)
        a[...] = arrays[other]
        before = memory.copy()
        _, ctx = function(**{**arrays, other: a}, **more, return_ctx=True)
        out = memory[: dy.size].reshape(dy.shape)
        with pytest.raises(ValueError, match=f"out: expected an array apart from the {other} of"):
            fastnorm.backward(dy, ctx, out)
        np.testing.assert_array_equal(memory, before)


@pytest.mark.parametrize("name", CALLS)
def test_inputs_that_are_not_dense(name, rng):
    function, arrays, more = call_of(name, rng)
    want = function(**arrays, **more, return_ctx=True)
    dy = arrays["x"][::-1].copy()
    grads = fastnorm.backward(dy, want[-1], ds=dy)
    for change in (
        lambda a: np.repeat(a, 2, -1)[..., ::2],
        lambda a: a.astype(">f4"),
        lambda a: np.asfortranarray(a),
    ):
        found = function(**{k: change(a) for k, a in arrays.items()}, **more, return_ctx=True)
        for got, expected in zip(found[:2], want[:2], strict=True):
            same(got, expected)
        own = fastnorm.backward(change(dy), found[-1], ds=change(dy))
        for got, expected in zip(own, grads, strict=True):
            assert got is expected is None or same(got, expected)


@pytest.mark.parametrize("name", CALLS)
def test_contexts(name, rng):
    """They serve again, can be copied and pickled, show statistics, and see what was changed."""
    function, arrays, more = call_of(name, rng)
    y, s, ctx = function(**arrays, **more, return_ctx=True)
    dy = arrays["x"][::-1].copy()
    want = fastnorm.backward(dy, ctx, ds=dy)
    plain = {k: v for k, v in more.items() if k == "training"}
    _, own = function(s, **plain, return_ctx=True)
    for again in (ctx, copy.copy(ctx), copy.deepcopy(ctx), pickle.loads(pickle.dumps(ctx))):
        for got, expected in zip(fastnorm.backward(dy, again, ds=dy), want, strict=True):
            assert got is expected is None or same(got, expected)
        for statistic in ("mean", "var", "rstd"):
            np.testing.assert_array_equal(getattr(again, statistic), getattr(own, statistic))
    del arrays["residual"]
    _, ctx = function(**arrays, **more, return_ctx=True)
    with pytest.raises(ValueError, match="ds: expected None, as the forward call had no residual"):
        fastnorm.backward(dy, ctx, ds=dy)
    for other in ("x", "weight", "shortcut"):
        _, ctx = function(**arrays, **more, return_ctx=True)
        was = arrays[other].shape
        arrays[other].shape = (-1,)
        with pytest.raises(ValueError, match=f"ctx: expected {other} as it was"):
            fastnorm.backward(dy, ctx)
        arrays[other].shape = was
        fastnorm.backward(dy, ctx)
    assert y.shape == dy.shape


def test_statistics_of_inference_are_those_of_the_channels(rng):
    x, weight = uniform(rng, (3, 6, 60, 70), np.float32), uniform(rng, (3, 6), np.float32)
    states = {"running_mean": uniform(rng, 6, np.float32), "running_var": np.full(6, 2, np.float32)}
    _, plain = fastnorm.batch_norm(x, **states, return_ctx=True)
    _, ctx = fastnorm.batch_norm(x, weight, **states, return_ctx=True)
    for statistic in ("mean", "var", "rstd"):
        np.testing.assert_array_equal(getattr(ctx, statistic), getattr(plain, statistic))


@pytest.mark.parametrize("name", CALLS)
def test_the_same_bits_everywhere(name, rng):
    for dtype in (np.float32, ml_dtypes.bfloat16):
        function, arrays, more = call_of(name, rng, dtype)
        dy = arrays["x"][::-1].copy()
        want = None
        for _ in everywhere((1, 2)):
            y, s, ctx = function(**arrays, **more, return_ctx=True)
            found = [
                a.tobytes() for a in (y, s, *fastnorm.backward(dy, ctx, ds=s)) if a is not None
            ]
            want = want or found
            assert found == want


def test_empty():
    w = np.ones((0, 6), np.float32)
    y, ctx = fastnorm.instance_norm(np.ones((0, 6, 5), np.float32), w, w, return_ctx=True)
    grads = fastnorm.backward(y, ctx)
    assert [g.shape for g in grads] == [(0, 6, 5), (0, 6), (0, 6)]
    mean, var = np.zeros(6), np.ones(6)
    x = np.ones((2, 6, 0))
    y, ctx = fastnorm.batch_norm(
        x, np.ones((2, 6)), training=True, running_mean=mean, running_var=var, return_ctx=True
    )  # fmt: skip
    assert fastnorm.backward(y, ctx).weight.tolist() == np.zeros((2, 6)).tolist()
    assert (mean.any(), var.tolist()) == (False, [1] * 6)
    y, ctx = fastnorm.layer_norm(np.ones((2, 3, 0)), np.ones((2, 1, 0)), return_ctx=True)
    assert fastnorm.backward(y, ctx).weight.shape == (2, 1, 0)
