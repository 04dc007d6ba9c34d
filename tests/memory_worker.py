"""Fail the allocations of calls one after the other: each is a MemoryError that wrote nothing.

A program of its own, as CPython's own objects are what is missing. Its arguments: a dtype, and
whether later allocations fail too.
"""

import gc
import sys

import ml_dtypes
import numpy as np

import fastnorm
from fastnorm import _core

C = 6
CALLS = {
    "layer_norm": ["weight", "bias", {"axis": 1}],
    "layer_norm, axes apart": [{"axis": (0, 2)}],
    "rms_norm": [{}],
    "batch_norm": ["weight", "bias", "running", {"training": True, "layout": "NCL"}],
    "batch_renorm": ["weight", "bias", "wide", {"training": True, "layout": "NCL"}],
    "group_norm": ["weight", "bias", {"num_groups": 2, "layout": "NCL"}],
    "instance_norm": ["weight", "wide", {"layout": "NCL"}],
    "instance_renorm": ["weight", "running", {"training": True, "layout": "NCL"}],
    "switchable_norm": [
        "weight", "bias", "logits", "running", {"training": True, "layout": "NCL"},
    ],
    "weight_norm": [{"axis": 1}],
    "sync_batch_norm": ["weight", "bias", "running", {"training": True, "layout": "NCL"}],
    "sync_batch_norm, in blocks": [
        "weight", "bias", "wide", {"training": True, "layout": "NCL8c"},
    ],
    "normalize": [{}],
}  # fmt: skip


def arguments(names, dtype):
    kwargs = {}
    for name in names:
        if isinstance(name, dict):
            kwargs.update(name)
        elif name == "running":
            kwargs.update(running_mean=np.zeros(C, dtype), running_var=np.ones(C, dtype))
        elif name == "wide":
            wide = np.float32 if dtype.itemsize == 2 else dtype
            kwargs.update(running_mean=np.zeros(C, wide), running_var=np.ones(C, wide))
        elif name == "logits":
            kwargs.update(mean_logits=np.ones(3, dtype), var_logits=np.ones(3, dtype))
        else:
            kwargs[name] = np.linspace(0.5, 2, C).astype(dtype)
    return kwargs


def outputs(x):
    yield None
    yield np.full(x.shape, 7, x.dtype)
    yield np.full((*x.shape[:-1], 2 * x.shape[-1]), 7, x.dtype)[..., ::2]
    if x.dtype.kind == "f":  # NumPy's own copy to others crashes where memory is missing
        yield np.full(x.shape, 7, x.dtype.newbyteorder())


def check(call, written, forever):
    """Return how many allocations can fail."""
    for start in range(1000):
        before = [array.copy() for array in written]
        try:
            _testcapi.set_nomemory(start, 0 if forever else start + 1)
            call()
        except MemoryError:
            _testcapi.remove_mem_hooks()
            for array, was in zip(written, before, strict=True):
                assert array.tobytes() == was.tobytes(), f"allocation {start}: written"
            continue
        _testcapi.remove_mem_hooks()
        return start
    raise AssertionError("it never went through")


def growth(call, forever, runs=20):
    """Return how many blocks of memory a run of `check` loses."""
    for _ in range(runs):
        check(call, [], forever)
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(runs):
        check(call, [], forever)
    gc.collect()
    return (sys.getallocatedblocks() - before) / runs


def main(name, forever):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    first = np.random.default_rng(0).standard_normal((4, C, 5)).astype(dtype)
    count = 0
    for title, names in CALLS.items():
        function = getattr(fastnorm, title.partition(",")[0])
        x = fastnorm.to_blocked(first, 8) if "blocks" in title else first
        args = [x, x[0, :, 0]] if title == "weight_norm" else [x]
        for out in outputs(x):
            for keep in (False, True):
                kwargs = {**arguments(names, dtype), "out": out, "return_ctx": keep}
                written = [kwargs[k] for k in ("running_mean", "running_var", "out") if k in kwargs]
                written = [array for array in written if array is not None]
                count += check(lambda: function(*args, **kwargs), written, forever)  # noqa: B023
            ctx = function(*args, **kwargs)[1]
            written = [] if out is None else [out]
            count += check(lambda: fastnorm.backward(x, ctx, out), written, forever)  # noqa: B023
        lost = growth(lambda: fastnorm.backward(x, function(*args, **kwargs)[1]), forever)  # noqa: B023
        assert lost < 10, f"{title}: each run loses {lost} blocks of memory"
    if dtype.kind == "f":  # as the scalers scale a Fortran-ordered X where it lies
        x, one = first[:, :, 0].copy(), np.ones(4)
        count += check(lambda: _core.affine(x, one, one, one, x, by_row=True), [x], forever)
    print(count)


if __name__ == "__main__":
    import _testcapi

    main(sys.argv[1], sys.argv[2] == "forever")
