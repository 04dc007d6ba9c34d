"""A call with out= makes no temporary of the array's size."""

import subprocess
import sys

import numpy as np
import pytest

import fastnorm

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


@pytest.mark.long
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
        [sys.executable, "-c", PROGRAM, name, layout], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    planes = 16 * 64 if name not in ("channel", "rows") else 16 * 112 * 112
    assert int(done.stdout) < (1 << 20) + 200 * planes, "the array has 51 MB"


SHORT = """
import sys, numpy as np, fastnorm
name, axis = sys.argv[1], int(sys.argv[2])
count = 4_000_000
shape = (count, 2) if axis else (2, count)
x = np.ones(shape, np.float32)
x.reshape(-1)[::3] = 2
y, dx, two = x.copy(), x.copy(), np.ones(2, np.float32)
calls = {
    "layer_norm": lambda **k: fastnorm.layer_norm(x, two, two, axis=axis, **k),
    "rms_norm": lambda **k: fastnorm.rms_norm(x, axis=axis, **k),
    "batch_norm": lambda **k: fastnorm.batch_norm(x, training=True, layout="NC", **k),
    "instance_norm": lambda **k: fastnorm.instance_norm(x.reshape(-1, 8, 2), layout="NCL", **k),
    "group_norm": lambda **k: fastnorm.group_norm(x.reshape(-1, 8, 2), 4, layout="NCL", **k),
}
call = calls[name]
if name in ("instance_norm", "group_norm"):
    y, dx = y.reshape(-1, 8, 2), dx.reshape(-1, 8, 2)

def memory(what):
    return int(next(s for s in open("/proc/self/status") if s.startswith(what)).split()[1]) << 10

def more(function):
    function()
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    before = memory("VmRSS")
    function()
    return memory("VmHWM") - before

_, ctx = call(out=y, return_ctx=True)
print(more(lambda: call(out=y)), more(lambda: fastnorm.backward(y, ctx, out=dx)))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "axis"),
    [("layer_norm", 1), ("layer_norm", 0), ("rms_norm", 1), ("rms_norm", 0), ("batch_norm", 0),
     ("instance_norm", 1), ("group_norm", 1)],
)  # fmt: skip
def test_coefficients_of_short_domains_go_by_pieces(name, axis):
    """Of two elements each: statistics and coefficients are several times as large."""
    done = subprocess.run(
        [sys.executable, "-c", SHORT, name, str(axis)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    forward, backward = map(int, done.stdout.split())
    assert forward < 8 << 20, "the array has 32 MB"
    assert backward < 12 << 20, "the array has 32 MB"


@pytest.mark.parametrize("shape", [(6, 131_073), (3, 262_145), (5, 131_074)])
def test_more_columns_than_are_taken_at_once(shape, rng):
    """Columns are cut into slices; one of a single column would be taken for a row."""
    x, dy = rng.standard_normal((2, *shape)).astype("f4")
    y, ctx = fastnorm.batch_norm(x, training=True, return_ctx=True)
    exact = x.astype("f8")
    rstd = 1 / np.sqrt(exact.var(0) + 1e-5)
    x_hat = (exact - exact.mean(0)) * rstd
    np.testing.assert_allclose(y, x_hat, atol=2e-6)
    want = rstd * (dy - dy.mean(0, "f8") - x_hat * (dy * x_hat).mean(0))
    np.testing.assert_allclose(fastnorm.backward(dy, ctx)[0], want, rtol=1e-5, atol=2e-5)
    np.testing.assert_allclose(fastnorm.layer_norm(x, axis=0), x_hat, atol=2e-6)


@pytest.mark.long
@pytest.mark.parametrize("layout", ["NCL", "NLC"])
def test_more_groups_than_are_taken_at_once(layout, rng):
    channels = 200_000
    x = rng.standard_normal((2, 3, channels) if layout == "NLC" else (2, channels, 3), "f4")
    weight = rng.standard_normal(channels, "f4")
    y, ctx = fastnorm.group_norm(x, channels, weight, weight, layout=layout, return_ctx=True)
    want, same = fastnorm.instance_norm(x, weight, weight, layout=layout, return_ctx=True)
    np.testing.assert_array_equal(y, want)
    for got, exact in zip(fastnorm.backward(x, ctx), fastnorm.backward(x, same), strict=True):
        np.testing.assert_array_equal(got, exact)
