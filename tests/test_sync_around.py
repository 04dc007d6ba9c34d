"""Sync Batch Norm with weights of samples: as on one process; ranks that fail fail all."""

import functools
import pickle

import numpy as np
import pytest
from cases import assert_close
from sync_worker import failure
from test_sync import on_threads

import fastnorm

C, L = 6, 5
SIZES = (2, 0, 1, 3)  # samples of each rank


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(
    "around", [{}, {"activation": "silu"}, {"residual": True}, {"mask": True}], ids=str
)
def test_weights_of_samples_are_as_on_one_process(around, positions, rng):
    x, dy, ds = rng.standard_normal((3, sum(SIZES), C, L))
    w, b = rng.standard_normal((2, sum(SIZES), C, *((L,) if positions else ())))
    arrays = {"residual": ds * 2, "mask": rng.random((len(x), 1, L)) < 0.7}
    around = {name: arrays.get(name, value) for name, value in around.items()}
    ends = np.cumsum(SIZES)

    def state():
        return {"running_mean": np.zeros(C), "running_var": np.ones(C)}

    def call(comm):
        at = slice(ends[comm.rank] - SIZES[comm.rank], ends[comm.rank])
        own = {k: a[at] if isinstance(a, np.ndarray) else a for k, a in around.items()}
        running = state()
        *y, ctx = fastnorm.sync_batch_norm(x[at], w[at], b[at], comm=comm, training=True,
                                           return_ctx=True, **own, **running)  # fmt: skip
        more = {"ds": ds[at]} if "residual" in around else {}
        return *y, *fastnorm.backward(dy[at], ctx, **more)[:3], running

    found = on_threads(len(SIZES), call)[0]
    running = state()
    *y, ctx = fastnorm.batch_norm(x, w, b, training=True, return_ctx=True, **around, **running)
    grads = fastnorm.backward(dy, ctx, **({"ds": ds} if "residual" in around else {}))
    for i, want in enumerate((*y, *grads[:3])):
        assert_close(np.concatenate([f[i] for f in found]), want, 1e-12, str(i))
    for f in found:
        for name, value in running.items():
            assert_close(f[-1][name], value, 1e-12, name)


def test_forward_and_backward_are_one_collective_each():
    """And statistics are at hand: one rank alone may look at them."""

    def call(comm):
        x = np.random.default_rng(comm.rank).standard_normal((2, C, L))
        _, ctx = fastnorm.sync_batch_norm(x, np.ones((2, C)), comm=comm, training=True,
                                          return_ctx=True, mask=x[:, :1] < 2)  # fmt: skip
        calls = [comm.calls]
        means = [ctx.mean, ctx.var, ctx.rstd] if comm.rank == 0 else []
        calls.append(comm.calls)
        fastnorm.backward(x, ctx)
        return [*calls, comm.calls], len(means)

    for calls, _ in on_threads(2, call)[0]:
        assert calls == [1, 1, 2]


def test_a_rank_without_samples_counts_the_batches_of_others():
    def call(comm):
        layer = fastnorm.SyncBatchNorm(C, comm=comm, cast="before_weight")
        layer(np.ones((2 * (1 - comm.rank), C, L), np.float16))
        return int(layer.buffers["num_batches_tracked"])

    assert on_threads(2, call)[0] == [1, 1]


def test_a_rank_that_fails_fails_all():
    """Also what is found before the ranks meet: in weights of samples, states, dy and out."""

    def call(comm):
        wrong, x, w = comm.rank == 1, np.ones((2, C, L)), np.ones((2, C))
        state = {"running_mean": np.zeros(C), "running_var": np.ones(C)}
        norm = fastnorm.sync_batch_norm
        keep = {"comm": comm, "training": True, "return_ctx": True}
        cases = (
            {"weight": w[:, :3] if wrong else w},
            {"weight": [[None]] if wrong else w},
            {"weight": w, **state, **({"running_var": np.ones(C, "f4")} if wrong else {})},
            {"weight": w, "virtual_batch_size": 1},
            {"moments": fastnorm.Moments.from_array(x, layout="NCL")},
        )
        found = [failure(functools.partial(norm, x, **keep, **case)) for case in cases]
        _, ctx = norm(x, w, **keep)
        found.append(failure(lambda: fastnorm.backward(x[:1] if wrong else x, ctx)))
        out = w if wrong else None
        found.append(failure(lambda: fastnorm.backward(x, ctx, out)))
        return found, fastnorm.backward(x, ctx).x.shape

    messages = ("weight: expected shape", "weight: expected dtype", "running_var: expected dtype",
                "virtual_batch_size: expected None", "moments: expected None",
                "dy: expected x's shape", "out: expected shape")  # fmt: skip
    for found, shape in on_threads(2, call)[0]:
        for (_, text), message in zip(found, messages, strict=True):
            assert message in text
        assert shape == (2, C, L)


@pytest.mark.parametrize("change", ["x", "weight", "ds", "sums"])
def test_a_rank_that_fails_in_backward_fails_all(change):
    """What was changed since the forward call, and what does not belong to it."""

    def call(comm):
        x, dy, weight = np.ones((3, C, 6)), np.ones((3, C, 6)), np.ones(C)
        _, ctx = fastnorm.sync_batch_norm(x, weight, comm=comm, training=True, activation="relu",
                                          return_ctx=True)  # fmt: skip
        more = {}
        if comm.rank == 1:
            if change in ("x", "weight"):
                array = {"x": x, "weight": weight}[change]
                array.shape = (-1, 2)
            else:
                more = {change: dy}
        return failure(lambda: fastnorm.backward(dy, ctx, **more))

    for _, text in on_threads(2, call)[0]:
        assert f"{change}: expected" in text or f"ctx: expected {change} as it was" in text


@pytest.mark.parametrize("around", [{}, {"activation": "relu"}])
def test_a_layer_that_fails_on_one_rank_fails_on_all(around):
    def call(comm):
        layer, x = fastnorm.SyncBatchNorm(C, comm=comm), np.ones((2, C, L), np.float32)
        found = [failure(lambda: layer(x, **around, **({"weight": x} if comm.rank else {})))]
        layer.buffers["num_batches_tracked"].flags.writeable = comm.rank == 0
        return [*found, failure(lambda: layer(x, **around))]

    for (_, first), (_, second) in on_threads(2, call)[0]:
        assert "multiple values for keyword argument 'weight'" in first
        assert "num_batches_tracked: expected a writeable array" in second


def test_contexts_of_ranks_without_samples_are_pickled():
    def call(comm):
        x = np.ones((2 * comm.rank, C, L))
        _, ctx = fastnorm.sync_batch_norm(x, np.ones(C), training=True, return_ctx=True)
        again = pickle.loads(pickle.dumps(ctx))
        np.testing.assert_array_equal(again.mean, ctx.mean)
        return fastnorm.backward(x, again).x.shape

    assert on_threads(2, call)[0] == [(0, C, L), (2, C, L)]
