"""The C library builds and works without Python: tests/c/test_fastnorm.c links it and runs."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILERS = [c for c in ("cc", "clang", "clang-19") if shutil.which(c)]
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]


def build_and_run(compiler, folder, *flags):
    sources = [
        *map(str, sorted((ROOT / "csrc").rglob("*.c"))),
        str(ROOT / "tests/c/test_fastnorm.c"),
    ]
    program = str(folder / "test_fastnorm")
    subprocess.run(
        [compiler, *FLAGS, *flags, "-I", str(ROOT / "csrc"), *sources, "-lm", "-lpthread", "-o",
         program],
        check=True, timeout=600,
    )  # fmt: skip
    return subprocess.run([program], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_without_openmp(compiler, tmp_path):
    done = build_and_run(compiler, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "OpenMP 0, 1 threads: passed" in done.stdout


def test_with_openmp(tmp_path):
    done = build_and_run("cc", tmp_path, "-fopenmp")
    assert done.returncode == 0, done.stdout
    assert "OpenMP 1" in done.stdout


def test_there_is_a_compiler():
    assert COMPILERS, "the package itself was built by one"
