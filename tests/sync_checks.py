"""What ranks of Sync Batch Norm must have found, be they threads or processes."""

import numpy as np
import sync_worker as worker
from cases import assert_close

import fastnorm

TOLERANCE = {"float64": 1e-12, "float32": 1e-6, "float16": 2e-3}


def check_like_one_process(results, dtype, layout):
    """Compare what the ranks found with Batch Norm of the whole batch; statistics bit by bit."""
    x, dy, weight, bias, _ = worker.problem(len(results), dtype, layout)
    state = worker.running(dtype)
    y, ctx = fastnorm.batch_norm(
        x, weight, bias, **state, training=True, layout=layout, return_ctx=True
    )
    dx, dweight, dbias = fastnorm.backward(dy, ctx)
    ys, dxs, dweights, dbiases, means, variances = zip(*results, strict=True)
    tolerance = TOLERANCE[dtype]
    assert_close(np.concatenate(ys), y, tolerance, "y")
    assert_close(np.concatenate(dxs), dx, tolerance, "dx")
    # each rank has its share
    assert_close(np.sum(dweights, 0, np.float64), dweight, tolerance, "dweight")
    assert_close(np.sum(dbiases, 0, np.float64), dbias, tolerance, "dbias")
    for name, found in (("running_mean", means), ("running_var", variances)):
        assert_close(found[0], state[name], tolerance, name)
        assert len({value.tobytes() for value in found}) == 1, f"{name} differs between ranks"
    for result in results:
        assert {array.dtype for array in result} == {np.dtype(dtype)}


MISUSE = {  # on the last rank: kind of error, and how the reason begins
    "shape": ("ValueError", "x: expected at least 2 dimensions"),
    "weight": ("ValueError", "weight: expected shape (5,), got (4,)"),
    "momentum": ("TypeError", "momentum: expected a number, got str"),
    "layer": ("ValueError", "x: expected 5 channels in NCHW, got shape (3, 2, 4, 3)"),
    "dy": ("ValueError", "dy: expected x's shape (3, 5, 4, 3), got (1, 5, 4, 3)"),
    "out": ("ValueError", "out: expected an array apart from the x"),
    "no call": ("RuntimeError", "SyncBatchNorm.backward: expected a call of the layer before"),
}
DIFFERENT = {  # what the others do, and what the last rank does
    "channels": ("forward: 5 channels, float64", "forward: 4 channels, float64"),
    "dtype": ("forward: 5 channels, float64", "forward: 5 channels, float32"),
    "eps": ("forward: 5 channels, float64, eps=1e-05", "forward: 5 channels, float64, eps=0.001"),
    "mixed": ("backward: 5 channels", "forward: 5 channels"),
}


def check_misuse(results):
    """The last rank made these mistakes: all raise, and name it."""
    size = len(results)
    last, others = f"rank(s) [{size - 1}]: ", f"rank(s) {list(range(size - 1))}: "
    for found, untouched, works_again, found_size in results:
        assert found_size == size
        for name, (kind, reason) in MISUSE.items():
            assert found[name][0] == kind, found[name]
            assert found[name][1].startswith(last + reason), found[name]
        for name, (theirs, ours) in DIFFERENT.items():
            assert found[name][0] == "ValueError", found[name]
            assert "x: expected the same call on all ranks, got " in found[name][1]
            assert others + theirs in found[name][1], found[name]
            assert last + ours in found[name][1], found[name]
        kind, text = found["one value"]
        assert (kind, text[:35]) == ("ValueError", "x: expected more than one value for")
        assert untouched
        assert works_again
