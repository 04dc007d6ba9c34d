"""New outputs take the memory of old ones that nobody refers to any more, up to a bound."""

import gc
import subprocess
import sys
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastnorm
from fastnorm import _core

MB = 2**20
X = np.random.default_rng(0).standard_normal((2, 4, 256, 256)).astype(np.float32)  # 2 MiB


def address(y):
    return y.__array_interface__["data"][0]


def held():
    return _core.buffer_cache()[1]


@pytest.fixture(autouse=True)
def _own_cache():
    bound = _core.buffer_cache()[0]
    fastnorm.set_buffer_cache(0)
    fastnorm.set_buffer_cache(16 * MB)
    yield
    fastnorm.set_buffer_cache(0)
    fastnorm.set_buffer_cache(bound)


def test_memory_comes_back():
    first = address(fastnorm.instance_norm(X))
    assert held() == X.nbytes
    y = fastnorm.instance_norm(X)
    assert address(y) == first
    assert held() == 0
    del y
    y, ctx = fastnorm.instance_norm(X, return_ctx=True)
    del y
    assert address(fastnorm.backward(X, ctx).x) == first


def test_not_while_anything_refers_to_it():
    y = fastnorm.instance_norm(X)
    kept, view = address(y), y[1, :, ::2]
    want = view.copy()
    del y
    gc.collect()
    for _ in range(3):
        assert address(fastnorm.instance_norm(-X)) != kept
    assert np.array_equal(view, want)
    buffer = memoryview(view)
    del view
    assert address(fastnorm.instance_norm(-X)) != kept
    buffer.release()


def test_other_shapes_and_dtypes_share_it():
    first = address(fastnorm.instance_norm(X))
    double = X[:1].astype(np.float64)
    assert address(fastnorm.layer_norm(double)) == first
    assert address(fastnorm.layer_norm(X[0])) != first  # wastes half
    assert address(fastnorm.layer_norm(X.reshape(-1)[: X.size // 8 * 7])) == first


def test_outputs_are_ordinary_arrays():
    y = fastnorm.instance_norm(X)
    assert y.flags.owndata
    assert y.flags.c_contiguous
    assert address(y) % 64 == 0
    want = y[0].copy()
    y.resize((1, 4, 256, 256), refcheck=False)
    assert np.array_equal(y[0], want)
    y.resize((3, 4, 256, 256), refcheck=False)
    assert np.array_equal(y[0], want)
    assert not y[1:].any()
    del y
    assert np.arange(MB).flags.owndata  # numpy's own allocator again
    assert held() > 0


def test_bound():
    fastnorm.set_buffer_cache(3 * X.nbytes)
    outputs = [fastnorm.instance_norm(X) for _ in range(5)]
    last = address(outputs[-1])
    while outputs:
        del outputs[0]
    assert held() == 3 * X.nbytes
    assert address(fastnorm.instance_norm(X)) == last  # the one freed last is warm
    fastnorm.set_buffer_cache(X.nbytes)
    assert held() == X.nbytes
    fastnorm.set_buffer_cache(0)
    assert held() == 0
    fastnorm.instance_norm(X)
    assert held() == 0
    fastnorm.set_buffer_cache(X.nbytes - 1)
    fastnorm.instance_norm(X)
    assert held() == 0


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=40), st.integers(0, 12))
def test_outputs_never_overlap(steps, bound):
    """Whatever is kept and let go of, live outputs are apart and keep their contents."""
    fastnorm.set_buffer_cache(bound * MB)
    live = []
    for quarter, keep in steps:
        x = np.full(quarter * MB // 16, quarter, np.float32)
        y = fastnorm.layer_norm(x, bias=x)
        assert not any(np.shares_memory(y, other) for other, _ in live)
        live.append((y, quarter))
        if not keep:
            live.pop(len(live) // 2)
        assert held() <= bound * MB
    assert all((y == value).all() for y, value in live)


def test_several_threads():
    wrong = []

    def work(value):
        x = np.full((300, 1000), value, np.float32)
        for _ in range(200):
            y = fastnorm.layer_norm(x, bias=x[0])
            if not (y == value).all():
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert not wrong


FORK = """
import os, threading, numpy as np, fastnorm
x = np.ones((300, 1000), np.float32)
stop = False
def work():
    while not stop:
        fastnorm.layer_norm(x)
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
for _ in range(20):
    child = os.fork()
    if child == 0:
        for _ in range(20): fastnorm.layer_norm(x)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
stop = True
for t in threads: t.join()
print("done")
"""


def test_fork_while_another_thread_is_at_it():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK], capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "done\n", done.stderr


def test_default_is_documented():
    program = "from fastnorm import _core; print(_core.buffer_cache()[0])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True
    )
    assert 0 < int(done.stdout) <= 256 * MB


@pytest.mark.parametrize("bad", [-1, 2**63])
def test_bad_values(bad):
    with pytest.raises(ValueError, match="bytes: expected 0 to"):
        fastnorm.set_buffer_cache(bad)


@pytest.mark.parametrize("bad", [1.5, "1", None, True])
def test_bad_types(bad):
    with pytest.raises(TypeError, match="bytes: expected an int"):
        fastnorm.set_buffer_cache(bad)
