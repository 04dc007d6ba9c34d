"""Whitening as it is called: outputs, memory, errors, and the layers, with state that behaves."""

import copy
import functools
import pickle
import tracemalloc

import numpy as np
import pytest
from cases import assert_close

import fastnorm
from fastnorm.norms import _groups


def draw(rng, shape=(5, 8, 4, 3), dtype=np.float32):
    """Correlated along axis 1."""
    x = np.tensordot(rng.standard_normal((shape[1],) * 2), rng.standard_normal(shape), (1, 1))
    return np.moveaxis(x, 0, 1).astype(dtype, order="C")


@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_has_an_empty_result_and_updates_nothing(training):
    for shape in ((0, 8, 3), (2, 8, 0), (2, 0, 3)):
        c = shape[1]
        g = min(c, 1)
        states = np.full(c, 2.0), np.full((g, c or 1, c or 1), 3.0)
        y, ctx = fastnorm.decorrelated_batch_norm(
            np.ones(shape), np.ones(c), np.ones(c), running_mean=states[0], running_cov=states[1],
            training=training, return_ctx=True,
        )  # fmt: skip
        grads = fastnorm.backward(y, ctx)
        assert y.shape == grads.x.shape == shape
        np.testing.assert_array_equal([grads.weight, grads.bias], np.zeros((2, c)))
        assert (states[0] == 2).all()
        assert (states[1] == 3).all()


def test_fewer_channels_than_group_size_are_one_group(rng):
    x = draw(rng)
    want = fastnorm.decorrelated_batch_norm(x, training=True, group_size=8)
    for size in (9, 16, 10**20):
        got = fastnorm.decorrelated_batch_norm(x, training=True, group_size=size)
        np.testing.assert_array_equal(got, want)


# ---- memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "NC"])
def test_out(layout, rng, monkeypatch):
    """Into x itself, over it, strided, over the weight; backward into dy, and over it.

    By small chunks, so that what was written could be read.
    """
    for name, value in {"CHUNK": 16, "PRODUCT": 1, "MANY": 1, "FEW": 2}.items():
        monkeypatch.setattr(_groups, name, value)
    shape = {"NC": (19, 8), "NCHW": (4, 8, 6, 5), "NHWC": (4, 6, 5, 8)}[layout]
    x, dy = draw(rng, shape, np.float64), draw(rng, shape, np.float64)
    w, b = rng.uniform(0.5, 1.5, (2, 8))
    call = functools.partial(
        fastnorm.decorrelated_batch_norm, bias=b, training=True, group_size=4, layout=layout
    )
    want, ctx = call(x, w, return_ctx=True)
    dx = fastnorm.backward(dy, ctx).x

    def place(memory, shift, step):
        return memory[shift : shift + step * x.size : step].reshape(x.shape)

    for shift, step in ((0, 1), (3, 1), (1, 2)):
        memory = np.zeros(3 * x.size)
        source, out = place(memory, 0, 1), place(memory, shift, step)
        source[...] = x
        assert call(source, w, out=out) is out
        np.testing.assert_array_equal(out, want)
        source[...] = dy
        assert fastnorm.backward(source, ctx, out=out).x is out
        np.testing.assert_array_equal(out, dx)
        memory[4:12] = w  # in out
        y, other = call(x, memory[4:12], out=place(memory, 1, step), return_ctx=True)
        np.testing.assert_array_equal(y, want)
        np.testing.assert_array_equal(fastnorm.backward(dy, other).x, dx)
    swapped = x.astype(">f8")[::-1][::-1]
    np.testing.assert_array_equal(call(swapped, w.astype(">f8")), want)
    np.testing.assert_array_equal(fastnorm.backward(np.asfortranarray(dy), ctx).x, dx)


def test_no_temporary_has_the_size_of_the_array(rng):
    shapes = {"NCL": (1, 16, 2**17), "NCHW": (128, 16, 32, 32), "NC": (2**17, 16),
              "NHWC": (64, 64, 32, 16)}  # fmt: skip
    for layout, shape in shapes.items():
        x = np.ones(shape, np.float32)
        x.reshape(-1)[::7] = 3
        y, dx = np.empty_like(x), np.empty_like(x)
        tracemalloc.start()
        _, ctx = fastnorm.iter_norm(x, training=True, layout=layout, out=y, return_ctx=True)
        fastnorm.backward(x, ctx, out=dx)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert x.nbytes >= 8 * 2**20
        assert peak < 3 * 2**20


# ---- errors ----------------------------------------------------------------------------------

C, M = np.zeros(8), np.zeros((2, 4, 4))
NEW = {"running_mean": C, "running_cov": M, "training": True}
ERRORS = [
    ({"x": np.ones(8)}, ValueError, "x: expected at least 2 dimensions"),
    ({"x": np.ones((4, 8), int)}, TypeError, "x: expected dtype float32"),
    ({"x": np.ones((1, 8)), "training": True}, ValueError, r"x: expected more than one value .*8"),
    ({"weight": np.ones(7)}, ValueError, r"weight: expected shape \(8,\), got \(7,\)"),
    ({"bias": np.ones(8, "f4")}, TypeError, "bias: expected dtype float64, got float32"),
    ({"running_mean": None, "running_cov": None}, ValueError,
     r"running_mean, running_cov: expected arrays of shapes \(8,\) and \(2, 4, 4\) when training"),
    ({"running_cov": None}, ValueError, "running_mean, running_cov: expected both or neither, got "
     "only running_mean"),
    ({"running_mean": None}, ValueError, "running_mean, .* got only running_cov"),
    ({"running_cov": np.zeros((8, 8))}, ValueError,
     r"running_cov: expected shape \(2, 4, 4\), got \(8, 8\)"),
    ({"running_cov": M.astype("f4")}, TypeError, "running_cov: expected dtype float64, got"),
    ({**NEW, "running_cov": np.broadcast_to(0.0, M.shape)}, ValueError,
     "running_cov: expected a writeable, C-contiguous"),
    ({**NEW, "running_cov": M.transpose(0, 2, 1)}, ValueError, "running_cov: .*contiguous=False"),
    ({**NEW, "running_cov": M.tolist()}, TypeError, "running_cov: expected an ndarray.* got list"),
    ({**NEW, "running_mean": M.ravel()[:8]}, ValueError,
     "running_cov: expected an array apart from running_mean"),
    ({**NEW, "weight": C}, ValueError, "running_mean: expected an array apart from weight, since"),
    ({"group_size": 3}, ValueError, "group_size: expected a positive divisor of the 8 channels"),
    ({"group_size": 0}, ValueError, "group_size: expected a positive divisor .*, got 0"),
    ({"group_size": -4}, ValueError, "group_size: expected a positive divisor"),
    ({"group_size": 4.0}, TypeError, "group_size: expected an int, got float"),
    ({"eps": 0}, ValueError, "eps: expected a number above 0, got 0"),
    ({"eps": -1e-5}, ValueError, "eps: expected a finite number of at least 0, got -1e-05"),
    ({"eps": None}, TypeError, "eps: expected a number, got NoneType"),
    ({"momentum": None}, TypeError, "momentum: expected a number, got None .the cumulative"),
    ({"momentum": 1.5}, ValueError, r"momentum: expected a finite number in \[0, 1\]"),
    ({"training": 2}, TypeError, "training: expected a bool"),
    ({"layout": "NCHW16c", "x": np.ones((2, 1, 3, 3, 16))}, ValueError,
     "layout: expected channels first or last, got 'NCHW16c', in blocks"),
    ({"layout": "NCL"}, ValueError, "layout: expected one of .* for 2 dimensions, got 'NCL'"),
    ({"out": np.ones((4, 8), "f4")}, TypeError, "out: expected dtype float64"),
    ({"out": np.ones((4, 7))}, ValueError, "out: expected shape"),
    ({"out": M.ravel()[:32].reshape(4, 8)}, ValueError,
     "out: expected an array apart from running_cov"),
    ({"out": np.broadcast_to(1.0, (4, 8))}, ValueError, "out: expected a writeable array"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "error", "message"), ERRORS)
def test_errors(changes, error, message):
    kwargs = {"x": np.ones((4, 8)), "group_size": 4, "running_mean": C, "running_cov": M, **changes}
    for function in (fastnorm.decorrelated_batch_norm, fastnorm.iter_norm):
        with pytest.raises(error, match=f"^{message}"):
            function(**kwargs)
    assert not C.any()
    assert not M.any()


def test_other_errors(rng):
    x = draw(rng, (19, 8), np.float64)
    for value, error in ((0, ValueError), (2.0, TypeError), (None, TypeError)):
        with pytest.raises(error, match=r"^iterations: expected"):
            fastnorm.iter_norm(x, training=True, iterations=value)
    with pytest.raises(ValueError, match="out: expected an array apart from x when return_ctx"):
        fastnorm.iter_norm(x, training=True, out=x, return_ctx=True)
    y, ctx = fastnorm.iter_norm(x, np.ones(8), training=True, return_ctx=True)
    for dy, out, error, message in (
        (y[:3], None, ValueError, r"dy: expected y's shape \(19, 8\), got \(3, 8\)"),
        (y.astype("f4"), None, TypeError, "dy: expected x's dtype float64, got float32"),
        (y, x, ValueError, "out: expected an array apart from the x of the forward call"),
        (y, y[:3], ValueError, "out: expected shape"),
        (y, 3, TypeError, "out: expected an ndarray, got int"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            fastnorm.backward(dy, ctx, out=out)
    x.shape = (8, 19)
    with pytest.raises(ValueError, match="ctx: expected x as it was in the forward call"):
        fastnorm.backward(y, ctx)


# ---- layers ----------------------------------------------------------------------------------

LAYERS = {
    fastnorm.DecorrelatedBatchNorm: fastnorm.decorrelated_batch_norm,
    fastnorm.IterNorm: fastnorm.iter_norm,
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layer", LAYERS)
def test_training_then_inference(layer, dtype, rng):
    made, function = layer(8, 4, dtype=dtype, momentum=0.2, eps=1e-3), LAYERS[layer]
    for param in made.params.values():
        param[...] = rng.uniform(0.5, 1.5, 8)
    states = {
        "running_mean": np.zeros(8, dtype),
        "running_cov": np.tile(np.eye(4, dtype=dtype), (2, 1, 1)),
    }
    assert [*made.buffers] == [*states, "num_batches_tracked"]
    for training in (True, True, False, True):
        made.train(training)
        x, dy = draw(rng, dtype=dtype), draw(rng, dtype=dtype)
        y, ctx = function(
            x, **made.params, **states, training=training, group_size=4, momentum=0.2, eps=1e-3,
            return_ctx=True,
        )  # fmt: skip
        grads = fastnorm.backward(dy, ctx)
        np.testing.assert_array_equal(made(x), y)
        np.testing.assert_array_equal(made.backward(dy), grads.x)
        assert made.grads.keys() == made.params.keys()
        for name, gradient in made.grads.items():
            np.testing.assert_array_equal(gradient, getattr(grads, name))
        for name, state in states.items():
            np.testing.assert_array_equal(made.buffers[name], state)
    assert made.buffers["num_batches_tracked"] == 3
    made(x[:0])
    assert made.buffers["num_batches_tracked"] == 3


def test_state_moves_between_both_layers(rng):
    x = draw(rng)
    for first, second in ((0, 0), (1, 1), (0, 1), (1, 0)):
        one, other = ([*LAYERS][i](8, group_size=4) for i in (first, second))
        one(x)
        one.params["weight"] += 0.5
        state = one.state_dict()
        other.load_state_dict(state)
        want = [*LAYERS.values()][second](
            x, **one.params, running_mean=one.buffers["running_mean"],
            running_cov=one.buffers["running_cov"], group_size=4,
        )  # fmt: skip
        np.testing.assert_array_equal(other.eval()(x), want)
        for value in state.values():  # copies
            value += 1
        np.testing.assert_array_equal(other(x), want)
    with pytest.raises(ValueError, match=r"state\['running_cov'\]: expected shape \(1, 8, 8\)"):
        fastnorm.IterNorm(8).load_state_dict(state)
    with pytest.raises(ValueError, match=r"state: expected .* \(missing \['running_cov'\]"):
        fastnorm.IterNorm(8).load_state_dict(fastnorm.BatchNorm(8).state_dict())


@pytest.mark.parametrize("layer", LAYERS)
def test_copies_and_contexts_that_were_pickled(layer, rng):
    x, dy = draw(rng), draw(rng)
    made = layer(8, group_size=4)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        other(x)
        assert not made.buffers["num_batches_tracked"]
    y, ctx = LAYERS[layer](x, np.ones(8, "f4"), training=True, group_size=4, return_ctx=True)
    want = fastnorm.backward(dy, ctx)
    for other in (copy.deepcopy(ctx), pickle.loads(pickle.dumps(ctx))):
        got = fastnorm.backward(dy, other)
        np.testing.assert_array_equal(got.x, want.x)
        np.testing.assert_array_equal(got.weight, want.weight)
    # a context shows what it used
    centered = x.astype(np.float64) - ctx.mean.reshape(8, 1, 1)
    again = ctx.matrix[1] @ centered[:, 4:].reshape(5, 4, -1)
    assert_close(y[:, 4:].reshape(again.shape), again, 1e-6, "y")


def test_the_cumulative_average(rng):
    layer = fastnorm.DecorrelatedBatchNorm(8, momentum=None, dtype=np.float64)
    batches = [draw(rng, dtype=np.float64) for _ in range(3)]
    for x in batches:
        layer(x)
    flat = [np.moveaxis(x, 1, 0).reshape(8, -1) for x in batches]
    want = np.mean([np.cov(x) for x in flat], 0)
    np.testing.assert_allclose(layer.buffers["running_cov"][0], want, rtol=1e-10)


def test_without_parameters(rng):
    layer = fastnorm.IterNorm(8, affine=False, layout="NHWC")
    x = draw(rng, (5, 8, 4, 8))
    assert layer(x).shape == layer.backward(x).shape == x.shape
    assert not layer.params
    assert not layer.grads
    layer = fastnorm.DecorrelatedBatchNorm(8, bias=False)
    layer(x)
    layer.backward(x)
    assert [*layer.grads] == ["weight"]


@pytest.mark.parametrize("layer", LAYERS)
def test_errors_of_layers(layer):
    for kwargs, error, message in (
        ({"group_size": 3}, ValueError, "group_size: expected a positive divisor of"),
        ({"group_size": None}, TypeError, "group_size: expected an int"),
        ({"eps": 0}, ValueError, "eps: expected a number above 0, got 0"),
        ({"layout": "NCHW8c"}, ValueError, "layout: expected channels first or last, got 'NCHW8c'"),
    ):
        with pytest.raises(error, match=f"^{message}"):
            layer(8, **kwargs)
    made = layer(8)
    with pytest.raises(ValueError, match=r"^x: expected 8 channels in NCHW, got shape"):
        made(np.ones((2, 7), np.float32))
    with pytest.raises(RuntimeError, match="backward: expected a call of the layer before"):
        made.backward(np.ones((2, 8), np.float32))
    assert repr(made).startswith(f"{layer.__name__}(8, group_size=16, eps=1e-05, momentum=0.1")


@pytest.mark.parametrize("layer", LAYERS)
def test_a_step_down_the_gradient_learns(layer, rng):
    """Whitening before a linear map: the loss falls, through the statistics."""
    x = draw(rng, (64, 8), np.float64)
    mixing, goal = np.eye(8), rng.standard_normal((64, 8))
    made, losses = layer(8, eps=1e-3, dtype=np.float64), []
    for _ in range(60):
        error = made(x @ mixing) - goal
        losses.append((error**2).mean())
        mixing -= 0.3 * x.T @ made.backward(2 * error / error.size)
        for name, gradient in made.grads.items():
            made.params[name] -= 0.3 * gradient
    assert losses[-1] < 0.95 * losses[0]
    assert np.argmin(losses) > 40
