"""oneDNN in the case's own layout, through onednn.cpp, which is built on first use."""

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
import weakref
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from fastnorm.bench.cases import PASSES

SOURCE = Path(__file__).with_name("onednn.cpp")
TYPES = ["float32", "float16", "bfloat16"]
TAGS = ["NCHW", "NHWC", "NCHW16c", "rows"]


def version():
    numbers = (ctypes.c_int * 3)()
    library().bench_version(numbers)
    return ".".join(map(str, numbers))


def set_threads(n):
    library().bench_set_threads(n)


def prepare(arrays):
    case = arrays.case
    if case.norm not in ("batch_norm", "layer_norm") or case.dtype not in TYPES:
        return None
    weight, bias = arrays.weight, arrays.bias
    stats = [np.zeros(case.shape[0], np.float32), np.ones(case.shape[0], np.float32)]
    mean, var = stats if case.layout == "rows" else arrays.running()
    dweight, dbias = np.empty_like(weight), np.empty_like(bias)
    data = [arrays.x, arrays.out, arrays.dy, mean, var, weight, bias, dweight, dbias]
    pointers = (ctypes.c_void_p * len(data))(*(None if a is None else a.ctypes.data for a in data))
    shape = (ctypes.c_int64 * len(case.shape))(*case.shape)
    error = ctypes.create_string_buffer(200)
    lib = library()
    handle = lib.bench_create(
        PASSES.index(case.direction), TYPES.index(case.dtype), TAGS.index(case.layout),
        len(shape), shape, 1e-5, pointers, error, len(error),
    )  # fmt: skip
    if not handle and b"could not create a primitive descriptor" in error.value:
        return None  # not on this processor: float16 needs AVX-512
    if not handle:
        raise RuntimeError(error.value.decode())
    execute = lib.bench_execute

    def call():
        if execute(handle):
            raise RuntimeError("could not execute")
        return data[1] if case.direction != "backward" else (data[1], dweight, dbias)

    weakref.finalize(call, lib.bench_destroy, handle)
    return call


@cache
def library():
    """Load the shim. DEEPBIND, since torch has a copy of oneDNN of its own in the process."""
    lib = ctypes.CDLL(str(build()), os.RTLD_LOCAL | os.RTLD_NOW | os.RTLD_DEEPBIND)
    lib.bench_create.restype = ctypes.c_void_p
    lib.bench_create.argtypes = [
        *[ctypes.c_int] * 4, ctypes.c_void_p, ctypes.c_float, ctypes.c_void_p, ctypes.c_char_p,
        ctypes.c_int,
    ]  # fmt: skip
    lib.bench_execute.argtypes = lib.bench_destroy.argtypes = [ctypes.c_void_p]
    return lib


def build():
    """Compile the shim into the cache folder, unless it is there."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        raise RuntimeError("its shim needs a C++ compiler (set CXX)")
    options = [*location(), "-ldnnl"]
    key = hashlib.sha256(SOURCE.read_bytes() + " ".join(options).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fastnorm"
    target = folder / f"onednn-{key}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch, target.name)
        command = [compiler, "-std=c++11", "-O2", "-shared", "-fPIC", "-fopenmp", str(SOURCE)]
        done = subprocess.run([*command, "-o", str(made), *options], capture_output=True, text=True)
        if done.returncode:
            if "dnnl.hpp: No such file" in done.stderr:
                raise RuntimeError("oneDNN is not installed")
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            raise RuntimeError(f"its shim does not compile: {' '.join(errors[:1])}")
        made.replace(target)
    return target


def location():
    """Return flags for the build at ONEDNN_ROOT, else for the wheels of the extra `peers`.

    None where it is the system's.
    """
    if root := os.environ.get("ONEDNN_ROOT"):
        include, lib = Path(root, "include"), Path(root, "lib")
        if not (include / "dnnl.hpp").exists():
            raise RuntimeError(f"ONEDNN_ROOT={root}: there is no {include / 'dnnl.hpp'}")
        return flags(include, lib)
    try:
        files = [
            Path(file.locate()).resolve()
            for name in ("onednn-cpu-gomp", "onednn-devel-cpu-gomp")
            for file in metadata.files(name) or ()
        ]
    except metadata.PackageNotFoundError:
        return []
    folders = {"/".join(file.parts[-2:]): file.parent for file in files}
    return flags(folders["include/dnnl.h"], folders["lib/libdnnl.so"])


def flags(include, lib):
    return [f"-I{include}", f"-L{lib}", f"-Wl,-rpath,{lib}"]
