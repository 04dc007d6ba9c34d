"""Statistics that are kept: exact to some units of a float64's last digit.

For any dtype, order and grouping.
"""

import ml_dtypes
import numpy as np
import pytest

import fastnorm
from fastnorm import Moments, outofcore
from fastnorm.preprocessing import StandardScaler

DTYPES = ["float32", "float64", "float16", ml_dtypes.bfloat16]
SHAPES = [(37, 300), (1000, 7), (100_000, 3), (3000, 260), (5, 1)]


def exact(x, weight=None):
    """Means and variances of the columns, in extended precision, NaN left out."""
    x = np.ascontiguousarray(np.asarray(x).astype(np.float64).T).astype(np.longdouble)
    w = np.where(np.isnan(x), 0, 1 if weight is None else np.asarray(weight, np.longdouble))
    x = np.where(np.isnan(x), 0, x)
    n = w.sum(-1)  # along the last axis NumPy sums in pairs
    mean = (w * x).sum(-1) / n
    mean += (w * (x - mean[:, None])).sum(-1) / n
    return mean, (w * (x - mean[:, None]) ** 2).sum(-1) / n


def check(mean, var, want, tolerance=1e-14):
    want_mean, want_var = want
    largest = np.maximum(abs(want_mean), np.sqrt(want_var))
    assert (abs(mean - want_mean) <= tolerance * largest).all()
    np.testing.assert_allclose(var.astype(float), want_var.astype(float), rtol=tolerance)


@pytest.mark.parametrize("loc", [0, 5, 1e3, 1e6])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_of_every_dtype_and_order(shape, dtype, order, loc, rng):
    if np.dtype(dtype).itemsize == 2:
        loc = min(loc, 5)
    x = np.asarray(rng.standard_normal(shape) + loc, dtype, order=order)
    want = exact(x)
    found = Moments.from_array(x)
    check(found.mean, found.var(), want)
    if x.dtype.kind == "f":
        scaler = StandardScaler().fit(x)
        check(scaler.mean_, scaler.var_, want)
        file = outofcore.moments(x, block_bytes=x.nbytes // 5 + 8)
        check(file.mean, file.var(), want)


@pytest.mark.parametrize("isa", fastnorm.available_isas())
@pytest.mark.parametrize("axis", [0, 1, 2, (0, 2), (1, 2)])
def test_instruction_sets_and_threads_agree(isa, axis, rng):
    x = rng.standard_normal((40, 66, 130)).astype(np.float32)
    x[3] *= 100
    want = Moments.from_array(x, axis)
    fastnorm.set_isa(isa)
    for threads in (1, 2, 5):
        fastnorm.set_num_threads(threads)
        found = Moments.from_array(x, axis)
        for field in ("mean", "m2", "mean_low"):
            np.testing.assert_array_equal(getattr(found, field), getattr(want, field))


@pytest.mark.parametrize("loc", [0, 1e3, 1e6, 1e8])
def test_five_thousand_merges(loc, rng):
    x = rng.standard_normal((5000, 3)) * 2 + loc
    rows = [Moments.from_array(x[i : i + 1]) for i in range(len(x))]
    for some in (rows, rows[::-1], [rows[i] for i in rng.permutation(len(rows))]):
        found = Moments.merge(some)
        assert found.count == 5000
        check(found.mean, found.var(), exact(x))


def test_numbers_of_very_different_size():
    """scikit-learn's test of its own merging."""
    x = np.concatenate([np.full((5000, 1), 1e8), np.full((5000, 1), 1e-5)])
    found = Moments.merge(Moments.from_array(x[i : i + 1]) for i in range(len(x)))
    check(found.mean, found.var(), exact(x))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loc", [0, 1e6])
def test_weights_and_missing_values(loc, dtype, order, rng):
    x = np.asarray(rng.standard_normal((3000, 5)) + loc, dtype, order=order)
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:7, 1] = np.nan
    weight = rng.uniform(0, 3, 3000)
    scaler = StandardScaler().fit(x)
    check(scaler.mean_, scaler.var_, exact(x))
    np.testing.assert_array_equal(scaler.n_samples_seen_, (~np.isnan(x)).sum(0))
    weighted = StandardScaler().fit(x, sample_weight=weight)
    check(weighted.mean_, weighted.var_, exact(x, weight))
    skipped = Moments.from_array(x, skip_nan=True)
    check(skipped.mean, skipped.var(), exact(x))
    assert np.isnan(Moments.from_array(x).mean).all()


@pytest.mark.parametrize("value", [0.0, 1.1, -3e5, 1e-42, 1e30])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_features_have_no_variance(value, dtype, rng):
    x = np.full((1000, 3), value, dtype)
    parts = np.split(x, np.sort(rng.integers(1, 1000, 20)))
    for found in (Moments.from_array(x), Moments.merge(map(Moments.from_array, parts))):
        np.testing.assert_array_equal(found.mean, x[0].astype(float))
        np.testing.assert_array_equal(found.m2, 0)


def test_masked_values_are_left_out(rng):
    x = np.ma.masked_array([[1.0], [2], [3], [-9999]], mask=[[0], [0], [0], [1]])
    found = Moments.from_array(x)
    np.testing.assert_array_equal([found.mean, found.var(), found.count], [[2], [2 / 3], [3]])
    data = rng.integers(-5, 9, (50, 4))
    mask = rng.random(data.shape) < 0.3
    for kind in (int, "float32"):
        masked = np.ma.masked_array(data.astype(kind), mask)
        found = Moments.from_array(masked)
        np.testing.assert_allclose(found.mean, masked.mean(0), rtol=1e-13)
        np.testing.assert_allclose(found.var(), masked.var(0), rtol=1e-6)
        for kept in (list(masked), pytest.importorskip("dask.array").from_array(masked, 20)):
            np.testing.assert_array_equal(Moments.from_array(kept).mean, found.mean)
    whole = np.ma.masked_array(data.astype(float), mask)
    whole[3, 1] = np.nan  # a value, though not a number
    whole[4, 2] = np.ma.masked
    found = Moments.from_array(whole)
    assert np.isnan(found.mean).tolist() == [False, True, False, False]
    assert np.isfinite(Moments.from_array(whole, skip_nan=True).mean).all()
    nothing = Moments.from_array(np.ma.masked_all((5, 2)))
    np.testing.assert_array_equal(nothing.count, [0, 0])
    assert (nothing + found.from_array(data[:, :2])).count.tolist() == [50, 50]


@pytest.mark.parametrize("columns", [1, 3, 33, 100])
@pytest.mark.parametrize("first", [5, 30, 100, 1e4])
def test_a_first_value_far_from_the_others(first, columns, rng):
    x = rng.standard_normal((4000, columns))
    x[0] = first
    for some in (x, x[::-1].copy(), np.asfortranarray(x)):
        found = Moments.from_array(some)
        check(found.mean, found.var(), exact(x))


@pytest.mark.parametrize("weight", [0, 1e-12])
def test_a_first_value_that_hardly_counts(weight):
    x = np.array([[929511.0], [0.028], [-0.061], [0.5]])
    weights = np.array([weight, 1, 3, 2])
    found = StandardScaler().fit(x, sample_weight=weights)
    with np.errstate(under="ignore"):
        wide, w = x[:, 0].astype(np.longdouble), weights.astype(np.longdouble)
        mean = (wide * w).sum() / w.sum()
        var = ((wide - mean) ** 2 * w).sum() / w.sum()
    np.testing.assert_allclose(found.mean_, float(mean), rtol=1e-13)
    np.testing.assert_allclose(found.var_, float(var), rtol=1e-13)
