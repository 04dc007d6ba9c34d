"""The C library works without Python: tests/c are linked with it and run."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "build/libfastnorm.a"
COMPILERS = [c for c in ("cc", "clang", "clang-19") if shutil.which(c)]
FLAGS = ["-std=c11", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}/csrc"]


def link_and_run(compiler, program, objects, folder, *flags, source="tests/c", arguments=()):
    """Link SOURCE/PROGRAM.c with the objects; what it says when all is right."""
    made = folder / program
    subprocess.run(
        [compiler, *FLAGS, f"{ROOT}/{source}/{program}.c", *objects, *flags, "-lm", "-lpthread",
         "-o", made],
        check=True,
    )  # fmt: skip
    done = subprocess.run([made, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def compile_all(compiler, folder, *flags):
    """Objects of the whole library, made by another compiler or with other flags."""

    def compile_one(source):
        made = folder / (source.relative_to(ROOT).as_posix().replace("/", "_") + ".o")
        subprocess.run([compiler, *FLAGS, *flags, "-c", source, "-o", made], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(compile_one, sorted((ROOT / "csrc").rglob("*.c"))))


def run_with_the_library(program, folder, **options):
    assert LIBRARY.exists(), "expected setup.py to have built it: python setup.py build_ext -i"
    symbols = subprocess.run(["nm", LIBRARY], capture_output=True, text=True, check=True).stdout
    flags = os.environ.get("FASTNORM_CFLAGS", "").split()
    if "GOMP" in symbols or "kmpc" in symbols:
        flags.append("-fopenmp")
    return link_and_run("cc", program, [LIBRARY], folder, *flags, **options)


@pytest.mark.parametrize("program", ["test_fastnorm", "test_around", "test_kernels"])
def test_what_the_extension_was_made_of(program, tmp_path):
    assert run_with_the_library(program, tmp_path).endswith("passed\n")


@pytest.mark.long
@pytest.mark.parametrize(
    ("program", "arguments", "last"),
    [("kernels", [], "choosing"), ("floor", ["1", "0.2"], "backward")],
)
def test_programs_that_measure(program, arguments, last, tmp_path):
    said = run_with_the_library(program, tmp_path, source="bench", arguments=arguments)
    assert last in said.splitlines()[-1]


@pytest.mark.long
@pytest.mark.parametrize("compiler", COMPILERS)
def test_other_compilers_without_openmp(compiler, tmp_path):
    objects = compile_all(compiler, tmp_path)
    said = link_and_run(compiler, "test_fastnorm", objects, tmp_path)
    assert "OpenMP 0, 1 threads: passed" in said
    assert "passed" in link_and_run(compiler, "test_kernels", objects, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("cut", [["-DFASTNORM_ISAS=avx2", "-DFASTNORM_DTYPES=f32"],
                                 ["-DFASTNORM_DTYPES=f16,f64"]])  # fmt: skip
def test_builds_of_a_part(cut, tmp_path):
    """Kernels of the instruction sets and dtypes that are named, and no others."""
    objects = compile_all("cc", tmp_path, *cut)
    if os.uname().machine == "x86_64":
        assert "passed" in link_and_run("cc", "test_kernels", objects, tmp_path, *cut)


@pytest.mark.parametrize("cut", ["FASTNORM_ISAS=sse9", "FASTNORM_ISAS=avx2,vsx",
                                 "FASTNORM_DTYPES=f8", "FASTNORM_DTYPES=f32,f63"])  # fmt: skip
def test_a_part_that_there_is_not(cut):
    command = ["cc", "-E", f"-D{cut}", "-x", "c", ROOT / "csrc" / "kernels" / "built.h"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert f"{cut.partition('=')[0]}: expected some of" in run.stderr


def test_there_is_a_compiler():
    assert COMPILERS, "the package itself was built by one"
