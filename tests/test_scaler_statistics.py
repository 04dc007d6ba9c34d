"""What the scalers find: constant features, digits kept over parts, quantiles, sparse columns."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")

import sklearn.preprocessing as theirs
from scipy import sparse

import fastnorm
from fastnorm.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

SCALERS = [StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler]
SPREAD = {
    StandardScaler: lambda x: x.std(0),
    MinMaxScaler: lambda x: np.ptp(x, 0),
    MaxAbsScaler: lambda x: np.abs(x).max(0),
    RobustScaler: lambda x: np.quantile(x, 0.75, axis=0) - np.quantile(x, 0.25, axis=0),
}


def divided_by(scaler):
    return 1 / scaler.scale_ if isinstance(scaler, MinMaxScaler) else scaler.scale_


def spreads(rng):
    small = rng.random((1000, 2))
    yield 1.7e9 + np.linspace(0, 1, 10**5)[:, np.newaxis]
    yield (small * 1e-7).astype(np.float32)
    yield (small * 1e-15).astype(np.float32)
    yield (small * 3e-5 - 1e-5).astype(np.float16)
    yield 1e15 + np.arange(5.0)[:, np.newaxis]
    yield small * 1e-100
    yield small * 1e100
    yield np.array([[1.0], [1 + 2**-52], [1 + 2**-51], [1 + 3 * 2**-52], [1 + 2**-50]])


@pytest.mark.parametrize("scaler", SCALERS)
def test_what_varies_is_scaled(rng, scaler):
    for x in spreads(rng):
        wanted = SPREAD[scaler](x.astype(np.longdouble)).astype(float)
        np.testing.assert_allclose(divided_by(scaler().fit(x)), wanted, rtol=1e-6)
        assert (wanted != 0).all()


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_constant_features_are_not_scaled(rng, dtype, scaler):
    values = [0.1, 1 / 3, -7.7e-3, 1e3 + 0.3, 0, 2.5e4, -1e-4]
    x = np.tile(np.array(values, dtype), (1001, 1))
    known = np.where(rng.random(x.shape) < 0.2, np.nan, x)
    for given in (x, np.asfortranarray(x), np.repeat(x, 2, 0)[::2], known.astype(dtype)):
        for fitted in (scaler().fit(given), in_parts(scaler(), given, [1, 2, 700])):
            spread = np.abs(x[0]) if scaler is MaxAbsScaler else np.zeros(7)
            wanted = np.where(spread == 0, 1, spread)
            np.testing.assert_array_equal(divided_by(fitted), wanted)
            y = fitted.transform(given)
            if scaler is not MaxAbsScaler:
                np.testing.assert_allclose(y[~np.isnan(y)], 0, atol=0)


def test_constant_features_of_weighted_and_of_sparse_samples(rng):
    x, w = np.tile([0.1, 1 / 3, -7.7e-30, 1e9 + 0.3], (501, 1)), rng.random(501)
    assert (StandardScaler().fit(x, sample_weight=w).scale_ == 1).all()
    x = np.tile(rng.standard_normal(500) * 10.0 ** rng.integers(-20, 20, 500), (501, 1))
    for form in ("csr", "csc"):
        scaler = StandardScaler(with_mean=False)
        for rows in (slice(0, 10), slice(10, 300), slice(300, None)):
            some = sparse.csr_array(x[rows]).asformat(form)
            scaler.partial_fit(some, sample_weight=w[rows])
        assert (scaler.scale_ == 1).all()


def test_a_part_of_another_dtype_does_not_decide_what_is_constant(rng):
    x = rng.random((50, 2)) * 1e-9
    for scaler in (StandardScaler, MinMaxScaler):
        fitted = scaler().fit(x).partial_fit(x[:1].astype(np.float32))
        np.testing.assert_allclose(divided_by(fitted), SPREAD[scaler](x), rtol=0.05)


def test_a_range_that_no_float64_holds_is_refused():
    x = np.array([[0, -1.7e308], [0, 1.7e308]])
    for scaler in (MinMaxScaler(), RobustScaler()):
        for fit in (scaler.fit, scaler.partial_fit):
            with pytest.raises(ValueError, match=r"X: expected .* feature 1 from -1.7e\+308"):
                fit(x)
    np.testing.assert_allclose(MaxAbsScaler().fit_transform(x)[:, 1], [-1, 1], rtol=1e-14)


@pytest.mark.parametrize("scaler", [MinMaxScaler, MaxAbsScaler, RobustScaler])
def test_a_spread_whose_reciprocal_is_no_float64_is_refused(scaler):
    x = np.array([[1, 3e-310], [2, 6e-310], [3, 9e-310]])
    with pytest.raises(ValueError, match=r"X: .* vary by at least 5.6e-309, got .* in feature 1"):
        scaler().fit(x)


def in_parts(scaler, x, at, **arguments):
    for part in np.split(x, at):
        scaler.partial_fit(part, **arguments)
        scaler = pickle.loads(pickle.dumps(scaler))
    return scaler


@pytest.mark.parametrize("mean", [0, 1e6])
def test_parts_merge_as_moments_do(rng, mean):
    """With the digits that moments have, over pickles: rebuilt from mean and variance, fewer."""
    x = rng.standard_normal((300, 3)) * [1, 1e-3, 1e5] + mean
    scaler = in_parts(StandardScaler(), x, np.arange(1, 300))
    found = fastnorm.Moments.merge(fastnorm.Moments.from_array(row) for row in np.split(x, 300))
    np.testing.assert_array_equal(scaler.mean_, found.mean)
    np.testing.assert_array_equal(scaler.var_, found.var())
    without = in_parts(StandardScaler(with_std=False), x, np.arange(1, 300))
    np.testing.assert_array_equal(without.set_params(with_std=True).partial_fit(x).scale_.shape, 3)
    assert without.scale_[0] == pytest.approx(scaler.scale_[0])


def test_attributes_that_were_set_from_outside_are_what_goes_on(rng):
    x = rng.normal(5, 2, (200, 3))
    other = theirs.StandardScaler().fit(x[:120])
    converted = StandardScaler()
    vars(converted).update(vars(other))
    np.testing.assert_allclose(converted.transform(x), other.transform(x), rtol=1e-12, atol=1e-12)
    changed = StandardScaler().fit(rng.random((50, 3)))
    for name in ("mean_", "var_", "scale_", "n_samples_seen_"):
        setattr(changed, name, getattr(other, name))
    in_place = StandardScaler().fit(x[:120] * 2)
    in_place.mean_ /= 2
    in_place.var_ /= 4
    wanted = theirs.StandardScaler().fit(x)
    for scaler in (converted, changed, in_place):
        scaler.partial_fit(x[120:])
        np.testing.assert_allclose(scaler.mean_, wanted.mean_, rtol=1e-12)
        np.testing.assert_allclose(scaler.var_, wanted.var_, rtol=1e-12)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_of_sparse_float32_have_the_digits_of_float64(rng, form, weighted):
    x = sparse.random_array((40_000, 5), density=0.9, rng=rng).astype(np.float32)
    x.data += 1000
    x = x.asformat(form)
    w = rng.random(40_000) if weighted else np.ones(40_000)
    scaler = StandardScaler(with_mean=False).fit(x, sample_weight=w if weighted else None)
    exact = x.toarray().astype(np.longdouble)
    mean = (w[:, np.newaxis] * exact).sum(0) / w.sum()
    var = (w[:, np.newaxis] * (exact - mean) ** 2).sum(0) / w.sum()
    np.testing.assert_allclose(scaler.mean_, mean.astype(float), rtol=1e-13)
    np.testing.assert_allclose(scaler.var_, var.astype(float), rtol=1e-13)


def test_elements_that_a_sparse_matrix_stores_twice_are_one():
    x = sparse.csr_array((np.array([1.0, 2, 5]), np.array([0, 0, 1]), np.array([0, 2, 3, 3])))
    assert not x.has_canonical_format
    plain = np.array([[3.0, 0], [0, 5], [0, 0]])
    for scaler in (StandardScaler(with_mean=False), MaxAbsScaler()):
        np.testing.assert_allclose(scaler.fit(x).scale_, scaler.fit(plain).scale_)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("rows", [1, 2, 5, 1000])
def test_quantiles_are_those_of_numpy(rng, rows, dtype, order):
    x = np.array(rng.standard_cauchy((rows, 7)), dtype, order=order)
    x[rng.random(x.shape) < 0.3] = np.nan
    x[:, 6] = np.nan
    for low, high in ((25, 75), (0, 100), (3.3, 81.7), (50, 50)):
        scaler = RobustScaler(quantile_range=(low, high)).fit(x)
        with warnings.catch_warnings(action="ignore"):
            a, b, median = np.nanquantile(
                x.astype(np.float64), [low / 100, high / 100, 0.5], axis=0
            )
        np.testing.assert_allclose(scaler.center_, median, rtol=1e-14)
        np.testing.assert_array_equal(scaler.scale_, np.where(b - a == 0, 1, b - a))


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("partial", [False, True])
def test_sparse_quantiles_and_largest_values(rng, form, partial):
    x = sparse.random_array((300, 7), density=0.6, rng=rng).asformat(form)
    x.data -= 0.5
    x.data[::10] = np.nan
    for name, arguments in (
        ("RobustScaler", {"with_centering": False, "quantile_range": (10, 90)}),
        ("MaxAbsScaler", {}),
    ):
        mine = getattr(fastnorm.preprocessing, name)(**arguments)
        mine = mine.partial_fit(x) if partial else mine.fit(x)
        other = getattr(theirs, name)(**arguments).fit(x)
        np.testing.assert_allclose(mine.scale_, other.scale_, rtol=1e-12)
        y = mine.transform(x)
        assert y.format == form
        np.testing.assert_allclose(y.toarray(), other.transform(x).toarray(), rtol=1e-12)
        np.testing.assert_allclose(mine.inverse_transform(y).toarray(), x.toarray(), rtol=1e-12)


def test_few_samples_in_parts_have_exact_quantiles(rng):
    x = rng.standard_normal((600, 4))
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:, 3] = np.nan
    arguments = {"quantile_range": (5, 90), "unit_variance": True}
    whole = RobustScaler(**arguments).fit(x)
    parts = in_parts(RobustScaler(**arguments), x, [1, 100])
    begun = in_parts(RobustScaler(**arguments).fit(x[:200]), x[200:], [10, 300])
    for scaler in (parts, begun):
        np.testing.assert_allclose(scaler.center_, whole.center_, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(scaler.scale_, whole.scale_, rtol=1e-12)
        assert scaler.n_samples_seen_ == 600


def columns(rng):
    x = rng.standard_normal((60_000, 6))
    x[:, 1] = np.sort(x[:, 1])
    x[:, 2] = np.exp(20 * x[:, 2])
    x[:, 3] = np.round(x[:, 3], 1)
    x[:, 4] = np.sort(-(10.0 ** rng.uniform(-300, 300, 60_000)))
    x[:, 5] = np.where(x[:, 5] < 0, 0.1, x[:, 5])
    return x


@pytest.mark.parametrize("begin", [0, 20_000])
@pytest.mark.parametrize("parts", [1, 40])
def test_ranks_of_quantiles_in_parts_err_by_less_than_promised(rng, parts, begin):
    x = columns(rng)
    at = np.linspace(begin, 60_000, parts + 1).astype(int)[1:-1] - begin

    def fit():
        scaler = RobustScaler(quantile_range=(10, 60))
        return in_parts(scaler.fit(x[:begin]) if begin else scaler, x[begin:], at)

    fitted, again = fit(), fit()
    np.testing.assert_array_equal(fitted.center_, again.center_)
    allowed = 0.001 + (0.0005 if begin else 0)
    ordered = np.sort(x, 0)
    for j, center in enumerate(fitted.center_):
        low = np.searchsorted(ordered[:, j], center)
        high = np.searchsorted(ordered[:, j], center, "right")
        assert low / 60_000 - allowed <= 0.5 <= high / 60_000 + allowed
    assert fitted.center_[5] == 0.1  # of many equal values no other is made


def test_an_error_while_samples_are_added_changes_nothing(rng, monkeypatch):
    scaler = RobustScaler().partial_fit(rng.random((500, 2)))
    state = pickle.dumps(vars(scaler))

    def no_memory(*arguments):
        raise MemoryError

    monkeypatch.setattr(fastnorm.preprocessing._quantiles, "estimate", no_memory)
    for fit in (scaler.partial_fit, RobustScaler().partial_fit):
        with pytest.raises(MemoryError):
            fit(rng.random((50, 2)))
    assert pickle.dumps(vars(scaler)) == state


def test_attributes_alone_are_no_samples_to_add_to(rng):
    x = rng.random((20, 2))
    scaler = RobustScaler()
    vars(scaler).update(vars(theirs.RobustScaler().fit(x)))
    np.testing.assert_allclose(scaler.transform(x), theirs.RobustScaler().fit_transform(x))
    with pytest.raises(ValueError, match="center_ and scale_ alone"):
        scaler.partial_fit(x)


def test_without_crick_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['crick'] = None\n"
        "from fastnorm.preprocessing import RobustScaler\n"
        "print(RobustScaler().fit([[1.0], [2.0]]).center_)\n"
        "RobustScaler().partial_fit([[1.0], [2.0]])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[1.5]\n"
    assert 'pip install "fastnorm-cpu[sketch]"' in done.stderr
