"""Masks and lengths of arrays in blocks of channels: the bits of channels first."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import fastnorm as fn

N, C, H, W, BLOCK = 3, 20, 4, 3, 8
MASK = np.random.default_rng(0).random((N, 1, H, W)) < 0.6
WHAT = {"mask": ({"mask": MASK}, {"mask": MASK[..., None]}),
        "lengths": ({"lengths": [2, 0, 4]},) * 2}  # fmt: skip
LOGITS = np.array([0.5, 0.2, 0.3]), np.array([0.1, 0.4, 0.2])

NORMS = {
    "batch": lambda x, w, b, s, **k: fn.batch_norm(x, w, b, training=True, **s, **k),
    "inference": lambda x, w, b, s, **k: fn.batch_norm(x, w, b, **s, **k),
    "renorm": lambda x, w, b, s, **k: fn.batch_renorm(x, w, b, training=True, **s, **k),
    "instance": lambda x, w, b, s, **k: fn.instance_norm(x, w, b, **s, **k),
    "group": lambda x, w, b, s, **k: fn.group_norm(x, 5, w, b, **k),
    "switchable": lambda x, w, b, s, **k: fn.switchable_norm(
        x, w, b, *(a.astype(w.dtype) for a in LOGITS), training=True, **s, **k
    ),
    "filter": lambda x, w, b, s, **k: (
        fn.filter_response_norm(x, w, b, b[..., :C], **k)
        if b.ndim == 1
        else fn.filter_response_norm(x, w, b, **k)
    ),
    "sync": lambda x, w, b, s, **k: fn.sync_batch_norm(x, w, b, training=True, **s, **k),
}


def blocked(a):
    return fn.to_blocked(a, BLOCK)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("what", sorted(WHAT))
@pytest.mark.parametrize("name", sorted(NORMS))
def test_blocks_have_the_bits_of_channels_first(name, what, wide, around, dtype, rng):
    norm, (first, blocks) = NORMS[name], WHAT[what]
    x, z, g, r, dy, ds = rng.standard_normal((6, N, C, H, W)).astype(dtype)
    weight, bias = rng.standard_normal((2, *([N] if wide else []), C)).astype(dtype)
    beside = {"shortcut": z, "gate": g, "residual": r} if around else {}
    keep = {"activation": "relu"} if around else {}
    state = {"running_mean": np.full(C, 0.1, dtype), "running_var": np.full(C, 1.5, dtype)}
    other = {name: a.copy() for name, a in state.items()}
    *want, ctx = norm(x, weight, bias, state, return_ctx=True, **beside, **keep, **first)
    beside = {name: blocked(a) for name, a in beside.items()}
    layout = {"layout": f"NCHW{BLOCK}c"}
    *got, own = norm(blocked(x), weight, bias, other, return_ctx=True, **beside, **keep, **blocks,
                     **layout)  # fmt: skip
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(blocked(a), b)
    for key, a in state.items():
        np.testing.assert_array_equal(a, other[key])
    total = (ds, blocked(ds)) if around else (None, None)
    # of both, as switchable norm sums in the order that its arrays lie in memory
    ctx, own = (pickle.loads(pickle.dumps(a)) for a in (ctx, own))
    grads, out = fn.backward(dy, ctx, ds=total[0]), blocked(x)
    found = fn.backward(blocked(dy), own, out, ds=total[1])
    assert found.x is out
    for key, a in grads._asdict().items():
        b = getattr(found, key)
        if a is not None:
            a = blocked(a) if key in ("x", "shortcut", "gate") else a
            np.testing.assert_array_equal(a, b, err_msg=key)
        else:
            assert b is None
    for key in () if name == "switchable" else ("mean", "var", "rstd"):  # which has no statistics
        np.testing.assert_array_equal(getattr(ctx, key), getattr(own, key))


def test_results_go_where_they_are_wanted(rng):
    """Into x itself, and over the weight, which backward reads again."""
    x, dy = (blocked(a) for a in rng.standard_normal((2, N, C, H, W)))
    call = {"training": True, "layout": "NCHW8c", "lengths": [1, 2, 3]}
    weight = rng.standard_normal(C)
    want, ctx = fn.batch_norm(x, weight, return_ctx=True, **call)
    grads = fn.backward(dy, ctx)
    memory = np.empty(x.size + C)
    memory[-C:] = weight
    out = memory[-x.size :].reshape(x.shape)
    y, ctx = fn.batch_norm(x, memory[-C:], out=out, return_ctx=True, **call)
    assert y is out
    np.testing.assert_array_equal(y, want)
    for a, b in zip(grads, fn.backward(dy, ctx), strict=True):
        np.testing.assert_array_equal(a, b)
    total = x.copy()
    found = fn.batch_norm(x, weight, residual=dy, sum_out=total, **call)
    assert found[1] is total
    assert fn.batch_norm(x, weight, out=x, **call) is x
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize(
    ("around", "error", "message"),
    [
        ({"mask": MASK}, ValueError, r"mask: .* broadcasts to \(3, 3, 4, 3, 8\), got"),
        ({"mask": np.ones((N, 3, H, W, 1), bool)}, ValueError, "mask: .*size 1 along the channels"),
        ({"mask": np.ones(8, bool)}, ValueError, "mask: .*size 1 along the channels, axes 1 and 4"),
        ({"mask": MASK[..., None] + 0}, TypeError, "mask: expected dtype bool"),
        ({"mask": MASK[..., None], "lengths": [1, 1, 1]}, ValueError, "mask, lengths: .*got both"),
        ({"lengths": [1, 1, 5]}, ValueError, "lengths: .*at most 4, the size of axis 2"),
        ({"lengths": [1, 1, 1], "weight": np.ones((1, 3, 1, 1, 8))}, ValueError,
         r"weight: expected shape \(20,\) or \(3, 20\) with a mask in NCHW8c"),
        ({"lengths": [1, 1, 1], "shortcut": np.ones((N, C, H, W))}, ValueError, "shortcut: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_written(around, error, message):
    x = np.ones((N, 3, H, W, BLOCK))
    out, running = np.full_like(x, 7), {"running_mean": np.ones(C), "running_var": np.ones(C)}
    with pytest.raises(error, match=message):
        fn.batch_norm(x, **{"weight": np.ones(C), **around}, **running, training=True,
                      layout="NCHW8c", out=out)  # fmt: skip
    assert (out == 7).all()
    assert all((a == 1).all() for a in running.values())


def test_backward_names_what_is_wrong():
    x = np.ones((N, 3, H, W, BLOCK))
    _, ctx = fn.batch_norm(x, np.ones(C), training=True, layout="NCHW8c", lengths=[1, 2, 3],
                           return_ctx=True)  # fmt: skip
    with pytest.raises(ValueError, match="dy: expected x's shape"):
        fn.backward(x[..., :4], ctx)
    with pytest.raises(ValueError, match="ds: expected None"):
        fn.backward(x, ctx, ds=x)
    with pytest.raises(TypeError, match="out: expected dtype"):
        fn.backward(x, ctx, out=np.empty(x.shape, np.float32))


def test_running_statistics_are_apart_from_x():
    x = np.ones((N, 1, H, W, BLOCK))
    with pytest.raises(ValueError, match="running_mean: expected an array apart from x"):
        fn.batch_norm(x, np.ones(8), running_mean=x.reshape(-1)[:8], running_var=np.ones(8),
                      training=True, layout="NCHW8c", lengths=[1, 2, 3])  # fmt: skip
    assert (x == 1).all()


def test_whitening_has_no_blocks():
    with pytest.raises(ValueError, match="layout: expected channels first or last"):
        fn.iter_norm(np.ones((N, 1, H, W, 8)), training=True, layout="NCHW8c", lengths=[1, 2, 3])
