"""Same input, same bits: threads, instruction sets, alignment, streaming stores, run to run.

Here in dtypes and of kinds that test_oracle.py, which demands the same, does not have.
"""

import itertools
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from cases import NORMS, check_bits, everywhere, make_input, unaligned
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnorm


def problem(norm, shape, dtype, seed):
    rng = np.random.default_rng(seed)
    if norm.kwargs.get("num_groups", 1) > 1:
        shape = (shape[0], -(-shape[1] // 3) * 3, *shape[2:])
    for layout in ["channels_first", "channels_last"] if norm.channels else ["channels_first"]:
        x = make_input(rng, shape, layout, dtype, mean=3.0)
        params = x if x.itemsize > 2 else x.astype(np.float32)
        args, kwargs = norm.arguments(rng, params, layout)
        yield x, args, kwargs, rng.standard_normal(x.shape).astype(dtype)


@pytest.mark.parametrize("norm", NORMS, ids=lambda n: n.id)
@settings(max_examples=8)
@given(
    shape=st.tuples(st.integers(1, 20), st.integers(2, 70), st.integers(2, 40), st.integers(1, 40)),
    threads=st.sampled_from([2, 3, 5, 16]),
    dtype=st.sampled_from([np.float32, np.float64, np.float16, ml_dtypes.bfloat16]),
    offset=st.integers(0, 7),
)
def test_drawn_shapes(norm, shape, threads, dtype, offset):
    for x, args, kwargs, dy in problem(norm, shape, dtype, 11):
        check_bits(norm, x, args, kwargs, dy, threads=(threads,), offsets=(offset,))


@pytest.mark.parametrize("shape", [(3, 20_000), (5, 3000), (1, 300_000)])
def test_long_rows(shape):
    """Rows that are cut into chunks and pieces, of which several threads take their share."""
    rng = np.random.default_rng(3)
    x, dy = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))
    weight, bias = (rng.standard_normal(shape[1]).astype(np.float32) for _ in range(2))
    results = set()
    for _ in everywhere():
        y, ctx = fastnorm.layer_norm(x, weight, bias, return_ctx=True)
        results.add((y.tobytes(), *(g.tobytes() for g in fastnorm.backward(dy, ctx))))
    assert len(results) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_weight_and_bias_anywhere(dtype):
    """Many rows take copies of them that lie in cache lines as the output does."""
    rng = np.random.default_rng(5)
    x, dy = (rng.standard_normal((40, 96)).astype(dtype) for _ in range(2))
    parameters = np.float64 if dtype == np.float64 else np.float32
    weight, bias = (rng.standard_normal(96).astype(parameters) for _ in range(2))
    results = set()
    for offset, out_offset in itertools.product((0, 3, 4, 7), (0, 1, 6)):
        out, dx = (unaligned(x, out_offset) for _ in range(2))
        w, b = unaligned(weight, offset), unaligned(bias, 7 - offset)
        y, ctx = fastnorm.layer_norm(x, w, b, out=out, return_ctx=True)
        results.add((y.tobytes(), *(g.tobytes() for g in fastnorm.backward(dy, ctx, out=dx))))
    assert len(results) == 1


PROGRAM = """
import hashlib, itertools, sys, ml_dtypes, numpy as np, fastnorm
from cases import NORMS, make_input, run
digest = hashlib.sha256()
if "many" in sys.argv:
    SHAPES = [(6, 24, 40, 40), (3, 33, 61, 31), (16, 24, 9, 7), (4, 1056, 3, 1)]
    DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16]
else:
    SHAPES = [(3, 12, 40, 40), (16, 24, 9, 7)]
    DTYPES = [np.float32, ml_dtypes.bfloat16]
for norm, shape, dtype in itertools.product(NORMS, SHAPES, DTYPES):
    for layout in ["channels_first", "channels_last"] if norm.channels else ["channels_first"]:
        rng = np.random.default_rng(5)
        x = make_input(rng, shape, layout, dtype)
        args, kwargs = norm.arguments(rng, x if x.itemsize > 2 else x.astype(np.float32), layout)
        y, grads, own = run(norm, x, args, kwargs, x)
        for a in (y, *grads):
            digest.update(b"" if a is None else a.tobytes())
    for block in (8, 16) if norm.channels else ():
        blocked = fastnorm.to_blocked(make_input(rng, shape, "NCHW", dtype), block)
        y, grads, own = run(norm, blocked, args, {**kwargs, "layout": f"NCHW{block}c"}, blocked)
        for a in (y, *grads):
            digest.update(a.tobytes())

# outputs that begin inside a cache line, which short heads come before; planes that share lines
for dtype, layout in itertools.product(DTYPES, ["NCHW8c", "NCHW16c", "NHWC", "NCHW"]):
    for channels, size in [*itertools.product((8, 64), [(7, 7), (3, 1)]), (1056, (2, 1))]:
        x = make_input(rng, (9, channels, *size), "NCHW" if "c" in layout else layout, dtype)
        if "c" in layout:
            x = fastnorm.to_blocked(x, int(layout[4:-1]))
        first = np.empty(x.nbytes + 64, np.uint8)
        start = 3 * x.itemsize - first.ctypes.data % 64 + 64
        out = first[start % 64 :][: x.nbytes].view(dtype).reshape(x.shape)
        y, ctx = fastnorm.batch_norm(x, training=True, layout=layout, out=out, return_ctx=True)
        digest.update(y.tobytes())
        digest.update(fastnorm.backward(x, ctx, out=out).x.tobytes())
        dy = x.copy()
        digest.update(fastnorm.backward(dy, ctx, out=dy).x.tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("cases", ["some", pytest.param("many", marks=pytest.mark.long)])
def test_streaming_stores_and_processes(cases):
    """The bound from which on outputs go past the cache, and inputs are fetched from memory, is
    read once, so by processes; with threads that spin, small arrays are shared among them too."""
    digests = set()
    spinning = {"OMP_WAIT_POLICY": "active", "FASTNORM_NUM_THREADS": "2"}
    for bound, threads in (("0", {}), ("200000", spinning), ("1000000000000", {})):
        isas = fastnorm.available_isas()
        for isa in isas if cases == "many" else {isas[0], isas[-1]}:
            env = {**os.environ, "FASTNORM_STREAM_BYTES": bound, "FASTNORM_ISA": isa, **threads}
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, cases], env=env, cwd=os.path.dirname(__file__),
                capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            digests.add(done.stdout)
    assert len(digests) == 1
