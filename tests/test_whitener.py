"""Whitening: as exact as the SVD of scaled features, whatever the scales, dtypes and parts."""

import pickle

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")

from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

from fastnorm.preprocessing import Whitener

KINDS = ["pca", "zca"]
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in ("float64", "float32")}


def covariance(y):
    return np.cov(y.astype(np.float64), rowvar=False)


def assert_white(y, atol, rank=None):
    values = np.linalg.eigvalsh(covariance(y))[::-1]
    rank = len(values) if rank is None else rank
    np.testing.assert_allclose(values[:rank], 1, atol=atol)
    np.testing.assert_allclose(values[rank:], 0, atol=atol)


def assert_restored(whitener, x, condition=1):
    """Each value comes back to a few roundings of the largest of its feature."""
    back = whitener.inverse_transform(whitener.transform(x)).astype(np.float64)
    roundings = 8 * float(np.finfo(x.dtype).eps) + 100 * EPS["float64"]
    allowed = condition * roundings * np.abs(x).max(0).astype(np.float64)
    assert (np.abs(back - x).max(0) <= allowed).all()


SCALES = [
    (1, 1e-9, 1),
    (1, 1e-7, 1),
    (1e-30, 1, 1e30),
    (1e12, 1e-12, 1e-12),
    (1e-30, 1e-30, 1e-30),
    (1e-3, 1e2, 1e5),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scales", SCALES)
def test_features_of_any_scale(rng, scales, dtype, kind):
    mixed = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 3))
    x = (mixed * scales).astype(dtype)
    whitener = Whitener(kind).fit(x)
    assert_white(whitener.transform(x), 8 * EPS[dtype])
    assert_white(Whitener(kind, dtype=np.float64).fit(x).transform(x), 1e-14)
    assert_restored(whitener, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_directions_of_features_far_apart_in_scale(rng, order, kind):
    """Each small feature becomes what no larger one explains: the limit of the eigenvectors."""
    x = rng.standard_normal((400, 3)) @ rng.standard_normal((3, 3))
    deviation = x - x.mean(0)
    upper = np.linalg.cholesky(deviation.T @ deviation / 399).T
    wanted = deviation @ np.linalg.inv(upper)
    scaled = x * [1, 1e-14, 1e-28]
    y = Whitener(kind).fit(scaled[:, order]).transform(scaled[:, order])
    y = y if kind == "pca" else y[:, np.argsort(order)]
    np.testing.assert_allclose(y, wanted, atol=1e-12)
    new = rng.standard_normal((50, 3))
    whitener = Whitener(kind).fit(scaled[:, order])
    y = whitener.transform((new * [1, 1e-14, 1e-28])[:, order])
    y = y if kind == "pca" else y[:, np.argsort(order)]
    np.testing.assert_allclose(y, (new - x.mean(0)) @ np.linalg.inv(upper), atol=1e-11)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_whitened_features_have_the_identity_for_covariance(rng, dtype, kind):
    x = (rng.normal(size=(3000, 8)) @ rng.normal(size=(8, 8)) + 1000).astype(dtype)
    whitener = Whitener(kind).fit(x)
    np.testing.assert_allclose(whitener.covariance_, covariance(x), rtol=1e-11)
    y = whitener.transform(x)
    assert y.dtype == dtype
    tolerance = 1e-11 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(covariance(y), np.eye(8), atol=tolerance)
    assert_restored(whitener, x)
    if kind == "pca":
        other = PCA(whiten=True, svd_solver="full").fit(x.astype(float))
        wanted = other.transform(x.astype(float))
        wanted *= np.sign((wanted * y).sum(0))
        np.testing.assert_allclose(y, wanted, atol=10 * tolerance)  # PCA's own digits
        np.testing.assert_allclose(whitener.explained_variance_, other.explained_variance_)
    else:
        np.testing.assert_allclose(whitener.whitening_, whitener.whitening_.T, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_transform_is_the_svd_to_the_last_digits(rng, kind):
    x = rng.standard_normal((200, 5)) @ rng.standard_normal((5, 5))
    u, _, vt = np.linalg.svd(x - x.mean(0), full_matrices=False)
    y = Whitener(kind).fit(x).transform(x)
    wanted = u * np.sqrt(199)
    wanted = wanted * np.sign((wanted * y).sum(0)) if kind == "pca" else wanted @ vt
    np.testing.assert_allclose(y, wanted, atol=2e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("repeat", [1, 3])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_feature_that_others_make_up_is_no_direction(rng, dtype, repeat, kind):
    rgb = rng.uniform(0, 255, (5000, 3)).astype(dtype)
    grey = rgb @ np.array([0.299, 0.587, 0.114], dtype)
    x = np.column_stack([rgb, *[grey] * repeat, grey * 3, rgb[:, :1]])
    assert x.dtype == dtype
    whitener = Whitener(kind).fit(x)
    assert np.count_nonzero(whitener.explained_variance_) == 3
    y = whitener.transform(x)
    assert np.abs(y).max() < 10
    assert_white(y, 8 * EPS[dtype], rank=3)
    assert_restored(whitener, x)


def test_what_is_above_the_rounding_of_its_dtype_is_kept(rng):
    x = rng.standard_normal((1000, 2))
    x[:, 1] = x[:, 0] + 1e-10 * x[:, 1]
    whitener = Whitener().fit(x)
    assert np.count_nonzero(whitener.explained_variance_) == 2
    assert_white(whitener.transform(x), 1e-5)  # the data themselves have five digits of it
    assert np.count_nonzero(Whitener().fit(x.astype(np.float32)).explained_variance_) == 1
    far = x + 1e7  # its rounding is larger than the difference
    assert np.count_nonzero(Whitener().fit(far).explained_variance_) == 1
    half = Whitener().fit(rng.integers(0, 2000, (500, 1)).astype(np.float16) @ [[1, 0.5]])
    assert np.count_nonzero(half.explained_variance_) == 1


def test_a_precise_feature_is_not_given_up_for_the_rounding_of_another(rng):
    coarse = (1e6 + rng.standard_normal(2000)).astype(np.float32)
    fine = (coarse - np.float32(1e6)) + rng.standard_normal(2000).astype(np.float32) * 0.01
    x = np.column_stack([coarse, fine])
    whitener = Whitener().fit(x)
    assert_restored(whitener, x)


@pytest.mark.parametrize("features", [3, 60])
def test_rank_of_many_rows_of_duplicates(rng, features):
    x = rng.standard_normal((300_000 // features, features)) * 10.0 ** rng.integers(-9, 9, features)
    x = np.column_stack([x, x[:, 1], 3 * x[:, 0] + 5, x.sum(1)])
    for whitener in (Whitener().fit(x), in_parts(Whitener(), x, 40)):
        assert np.count_nonzero(whitener.explained_variance_) == features
        assert_white(whitener.transform(x), 1e-11, rank=features)


def test_what_depends_on_large_features_leaves_small_ones_alone(rng):
    a, b = rng.standard_normal(5000) * 1e9, rng.standard_normal(5000) * 1e-9
    plain = Whitener().fit(np.column_stack([a, b]))
    whitener = Whitener().fit(np.column_stack([b, a, 3 * a + 5e9, a]))
    np.testing.assert_allclose(whitener.explained_variance_[1], plain.explained_variance_[1])
    assert np.count_nonzero(whitener.explained_variance_) == 2
    small = whitener.components_[1]
    np.testing.assert_allclose(np.abs(small), [1, 0, 0, 0], atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_few_samples_of_features_of_any_scale(rng, kind):
    for _ in range(40):
        x = rng.standard_normal((6, 10)) * 10.0 ** rng.uniform(-25, 25, 10)
        whitener = Whitener(kind).fit(x)
        assert_white(whitener.transform(x), 1e-10, rank=5)
        assert_restored(whitener, x, condition=100)


def test_few_float32_samples_with_a_sum(rng):
    x = (rng.standard_normal((6, 9)) * 10.0 ** -np.arange(9)).astype(np.float32)
    x = np.column_stack([x, x.sum(1)])
    y = Whitener(dtype="float64").fit_transform(x)
    assert_white(y, 1e-7, rank=5)


@pytest.mark.parametrize("kind", KINDS)
def test_whitening_of_directions_without_variance(kind):
    x = load_digits().data  # some pixels are always 0
    whitener = Whitener(kind).fit(x)
    rank = np.linalg.matrix_rank(whitener.covariance_)
    y = whitener.transform(x)
    assert np.abs(y).max() < 100
    assert_white(y, 1e-12, rank)
    np.testing.assert_allclose(whitener.inverse_transform(y), x, atol=1e-12)
    gram = whitener.components_ @ whitener.components_.T
    np.testing.assert_allclose(gram, np.eye(64), atol=1e-13)
    some = Whitener(kind, n_components=5, eps=0.1).fit(x)
    values = np.linalg.eigvalsh(np.cov(some.transform(x).T))[::-1][:5]
    largest = some.explained_variance_
    np.testing.assert_allclose(np.sort(values), np.sort(largest / (largest + 0.1)))


def test_eps_counts_in_directions_without_variance_too(rng):
    x, new = rng.standard_normal((30, 50)), rng.standard_normal((10, 50))
    whitener = Whitener("zca", eps=0.3).fit(x)
    variance, vectors = np.linalg.eigh(np.cov(x.T))
    wanted = (new - x.mean(0)) @ (vectors / np.sqrt(np.maximum(variance, 0) + 0.3)) @ vectors.T
    np.testing.assert_allclose(whitener.transform(new), wanted, atol=1e-12)
    np.testing.assert_allclose(whitener.inverse_transform(wanted), new, atol=1e-12)
    grey = rng.uniform(0, 255, (500, 3)).astype(np.float32)
    grey = np.column_stack([grey, grey @ np.array([0.3, 0.6, 0.1], np.float32)])
    values = np.linalg.svd(grey - grey.mean(0, dtype=float), compute_uv=False) ** 2 / 499
    y = Whitener(eps=1e-13, dtype="float64").fit_transform(grey)
    np.testing.assert_allclose(np.diag(covariance(y)), values / (values + 1e-13), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_fewer_samples_than_features(rng, dtype):
    scales = 10.0 ** rng.uniform(-2, 2, 50)
    x, new = (rng.standard_normal((n, 50)) * scales for n in (20, 10))
    x[7] = x[3]
    x, new = x.astype(dtype), new.astype(dtype)
    whitener = Whitener(dtype="float64").fit(x)
    other = PCA(whiten=True, svd_solver="full").fit(x.astype(float))
    y, wanted = whitener.transform(new), other.transform(new.astype(float))[:, :18]
    wanted *= np.sign((wanted * y[:, :18]).sum(0))
    np.testing.assert_allclose(y[:, :18], wanted, rtol=1e-6, atol=1e-7 * np.abs(wanted).max())
    assert (y[:, 18:] == 0).all()
    assert_restored(whitener.set_params(dtype=None), x)


@pytest.mark.parametrize("value", [0.1, 1e9 + 0.3, 0.0])
def test_constant_features(rng, value):
    x = np.column_stack([np.full(70, value), rng.standard_normal(70), np.full(70, -1 / 3)])
    for whitener in (Whitener().fit(x), in_parts(Whitener(), x, 7)):
        np.testing.assert_array_equal(np.diag(whitener.covariance_)[[0, 2]], 0)
        np.testing.assert_allclose(whitener.explained_variance_, [x[:, 1].var(ddof=1), 0, 0])
        assert_restored(whitener, x)
    y = Whitener().fit_transform(np.full((5, 2), value))
    np.testing.assert_array_equal(y, 0)


def in_parts(whitener, x, count):
    for part in np.array_split(x, count):
        whitener.partial_fit(part)
        whitener = pickle.loads(pickle.dumps(whitener))
    return whitener


@pytest.mark.parametrize("count", [2, 7, 300])
@pytest.mark.parametrize(("mean", "scales"), [(50, 1), (1e6, 1), (0, (1, 1e-9, 1e9, 1e-20))])
def test_partial_fit_is_fit_of_all(rng, mean, scales, count):
    x = (rng.standard_normal((600, 4)) @ rng.standard_normal((4, 4)) + mean) * scales
    whole, parts = Whitener().fit(x), in_parts(Whitener(), x, count)
    assert parts.n_samples_seen_ == 600
    sizes = np.sqrt(np.diag(whole.covariance_))
    difference = (parts.covariance_ - whole.covariance_) / np.outer(sizes, sizes)
    assert np.abs(difference).max() < 2e-14
    np.testing.assert_allclose(parts.mean_, whole.mean_, rtol=1e-15, atol=1e-16 * sizes.max())
    np.testing.assert_allclose(parts.transform(x), whole.transform(x), rtol=0, atol=1e-11)
    assert_white(parts.transform(x), 1e-13)


def test_covariance_of_large_means_has_all_digits(rng):
    x = rng.standard_normal((3000, 3)) @ rng.standard_normal((3, 3)) + [1e6, -1e7, 1e5]
    exact = x.astype(np.longdouble)
    exact = exact - exact.mean(0)
    wanted = (exact.T @ exact / 2999).astype(float)
    for whitener in (Whitener().fit(x), in_parts(Whitener(), x, 50)):
        np.testing.assert_allclose(whitener.covariance_, wanted, rtol=1e-13)


def test_a_part_of_another_dtype_coarsens_only_its_share(rng):
    x = rng.standard_normal((1000, 2))
    x[:, 1] = x[:, 0] + 1e-6 * x[:, 1]
    whitener = Whitener().partial_fit(x).partial_fit(x[:1].astype(np.float32))
    assert np.count_nonzero(whitener.explained_variance_) == 2


def test_attributes_that_were_set_from_outside_are_what_goes_on(rng):
    x = rng.standard_normal((200, 3)) @ rng.standard_normal((3, 3)) + 5
    whitener = Whitener().fit(rng.standard_normal((50, 3)))
    whitener.mean_, whitener.covariance_ = x[:120].mean(0), covariance(x[:120])
    whitener.n_samples_seen_ = 120
    whitener.partial_fit(x[120:])
    np.testing.assert_allclose(whitener.covariance_, covariance(x), rtol=1e-10)
    whitener = Whitener().fit(x[:120] + 3)
    whitener.mean_ -= 3
    whitener.partial_fit(x[120:])
    np.testing.assert_allclose(whitener.covariance_, covariance(x), rtol=1e-10)
    np.testing.assert_allclose(whitener.mean_, x.mean(0))


@pytest.mark.parametrize("given", ["float64", "float32", "float16"])
@pytest.mark.parametrize("dtype", [None, "float64", np.float32, "float16"])
def test_dtype_of_the_result(rng, given, dtype):
    x = rng.standard_normal((100, 3)).astype(given)
    whitener = Whitener(dtype=dtype).fit(x)
    y = whitener.transform(x)
    assert y.dtype == np.dtype(dtype or given)
    wanted = (x - whitener.mean_) @ whitener.whitening_
    np.testing.assert_array_equal(y, wanted.astype(y.dtype))
    assert whitener.inverse_transform(y).dtype == y.dtype


def test_what_is_unknown_is_refused(rng):
    x = np.ma.masked_less(rng.standard_normal((50, 3)), -1)
    whitener = Whitener().fit(x.data)
    state = pickle.dumps(vars(whitener))
    calls = (
        whitener.fit, whitener.partial_fit, whitener.transform, whitener.inverse_transform,
    )  # fmt: skip
    for call in calls:
        with pytest.raises(TypeError, match=r"X: expected an array without masked.*compress_rows"):
            call(x)
        for bad, text in ((np.nan, "NaN"), (np.inf, "infinity")):
            with pytest.raises(ValueError, match=f"X contains {text}"):
                call(np.where(x.mask, bad, x.data))
    assert pickle.dumps(vars(whitener)) == state
    whole = np.ma.masked_array(x.data, mask=False)
    np.testing.assert_array_equal(whitener.transform(whole), whitener.transform(x.data))


@pytest.mark.parametrize("step", [1, 2, 5])
@pytest.mark.parametrize("columns", [1, 2])
def test_features_that_vary_by_the_rounding_of_their_values_are_kept(columns, step, rng):
    """float32 numbers of 1e9 are multiples of 64: all of their variance is real."""
    x = (1e9 + 64 * step * rng.integers(0, 4, (1000, columns))).astype("f4")
    found = Whitener().fit(x)
    np.testing.assert_allclose(np.cov(found.transform(x).T), np.eye(columns).squeeze(), atol=1e-3)
    np.testing.assert_allclose(found.inverse_transform(found.transform(x)), x, rtol=1e-7)
