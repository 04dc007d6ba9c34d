"""Builds `fastnorm._core`: the Cython edge and the C library in one extension.

What does not vary with the machine is in pyproject.toml. The kernels of every instruction set are
compiled always (csrc/isa_*.c switch the compiler themselves) and picked at run time.

Environment: FASTNORM_OPENMP=0 builds without OpenMP, as happens where the compiler has none.
"""

import os
import tempfile
import tomllib
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
    "-O3",
    "-g0",
    "-Wall",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fvisibility=hidden",
]
VERSION = tomllib.loads(Path("pyproject.toml").read_text())["project"]["version"]


class BuildExt(build_ext):
    """Adds OpenMP where a small program compiles and links with it."""

    def build_extensions(self):
        if os.environ.get("FASTNORM_OPENMP", "1") != "0" and self.has_openmp():
            for extension in self.extensions:
                extension.extra_compile_args.append("-fopenmp")
                extension.extra_link_args.append("-fopenmp")
        super().build_extensions()

    def has_openmp(self):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(
                "#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n"
            )
            try:
                objects = self.compiler.compile([str(source)], folder, extra_postargs=["-fopenmp"])
                self.compiler.link_executable(
                    objects, str(Path(folder, "probe")), extra_postargs=["-fopenmp"]
                )
            except (
                Exception
            ) as error:  # distutils raises several kinds, one for each compiler class
                print(f"fastnorm: no OpenMP ({error}); building single-threaded")
                return False
        return True


core = Extension(
    "fastnorm._core",
    ["fastnorm/_core.pyx", *sorted(glob("csrc/*.c"))],
    include_dirs=["csrc", np.get_include()],
    define_macros=[
        ("FASTNORM_VERSION", f'"{VERSION}"'),
        ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
        ("NPY_TARGET_VERSION", "NPY_1_23_API_VERSION"),  # arrays with an allocator of their own
    ],
    depends=[*glob("csrc/*.h"), *glob("csrc/*.inc"), *glob("fastnorm/*.pxi"), "pyproject.toml"],
    extra_compile_args=list(FLAGS),
    extra_link_args=["-lm"],
)

setup(
    ext_modules=cythonize(
        [core],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "binding": True,
            "embedsignature": True,
        },
    ),
    cmdclass={"build_ext": BuildExt},
)
