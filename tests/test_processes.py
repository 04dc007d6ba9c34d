"""Forks after threads were used, and several Python threads at once."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

import fastnorm

FORK = """
import multiprocessing, numpy as np, fastnorm
fastnorm.set_num_threads(2)
x = np.random.default_rng(0).standard_normal((64, 10_000)).astype(np.float32)

def work(_):
    return fastnorm.layer_norm(x).tobytes() == want

want = fastnorm.layer_norm(x).tobytes()
for _ in range(5):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map(work, range(4)))
    assert work(0)
print("done")
"""


def test_fork_after_use():
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", FORK], text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        output, errors = process.communicate(timeout=600)
    finally:  # the workers of a pool that hangs too
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert output == "done\n", errors


@pytest.mark.parametrize("num_threads", [1, 2])
def test_python_threads_at_once(num_threads, rng):
    fastnorm.set_num_threads(num_threads)
    x = rng.standard_normal((8, 24, 60, 50)).astype(np.float32)
    weight = np.ones(24, np.float32)

    def work():
        y, ctx = fastnorm.group_norm(x, 4, weight, return_ctx=True)
        return y.tobytes(), *(g.tobytes() for g in fastnorm.backward(x, ctx)[:2])

    want = work()
    wrong = []

    def repeat():
        for _ in range(10):
            if work() != want:
                wrong.append(1)

    threads = [threading.Thread(target=repeat) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
        assert not thread.is_alive()
    assert not wrong
