"""Masks, lengths and packed samples: as calls of the valid elements alone."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

import fastnorm as fn
from fastnorm.comm import local_communicators

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
RNG = np.random.default_rng(0)
N, C, H, W = 4, 6, 5, 7


def some(*shape, dtype=np.float64):
    return np.random.default_rng(len(shape) + shape[0]).standard_normal(shape).astype(dtype)


def mask_of(layout):
    mask = np.random.default_rng(7).random((N, 1, H, W)) < 0.6
    mask[2] = False  # a sample without a valid element
    mask[3] = mask[1]  # and two that are of one count
    return mask if layout == "NCHW" else mask.transpose(0, 2, 3, 1)


def image(layout, dtype=np.float64, seed=0):
    x = np.random.default_rng(seed).standard_normal((N, C, H, W)).astype(dtype)
    return x if layout == "NCHW" else np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def channels(dtype):
    return some(C, dtype=dtype), some(C, dtype=dtype)[::-1].copy()


def norms(dtype):
    affine = channels(dtype)
    running = {"running_mean": np.full(C, 0.2, dtype), "running_var": np.full(C, 1.5, dtype)}
    logits = [np.array(v, dtype) for v in ([1, 0.5, 0], [0, 1, -1])]
    return {
        "batch": lambda x, **k: fn.batch_norm(x, *affine, training=True, **k),
        "inference": lambda x, **k: fn.batch_norm(x, *affine, **running, **k),
        "renorm": lambda x, **k: fn.batch_renorm(x, *affine, **running, **k),
        "group": lambda x, **k: fn.group_norm(x, 3, *affine, **k),
        "instance": lambda x, **k: fn.instance_norm(x, *affine, **k),
        "served": lambda x, **k: fn.instance_norm(
            x, *affine, **running, use_input_stats=False, **k
        ),
        "filter": lambda x, **k: fn.filter_response_norm(x, *affine, tau=affine[1], **k),
        "global": lambda x, **k: fn.global_response_norm(x, *affine, **k),
        "irenorm": lambda x, **k: fn.instance_renorm(x, *affine, **running, **k),
        "switchable": lambda x, **k: fn.switchable_norm(x, *affine, *logits, training=True, **k),
        "switched": lambda x, **k: fn.switchable_norm(x, *affine, *logits, **running, **k),
    }


BY_SAMPLE = {"group", "instance", "filter", "global", "irenorm"}
BY_BATCH = {"batch", "inference", "renorm", "served"}


def last(a, layout):
    return a.transpose(0, 2, 3, 1) if layout == "NCHW" else a


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", sorted(BY_SAMPLE | BY_BATCH))
def test_a_mask_is_a_call_of_the_valid_elements(name, layout, dtype):
    norm, mask = norms(dtype)[name], mask_of(layout)
    x, dy = image(layout, dtype), image(layout, dtype, 1)
    valid = np.broadcast_to(mask, x.shape)
    x, dy = np.where(valid, x, dtype(np.nan)), np.where(valid, dy, dtype(np.nan))
    y, ctx = norm(x, mask=mask, layout=layout, return_ctx=True)
    grads = fn.backward(dy, ctx)
    xl, dyl, yl, dxl = (last(a, layout) for a in (x, dy, y, grads.x))
    ml = last(mask, layout)[..., 0]
    assert not (yl[~ml] != 0).any()
    assert not (dxl[~ml] != 0).any()
    if name in BY_BATCH:
        parts = [(ml, (ml.sum(), C), "NC")]
    else:
        parts = [(ml & (np.arange(N) == n)[:, None, None], (1, ml[n].sum(), C), "NLC")
                 for n in range(N) if ml[n].any()]  # fmt: skip
    weight = 0
    for index, shape, own in parts:
        wanted, c = norm(xl[index].reshape(shape), layout=own, return_ctx=True)
        back = fn.backward(dyl[index].reshape(shape), c)
        assert yl[index].tobytes() == wanted.tobytes()
        assert dxl[index].tobytes() == back.x.tobytes()
        weight = weight + back.weight.astype(np.float64)
    near = 1e-6 if dtype in (np.float32, np.float64) else 0.05
    np.testing.assert_allclose(grads.weight.astype(np.float64), weight, rtol=near, atol=near)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("name", sorted({*BY_SAMPLE, "batch", "switchable", "switched"}))
def test_gradients_are_those_of_finite_differences(name, layout):
    norm, mask = norms(np.float64)[name], mask_of(layout)
    x, dy = image(layout), image(layout, seed=1)
    beside = {k: image(layout, seed=2 + i) for i, k in enumerate(("shortcut", "residual", "gate"))}
    valid = np.broadcast_to(mask, x.shape)
    if name == "irenorm":  # r and d are constants of its gradient
        pytest.skip("its corrections are constants")

    def loss(x, **beside):
        y, s = norm(x, mask=mask, layout=layout, activation="tanh", **beside)
        return (dy * y).sum() + (0.3 * s).sum()

    *_, ctx = norm(x, mask=mask, layout=layout, activation="tanh", return_ctx=True, **beside)
    grads = fn.backward(dy, ctx, ds=np.full_like(x, 0.3))
    for key in ("x", "shortcut", "gate"):
        exact = getattr(grads, key)
        for at in list(map(tuple, np.argwhere(valid)))[::60]:
            ends = []
            for sign in (1, -1):
                arrays = {"x": x.copy(), **{k: a.copy() for k, a in beside.items()}}
                arrays[key][at] += sign * 1e-5
                ends.append(loss(arrays.pop("x"), **arrays))
            assert abs((ends[0] - ends[1]) / 2e-5 - exact[at]) < 1e-6
        assert not (exact[~valid] != 0).any()


def test_switchable_norm_with_all_valid_is_as_without():
    x, dy = image("NCHW"), image("NCHW", seed=1)
    w, b = channels(np.float64)
    state = [[np.zeros(C), np.ones(C)] for _ in range(2)]
    logits = np.array([1, 0.5, 0]), np.array([0, 1, -1.0])
    found = []
    for i, around in enumerate(({}, {"mask": np.ones((1, 1, 1, 1), bool)})):
        mean, var = state[i]
        y, ctx = fn.switchable_norm(x, w, b, *logits, running_mean=mean, running_var=var,
                                    training=True, return_ctx=True, **around)  # fmt: skip
        found.append((y, fn.backward(dy, ctx)))
    np.testing.assert_allclose(found[1][0], found[0][0], atol=1e-12)
    for key in ("x", "weight", "bias", "mean_logits", "var_logits"):
        np.testing.assert_allclose(getattr(found[1][1], key), getattr(found[0][1], key), atol=1e-11)
    np.testing.assert_allclose(state[1], state[0], rtol=1e-12)


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_rows_of_layer_norm(name):
    x, dy, w = some(3, 5, 8), some(3, 5, 8)[::-1].copy(), some(8)
    norm = fn.layer_norm if name == "layer" else fn.rms_norm
    y, ctx = norm(x, w, lengths=[5, 0, 2], return_ctx=True)
    keep = np.arange(5) < np.array([5, 0, 2])[:, None]
    wanted, c = norm(x[keep], w, return_ctx=True)
    grads, back = fn.backward(dy, ctx), fn.backward(dy[keep], c)
    assert y[keep].tobytes() == wanted.tobytes()
    assert grads.x[keep].tobytes() == back.x.tobytes()
    assert not y[~keep].any()
    np.testing.assert_allclose(grads.weight, back.weight, rtol=1e-12)


def test_lengths_of_a_table_whose_columns_are_normalized():
    x, lengths = some(4, 6), np.array([6, 3, 0, 4])
    y = fn.layer_norm(x, axis=0, lengths=lengths)
    masked = fn.layer_norm(x, axis=0, mask=np.arange(6) < lengths[:, None])
    assert y.tobytes() == masked.tobytes()
    assert y[1].any()


def test_elements_inside_a_domain_of_layer_norm():
    x, w = some(4, 5, 8), some(5, 8)
    mask = np.random.default_rng(3).random((4, 5, 1)) < 0.6
    y = fn.layer_norm(x, w, axis=(1, 2), mask=mask)
    for n in range(4):
        rows = mask[n, :, 0]
        wanted = fn.layer_norm(x[n][rows].reshape(1, -1), w[rows].reshape(-1))
        np.testing.assert_allclose(y[n][rows].reshape(1, -1), wanted, atol=1e-13)


def test_running_statistics_take_the_valid_elements():
    x, mask = image("NCHW"), mask_of("NCHW")
    valid = last(x, "NCHW")[last(mask, "NCHW")[..., 0]]
    mean, var = np.zeros(C), np.ones(C)
    fn.batch_norm(x, training=True, running_mean=mean, running_var=var, mask=mask)
    np.testing.assert_allclose(mean, 0.1 * valid.mean(0))
    np.testing.assert_allclose(var, 0.9 + 0.1 * valid.var(0, ddof=1))
    mean, var = np.zeros(C), np.ones(C)
    fn.instance_norm(x, running_mean=mean, running_var=var, mask=mask)
    samples = [last(x, "NCHW")[n][last(mask, "NCHW")[n, ..., 0]] for n in (0, 1, 3)]
    np.testing.assert_allclose(mean, 0.1 * np.mean([s.mean(0) for s in samples], 0))
    np.testing.assert_allclose(var, 0.9 + 0.1 * np.mean([s.var(0, ddof=1) for s in samples], 0))
    mean, var = np.zeros(C), np.ones(C)
    fn.instance_renorm(x, running_mean=mean, running_var=var, training=True, mask=mask)
    np.testing.assert_allclose(mean, 0.1 * valid.mean(0))
    np.testing.assert_allclose(var, 0.9 + 0.1 * valid.var(0))


@pytest.mark.parametrize("name", ["batch", "group", "instance", "switchable"])
def test_nothing_valid_gives_zeros_and_no_update(name):
    norm, x = norms(np.float64)[name], image("NCHW")
    y, ctx = norm(np.full_like(x, np.nan), mask=np.zeros((1, 1, 1, 1), bool), return_ctx=True)
    assert not y.any()
    assert not fn.backward(x, ctx).x.any()
    mean, var = np.zeros(C), np.ones(C)
    fn.batch_norm(x, training=True, running_mean=mean, running_var=var, lengths=[0] * N)
    assert not mean.any()
    assert (var == 1).all()


@pytest.mark.parametrize("name", ["group", "instance"])
def test_packed_samples(name):
    w, b = channels(np.float64)
    norm = {"group": lambda x, **k: fn.group_norm(x, 2, w, b, **k),
            "instance": lambda x, **k: fn.instance_norm(x, w, b, **k)}[name]  # fmt: skip
    x, dy, z = some(12, C), some(12, C)[::-1].copy(), some(12, C) + 1
    y, ctx = norm(x, layout="NC", offsets=[0, 3, 3, 12], shortcut=z, activation="relu",
                  return_ctx=True)  # fmt: skip
    grads = fn.backward(dy, ctx)
    for start, end in ((0, 3), (3, 12)):
        at = (None, slice(start, end))
        wanted, c = norm(x[at], layout="NLC", shortcut=z[at], activation="relu", return_ctx=True)
        back = fn.backward(dy[at], c)
        assert y[start:end].tobytes() == wanted.tobytes()
        assert grads.x[start:end].tobytes() == back.x.tobytes()
        assert grads.shortcut[start:end].tobytes() == back.shortcut.tobytes()


def test_ranks_have_masks_of_their_own():
    x, dy, mask = image("NCHW"), image("NCHW", seed=1), mask_of("NCHW")
    mask[2:] = False  # the second rank has no valid element

    def rank(comm):
        at = slice(2 * comm.rank, 2 * comm.rank + 2)
        y, ctx = fn.sync_batch_norm(x[at], comm=comm, training=True, mask=mask[at],
                                    activation="relu", return_ctx=True)  # fmt: skip
        return y, fn.backward(dy[at], ctx).x

    with ThreadPoolExecutor(2) as ranks:
        found = list(ranks.map(rank, local_communicators(2)))
    y, ctx = fn.batch_norm(x, training=True, mask=mask, activation="relu", return_ctx=True)
    np.testing.assert_allclose(np.concatenate([a for a, _ in found]), y, atol=1e-12)
    np.testing.assert_allclose(np.concatenate([a for _, a in found]), fn.backward(dy, ctx).x,
                               atol=1e-12)  # fmt: skip


def test_a_bad_mask_is_an_error_on_all_ranks():
    x = image("NCHW")

    def rank(comm):
        mask = np.ones((2, 1, 1, 1), bool if comm.rank == 0 else int)
        with pytest.raises((TypeError, ValueError)) as error:
            fn.sync_batch_norm(x[:2], comm=comm, training=True, mask=mask)
        return str(error.value)

    with ThreadPoolExecutor(2) as ranks:
        assert all("mask: expected" in m for m in ranks.map(rank, local_communicators(2)))


def test_moments_of_a_mask_are_those_of_a_masked_array():
    x, mask = image("NCHW"), mask_of("NCHW")
    valid = np.broadcast_to(mask, x.shape)
    found = fn.Moments.from_array(np.where(valid, x, np.nan), layout="NCHW", mask=mask)
    wanted = fn.Moments.from_array(np.ma.array(x, mask=~valid), layout="NCHW")
    np.testing.assert_array_equal(found.mean, wanted.mean)
    np.testing.assert_array_equal(found.count, wanted.count)
    with pytest.raises(TypeError, match="mask: expected dtype bool"):
        fn.Moments.from_array(x, mask=np.ones(x.shape))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_contexts_have_the_statistics_of_the_valid_elements(layout):
    x = some(4, 6, 5, 5)
    mask = np.random.default_rng(2).random((4, 1, 5, 5)) < 0.5
    mask[2] = False
    last = layout == "NHWC"
    call = {"layout": layout, "return_ctx": True,
            "mask": mask.transpose(0, 2, 3, 1) if last else mask}  # fmt: skip
    given = x.transpose(0, 2, 3, 1).copy() if last else x
    masked = np.ma.array(x, mask=np.broadcast_to(~mask, x.shape)).astype(np.float64)
    _, ctx = fn.batch_norm(given, training=True, **call)
    np.testing.assert_allclose(ctx.mean, masked.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(ctx.var, masked.var((0, 2, 3)), rtol=1e-12)
    for norm, groups in ((fn.instance_norm, 6), (fn.group_norm, 2)):
        _, ctx = norm(given, *([groups] if groups == 2 else []), **call)
        of = masked.reshape(4, groups, -1)
        np.testing.assert_allclose(ctx.mean, of.mean(2).filled(np.nan), rtol=1e-9)
        np.testing.assert_allclose(ctx.rstd, (of.var(2) + 1e-5).filled(np.nan) ** -0.5, rtol=1e-9)


@pytest.mark.parametrize("axis", [-1, 1, 0, (0, 2), (1, 2)])
def test_contexts_have_the_statistics_of_rows(axis):
    x = some(3, 5, 8)
    mask = np.random.default_rng(3).random((3, 5, 8)) < 0.6
    mask[1, 2], mask[:, :, 3], mask[2, :, 4] = False, False, False
    masked = np.ma.array(x, mask=~mask).astype(np.float64)
    _, ctx = fn.layer_norm(x, axis=axis, mask=mask, return_ctx=True)
    np.testing.assert_allclose(ctx.mean, masked.mean(axis).filled(np.nan), rtol=1e-9)
    np.testing.assert_allclose(ctx.var, masked.var(axis).filled(np.nan), rtol=1e-9, atol=1e-12)
    _, ctx = fn.layer_norm(x, lengths=[5, 0, 2], return_ctx=True)
    counted = np.arange(5) < np.array([5, 0, 2])[:, None]
    np.testing.assert_allclose(ctx.mean, np.where(counted, x.mean(-1), np.nan), rtol=1e-6)


def test_a_context_can_be_pickled():
    x, mask = image("NCHW"), mask_of("NCHW")
    _, ctx = fn.group_norm(x, 2, mask=mask, activation="silu", return_ctx=True)
    again = pickle.loads(pickle.dumps(ctx))
    assert fn.backward(x, again).x.tobytes() == fn.backward(x, ctx).x.tobytes()


def test_results_go_where_they_are_wanted():
    x, mask, r = image("NCHW"), mask_of("NCHW"), image("NCHW", seed=4)
    y, s = fn.group_norm(x, 2, mask=mask, residual=r)
    to, total = x.copy(), r.copy()
    found = fn.group_norm(to, 2, mask=mask, residual=total, out=to, sum_out=total)
    assert found[0] is to
    assert found[1] is total
    assert to.tobytes() == y.tobytes()
    assert total.tobytes() == s.tobytes()


X = image("NCHW")
ONE = np.ones((N, 1, H, W), bool)
BAD = [
    ({"mask": ONE.astype(int)}, TypeError, "mask: expected dtype bool"),
    ({"mask": ONE[:2]}, ValueError, "mask: expected a shape that broadcasts"),
    ({"mask": np.ones((N, C, H, W), bool)}, ValueError, "mask: expected size 1 along the channels"),
    ({"mask": ONE, "lengths": [1] * N}, ValueError, "mask, lengths: expected one of them"),
    ({"lengths": [1, 2, 3]}, ValueError, "lengths: expected shape"),
    ({"lengths": [1, 2, 3, H + 1]}, ValueError, "lengths: expected at least 0 and at most 5"),
    ({"lengths": [1, 2, 3, -1]}, ValueError, "lengths: expected at least 0"),
    ({"lengths": [1.0, 2, 3, 3]}, TypeError, "lengths: expected integers"),
    ({"offsets": [0, N]}, ValueError, "offsets: expected None"),
    ({"mask": ONE, "shortcut": X[:1]}, ValueError, "shortcut: expected x's shape"),
    ({"mask": ONE, "activation": "swish"}, ValueError, "activation: expected one of"),
    ({"mask": ~ONE, "activation": "swish"}, ValueError, "activation: expected one of"),
    ({"mask": ONE, "layout": "NCHW16c"}, ValueError, "layout: expected"),
]


@pytest.mark.parametrize(("around", "error", "message"), BAD)
def test_bad_input_is_named_and_nothing_written(around, error, message):
    out, mean, var = np.full_like(X, 7), np.zeros(C), np.ones(C)
    with pytest.raises(error, match=message):
        fn.batch_norm(X, training=True, running_mean=mean, running_var=var, out=out, **around)
    assert (out == 7).all()
    assert not mean.any()


@pytest.mark.parametrize(("offsets", "error"), [
    ([0, 5], ValueError), ([0, 8, 4, 12], ValueError), ([1, 12], ValueError), ([12], ValueError),
    ([0.0, 12.0], TypeError), ([[0, 12]], ValueError),
])  # fmt: skip
def test_bad_offsets_are_named(offsets, error):
    with pytest.raises(error, match="offsets: expected"):
        fn.group_norm(some(12, C), 2, layout="NC", offsets=offsets)
