"""Ghost batch norm: virtual batches are calls of their own."""

import numpy as np
import pytest
from cases import same, some

import fastnorm as fn


def test_virtual_batches_are_calls_of_their_own():
    x, z, dy, w = some(7, 4, 5, 5), some(7, 4, 5, 5) + 1, some(7, 4, 5, 5)[::-1].copy(), some(4)
    state = [np.zeros(4, np.float32), np.ones(4, np.float32)]
    y, ctx = fn.batch_norm(x, w, training=True, running_mean=state[0], running_var=state[1],
                           virtual_batch_size=3, shortcut=z, activation="relu",
                           return_ctx=True)  # fmt: skip
    grads = fn.backward(dy, ctx)
    own = [np.zeros(4, np.float32), np.ones(4, np.float32)]
    total = np.zeros(4)
    for start in (0, 3, 6):
        at = slice(start, start + 3)
        part, c = fn.batch_norm(x[at], w, training=True, running_mean=own[0], running_var=own[1],
                                shortcut=z[at], activation="relu", return_ctx=True)  # fmt: skip
        g = fn.backward(dy[at], c)
        same(part, y[at])
        same(g.x, grads.x[at])
        same(g.shortcut, grads.shortcut[at])
        total += g.weight
    same(state[0], own[0])
    same(state[1], own[1])
    np.testing.assert_allclose(grads.weight, total, rtol=1e-6)


def test_virtual_batches_that_overlap_in_memory():
    memory = np.zeros(60, np.float32)
    x, out = memory[:28].reshape(7, 4), memory[8:36].reshape(7, 4)
    x[...] = some(7, 4)
    want = fn.batch_norm(x.copy(), training=True, layout="NC", virtual_batch_size=2)
    same(fn.batch_norm(x, training=True, layout="NC", virtual_batch_size=2, out=out), want)


@pytest.mark.parametrize("around", [{}, {"mask": np.arange(7)[:, None] < 4}])
def test_the_last_virtual_batch_is_wrong_and_nothing_is_written(around):
    x, mean, var = some(7, 4), np.zeros(4, np.float32), np.ones(4, np.float32)
    out = np.full_like(x, 7)
    with pytest.raises(ValueError, match="x: expected more than one value"):
        fn.batch_norm(x, training=True, layout="NC", virtual_batch_size=3, running_mean=mean,
                      running_var=var, out=out, **around)  # fmt: skip
    assert (out == 7).all()
    assert not mean.any()


VALID = np.random.default_rng(5).random((7, 1, 5, 5)) < 0.7
BESIDE = {
    "a mask": {"mask": VALID},
    "a mask of all samples": {"mask": VALID[:1]},
    "a mask of positions": {"mask": VALID[0, 0]},
    "a gate": {"gate": some(7, 4, 5, 5)},
    "a residual": {"residual": some(7, 4, 5, 5)},
}


@pytest.mark.parametrize("beside", BESIDE.values(), ids=BESIDE)
def test_virtual_batches_cut_what_is_beside_them(beside):
    x, dy, w = some(7, 4, 5, 5), some(7, 4, 5, 5)[::-1].copy(), some(4)
    call = {"training": True, "return_ctx": True}
    *found, ctx = fn.batch_norm(x, w, virtual_batch_size=3, **call, **beside)
    grads = fn.backward(dy, ctx)
    total = np.zeros(4)
    for start in (0, 3, 6):
        at = slice(start, start + 3)
        parts = {k: a[at] if len(a) == len(x) else a for k, a in beside.items()}
        *want, c = fn.batch_norm(x[at], w, **call, **parts)
        g = fn.backward(dy[at], c)
        for whole, part in zip(found, want, strict=True):
            same(part, whole[at])
        same(g.x, grads.x[at])
        if "gate" in beside:
            same(g.gate, grads.gate[at])
        total += g.weight
    np.testing.assert_allclose(grads.weight, total, rtol=1e-6)


OF_SAMPLES = {"(N, C)": (7, 4), "each position": (7, 4, 5, 5), "positions": (1, 1, 5, 5)}


@pytest.mark.parametrize("norm", ["batch_norm", "batch_renorm", "decorrelated_batch_norm"])
@pytest.mark.parametrize("shape", OF_SAMPLES.values(), ids=OF_SAMPLES)
def test_virtual_batches_cut_weights_of_samples(shape, norm):
    x, dy, w, b = some(7, 4, 5, 5), some(7, 4, 5, 5)[::-1].copy(), some(*shape), some(*shape) + 1
    call = {"training": True, "return_ctx": True}
    states = {"running_mean": np.zeros(4, np.float32), "running_var": np.ones(4, np.float32)}
    if norm == "decorrelated_batch_norm":
        del states["running_var"]
        states["running_cov"] = np.ones((1, 4, 4), np.float32)
    own = {name: a.copy() for name, a in states.items()}
    norm = getattr(fn, norm)
    y, ctx = norm(x, w, b, virtual_batch_size=3, **call, **states)
    grads = fn.backward(dy, ctx)
    cut, total = shape[0] == 7, np.zeros((2, *shape))
    for start in (0, 3, 6):
        at = slice(start, start + 3)
        some_of = at if cut else slice(None)
        part, c = norm(x[at], w[some_of], b[some_of], **call, **own)
        g = fn.backward(dy[at], c)
        same(part, y[at])
        same(g.x, grads.x[at])
        total[:, some_of] += g.weight, g.bias
    np.testing.assert_allclose([grads.weight, grads.bias], total, rtol=1e-6, atol=1e-6)
    for name, a in states.items():
        same(a, own[name])


def test_virtual_batches_refuse_what_does_not_fit():
    x = some(6, 4)
    message = r"weight: expected shape \(4,\), got \(3, 4\), .*\(6, 4\)"
    with pytest.raises(ValueError, match=message):
        fn.batch_norm(x, some(3, 4), training=True, layout="NC", virtual_batch_size=3)
    before = x.copy()
    with pytest.raises(ValueError, match="running_mean: expected an array apart from x"):
        fn.batch_norm(x, training=True, layout="NC", virtual_batch_size=3,
                      running_mean=x[5], running_var=np.ones(4, np.float32))  # fmt: skip
    same(x, before)
    memory = some(28)
    _, ctx = fn.batch_norm(x, memory[24:], training=True, virtual_batch_size=3, return_ctx=True)
    with pytest.raises(ValueError, match="out: expected an array apart from the weight"):
        fn.backward(x, ctx, out=memory[4:].reshape(6, 4))


def test_a_batch_without_a_valid_element_is_not_counted():
    layer = fn.BatchNorm(4, virtual_batch_size=2)
    layer(some(6, 4, 5), mask=np.zeros((6, 1, 5), bool))
    assert layer.buffers["num_batches_tracked"] == 0
    layer(some(6, 4, 5), mask=np.ones((6, 1, 5), bool))
    assert layer.buffers["num_batches_tracked"] == 1
