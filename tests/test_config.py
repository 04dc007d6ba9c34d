"""Threads, instruction sets, environment variables, and the facts that show_config prints."""

import os
import subprocess
import sys

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

import fastnorm


def in_process(program, **env):
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **env}, capture_output=True, text=True,
        timeout=600, check=True,
    )  # fmt: skip
    return done.stdout.strip(), done.stderr


def has_openmp():
    return "OpenMP: yes" in in_process("import fastnorm; fastnorm.show_config()")[0]


def test_threads():
    default = fastnorm.get_num_threads()
    fastnorm.set_num_threads(3)
    assert fastnorm.get_num_threads() == (3 if has_openmp() else 1)
    fastnorm.set_num_threads(0)
    assert fastnorm.get_num_threads() == default


@pytest.mark.parametrize(
    ("value", "error"), [(-1, ValueError), (5000, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_thread_counts(value, error):
    with pytest.raises(error, match="num_threads: expected"):
        fastnorm.set_num_threads(value)


def test_threads_from_the_environment():
    program = "import fastnorm; print(fastnorm.get_num_threads())"
    want = {"3": "3"} if has_openmp() else {"3": "1"}
    assert in_process(program, FASTNORM_NUM_THREADS="3")[0] == want["3"]
    assert in_process(program, OMP_NUM_THREADS="3")[0] == want["3"]
    out, err = in_process(program, FASTNORM_NUM_THREADS="many")
    assert int(out) >= 1
    assert "FASTNORM_NUM_THREADS: expected a positive number, got 'many'" in err


def test_threadpoolctl_governs():
    with threadpool_limits(1, user_api="openmp"):
        assert fastnorm.get_num_threads() == 1


def test_instruction_sets():
    names = fastnorm.available_isas()
    assert names
    assert fastnorm.get_isa() in names
    for name in names:
        fastnorm.set_isa(name)
        assert fastnorm.get_isa() == name


def test_bad_instruction_sets():
    with pytest.raises(ValueError, match=r"name: expected one of .*, got 'mmx'"):
        fastnorm.set_isa("mmx")
    with pytest.raises(TypeError, match="name: expected a str, got int"):
        fastnorm.set_isa(1)


def test_instruction_set_from_the_environment():
    program = "import fastnorm; print(fastnorm.get_isa())"
    worst = fastnorm.available_isas()[0]
    assert in_process(program, FASTNORM_ISA=worst)[0] == worst
    out, err = in_process(program, FASTNORM_ISA="mmx")
    assert out == fastnorm.available_isas()[-1]
    assert "FASTNORM_ISA: expected one of" in err


@pytest.mark.parametrize(
    ("name", "value"),
    [("FASTNORM_STREAM_BYTES", "8MB"), ("FASTNORM_STREAM_BYTES", "-1"), ("OMP_NUM_THREADS", "all"),
     ("OMP_NUM_THREADS", "0"), ("FASTNORM_NUM_THREADS", "2.5"), ("FASTNORM_ISA", ""),
     ("FASTNORM_TUNE", "fast")],
)  # fmt: skip
def test_garbage_in_the_environment(name, value):
    _, err = in_process("import fastnorm; fastnorm.layer_norm([[1.0, 2.0]])", **{name: value})
    assert err.count(f"{name}: expected ") == 1
    assert f", got {value!r}; using " in err


@pytest.mark.parametrize(("value", "kinds"), [("0", "0"), ("1", "1"), ("fast", "1")])
def test_choices_from_the_environment(value, kinds):
    program = (
        "import numpy as np, fastnorm\n"
        "for _ in range(3): fastnorm.layer_norm(np.ones((1000, 300), 'f4'))\n"
        "print(len(fastnorm._core.learned_choices()))"
    )
    assert in_process(program, FASTNORM_TUNE=value)[0] == kinds


def test_show_config(capsys):
    fastnorm.show_config()
    text = capsys.readouterr().out
    for fact in ("fastnorm " + fastnorm.__version__, "compiler: ", "OpenMP: ", "threads: ",
                 "instruction sets built: ", "instruction set in use: " + fastnorm.get_isa(),
                 "caches: "):  # fmt: skip
        assert fact in text


def test_memory_limit_copies_and_adds(rng):
    x, dy = (rng.standard_normal(100_003).astype(np.float32) for _ in range(2))
    y = np.empty_like(x)
    for stream in (False, True):
        fastnorm._core.memory_limit(x, None, y, stream)
        np.testing.assert_array_equal(y, x)
        fastnorm._core.memory_limit(x, dy, y, stream)
        np.testing.assert_array_equal(y, x + dy)
    with pytest.raises(ValueError, match="out: expected dense float32 arrays of one size"):
        fastnorm._core.memory_limit(x[:5], None, y, False)
