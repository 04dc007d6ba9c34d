"""What the ranks of Sync Batch Norm are put to, and how they are started.

    python sync_worker.py local SIZE FOLDER
    mpiexec -n SIZE python sync_worker.py mpi SIZE FOLDER

Each rank writes what it found to FOLDER/RANK.pickle.
"""

import contextlib
import copy
import multiprocessing
import os
import pickle
import sys
from pathlib import Path

import numpy as np

import fastnorm
from fastnorm import _reduce
from fastnorm.comm import MPICommunicator, PairCommunicator, local_communicators

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

CHANNELS = 5
# samples of each rank: different numbers, and none
SAMPLES = [3, 0, 5, 2, 4, 1, 0, 7, 1, 2, 0, 3, 1, 1, 6, 2, 3]
KINDS = [("float64", "NCHW"), ("float32", "NCHW"), ("float32", "NHWC"), ("float16", "NCHW")]


def problem(size, dtype="float64", layout="NCHW", samples=SAMPLES):
    """x, dy, weight, bias of the whole batch, and where each rank's part begins and ends."""
    rng = np.random.default_rng(size)
    ends = np.cumsum([0, *samples[:size]])
    shape = (ends[-1], 4, 3, CHANNELS) if layout == "NHWC" else (ends[-1], CHANNELS, 4, 3)
    x, dy = rng.normal(3, 2, shape).astype(dtype), rng.normal(0.5, 1, shape).astype(dtype)
    weight, bias = rng.uniform(0.5, 1.5, (2, CHANNELS)).astype(dtype)
    return x, dy, weight, bias, ends


def running(dtype="float64"):
    return {
        "running_mean": np.linspace(-1, 1, CHANNELS).astype(dtype),
        "running_var": np.linspace(1, 2, CHANNELS).astype(dtype),
    }


def normalize(comm, dtype="float64", layout="NCHW", **more):
    """Forward and backward of this rank's part."""
    x, dy, weight, bias, ends = problem(comm.size, dtype, layout)
    part = slice(ends[comm.rank], ends[comm.rank + 1])
    state = running(dtype)
    y, ctx = fastnorm.sync_batch_norm(
        x[part], weight, bias, comm=comm, **state, training=True, layout=layout, return_ctx=True,
        **more,
    )  # fmt: skip
    return [y, *fastnorm.backward(dy[part], ctx), *state.values()]


def failure(call):
    try:
        call()
    except (TypeError, ValueError, RuntimeError, OSError) as error:
        return type(error).__name__, str(error)
    return "none", ""


def misuse(comm):
    """Errors of calls that are wrong on some ranks; after each the group still works."""
    last, size = comm.rank == comm.size - 1, comm.size
    x, dy, weight, bias, _ = problem(1)
    state = running()
    layer = fastnorm.SyncBatchNorm(CHANNELS, comm=comm, affine=False, dtype=np.float64)
    out = np.full_like(x, 7)

    def forward(x, weight=weight, **more):
        return fastnorm.sync_batch_norm(
            x, weight, comm=comm, training=True, out=out, **{**state, **more}
        )

    found = {
        "shape": failure(lambda: forward(x[0, 0, 0] if last else x)),
        "weight": failure(lambda: forward(x, weight[:-1] if last else weight)),
        "momentum": failure(lambda: forward(x, momentum="a" if last else 0.1)),
        "channels": failure(
            lambda: fastnorm.sync_batch_norm(x[:, : -1 if last else None], comm=comm, training=True)
        ),
        "dtype": failure(
            lambda: fastnorm.sync_batch_norm(
                x.astype(np.float32) if last else x, comm=comm, training=True
            )
        ),
        "eps": failure(lambda: forward(x, eps=1e-3 if last else 1e-5)),
        "layer": failure(lambda: layer(x[:, :2] if last else x)),
        "one value": failure(
            lambda: fastnorm.sync_batch_norm(
                np.ones((int(last), 2)), comm=comm, training=True, running_mean=np.zeros(2),
                running_var=np.ones(2),
            )
        ),
    }  # fmt: skip
    y, ctx = fastnorm.sync_batch_norm(x, weight, bias, comm=comm, training=True, return_ctx=True)
    dx = np.full_like(x, 7)
    found["dy"] = failure(lambda: fastnorm.backward(dy[:1] if last else dy, ctx, dx))
    found["out"] = failure(lambda: fastnorm.backward(dy, ctx, x if last else dx))
    called = fastnorm.SyncBatchNorm(
        CHANNELS, comm=comm, track_running_stats=False, dtype=np.float64
    )
    called(x)  # of which a copy knows nothing
    found["no call"] = failure(lambda: (copy.copy(called) if last else called).backward(dy))
    mixed = (lambda: forward(x)) if last else (lambda: fastnorm.backward(dy, ctx, dx))
    found["mixed"] = failure(mixed)
    untouched = (out == 7).all() and (dx == 7).all()
    untouched &= all((state[k] == v).all() for k, v in running().items())
    untouched &= not layer.buffers["running_mean"].any()
    untouched &= int(layer.buffers["num_batches_tracked"]) == 0
    again = fastnorm.sync_batch_norm(x, weight, bias, comm=comm, training=True)
    return found, bool(untouched), bool((again == y).all()), size


def train(comm, steps=6, batch=64):
    """Parameters and buffers of the digits network after some steps of data-parallel training."""
    from convnet import small_convnet
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = (digits.images[:, None] / 16).astype(np.float32)
    rng = np.random.default_rng(0)
    network = small_convnet(
        rng,
        (lambda channels: fastnorm.SyncBatchNorm(channels, comm=comm))
        if comm
        else fastnorm.BatchNorm,
    )
    for _ in range(steps):
        index = rng.choice(len(x), batch, replace=False)
        if comm:
            index = index[comm.rank :: comm.size]
        network.loss_and_backward(x[index], digits.target[index])
        for layer in network.layers if comm else []:
            for name, gradient in layer.grads.items():
                everyone = comm.allgather(gradient.tobytes())
                shape = (comm.size, *gradient.shape)
                layer.grads[name] = np.frombuffer(b"".join(everyone), np.float32).reshape(shape)
                layer.grads[name] = layer.grads[name].mean(0)
        network.step(0.1)
    return [
        value.copy()
        for layer in network.layers
        for value in [*layer.params.values(), *getattr(layer, "buffers", {}).values()]
    ]


def work(comm, folder):
    """All of the above, in one process."""
    found = {"size": comm.size, "rank": comm.rank, "misuse": misuse(comm)}
    for kind in KINDS:
        found[kind] = normalize(comm, *kind)
    if isinstance(comm, PairCommunicator):
        _reduce.GATHER_UP_TO = 0
        found["tree"] = normalize(comm)
    with contextlib.suppress(ImportError):
        import sklearn  # noqa: F401

        found["train"] = train(comm)
    Path(folder, f"{comm.rank}.pickle").write_bytes(pickle.dumps(found))


def leave(comm, folder):
    """The last rank goes away without a word; what the others get."""
    if comm.rank == comm.size - 1:
        os._exit(0)
    found = [failure(lambda: comm.allgather(b"")) for _ in range(2)]
    Path(folder, f"{comm.rank}.pickle").write_bytes(pickle.dumps(found))


def start_local(method, size, folder, function=work, timeout=600.0):
    comms = local_communicators(size, timeout=timeout, slot=128)  # messages in several rounds
    context = multiprocessing.get_context(method)
    ranks = [context.Process(target=function, args=(comm, folder)) for comm in comms]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join()
    return max(abs(rank.exitcode) for rank in ranks)


if __name__ == "__main__":
    kind, size, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if kind == "mpi":
        work(MPICommunicator(), folder)
    elif kind == "leave":
        sys.exit(start_local("fork", size, folder, leave, 1.0))
    else:
        sys.exit(start_local(kind, size, folder))
