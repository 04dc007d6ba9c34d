"""Builds `fastnorm._core`: the Cython edge and the C library in one extension.

What does not vary with the machine is in pyproject.toml. Every C file becomes an object of its own
in build/objects-*, several at once, and again only when it or what it includes has changed. The C
library alone is build/libfastnorm.a: the test in C and the benchmarks of kernels link it.

Environment:
    FASTNORM_OPENMP=0       no OpenMP, as happens where the compiler has none
    FASTNORM_ISAS=avx2      kernels of these instruction sets alone (csrc/kernels/built.h)
    FASTNORM_DTYPES=f32     kernels of these dtypes alone
    FASTNORM_CFLAGS=...     more flags for the compiler, as --coverage or -fsanitize=address
"""

import hashlib
import os
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path

import numpy as np
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# -ffp-contract=off: a multiply-add rounds differently from a multiply and an add, and not every
# instruction set has it. No -ffast-math, no -march: the same bits on every machine.
FLAGS = [
    "-std=c11",
    "-g0",
    "-fno-asynchronous-unwind-tables",  # they are a tenth of the size, and nothing here throws
    "-Wall",
    "-Wextra",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
    "-MMD",  # a .d file beside each object: what it was made of
]
# Loops over arrays are written with vectors: more than -O2 makes them longer, not faster. Loops
# over tables, of statistics and coefficients, are left to the compiler's vectors. At -O2 gcc 12
# makes them only where it knows the count: 7x7 images took 1.7 times as long without the dynamic
# model. The edge is called once a call, in which each of its functions is; -Os makes it slower by
# a fifth of a small layer norm.
DYNAMIC = "-fvect-cost-model=dynamic"  # clang has no such flag
SMALL = ["-O2", "-fno-inline-functions", "-finline-limit=40", "-fno-align-functions"]
OPTIMIZE = {
    "csrc/norms/": ["-O3"],
    "csrc/core/": ["-O2", "-ftree-vectorize"],
    "csrc/kernels/": ["-O2", "-ftree-vectorize", DYNAMIC],
    "csrc/": ["-O2"],
    "fastnorm/": SMALL,
}
VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]
CUTS = [(k, os.environ[k]) for k in ("FASTNORM_ISAS", "FASTNORM_DTYPES") if os.environ.get(k)]


def c_sources():
    """List those of the C library; what takes longest to compile first."""
    return sorted(glob("csrc/**/*.c", recursive=True), key=lambda s: ("/targets/" not in s, s))


def is_current(made, sources):
    """Tell whether a file exists and is newer than all these."""
    when = Path(made).stat().st_mtime if Path(made).exists() else 0
    return all(Path(s).exists() and Path(s).stat().st_mtime <= when for s in sources)


def parts_of(made):
    """Return what an object was made of; a file that is not there where that is not known."""
    listed = Path(made).with_suffix(".d")
    if not listed.exists():
        return [made + ".missing"]
    return listed.read_text().replace("\\\n", " ").split()[1:]


class BuildExt(build_ext):
    """Compiles objects that are not current, in parallel, and links them."""

    def build_extension(self, ext):
        # -isystem: pip builds with a copy of NumPy that is gone the next time
        flags = [*FLAGS, *os.environ.get("FASTNORM_CFLAGS", "").split()]
        numpy = ["-isystem", np.get_include()]
        if os.environ.get("FASTNORM_OPENMP", "1") != "0":
            if self.links("-fopenmp", "#include <omp.h>", "omp_get_max_threads() < 1"):
                flags.append("-fopenmp")
            else:
                print("fastnorm: no OpenMP; building single-threaded")
        lacking = () if self.links(DYNAMIC) else (DYNAMIC,)
        options = repr((self.compiler.compiler_so, flags, OPTIMIZE, CUTS, np.__version__))
        tag = hashlib.sha1(options.encode()).hexdigest()[:8]
        folder = f"build/objects-{tag}"
        sources = [*ext.sources, *c_sources()]  # the first one takes longest

        def compile_one(source):
            level = next(level for where, level in OPTIMIZE.items() if source.startswith(where))
            level = [flag for flag in level if flag not in lacking]
            (made,) = self.compiler.object_filenames([source], output_dir=folder)
            if not is_current(made, parts_of(made)):
                self.compiler.compile(
                    [source],
                    folder,
                    ext.define_macros,
                    ext.include_dirs,
                    extra_postargs=[*flags, *level, *numpy],
                )
            return made

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(compile_one, sources))
        library = objects[len(ext.sources) :]
        if not is_current("build/libfastnorm.a", library):
            Path("build/libfastnorm.a").unlink(missing_ok=True)
            self.compiler.create_static_lib(library, "fastnorm", "build")
        ext.sources, ext.extra_objects, ext.depends = [], objects, objects
        ext.extra_link_args = [*ext.extra_link_args, *flags]
        super().build_extension(ext)

    def links(self, flag, include="", value="0"):
        """Tell whether the compiler makes a program with this flag."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(f"{include}\nint main(void) {{ return {value}; }}\n")
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=[flag])
                self.compiler.link_executable(
                    objects, str(Path(folder, "probe")), extra_postargs=[flag]
                )
            except Exception:  # distutils has several kinds, one for each compiler class
                return False
        return True


core = Extension(
    "fastnorm._core",
    ["fastnorm/_core.pyx"],
    include_dirs=["csrc"],
    define_macros=[
        ("FASTNORM_VERSION", f'"{VERSION}"'),
        ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION"),  # arrays with an allocator of their own
        *CUTS,
    ],
    depends=glob("fastnorm/*.pxi"),
    extra_link_args=["-lm"],
)

setup(
    ext_modules=cythonize(
        [core],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "binding": False,
            "embedsignature": False,
        },
    ),
    cmdclass={"build_ext": BuildExt},
)
