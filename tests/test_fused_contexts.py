"""Fused calls, by the core and by each stage around it: what contexts keep, and memory."""

import pickle
import warnings

import numpy as np
import pytest
from cases import same, some

import fastnorm as fn

X = some(2, 4, 3, 3)
MIXING = {"mean_logits": np.zeros(3, np.float32), "var_logits": np.zeros(3, np.float32)}
STATES = {"running_mean": np.zeros(4, np.float32), "running_var": np.ones(4, np.float32)}
MASK = {"mask": np.ones((2, 1, 3, 3), bool)}
# a call of each stage and of the core: x, a weight of the channels, and what is around
WAYS = {
    "core": lambda x, w, **k: fn.batch_norm(x, w, training=True, **k),
    "moments": lambda x, w, **k: fn.batch_norm(
        x, w, training=True, moments=fn.Moments.from_array(X, layout="NCHW"), **k),
    "sync": lambda x, w, **k: fn.sync_batch_norm(x, w, training=True, **k),
    "mask": lambda x, w, **k: fn.batch_norm(x, w, training=True, **MASK, **k),
    "mask, switchable": lambda x, w, **k: fn.switchable_norm(
        x, w, w, **{n: a.copy() for n, a in {**MIXING, **STATES}.items()}, **MASK, **k),
    "ghost": lambda x, w, **k: fn.batch_norm(x, w, training=True, virtual_batch_size=1, **k),
    "weight": lambda x, w, **k: fn.batch_norm(x, w, training=True, weight_offset=1.0, **k),
    "length": lambda x, w, **k: fn.normalize(x, axis=1, ord=3, **k),
    "packed": lambda x, w, **k: fn.instance_norm(x, w, layout="NC", offsets=[0, 7, 18], **k),
    "whitening": lambda x, w, **k: fn.iter_norm(x, w, training=True, **k),
}  # fmt: skip


@pytest.mark.parametrize("way", ["core", "moments", "sync", "weight", "whitening"])
def test_nothing_is_kept_that_can_be_made_again(way):
    """A context refers to x and what is beside it, not to what the normalizer gave."""
    x = some(2, 4, 40, 40)
    beside = {"shortcut": x + 1, "gate": x + 2, "activation": "silu"}
    moments = fn.Moments.from_array(x, layout="NCHW")
    ways = {**WAYS, "moments": lambda x, w, **k: fn.batch_norm(x, w, training=True,
                                                                moments=moments, **k)}  # fmt: skip
    _, ctx = ways[way](x, some(4), return_ctx=True, **beside)
    assert 3 * x.nbytes < len(pickle.dumps(ctx)) < 3.2 * x.nbytes


@pytest.mark.parametrize("way", ["core", "sync", "mask", "ghost", "weight", "length", "whitening"])
def test_gradients_of_sums_may_be_overwritten(way):
    """Where dx is written over dy, which is ds too."""
    x, dy = some(2, 4, 3, 3), some(2, 4, 3, 3)[::-1].copy()
    *_, ctx = WAYS[way](x, some(4), residual=x, activation="relu", return_ctx=True)
    want = fn.backward(dy, ctx, ds=dy).x
    assert fn.backward(dy, ctx, out=dy, ds=dy).x is dy
    same(dy, want)


IN_BLOCKS = {
    "core": lambda x, w, **k: fn.batch_norm(x, w, training=True, **k),
    "samples": lambda x, w, **k: fn.batch_norm(x, np.stack([w, w]), training=True, **k),
    "sync": lambda x, w, **k: fn.sync_batch_norm(x, w, training=True, **k),
    "moments": lambda x, w, **k: fn.batch_norm(
        x, w, training=True,
        moments=fn.Moments.from_array(fn.from_blocked(x, 12), layout="NCHW"), **k),
}  # fmt: skip


@pytest.mark.parametrize("way", ["core", "samples", "sync", "moments"])
def test_the_padding_of_blocks_is_0(way):
    """Behind the last channel, though the sigmoid of 0 is 0.5; in gradients, too."""
    x, gate, dy = (fn.to_blocked(some(2, 12, 24, 24) + i, 8) for i in range(3))
    gate[:, -1, ..., 4:] = dy[:, -1, ..., 4:] = 1
    call = {"activation": "sigmoid", "gate": gate, "layout": "NCHW8c", "return_ctx": True}
    y, ctx = IN_BLOCKS[way](x, some(12), **call)
    grads = fn.backward(dy, ctx)
    for a in (y, grads.x, grads.gate):
        assert not a[:, -1, ..., 4:].any()
        assert a[:, -1, ..., :4].all()


@pytest.mark.parametrize("way", ["core", "sync", "whitening", "ghost", "mask", "weight"])
def test_outputs_in_another_byte_order(way):
    """Are those in this one: sums are not rounded on the way."""
    x, dy, ds = some(3, 2, 4, 3, 3, dtype=np.float64)
    y, s, ctx = WAYS[way](x, some(4, dtype=np.float64), residual=dy, return_ctx=True)
    want = fn.backward(dy, ctx, ds=ds).x
    swapped = [np.empty_like(x, dtype=">f8") for _ in range(3)]
    WAYS[way](x, some(4, dtype=np.float64), residual=dy, out=swapped[0], sum_out=swapped[1])
    fn.backward(dy, ctx, swapped[2], ds=ds)
    for got, wanted in zip(swapped, (y, s, want), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("way", ["core", "sync", "ghost", "whitening"])
def test_sums_that_overflow_are_no_warning(way):
    x = some(2, 4, 3, 3)
    large = np.full_like(x, 3e38) * np.sign(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        *_, ctx = WAYS[way](x, some(4), residual=x, return_ctx=True)
        fn.backward(large, ctx, ds=large)
        WAYS[way](large, some(4), residual=large)


@pytest.mark.parametrize("way", ["core", "moments", "sync", "whitening"])
def test_gradients_are_not_written_over_the_bias(way):
    """As y is made again, where something is behind it, it is read again."""
    memory, x = some(76), some(2, 4, 3, 3)
    bias, out = memory[:4], memory[4:].reshape(x.shape)
    _, ctx = WAYS[way](x, some(4), bias=bias, activation="relu", return_ctx=True)
    fn.backward(x, ctx, out=out)
    over = memory[2:74].reshape(x.shape)
    with pytest.raises(ValueError, match=r"out: expected an array apart from .*bias"):
        fn.backward(x, ctx, out=over)


def test_contexts_of_given_moments_have_their_statistics():
    moments = fn.Moments.from_array(X, layout="NCHW")
    _, ctx = fn.batch_norm(X, training=True, moments=moments, return_ctx=True, activation="relu")
    _, own = fn.batch_norm(X, training=True, return_ctx=True)
    for name in ("mean", "var", "rstd"):
        np.testing.assert_allclose(getattr(ctx, name), getattr(own, name), rtol=1e-6)


@pytest.mark.parametrize("over", ["shortcut", "gate", "weight"])
@pytest.mark.parametrize("way", WAYS)
def test_y_over_what_backward_reads_again(way, over):
    x = X if way != "packed" else X.transpose(0, 2, 3, 1).reshape(18, 4).copy()
    w, dy, call = some(4), x[::-1].copy(), {"activation": "relu", "return_ctx": True}
    beside = {"shortcut": x + 1, "gate": x[::-1] + 2}
    y, ctx = WAYS[way](x, w, **call, **beside)
    want = fn.backward(dy, ctx)
    out = np.zeros_like(x)
    place = out.reshape(-1)[3:7] if over == "weight" else out
    place[...] = w if over == "weight" else beside[over]
    given = w if over != "weight" else place
    own = beside if over == "weight" else {**beside, over: place}
    got, ctx = WAYS[way](x, given, **call, **own, out=out)
    assert got is out
    same(out, y)
    for found, wanted in zip(fn.backward(dy, ctx), want, strict=True):
        assert found is wanted is None or found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("way", WAYS)
def test_y_over_x_with_a_context_is_refused(way):
    x = X.copy() if way != "packed" else X.transpose(0, 2, 3, 1).reshape(18, 4).copy()
    before = x.copy()
    with pytest.raises(ValueError, match="out: expected an array apart from x when return_ctx"):
        WAYS[way](x, some(4), activation="relu", return_ctx=True, out=x)
    same(x, before)


def test_a_gradient_of_a_sum_needs_a_residual():
    y, ctx = fn.rms_norm(X, activation="relu", return_ctx=True)
    with pytest.raises(ValueError, match="ds: expected None"):
        fn.backward(y, ctx, ds=y)
