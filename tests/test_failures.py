"""What fails, fails before anything is written: for want of memory, or by NumPy's error state."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import fastnorm

SIXTEEN = [np.float16, ml_dtypes.bfloat16]


def same(got, want):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got.astype(np.float32), want.astype(np.float32))


@pytest.mark.parametrize("forever", ["once", "forever"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_allocation_fails_in_turn(dtype, forever):
    pytest.importorskip("_testcapi")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "memory_worker.py"), dtype, forever],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 300


def tiny_and_huge(dtype):
    """Inputs whose moments and gradients are subnormal, or infinite, in 16 bits."""
    x = np.array([[1e-7, 6e4, 1.0], [-3e-7, -6e4, 2.0], [4e-7, 5e4, 4.0]])
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("name", ["batch_norm", "batch_renorm", "instance_renorm"])
def test_no_error_state_comes_between(name, dtype):
    """Conversions to 16 bits underflow and overflow; that is their result, not an error."""
    x, weight = tiny_and_huge(dtype), np.array([1e-4, 6e4, 1.0], dtype)
    dy = np.array([[1e-4, 6e4, 1.0], [2e-4, 6e4, 2.0], [-1e-4, 6e4, -1.0]]).astype(dtype)
    results = []
    for state in ("ignore", "raise"):
        running = {"running_mean": np.full(3, 1e-6, dtype), "running_var": np.full(3, 6e-8, dtype)}
        with np.errstate(all=state):
            y, ctx = getattr(fastnorm, name)(
                x, weight, weight, **running, training=True, layout="NC", return_ctx=True
            )
            results.append([y, *running.values(), *fastnorm.backward(dy, ctx)])
            results[-1] += [ctx.mean, ctx.var, ctx.rstd]
    for got, want in zip(*results, strict=True):
        np.testing.assert_array_equal(got, want)
    flat = np.concatenate([a.astype(np.float32).ravel() for a in results[0][:6]])
    if dtype is np.float16:
        assert np.isinf(flat).any()
        assert ((flat != 0) & (np.abs(flat) < 6e-5)).any()


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_signalling_nan_in_parameters(dtype):
    weight = np.ones(4, dtype)
    weight.view(np.uint16)[1] = 0x7D01 if dtype is np.float16 else 0x7F81
    with np.errstate(all="raise"):
        y = fastnorm.layer_norm(np.arange(8).reshape(2, 4).astype(dtype), weight)
    np.testing.assert_array_equal(np.isnan(y), [[False, True, False, False]] * 2)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_gradients_are_rounded_as_numpy_does(dtype):
    """Of sums of two numbers, which are often halfway between two of 16 bits."""
    bits = np.random.default_rng(0).integers(0, 2**16, (2, 50000), np.uint16)
    dy = bits.view(dtype).copy()
    with np.errstate(all="ignore"):
        dy[~np.isfinite(dy)] = 1
        x = np.broadcast_to(np.array([[1], [-1]], dtype), dy.shape)
        found = []
        for kind in (np.float32, dtype):
            ones = np.ones(dy.shape[1], kind)
            _, ctx = fastnorm.batch_norm(x, ones, ones, training=True, layout="NC", return_ctx=True)
            found.append(fastnorm.backward(dy, ctx))
        wide, own = found
        for name in ("weight", "bias"):
            want = getattr(wide, name).astype(dtype)
            same(getattr(own, name), want)
            assert (want != getattr(wide, name)).mean() > 0.1


def test_16_bits_are_widened_as_numpy_does():
    """Every pattern of bits, as the bias of a constant row, which is y."""
    for dtype in SIXTEEN:
        bias = np.arange(2**16, dtype=np.uint16).view(dtype)
        y = fastnorm.batch_norm(
            np.zeros((1, bias.size), dtype), None, bias, training=True, layout="NC"
        )
        same(y[0], bias)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_running_statistics_are_rounded_as_numpy_does(dtype):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 20000)) * 10.0 ** rng.uniform(-9, 5, 20000)).astype(np.float32)
    with np.errstate(all="ignore"):
        x = x.astype(dtype)
        x[~np.isfinite(x)] = 1
    wide = {"running_mean": np.zeros(20000, np.float32), "running_var": np.ones(20000, np.float32)}
    own = {name: state.astype(dtype) for name, state in wide.items()}
    for states in (wide, own):
        fastnorm.batch_norm(x, **states, training=True, momentum=1.0, layout="NC")
    with np.errstate(all="ignore"):
        for name, state in wide.items():
            same(own[name], state.astype(dtype))
            assert (own[name] != state).any()
