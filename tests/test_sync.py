"""Sync Batch Norm: as on one process, whatever the ranks are and however many; nothing hangs.

Ranks are threads here, as their number matters; test_sync_processes.py: processes of each kind.
"""

import copy
import queue
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sync_worker as worker
from cases import assert_close
from sync_checks import check_like_one_process, check_misuse

import fastnorm
from fastnorm import comm as fc


class ThreadCommunicator:
    """One of the threads of this process; `pairs` where they can also talk in pairs."""

    def __init__(self, rank, size, slots, barrier):
        self.rank, self.size, self.sent, self.calls = rank, size, 0, 0
        self.slots, self.barrier = slots, barrier

    def allgather(self, message):
        self.calls += 1
        self.sent += len(message)
        self.slots[self.rank] = message
        self.barrier.wait(600)
        received = list(self.slots)
        self.barrier.wait(600)
        return received


class PairedThreads(ThreadCommunicator):
    def __init__(self, *arguments, queues):
        super().__init__(*arguments)
        self.queues = queues

    def sendrecv(self, message, partner):
        self.sent += len(message)
        self.queues[self.rank, partner].put(message)
        return self.queues[partner, self.rank].get(timeout=600)


def on_threads(size, function, *arguments, pairs=True):
    """Results of `function(comm, ...)` on each rank, and the communicators."""
    shared = [None] * size, threading.Barrier(size)
    queues = {(i, j): queue.Queue() for i in range(size) for j in range(size)}
    comms = [
        PairedThreads(rank, size, *shared, queues=queues)
        if pairs
        else ThreadCommunicator(rank, size, *shared)
        for rank in range(size)
    ]
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda c: function(c, *arguments), comms)), comms


def must_not_be_called(*_):
    raise AssertionError("the other way of talking was expected")


@pytest.mark.parametrize("kind", worker.KINDS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_ranks_give_what_one_process_gives(size, kind):
    results, _ = on_threads(size, worker.normalize, *kind)
    check_like_one_process(results, *kind)


@pytest.mark.parametrize("channels", [1, 1000])
def test_forward_and_backward_are_one_collective_each(channels):
    def call(comm):
        x = np.random.default_rng(comm.rank).normal(size=(50, channels))
        y, ctx = fastnorm.sync_batch_norm(x, comm=comm, training=True, return_ctx=True)
        found = [(comm.calls, comm.sent)]
        fastnorm.backward(y, ctx)
        return [*found, (comm.calls, comm.sent)]

    for (calls, sent), (all_calls, all_sent) in on_threads(3, call)[0]:
        assert (calls, all_calls) == (1, 2)
        assert 8 * (2 * channels + 1) < sent < 8 * (2 * channels + 1) + 200
        assert 8 * 2 * channels < all_sent - sent < 8 * 2 * channels + 200


@pytest.mark.parametrize("size", range(1, 18))
def test_a_tree_of_any_size(size, monkeypatch):
    gathered, _ = on_threads(size, worker.normalize, pairs=False)
    monkeypatch.setattr("fastnorm._reduce.GATHER_UP_TO", 0)
    monkeypatch.setattr(ThreadCommunicator, "allgather", must_not_be_called)
    in_a_tree, comms = on_threads(size, worker.normalize)
    check_like_one_process(in_a_tree, "float64", "NCHW")
    for ours, theirs in zip(in_a_tree, gathered, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert_close(a, b, 1e-12, "tree against rank order")
    rounds = 2 * (int(np.log2(size)) + 2)  # forward and backward; two more for odd sizes
    assert max(comm.sent for comm in comms) <= rounds * (8 * 11 + 200)


@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("size", [2, 3, 11, 16])
def test_every_rank_gets_the_same_bits(size, pairs, monkeypatch):
    monkeypatch.setattr("fastnorm._reduce.GATHER_UP_TO", 0)

    def means(comm):
        x = np.random.default_rng(comm.rank).normal(7, 1, (comm.rank + 2, 100))
        state = {"running_mean": np.zeros(100), "running_var": np.zeros(100)}
        fastnorm.sync_batch_norm(x, comm=comm, training=True, momentum=1.0, **state)
        return state["running_mean"].tobytes() + state["running_var"].tobytes()

    assert len(set(on_threads(size, means, pairs=pairs)[0])) == 1


def test_the_tree_begins_above_eight_ranks(monkeypatch):
    monkeypatch.setattr(PairedThreads, "sendrecv", must_not_be_called)
    on_threads(8, worker.normalize)
    monkeypatch.undo()
    monkeypatch.setattr(ThreadCommunicator, "allgather", must_not_be_called)
    on_threads(9, worker.normalize)


@pytest.mark.parametrize("size", [2, 3, 9, 13])
def test_one_bad_rank_makes_all_raise(size):
    results, _ = on_threads(size, worker.misuse)
    check_misuse(results)


def test_several_bad_ranks_are_all_named():
    def call(comm):
        x = np.zeros((2, 3) if comm.rank in (0, 3) else comm.rank + 2)
        return worker.failure(lambda: fastnorm.sync_batch_norm(x, comm=comm, training=True))

    for kind, text in on_threads(5, call)[0]:
        assert kind == "ValueError"
        assert [part[:11] for part in text.split("; ")] == [f"rank(s) [{i}]" for i in (1, 2, 4)]


def test_the_same_mistake_on_all_ranks():
    def call(comm):
        return worker.failure(
            lambda: fastnorm.sync_batch_norm(np.ones(3), comm=comm, training=True)
        )

    for kind, text in on_threads(3, call)[0]:
        assert kind == "ValueError"
        assert text.startswith("rank(s) [0, 1, 2]: x: expected at least 2 dimensions")


def test_any_error_is_shared(monkeypatch):
    measure = fastnorm.sync._core.measure_started

    def explosive(ctx):
        moments, *rest = measure(ctx)
        if moments[1]:  # a mean
            raise OSError("cannot read this")
        return moments, *rest

    monkeypatch.setattr(fastnorm.sync._core, "measure_started", explosive)

    def call(comm):
        x = np.full((3, 2), float(comm.rank))
        return worker.failure(lambda: fastnorm.sync_batch_norm(x, comm=comm, training=True))

    for kind, text in on_threads(2, call)[0]:
        assert (kind, text) == ("RuntimeError", "rank(s) [1]: cannot read this")


def test_no_samples_anywhere():
    def call(comm):
        state = worker.running()
        layer = fastnorm.SyncBatchNorm(5, comm=comm, momentum=None)
        layer(np.zeros((0, 5, 2, 2), np.float32))
        y, ctx = fastnorm.sync_batch_norm(
            np.zeros((0, 5)), np.ones(5), comm=comm, training=True, return_ctx=True, **state
        )
        unchanged = all((v == worker.running()[k]).all() for k, v in state.items())
        return y, fastnorm.backward(y, ctx), unchanged, layer.buffers

    for y, grads, unchanged, buffers in on_threads(3, call)[0]:
        assert y.shape == grads.x.shape == (0, 5)
        assert not grads.weight.any()
        assert unchanged
        assert int(buffers["num_batches_tracked"]) == 0
        assert not buffers["running_mean"].any()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"ddof": 0},
        {"affine": False},
        {"track_running_stats": False},
        {"layout": "NHWC"},
    ],
    ids=str,
)
def test_the_layer_is_batch_norm_of_all(options, rng):
    size, steps = 3, 4
    batches = [rng.normal(2, 3, (7, 5, 5, 5)) for _ in range(steps)]
    ends = [[0, 4, 4, 7], [0, 0, 3, 7], [0, 2, 5, 7], [0, 2, 5, 7]]

    def call(comm):
        layer = fastnorm.SyncBatchNorm(5, comm=comm, dtype=np.float64, **options)
        found = []
        for i, x in enumerate(batches):
            layer.train(i < steps - 1)
            x = x[ends[i][comm.rank] : ends[i][comm.rank + 1]]
            found.append((layer(x), layer.backward(x**2)))
        return found, layer.state_dict()

    one = fastnorm.BatchNorm(5, dtype=np.float64, **options)
    results, _ = on_threads(size, call)
    for i, x in enumerate(batches):
        one.train(i < steps - 1)
        y = one(x)
        if options.get("track_running_stats", True) or i < steps - 1:
            assert_close(np.concatenate([r[0][i][0] for r in results]), y, 1e-12, "y")
            dx = np.concatenate([r[0][i][1] for r in results])
            assert_close(dx, one.backward(x**2), 1e-11, "dx")
    for _, state in results:
        assert state.keys() == one.state_dict().keys()
        for name, value in one.state_dict().items():
            assert_close(state[name], value, 1e-12, name)


def test_blocks_of_channels(rng):
    x = rng.normal(3, 2, (6, 20, 5, 4)).astype(np.float32)
    state = {"running_mean": np.zeros(20, np.float32), "running_var": np.ones(20, np.float32)}
    want = copy.deepcopy(state)
    y, ctx = fastnorm.batch_norm(x, training=True, return_ctx=True, **want)
    dx = fastnorm.backward(x**2, ctx).x

    def call(comm):
        own = copy.deepcopy(state)
        part = fastnorm.to_blocked(x[2 * comm.rank : 2 * comm.rank + 2])
        y, ctx = fastnorm.sync_batch_norm(
            part, comm=comm, training=True, layout="NCHW16c", return_ctx=True, **own
        )
        dx = fastnorm.backward(part**2, ctx).x
        return fastnorm.from_blocked(y, 20), fastnorm.from_blocked(dx, 20), own

    results, _ = on_threads(3, call)
    assert_close(np.concatenate([r[0] for r in results]), y, 1e-6, "y")
    assert_close(np.concatenate([r[1] for r in results]), dx, 1e-6, "dx")
    for *_, own in results:
        assert_close(own["running_var"], want["running_var"], 1e-6, "running_var")


def test_nan_and_infinity_stay_in_their_channels(recwarn):
    def call(comm):
        x = np.arange(12.0).reshape(4, 3) + comm.rank
        if comm.rank == 1:
            x[0, 0], x[1, 1] = np.nan, np.inf
        return fastnorm.sync_batch_norm(x, comm=comm, training=True)

    for y in on_threads(3, call)[0]:
        assert np.isnan(y).all(0).tolist() == [True, True, False]
    assert not recwarn.list


def test_in_place_and_inference_alone(rng):
    x, mean, var = rng.normal(size=(4, 3)), np.zeros(3), np.ones(3)
    want = fastnorm.batch_norm(x, training=True)
    found, _ = on_threads(
        2, lambda comm: fastnorm.sync_batch_norm(y := x.copy(), comm=comm, training=True, out=y)
    )
    for y in found:
        np.testing.assert_allclose(y, want, rtol=1e-12)
    nobody = ThreadCommunicator(0, 2, None, None)
    y = fastnorm.sync_batch_norm(x, comm=nobody, running_mean=mean, running_var=var)
    np.testing.assert_array_equal(y, fastnorm.batch_norm(x, running_mean=mean, running_var=var))
    layer = fastnorm.SyncBatchNorm(3, comm=nobody, dtype=np.float64).eval()
    with pytest.raises(ValueError, match="x: expected 3 channels"):
        layer(x[:, :2])


def test_alone_errors_are_those_of_batch_norm():
    state = {"running_mean": np.zeros(3), "running_var": np.ones(3)}
    with pytest.raises(ValueError, match=r"^x: expected more than one value"):
        fastnorm.sync_batch_norm(np.ones((1, 3)), training=True, **state)
    np.testing.assert_array_equal([*state.values()], [np.zeros(3), np.ones(3)])
    # without a variance to keep, the mathematics gives the bias
    alone = fastnorm.sync_batch_norm(np.ones((1, 3)), bias=np.arange(3.0), training=True)
    np.testing.assert_array_equal(alone, [[0, 1, 2]])
    with pytest.raises(TypeError, match=r"^training: expected a bool, got str"):
        fastnorm.sync_batch_norm(np.ones((2, 3)), training="yes")
    with pytest.raises(ValueError, match=r"^weight: expected shape"):
        fastnorm.sync_batch_norm(np.ones((2, 3)), np.ones(2), training=True)
    x = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^out: expected an array apart from x"):
        fastnorm.sync_batch_norm(x, training=True, out=x, return_ctx=True)
    with pytest.raises(RuntimeError, match="expected a call of the layer before"):
        fastnorm.SyncBatchNorm(3).backward(x)
    with pytest.raises(TypeError, match=r"^comm: expected a Communicator .*, got int"):
        fastnorm.SyncBatchNorm(3, comm=3)


def test_copies_of_a_layer_share_the_communicator():
    comm = fc.local_communicators(1)[0]
    layer = fastnorm.SyncBatchNorm(3, comm=comm)
    layer(np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))
    assert copy.deepcopy(layer).comm is comm
    assert repr(fastnorm.SyncBatchNorm(3)) == "SyncBatchNorm(3, eps=1e-05, momentum=0.1, " \
        "affine=True, track_running_stats=True)"  # fmt: skip


def test_a_communicator_that_loses_messages_is_noticed():
    class Lossy(ThreadCommunicator):
        def allgather(self, message):
            return [message]

    with pytest.raises(RuntimeError, match="comm: expected 3 messages, got 1"):
        fastnorm.sync_batch_norm(np.ones((2, 3)), comm=Lossy(0, 3, None, None), training=True)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_messages_of_all_lengths_through_shared_memory(size):
    def talk(comm):
        found = []
        for step in range(8):
            length = (comm.rank * 7 + step * 5) % 23
            found.append(comm.allgather(bytes([comm.rank]) * length))
        return found

    with ThreadPoolExecutor(size) as pool:
        results = list(pool.map(talk, fc.local_communicators(size, slot=8)))
    for step in range(8):
        want = [bytes([rank]) * ((rank * 7 + step * 5) % 23) for rank in range(size)]
        assert all(found[step] == want for found in results)


def test_who_comes_too_late_does_not_go_on_alone():
    early, late = fc.local_communicators(2, timeout=0.1)
    for comm in (early, late):
        with pytest.raises(TimeoutError, match=r"expected all 2 ranks within 0\.1 s"):
            comm.allgather(b"")


def test_bad_groups():
    with pytest.raises(ValueError, match="size: expected a positive number up to 4096, got 0"):
        fc.local_communicators(0)
    with pytest.raises(TypeError, match="slot: expected a number, got float"):
        fc.local_communicators(2, slot=1.5)
    with pytest.raises(ValueError, match="timeout: expected a positive number"):
        fc.local_communicators(2, timeout=-1)


def test_mpi_that_is_missing_or_given_something_else():
    program = "from fastnorm.comm import MPICommunicator; MPICommunicator(3)"
    without = "import sys; sys.modules['mpi4py'] = None; "
    for code, error in (
        (without + program, "ImportError: mpi4py: expected it to be installed with an MPI"),
        (program, "TypeError: comm: expected an mpi4py.MPI.Comm, got int"),
    ):
        if code == program:
            pytest.importorskip("mpi4py")
        # a process of its own, since MPI starts where it is imported
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert error in done.stderr


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("eps", [1e-5, 1e-30])
def test_gradients_of_constants_are_zero(dtype, eps, rng):
    x, dy = np.full((7, 5, 3), 2.7, dtype), np.full((7, 5, 3), 1.7, dtype)
    weight = rng.standard_normal(5).astype("f8" if dtype == "f8" else "f4")
    _, ctx = fastnorm.sync_batch_norm(x, weight, weight, training=True, eps=eps, return_ctx=True)
    dx, dweight, _ = fastnorm.backward(dy, ctx)
    np.testing.assert_array_equal(dx, 0)
    np.testing.assert_array_equal(dweight, 0)


def test_a_constant_channel_without_eps_is_as_in_batch_norm():
    x = np.array([[1.0, 2.0], [1.0, 3.0]])
    y = fastnorm.sync_batch_norm(x, training=True, eps=0.0)
    np.testing.assert_array_equal(y, fastnorm.batch_norm(x, training=True, eps=0.0))
