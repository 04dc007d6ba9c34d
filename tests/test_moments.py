"""Moments as a value: against NumPy, under any grouping, and at the edges."""

import pickle

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastnorm
from fastnorm import Moments

AXES = [0, 1, 2, -1, (0, 1), (1, 2), (0, 2), (0, 1, 2)]


def exact(x, axis):
    x = np.asarray(x, np.longdouble)
    mean = x.mean(axis, keepdims=True)
    return mean.squeeze(axis), ((x - mean) ** 2).sum(axis)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", ml_dtypes.bfloat16, "int32"])
def test_moments_of_an_array_are_those_of_numpy(axis, dtype):
    x = np.random.default_rng(0).normal(5, 3, (7, 11, 33)).astype(dtype)
    found = Moments.from_array(x, axis)
    mean, m2 = exact(x, axis)
    tolerance = 1e-12 if x.dtype.name in ("float64", "int32") else 2e-6
    assert found.mean.dtype == np.float64
    assert found.count * found.mean.size == x.size
    np.testing.assert_allclose(found.mean, mean.astype(float), rtol=tolerance)
    np.testing.assert_allclose(found.m2, m2.astype(float), rtol=tolerance)


@pytest.mark.parametrize(("layout", "axis"), [("NCHW", (0, 2, 3)), ("NHWC", (0, 1, 2))])
def test_a_layout_gives_the_moments_of_its_channels(layout, axis):
    x = np.random.default_rng(0).normal(size=(3, 5, 4, 6))
    by_layout, by_axis = Moments.from_array(x, layout=layout), Moments.from_array(x, axis)
    assert by_layout.count == by_axis.count
    np.testing.assert_allclose(by_layout.mean, by_axis.mean, rtol=1e-13, atol=1e-15)
    np.testing.assert_allclose(by_layout.m2, by_axis.m2, rtol=1e-13)


@given(
    st.lists(st.integers(0, 400), min_size=1, max_size=12),
    st.integers(0, 2**32 - 1),
    st.floats(-1e6, 1e6),
)
def test_any_grouping_gives_the_same_moments(sizes, seed, center):
    rng = np.random.default_rng(seed)
    x = rng.normal(center, 1, (sum(sizes), 3))
    parts = np.split(x, np.cumsum(sizes)[:-1])
    some = [Moments.from_array(parts[i]) for i in rng.permutation(len(parts))]
    while len(some) > 1:  # any two neighbours, so that it can be any tree
        i = rng.integers(len(some) - 1)
        some[i : i + 2] = [Moments.merge(some[i : i + 2])]
    (merged,) = some
    assert merged.count == len(x)
    if len(x):
        mean, m2 = exact(x, 0)
        np.testing.assert_allclose(merged.mean, mean.astype(float), rtol=1e-12, atol=1e-12)
        # a mean that is kept in a double is known to eps * center, and so is each deviation from it
        slack = len(x) * 5e-16 * abs(center)
        np.testing.assert_allclose(merged.m2, m2.astype(float), rtol=1e-12, atol=slack)


def test_many_threads_and_one_give_the_same_bits():
    x = np.random.default_rng(0).normal(size=(300_000, 7)).astype(np.float32)
    found = []
    for threads in (1, 2, 5):
        fastnorm.set_num_threads(threads)
        found.append(Moments.from_array(x))
    fastnorm.set_num_threads(0)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0].mean, other.mean)
        np.testing.assert_array_equal(found[0].m2, other.m2)


def test_variances():
    x = np.random.default_rng(0).normal(size=(50, 4))
    moments = Moments.from_array(x)
    for ddof in (0, 1):
        np.testing.assert_allclose(moments.var(ddof), x.var(0, ddof=ddof), rtol=1e-13)
        np.testing.assert_allclose(moments.std(ddof), x.std(0, ddof=ddof), rtol=1e-13)
    assert np.isnan(Moments.from_array(x[:1]).var(ddof=1)).all()


def test_empty_moments_are_neutral():
    x = np.random.default_rng(0).normal(size=(50, 4))
    moments = Moments.from_array(x)
    for nothing in (Moments.empty((4,)), Moments.from_array(x[:0])):
        for both in (moments + nothing, nothing + moments):
            assert both.count == 50
            np.testing.assert_array_equal(both.mean, moments.mean)
            np.testing.assert_array_equal(both.m2, moments.m2)
    assert (Moments.empty((4,)) + Moments.empty((4,))).count == 0


def test_counts_of_each_feature_merge_feature_by_feature():
    a = Moments(np.array([2, 0]), np.array([1.0, 0.0]), np.array([2.0, 0.0]))
    b = Moments(np.array([0, 3]), np.array([0.0, 5.0]), np.array([0.0, 6.0]))
    both = a + b
    np.testing.assert_array_equal(both.count, [2, 3])
    np.testing.assert_array_equal(both.mean, [1, 5])
    np.testing.assert_array_equal(both.m2, [2, 6])


def test_pickled_moments_are_the_same():
    moments = Moments.from_array(np.random.default_rng(0).normal(size=(9, 4)))
    again = pickle.loads(pickle.dumps(moments))
    np.testing.assert_array_equal(again.mean, moments.mean)
    np.testing.assert_array_equal(again.m2, moments.m2)


def test_nan_stays_in_its_feature():
    x = np.random.default_rng(0).normal(size=(100, 3))
    x[50, 1] = np.nan
    moments = Moments.from_array(x[:30]) + Moments.from_array(x[30:])
    assert np.isnan(moments.mean).tolist() == [False, True, False]
    assert np.isnan(moments.m2).tolist() == [False, True, False]


def test_bad_input_names_the_argument():
    x = np.zeros((3, 4))
    with pytest.raises(ValueError, match="axis, layout: expected one of them"):
        Moments.from_array(x, axis=0, layout="NC")
    with pytest.raises(ValueError, match="axis: expected axes in"):
        Moments.from_array(x, axis=2)
    with pytest.raises(ValueError, match="layout: expected one of"):
        Moments.from_array(x, layout="CN")
    with pytest.raises(TypeError, match="x: expected dtype"):
        Moments.from_array(np.array(["a"]))
    with pytest.raises(ValueError, match="moments: expected features of shape"):
        Moments.empty((3,)) + Moments.empty((4,))
    with pytest.raises(ValueError, match="moments: expected at least one"):
        Moments.merge([])
    for some in ([1], [Moments.empty((3,)), 1]):
        with pytest.raises(TypeError, match="moments: expected Moments, got int"):
            Moments.merge(some)
    with pytest.raises(TypeError):
        Moments.empty((3,)) + 1
