"""A call with out= makes no temporary of the array's size."""

import subprocess
import sys

import pytest

PROGRAM = """
import sys, numpy as np, fastnorm
name, layout = sys.argv[1:]
shape = (16, 64, 112, 112) if layout == "NCHW" else (16, 112, 112, 64)
if name == "rows":
    shape = (8192, 1024)
x = np.ones(shape, np.float32)
x.reshape(-1)[::7] = 3
dy, y, dx = x.copy(), x.copy(), x.copy()
c, three = np.ones(64, np.float32), np.ones(3, np.float32)
calls = {
    "batch_norm": lambda **k: fastnorm.batch_norm(x, c, c, training=True, layout=layout, **k),
    "inference": lambda **k: fastnorm.batch_norm(x, c, c, running_mean=c, running_var=c,
                                                 layout=layout, **k),
    "group_norm": lambda **k: fastnorm.group_norm(x, 8, c, c, layout=layout, **k),
    "instance_norm": lambda **k: fastnorm.instance_norm(x, c, c, layout=layout, **k),
    "switchable_norm": lambda **k: fastnorm.switchable_norm(x, c, c, three, three, training=True,
                                                            layout=layout, **k),
    "channel": lambda **k: fastnorm.layer_norm(x, c, c, axis=1 if layout == "NCHW" else -1, **k),
    "rows": lambda **k: fastnorm.layer_norm(x, np.ones(1024, np.float32), **k),
}
call = calls[name]

def peak():
    return int(next(s for s in open("/proc/self/status") if s.startswith("VmHWM")).split()[1]) << 10

def now():
    return int(next(s for s in open("/proc/self/status") if s.startswith("VmRSS")).split()[1]) << 10

small = (fastnorm.layer_norm(np.ones((256, 1024), np.float32)))  # threads and code are there
_, ctx = call(out=y, return_ctx=True)
fastnorm.backward(dy, ctx, out=dx)
open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
before = now()
_, ctx = call(out=y, return_ctx=True)
fastnorm.backward(dy, ctx, out=dx)
print(peak() - before)
"""


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize(
    "name",
    [
        "batch_norm",
        "inference",
        "group_norm",
        "instance_norm",
        "switchable_norm",
        "channel",
        "rows",
    ],
)
def test_peak_of_a_call_with_out(name, layout):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, name, layout], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    planes = 16 * 64 if name not in ("channel", "rows") else 16 * 112 * 112
    assert int(done.stdout) < (1 << 20) + 200 * planes, "the array has 51 MB"
