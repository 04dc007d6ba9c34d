"""Masks with all that may stand around a normalizer beside them; other packages; processes."""

import copy
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from cases import assert_close, make_input
from sync_worker import failure
from test_sync import on_threads

import fastnorm

BF16 = ml_dtypes.bfloat16
N, C, L = 3, 6, 7


@pytest.fixture
def mask(rng):
    """Of x (N, L, C): sample 1 has nothing, sample 0 all."""
    mask = rng.random((N, L, 1)) < 0.5
    mask[0], mask[1] = True, False
    return mask


def arrays(rng, dtype, mask=None, names=("shortcut", "gate", "residual")):
    """x and what lies beside it, with NaN where it is masked."""
    made = {name: make_input(rng, (N, C, L), "NLC", dtype) for name in ("x", *names)}
    spoil = (
        {k: np.where(mask, a, dtype(np.nan)) for k, a in made.items()} if mask is not None else 0
    )
    return made, spoil


CALLS = {
    "batch": (lambda x, **k: fastnorm.batch_norm(x, training=True, **k), "NC"),
    "group": (lambda x, **k: fastnorm.group_norm(x, 2, **k), "NLC"),
    "layer": (lambda x, layout, **k: fastnorm.layer_norm(x, **k), "NC"),
    "rms": (lambda x, layout, **k: fastnorm.rms_norm(x, **k), "NC"),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, BF16])
@pytest.mark.parametrize("name", CALLS)
def test_all_beside_is_gathered_too(name, dtype, rng, mask):
    norm, seen = CALLS[name]
    whole, spoiled = arrays(rng, dtype, mask)
    more = {"weight": rng.uniform(0.5, 1.5, C).astype(dtype), "activation": "relu"}
    y, s, ctx = norm(**spoiled, **more, layout="NLC", mask=mask, return_ctx=True)
    dy, ds = (np.where(mask, a, dtype(np.nan)) for a in (whole["gate"], whole["x"]))
    grads = fastnorm.backward(dy, ctx, ds=ds)
    valid = mask[..., 0]
    for a in (y, s, grads.x, grads.shortcut, grads.gate):
        assert a.dtype == dtype
        assert not a[~valid].any()
    for at in [valid] if seen == "NC" else [(n, valid[n]) for n in (0, 2)]:
        part = {k: a[at] if seen == "NC" else a[at][None] for k, a in whole.items()}
        want_y, want_s, ctx = norm(**part, **more, layout=seen, return_ctx=True)
        want = fastnorm.backward(part["gate"], ctx, ds=part["x"])
        pairs = ((y, want_y), (s, want_s), (grads.x, want.x), (grads.shortcut, want.shortcut),
                 (grads.gate, want.gate))  # fmt: skip
        for got, wanted in pairs:
            assert got[at].tobytes() == wanted.tobytes()
        if seen == "NC":
            assert grads.weight.tobytes() == want.weight.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("more", [{"weight_offset": 1.0}, {"cast": "before_weight"},
                                  {"weight_offset": 0.5, "cast": "before_weight"}],
                         ids=str)  # fmt: skip
@pytest.mark.parametrize("name", CALLS)
def test_weights_of_gemma_and_llama(name, more, dtype, rng, mask):
    norm, seen = CALLS[name]
    whole, spoiled = arrays(rng, dtype, mask, ())
    more = {"weight": rng.uniform(0.5, 1.5, C).astype(dtype), **more}
    y, ctx = norm(**spoiled, **more, layout="NLC", mask=mask, return_ctx=True)
    grads = fastnorm.backward(whole["x"], ctx)
    valid = mask[..., 0]
    assert not y[~valid].any()
    for at in [valid] if seen == "NC" else [(n, valid[n]) for n in (0, 2)]:
        part = whole["x"][at] if seen == "NC" else whole["x"][at][None]
        want, ctx = norm(part, **more, layout=seen, return_ctx=True)
        back = fastnorm.backward(part, ctx)
        assert y[at].tobytes() == want.tobytes()
        assert grads.x[at].tobytes() == back.x.tobytes()
        assert grads.weight.dtype == back.weight.dtype == dtype


def switchable(x, layout, weight=None, bias=None, **more):
    logits = np.array([0.3, -0.5, 0.7])
    return fastnorm.switchable_norm(
        x, weight, bias, logits, logits, training=True, layout=layout, **more
    )


@pytest.mark.parametrize("shape", [(N, C), (N, 1, C), (1, L, C), (N, L, C), (N, L, 1)], ids=str)
@pytest.mark.parametrize("name", [*CALLS, "switchable"])
def test_weights_that_differ_between_samples_or_positions(name, shape, rng, mask):
    norm = CALLS.get(name, (switchable,))[0]
    if name in ("layer", "rms") and len(shape) == 2:
        shape = (N, 1, C)
    x, dy = rng.standard_normal((2, N, L, C))
    names = ("weight",) if name == "rms" else ("weight", "bias")
    given = {k: rng.uniform(0.5, 1.5, shape) for k in names}
    kwargs = {"layout": "NLC", "mask": mask}
    y, ctx = norm(np.where(mask, x, np.nan), **given, **kwargs, return_ctx=True)
    grads = fastnorm.backward(np.where(mask, dy, np.nan), ctx)
    spread = {k: a[:, None] if a.ndim == 2 else a for k, a in given.items()}
    want = norm(x, **kwargs) * spread["weight"] + spread.get("bias", 0)
    assert_close(y, np.where(mask, want, 0), 1e-13, "y")
    for k, a in given.items():
        direction = rng.standard_normal(a.shape)
        ends = [(norm(x, **{**given, k: a + t * direction}, **kwargs) * dy).sum()
                for t in (1e-6, -1e-6)]  # fmt: skip
        gradient = getattr(grads, k)
        assert gradient.shape == a.shape
        assert abs((ends[0] - ends[1]) / 2e-6 - (gradient * direction).sum()) < 1e-6
    moved = rng.standard_normal(x.shape)
    ends = [(norm(x + t * moved, **given, **kwargs) * dy).sum() for t in (1e-6, -1e-6)]
    assert abs((ends[0] - ends[1]) / 2e-6 - (grads.x * moved).sum()) < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, BF16])
def test_gradients_of_16_bits_are_rounded_once(dtype, rng):
    """Each of 200 samples is a call of its own; their sums are not rounded in between."""
    lengths = np.arange(1, 201)
    x, dy = (rng.uniform(0.5, 1.5, (200, 200, 2)).astype(dtype) for _ in "xy")
    given = {"weight": np.ones(2, dtype), "bias": np.zeros(2, dtype)}
    grads = []
    for kind in (dtype, np.float32):
        own = {k: a.astype(kind) for k, a in given.items()}
        _, ctx = fastnorm.instance_norm(x.astype(kind), **own, layout="NLC", lengths=lengths,
                                        return_ctx=True)  # fmt: skip
        grads.append(fastnorm.backward(dy.astype(kind), ctx))
    assert grads[0].bias.tobytes() == grads[1].bias.astype(dtype).tobytes()


# ---- packed samples --------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, BF16])
@pytest.mark.parametrize("weights", ["(C,)", "(samples, C)"])
@pytest.mark.parametrize("norm", ["instance_norm", "group_norm"])
def test_packed_samples(norm, weights, dtype, rng):
    call, args = getattr(fastnorm, norm), (2,) if norm == "group_norm" else ()
    offsets = np.array([0, 4, 4, 5, 12])
    beside = {k: rng.standard_normal((12, C)).astype(dtype)
              for k in ("x", "shortcut", "gate", "residual")}  # fmt: skip
    shape = (C,) if weights == "(C,)" else (4, C)
    given = {k: rng.uniform(0.5, 1.5, shape).astype(dtype) for k in ("weight", "bias")}
    x = beside.pop("x")
    y, s, ctx = call(x, *args, **given, **beside, activation="relu", offsets=offsets,
                     return_ctx=True)  # fmt: skip
    grads = fastnorm.backward(x, copy.deepcopy(ctx), ds=y)
    total = {k: np.zeros(shape) for k in given}
    for i, (start, end) in enumerate(pairwise(offsets)):
        at = (None, slice(start, end))
        own = {k: a if a.ndim == 1 else a[i] for k, a in given.items()}
        part = {k: a[at] for k, a in beside.items()}
        want_y, want_s, ctx = call(x[at], *args, **own, **part, activation="relu", layout="NLC",
                                   return_ctx=True)  # fmt: skip
        want = fastnorm.backward(x[at], ctx, ds=y[at])
        pairs = ((y, want_y), (s, want_s), (grads.x, want.x), (grads.gate, want.gate),
                 (grads.shortcut, want.shortcut))  # fmt: skip
        for got, wanted in pairs:
            assert got[at].tobytes() == wanted.tobytes()
        for k in total:
            total[k][i if shape != (C,) else ...] += getattr(want, k).astype(float)
    for k, sums in total.items():
        assert_close(getattr(grads, k), sums, 1e-6 if dtype == np.float32 else 2e-2, k)


# ---- processes, layers, other packages -------------------------------------------------------


@pytest.mark.parametrize("layout", ["NCL", "NLC"])
@pytest.mark.parametrize("none", [False, True])
def test_ranks_with_lengths(layout, none, rng):
    x, dy = (make_input(rng, (6, C, L), layout, np.float64) for _ in "xy")
    lengths = np.array([7, 3, 0, 0, 5, 1]) * (not none)
    weight = rng.uniform(0.5, 1.5, C)

    def call(comm):
        at = slice(2 * comm.rank, 2 * comm.rank + 2)  # the second rank has no valid element
        state = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
        y, ctx = fastnorm.sync_batch_norm(
            x[at], weight, comm=comm, training=True, layout=layout, lengths=lengths[at],
            return_ctx=True, **state,
        )  # fmt: skip
        return y, *fastnorm.backward(dy[at], ctx)[:2], state

    found = on_threads(3, call)[0]
    state = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
    y, ctx = fastnorm.batch_norm(x, weight, training=True, layout=layout, lengths=lengths,
                                 return_ctx=True, **state)  # fmt: skip
    want = fastnorm.backward(dy, ctx)
    assert_close(np.concatenate([f[0] for f in found]), y, 1e-12, "y")
    assert_close(np.concatenate([f[1] for f in found]), want.x, 1e-12, "dx")
    assert_close(sum(f[2] for f in found), want.weight, 1e-12, "dweight")
    for *_, own in found:
        for name, value in state.items():
            assert_close(own[name], value, 1e-12, name)


def test_a_rank_whose_lengths_are_wrong():
    def call(comm):
        try:
            fastnorm.sync_batch_norm(np.ones((2, 3, 4)), comm=comm, training=True,
                                     lengths=[comm.rank, 9 * comm.rank])  # fmt: skip
        except ValueError as error:
            return str(error)

    first, second = on_threads(2, call)[0]
    assert "rank(s) [1]: lengths: expected" in first
    assert "lengths: expected" in second


def test_a_rank_that_fails_fails_all_each_way():
    """With a mask, what is wrong of dy, or for a layer, is found before the ranks meet."""

    def call(comm):
        wrong = comm.rank == 1
        x, some = np.ones((2, 3, 4), np.float32), np.ones((2, 1, 1), bool)
        layer = fastnorm.SyncBatchNorm(3, comm=comm)
        found = [failure(lambda: layer(x[:, :2] if wrong else x, mask=some))]
        for around in (
            {"mask": some},
            {"activation": "relu"},
            {"mask": some, "activation": "relu"},
        ):
            layer(x, **around)
            found.append(failure(lambda: layer.backward(x[:1] if wrong else x)))
        return [*found, layer(x, mask=some).tobytes() == bytes(96)]

    for *found, works_again in on_threads(2, call)[0]:
        message = "dy: expected x's shape (2, 3, 4), got (1, 3, 4)"
        assert "x: expected 3 channels" in found[0][1]
        assert all(message in text for _, text in found[1:])
        assert works_again


def test_batches_without_a_valid_element_are_not_counted():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for layer in (fastnorm.BatchNorm(3), fastnorm.SwitchableNorm(3), fastnorm.SyncBatchNorm(3)):
        layer(x, lengths=[0, 0])
        assert layer.buffers["num_batches_tracked"] == 0
        layer(x, lengths=[0, 2])
        assert layer.buffers["num_batches_tracked"] == 1

    def call(comm):  # a rank without one counts the batch of the others
        layer = fastnorm.SyncBatchNorm(3, comm=comm, momentum=None)
        for most in (4, 0, 4):
            layer(x, lengths=[0, most * comm.rank], activation="relu")
        return layer.buffers

    first, second = on_threads(2, call)[0]
    for name, value in second.items():
        assert value.tobytes() == first[name].tobytes()
    assert first["num_batches_tracked"] == 2


def test_normalize_by_another_norm(rng):
    x, mask = rng.standard_normal((4, 5)), rng.random((4, 5)) < 0.6
    y, ctx = fastnorm.normalize(np.where(mask, x, np.nan), 3, activation="relu", mask=mask,
                                return_ctx=True)  # fmt: skip
    dx = fastnorm.backward(x, ctx).x
    for own, got, dgot, valid in zip(x, y, dx, mask, strict=True):
        want, ctx = fastnorm.normalize(own[valid], 3, 0, return_ctx=True)
        assert_close(got[valid], np.maximum(want, 0), 1e-14, "y")
        assert_close(dgot[valid], fastnorm.backward(own[valid] * (want > 0), ctx).x, 1e-13, "dx")
        assert not got[~valid].any()


@pytest.mark.parametrize("channels_first", [False, True])
def test_layers_take_masks(channels_first, rng, mask):
    layout = "NCL" if channels_first else "NLC"
    x = make_input(rng, (N, C, L), layout, np.float32)
    own = np.moveaxis(mask, -1, 1) if channels_first else mask
    layer = fastnorm.BatchNorm(C, layout=layout)
    y = layer(x, mask=own)
    dx = layer.backward(y)
    want, ctx = fastnorm.batch_norm(x, np.ones(C, "f4"), np.zeros(C, "f4"), training=True,
                                    layout=layout, mask=own, return_ctx=True)  # fmt: skip
    assert y.tobytes() == want.tobytes()
    assert dx.tobytes() == fastnorm.backward(y, ctx).x.tobytes()
    assert layer.buffers["num_batches_tracked"] == 1


FLAX = {
    "BatchNorm": lambda x, w, b, m: fastnorm.batch_norm(
        x, w, b, training=True, layout="NLC", mask=m, eps=1e-5, return_ctx=True),
    "LayerNorm": lambda x, w, b, m: fastnorm.layer_norm(x, w, b, mask=m, eps=1e-6, return_ctx=True),
    "RMSNorm": lambda x, w, b, m: fastnorm.rms_norm(x, w, mask=m, eps=1e-6, return_ctx=True),
    "GroupNorm": lambda x, w, b, m: fastnorm.group_norm(
        x, 3, w, b, layout="NLC", mask=m, eps=1e-6, return_ctx=True),
    "InstanceNorm": lambda x, w, b, m: fastnorm.instance_norm(
        x, w, b, layout="NLC", mask=m, eps=1e-6, return_ctx=True),
}  # fmt: skip


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", FLAX)
def test_like_flax(name, inside, rng):
    """Where flax says what y is: at valid elements. Its mask may cut a domain of layer norm too."""
    jax, linen = pytest.importorskip("jax"), pytest.importorskip("flax.linen")
    if inside and name not in ("LayerNorm", "RMSNorm"):
        pytest.skip("a mask of positions")
    x, dy = rng.normal(1, 2, (2, N, L, C)).astype(np.float32)
    mask = rng.random((N, L, C if inside else 1)) < 0.6
    if name not in ("LayerNorm", "RMSNorm"):
        mask[:, 0] = True  # flax has NaN where nothing is valid
    weight, bias = rng.uniform(0.5, 1.5, (2, C)).astype(np.float32)
    options = {"BatchNorm": {"use_running_average": False}, "GroupNorm": {"num_groups": 3}}
    layer = getattr(linen, name)(**options.get(name, {}), use_fast_variance=False)
    params = {"scale": weight, **({} if name == "RMSNorm" else {"bias": bias})}
    state = {"batch_stats": {"mean": np.zeros(C, "f4"), "var": np.ones(C, "f4")}}
    every = np.broadcast_to(mask, x.shape)

    def theirs(x, params):
        variables = {"params": params, **(state if name == "BatchNorm" else {})}
        y = layer.apply(variables, x, mask=every, mutable=["batch_stats"])[0]
        y = jax.numpy.where(every, y, 0)
        return (y * dy).sum(), y

    (_, want), grads = jax.value_and_grad(theirs, (0, 1), has_aux=True)(x, params)
    y, ctx = FLAX[name](x, weight, bias, mask)
    own = fastnorm.backward(dy, ctx)
    some = every.any(-1, keepdims=True)
    assert_close(y, np.where(some, want, 0), 1e-5, "y")
    assert_close(own.x, np.nan_to_num(grads[0]), 2e-5, "dx")
    if every.any(-1).all():
        assert_close(own.weight, grads[1]["scale"], 2e-5, "dweight")


def test_like_keras(rng, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    keras = pytest.importorskip("keras")
    x, mask = rng.normal(1, 2, (N, L, C)).astype(np.float32), rng.random((N, L)) < 0.6
    layer = keras.layers.BatchNormalization(momentum=0.9)
    want = np.asarray(layer(x, training=True, mask=mask))
    state = {"running_mean": np.zeros(C, "f4"), "running_var": np.ones(C, "f4")}
    y = fastnorm.batch_norm(x, **state, training=True, eps=1e-3, ddof=0, layout="NLC",
                            mask=mask[..., None])  # fmt: skip
    assert_close(y[mask], want[mask], 1e-5, "y")
    assert_close(state["running_mean"], layer.moving_mean, 1e-5, "mean")
    assert_close(state["running_var"], layer.moving_variance, 1e-5, "variance")
