"""What the machine, the process or the C library may be like: the result is the same."""

import os
import shutil
import subprocess
import sys

import pytest

HERE = os.path.dirname(__file__)


def run(program, *arguments, **env):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *map(str, arguments)],
        env={**os.environ, **env}, cwd=HERE, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


SMALL_STACKS = """
import sys, threading, numpy as np, fastnorm
from cases import NORMS, make_input, run
threading.stack_size(int(sys.argv[1]))
fastnorm.set_num_threads(2)

def work():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float64, np.float16):
        for shape in ((2, 702, 3, 5), (40, 96, 9, 9), (3, 2100, 2, 2), (9, 33, 8, 7)):
            for norm in NORMS:
                for layout in ["NCHW", "NHWC"] if norm.channels else ["NCHW"]:
                    x = make_input(rng, shape, layout, dtype)
                    params = x if x.itemsize > 2 else x.astype("f4")
                    args, kwargs = norm.arguments(rng, params, layout)
                    run(norm, x, args, kwargs, x)
                    if dtype != np.float16:
                        run(norm, x * dtype(1e30), args, kwargs, x)
    for axis in (0, 1):
        fastnorm.Moments.from_array(rng.standard_normal((3000, 700)), axis)
    x = fastnorm.to_blocked(make_input(rng, (5, 40, 9, 7), "NCHW", np.float64))
    y, ctx = fastnorm.switchable_norm(x, None, None, np.ones(3), np.ones(3), training=True,
                                      layout="NCHW16c", return_ctx=True)
    fastnorm.backward(y, ctx)
    print("done")

thread = threading.Thread(target=work)
thread.start()
thread.join()
"""


@pytest.mark.long
@pytest.mark.parametrize("size", [131072, 49152])
def test_threads_with_small_stacks(size):
    """131072 bytes are musl's default."""
    env = {"OMP_STACKSIZE": f"{size // 1024}K", "OMP_WAIT_POLICY": "passive"}
    assert run(SMALL_STACKS, size, **env) == "done\n"


NO_THREADS = """
import hashlib, os, resource, sys, numpy as np, fastnorm
kind, threads, limit = sys.argv[1], *map(int, sys.argv[2:])
x = np.random.default_rng(0).standard_normal((64, 100_000)).astype("f4")
out = np.empty_like(x)

def digest():
    fastnorm.layer_norm(x, out=out)
    return hashlib.sha256(out).hexdigest()

fastnorm.set_num_threads(1)
want = digest()
fastnorm.set_num_threads(threads)
if kind == "processes":
    os.setgid(65534)
    os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
else:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (limit << 20), -1))
assert [digest() for _ in range(3)] == [want] * 3
print("done")
"""


@pytest.mark.long
@pytest.mark.parametrize("kind", ["processes", "address space"])
@pytest.mark.parametrize(("threads", "limit"), [(2, 1), (2, 3), (4, 2), (8, 12), (8, 40)])
def test_threads_that_cannot_be_made(kind, threads, limit):
    """GNU's OpenMP ends the process where it cannot make one."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the limits are Linux's")
    if kind == "processes" and os.geteuid() != 0:
        pytest.skip("only root may become a user without processes")
    assert run(NO_THREADS, kind, threads, limit) == "done\n"


FLUSHING = """
import ctypes, hashlib, sys, numpy as np, fastnorm, fastnorm.outofcore
from fastnorm import preprocessing
x = np.random.default_rng(0).standard_normal((64, 40_000)).astype("f4")
weight = np.full(40_000, 1e-39, "f4")  # the results are subnormal
fastnorm.set_num_threads(2)

def digest():
    y, ctx = fastnorm.layer_norm(x, weight, return_ctx=True)
    return hashlib.sha256(b"".join([y, *fastnorm.backward(x, ctx)[:2]])).hexdigest()

def flushes():
    return np.float32(1e-39) * np.float32(1) == 0

small, tiny = (x[:50, :8] * 1e-39).astype("f4"), x[:50, :8].astype("f8") * 1e-308
low = x[:50, :8] * np.float32(1e-20)

def other_digest():
    # what NumPy computes, or Cython
    mean, var = np.zeros((2, 8), "f4")
    y, ctx = fastnorm.sync_batch_norm(
        low, running_mean=mean, running_var=var, training=True,
        return_ctx=True)
    z, lengths = fastnorm.normalize(small, 3.0, eps=0, return_ctx=True)
    scaler = preprocessing.StandardScaler().fit(tiny)
    robust = preprocessing.RobustScaler().fit(small)
    arrays = [y, mean, var, *fastnorm.backward(small, ctx)[:1], z,
              *fastnorm.backward(small, lengths)[:1], scaler.scale_, scaler.transform(tiny),
              robust.transform(small), fastnorm.Moments.from_array(tiny).std(), ctx.var,
              fastnorm.outofcore.scale(tiny, 0)]
    return hashlib.sha256(b"".join(np.ascontiguousarray(a) for a in arrays)).hexdigest()

want, others = digest(), other_digest()
assert not flushes()
ctypes.CDLL(sys.argv[1])  # what -ffast-math does to the thread that loads a library
assert flushes()
assert {digest() for _ in range(10)} == {want}
assert {other_digest() for _ in range(3)} == {others}
assert flushes()  # the mode of the caller is put back
print("done")
"""


def test_a_program_that_flushes_subnormal_numbers(tmp_path):
    compiler = shutil.which("gcc")
    if not compiler or os.uname().machine != "x86_64":
        pytest.skip("needs gcc's start code for -ffast-math on x86-64")
    (tmp_path / "flush.c").write_text("int nothing;\n")
    library = tmp_path / "flush.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-ffast-math", tmp_path / "flush.c", "-o", library],
        check=True,
    )
    assert run(FLUSHING, library) == "done\n"


SOFTMAX = """
import hashlib, numpy as np, fastnorm
rng = np.random.default_rng(0)
digest = hashlib.sha256()
x = rng.standard_normal((4, 6, 5, 5))
for _ in range(300):
    logits = rng.standard_normal((2, 3)) * 3
    y, ctx = fastnorm.switchable_norm(x, None, None, *logits, training=True, return_ctx=True)
    for array in (y, *fastnorm.backward(y, ctx), ctx.mean, ctx.var, ctx.rstd):
        digest.update(b"" if array is None else array.tobytes())
print(digest.hexdigest())
"""


def test_the_c_librarys_exponential_does_not_decide_bits():
    """Its last bit differs between processors with and without multiply-add."""
    hidden = "glibc.cpu.hwcaps=-FMA,-FMA4,-AVX2_Usable,-AVX2,-AVX512F"
    want = run(SOFTMAX)
    assert want == run(SOFTMAX, GLIBC_TUNABLES=hidden)
    found = run("import numpy._core._multiarray_umath as m; print(*m.__cpu_dispatch__)").split()
    assert want == run(SOFTMAX, NPY_DISABLE_CPU_FEATURES=" ".join(found))


AT_THE_END_OF_A_PAGE = """
import ctypes, mmap, numpy as np, fastnorm
libc = ctypes.CDLL(None, use_errno=True)
pages = mmap.mmap(-1, 2 * mmap.PAGESIZE)
start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
assert libc.mprotect(ctypes.c_void_p(start + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0

def at_the_end(array):
    offset = mmap.PAGESIZE - array.nbytes
    found = np.frombuffer(pages, array.dtype, array.size, offset)
    found[:] = array
    return found

for dtype in ("f4", "f8"):
    for block in (8, 16):
        for channels in (1, 9, 17, 23):
            x = np.random.default_rng(0).standard_normal((3, channels, 4, 4)).astype(dtype)
            weight = at_the_end(np.arange(1, channels + 1).astype(dtype))
            layout = f"NCHW{block}c"
            blocked = fastnorm.to_blocked(x, block)
            for call in (
                lambda **k: fastnorm.batch_norm(blocked, weight, training=True, layout=layout, **k),
                lambda **k: fastnorm.group_norm(blocked, 1, weight, layout=layout, **k),
                lambda **k: fastnorm.instance_norm(blocked, weight, layout=layout, **k),
            ):
                y, ctx = call(return_ctx=True)
                fastnorm.backward(np.ones_like(y) if channels % 2 else y, ctx)
print("done")
"""


def test_nothing_is_read_behind_the_parameters():
    """Blocks of channels are filled up with some that have no parameters."""
    if not sys.platform.startswith("linux"):
        pytest.skip("mprotect by ctypes")
    assert run(AT_THE_END_OF_A_PAGE) == "done\n"
