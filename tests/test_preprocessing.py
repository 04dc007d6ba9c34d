"""Scalers: scikit-learn's checks, its own scalers as the oracle, and memory."""

import pickle
import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest

import fastnorm
from fastnorm import _core

pytest.importorskip("sklearn", "1.6")

import sklearn.preprocessing as theirs
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.utils.estimator_checks import parametrize_with_checks

import fastnorm.preprocessing as ours
from fastnorm.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
    Whitener,
)

DATA = {"wine": load_wine, "breast_cancer": load_breast_cancer, "digits": load_digits}
ATTRIBUTES = {
    "StandardScaler": ("mean_", "var_", "scale_", "n_samples_seen_"),
    "MinMaxScaler": (
        "data_min_", "data_max_", "data_range_", "scale_", "min_", "n_samples_seen_",
    ),
    "MaxAbsScaler": ("max_abs_", "scale_", "n_samples_seen_"),
    "RobustScaler": ("center_", "scale_"),
}  # fmt: skip
ALL = [
    ("StandardScaler", {}),
    ("StandardScaler", {"with_mean": False}),
    ("StandardScaler", {"with_std": False}),
    ("StandardScaler", {"with_mean": False, "with_std": False}),
    ("MinMaxScaler", {}),
    ("MinMaxScaler", {"feature_range": (-2, 3), "clip": True}),
    ("MaxAbsScaler", {}),
    ("MaxAbsScaler", {"clip": True}),
    ("RobustScaler", {}),
    ("RobustScaler", {"with_centering": False, "quantile_range": (10, 80)}),
    ("RobustScaler", {"with_scaling": False}),
    ("RobustScaler", {"unit_variance": True, "quantile_range": (1.5, 99)}),
]
SCALERS = [StandardScaler(), MinMaxScaler(), MaxAbsScaler(), RobustScaler()]
LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
}
TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "float16": 1e-2}


def pair(name, arguments):
    other = getattr(theirs, name)
    if missing := set(arguments) - set(other().get_params()):
        pytest.skip(f"this scikit-learn's {name} has no {missing}")
    return getattr(ours, name)(**arguments), other(**arguments)


def assert_same_attributes(found, wanted, rtol):
    for name in ATTRIBUTES[type(found).__name__]:
        a, b = getattr(found, name), getattr(wanted, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert np.shape(a) == np.shape(b), name
            scale = np.nanmax(np.abs(b)) if np.isfinite(b).any() else 1
            np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * scale, err_msg=name)


@parametrize_with_checks(
    [
        StandardScaler(),
        StandardScaler(with_mean=False),
        StandardScaler(with_std=False),
        MinMaxScaler(),
        MinMaxScaler(clip=True),
        MaxAbsScaler(),
        MaxAbsScaler(clip=True),
        RobustScaler(),
        RobustScaler(with_centering=False, unit_variance=True),
        StandardScaler(clip=(-2, 3), dtype=np.float32),
        Whitener(),
        Whitener("zca"),
        Whitener(n_components=1),
    ]
)
def test_scikit_learns_checks(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.parametrize(("name", "arguments"), ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("data", DATA)
def test_agrees_with_scikit_learn_on_real_data(data, dtype, layout, name, arguments):
    x = LAYOUTS[layout](DATA[data]().data.astype(dtype))
    mine, other = pair(name, arguments)
    rtol = TOLERANCE[dtype]
    assert_same_attributes(mine.fit(x), other.fit(x), rtol)
    y, wanted = mine.transform(x), other.transform(x)
    assert y.dtype == wanted.dtype == x.dtype
    np.testing.assert_allclose(y, wanted, rtol=rtol, atol=rtol * np.abs(wanted).max())
    back, wanted = mine.inverse_transform(y), other.inverse_transform(wanted)
    assert back.dtype == x.dtype
    np.testing.assert_allclose(back, wanted, rtol=rtol, atol=rtol * np.abs(x).max())


@pytest.mark.long
@pytest.mark.parametrize("columns", [10, 40])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_agrees_with_an_exact_oracle_on_two_million_rows(columns, dtype):
    part = np.random.default_rng(0).normal(30, 2, (10_000, columns)).astype(dtype)
    x = np.tile(part, (200, 1))  # the moments of the whole are those of the part
    exact = part.astype(np.longdouble)
    scaler = StandardScaler().fit(x)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(scaler.mean_, exact.mean(0).astype(float), rtol=tolerance)
    np.testing.assert_allclose(scaler.var_, exact.var(0).astype(float), rtol=2 * tolerance)
    y = scaler.transform(x)
    wanted = ((exact - exact.mean(0)) / exact.std(0)).astype(float)
    for rows in (slice(0, 10_000), slice(1_990_000, None)):
        np.testing.assert_allclose(y[rows], wanted, rtol=0, atol=10 * tolerance)
    ranges = MinMaxScaler().fit(x)
    np.testing.assert_array_equal(ranges.data_min_, part.min(0))
    np.testing.assert_array_equal(ranges.data_max_, part.max(0))
    y = ranges.transform(x)
    assert y.min() == 0
    assert abs(y.max() - 1) < tolerance


@pytest.mark.long
@pytest.mark.parametrize("name", ATTRIBUTES)
def test_agrees_with_scikit_learn_on_two_million_rows(rng, name):
    x = rng.standard_normal((2_000_000, 10), np.float32) * 2 + 30
    mine, other = pair(name, {})
    assert_same_attributes(mine.fit(x), other.fit(x), 1e-6)
    np.testing.assert_allclose(mine.transform(x), other.transform(x), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("name", "arguments"), ALL)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_nan_is_passed_over_and_kept(rng, dtype, layout, name, arguments):
    x = rng.normal(4, 2, (500, 6)).astype(dtype)
    x[rng.random(x.shape) < 0.1] = np.nan
    x[:, 2] = np.arange(500) % 7  # no NaN here
    x[:, 4] = np.nan
    x = LAYOUTS[layout](x)
    mine, other = pair(name, arguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.fit(x)
        mine.fit(x)
        y, wanted = mine.transform(x), other.transform(x)
    assert_same_attributes(mine, other, TOLERANCE[dtype])
    assert y.dtype == x.dtype
    np.testing.assert_allclose(y, wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize(("name", "arguments"), [a for a in ALL if a[0] != "RobustScaler"])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_partial_fit_is_fit_of_all(rng, dtype, missing, name, arguments):
    x = rng.normal(1e3, 2, (1000, 5)).astype(dtype)
    if missing:
        x[rng.random(x.shape) < 0.3] = np.nan
        x[:400, 3] = np.nan
    mine, other = pair(name, arguments)
    for part in np.split(x, [1, 400, 950]):
        mine.partial_fit(part)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other.fit(x)
    assert_same_attributes(mine, other, 1e-10 if dtype == "float64" else 1e-6)
    again = pickle.loads(pickle.dumps(mine)).fit(x[:10])
    assert np.max(again.n_samples_seen_) <= 10, "fit begins anew"


@pytest.mark.parametrize("missing", [False, True])
def test_weights(rng, missing):
    x, w = rng.normal(50, 3, (800, 4)), rng.random(800) / 1000
    w[::5] = 0
    if missing:
        x[rng.random(x.shape) < 0.2] = np.nan
    mine = StandardScaler().fit(x, sample_weight=w)
    assert_same_attributes(mine, theirs.StandardScaler().fit(x, sample_weight=w), 1e-9)
    parts = StandardScaler()
    for rows in (slice(0, 3), slice(3, 500), slice(500, None)):
        parts.partial_fit(x[rows], sample_weight=w[rows])
    assert_same_attributes(parts, mine, 1e-9)
    repeated = StandardScaler().fit(np.repeat(x, 3, 0))
    thrice = StandardScaler().fit(x, sample_weight=np.full(800, 3))
    assert_same_attributes(thrice, repeated, 1e-12)


@pytest.mark.parametrize("form", ["csr", "csc"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("with_std", [False, True])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_sparse(rng, form, weighted, with_std, dtype):
    x = sparse.random_array((300, 7), density=0.3, rng=rng).asformat(form).astype(dtype)
    rtol = 1e-9 if dtype == "float64" else 2e-6
    x.data[::10] = np.nan
    w = rng.random(300) if weighted else None
    mine, other = pair("StandardScaler", {"with_mean": False, "with_std": with_std})
    mine.fit(x, sample_weight=w)
    assert_same_attributes(mine, other.fit(x, sample_weight=w), rtol)
    y = mine.transform(x)
    assert sparse.issparse(y)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.toarray(), other.transform(x).toarray(), rtol=rtol)
    np.testing.assert_allclose(mine.inverse_transform(y).toarray(), x.toarray(), rtol=rtol)
    parts, rows = StandardScaler(with_mean=False, with_std=with_std), x.tocsr()
    for some in (slice(0, 100), slice(100, None)):
        parts.partial_fit(rows[some].asformat(form), sample_weight=w[some] if weighted else None)
    assert_same_attributes(parts, mine, rtol)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize(
    "shape", [(1, 1), (5, 7), (1000, 3), (5000, 10), (300, 2100), (70000, 1), (2, 70000)]
)
def test_extremes_are_those_of_numpy_on_every_instruction_set(rng, shape, dtype, isa, threads):
    x = rng.normal(size=shape).astype(dtype)
    x[rng.random(shape) < 0.1] = np.nan
    x[:, 0] = np.nan
    x[-1, -1] = np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = np.stack([np.nanmin(x, 0), np.nanmax(x, 0)]).astype(np.float64)
    np.testing.assert_array_equal(_core.extremes(x), wanted)


def test_extremes_of_nothing():
    assert np.isnan(_core.extremes(np.empty((0, 3)))).all()
    assert _core.extremes(np.empty((3, 0))).shape == (2, 0)


def test_affine_is_exact_to_rounding_and_the_same_bits_everywhere(rng):
    x = rng.normal(1e5, 1, (70_001, 13)).astype(np.float32)
    center, factor, shift = rng.normal(1e5, 1, 13), rng.random(13), rng.normal(size=13)
    wanted = (x.astype(np.longdouble) - center) * factor + shift
    found = []
    for isa in fastnorm.available_isas():
        for threads in (1, 2, 5):
            fastnorm.set_isa(isa)
            fastnorm.set_num_threads(threads)
            found.append(np.empty_like(x))
            assert _core.affine(x, center, factor, shift, found[-1]) is False
    np.testing.assert_allclose(found[0], wanted.astype(float), rtol=0, atol=2e-6)
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    x[-1, -1] = -np.inf
    assert _core.affine(x, center, factor, shift, found[0]) is True
    with pytest.raises(ValueError, match="out: expected a C-contiguous array"):
        _core.affine(x[1:], center, factor, shift, x[:-1])


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_infinities_are_refused_and_nothing_is_written(rng, layout, scaler):
    x = LAYOUTS[layout](rng.normal(size=(300, 4)))
    scaler.fit(x)
    bad = LAYOUTS[layout](x)
    bad[200, 1] = np.inf
    before, state = bad.copy(), pickle.dumps(vars(scaler))
    new = clone(scaler)
    calls = (scaler.fit, new.partial_fit, scaler.transform, scaler.inverse_transform)
    for call in calls:
        for copy in (True, False):
            scaler.set_params(copy=copy)
            with pytest.raises(ValueError, match="infinity"):
                call(bad)
            np.testing.assert_array_equal(bad, before)
    scaler.set_params(copy=True)
    assert pickle.dumps(vars(scaler)) == state
    assert not hasattr(new, "n_features_in_")


@pytest.mark.parametrize(
    "scaler", [StandardScaler(clip=9), MinMaxScaler(clip=True), MaxAbsScaler(), RobustScaler()]
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_copy_false_writes_into_x(rng, layout, scaler):
    x = LAYOUTS[layout](rng.normal(size=(300, 4)))
    wanted = scaler.set_params(copy=True).fit(x).transform(x)
    original = x.copy()
    y = scaler.set_params(copy=False).transform(x)
    assert np.shares_memory(x, y)
    np.testing.assert_array_equal(y, wanted)
    np.testing.assert_array_equal(x, wanted)
    np.testing.assert_allclose(scaler.inverse_transform(x), original, rtol=1e-12, atol=1e-12)
    frozen = original.copy()
    frozen.flags.writeable = False
    assert not np.shares_memory(scaler.transform(frozen), frozen)
    scaler.set_params(copy=True)


def test_a_failed_fit_changes_nothing(rng):
    x = rng.normal(size=(20, 3))
    for scaler in (StandardScaler(), MinMaxScaler(), MaxAbsScaler(), RobustScaler(), Whitener()):
        scaler.partial_fit(x)
        state = pickle.dumps(vars(scaler))
        for bad in (np.ones((20, 3, 1)), np.empty((0, 3)), [["a", "b", "c"]]):
            with pytest.raises(ValueError):  # noqa: PT011  scikit-learn's texts
                scaler.fit(bad)
        with pytest.raises(ValueError, match="features"):
            scaler.partial_fit(np.ones((5, 4)))
        assert pickle.dumps(vars(scaler)) == state


def test_sparse_x_is_not_centered():
    x = sparse.eye_array(5, format="csr")
    with pytest.raises(ValueError, match=r"X: expected a dense array.*with_mean=False"):
        StandardScaler().fit(x)
    with pytest.raises(ValueError, match="features"):
        StandardScaler(with_mean=False).fit(x).inverse_transform(np.ones((3, 4)))


def test_names_and_output_containers(rng):
    x = rng.normal(size=(20, 3))
    for scaler in (*SCALERS, Whitener("zca")):
        assert list(scaler.fit(x).get_feature_names_out()) == ["x0", "x1", "x2"]
        assert list(scaler.get_feature_names_out(["a", "b", "c"])) == ["a", "b", "c"]
    names = Whitener(n_components=2).fit(x).get_feature_names_out()
    assert list(names) == ["whitener0", "whitener1"]
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(x, columns=["a", "b", "c"], index=np.arange(20) * 2)
    for scaler in map(clone, (*SCALERS, Whitener("zca"), Whitener())):
        want = scaler.fit_transform(x)
        y = scaler.set_output(transform="pandas").fit_transform(frame)
        assert list(y.columns) == list(scaler.get_feature_names_out())
        assert (y.index == frame.index).all()
        np.testing.assert_allclose(y.to_numpy(), want, atol=1e-12)
    assert list(y.columns) == ["whitener0", "whitener1", "whitener2"]


@pytest.mark.long
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "scaler",
    [
        StandardScaler(),
        StandardScaler(dtype="float64"),
        StandardScaler(dtype="float16", clip=3),
        MinMaxScaler(clip=True),
        MaxAbsScaler(),
        RobustScaler(),
        Whitener(),
    ],
)
def test_no_temporary_of_the_size_of_x(layout, scaler):
    x = LAYOUTS[layout](np.ones((500_000, 20), np.float32))  # 40 MB
    x[::3] = np.arange(20)
    x[::7, ::3] = 5
    tracemalloc.start()
    try:
        scaler.fit(x)
        assert tracemalloc.get_traced_memory()[1] < 25e6
        tracemalloc.reset_peak()
        y = scaler.transform(x)
        assert tracemalloc.get_traced_memory()[1] < y.nbytes + 25e6
    finally:
        tracemalloc.stop()


def test_the_package_does_not_import_scikit_learn():
    program = (
        "import sys, fastnorm; print(sorted({'sklearn', 'scipy', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_without_scikit_learn_the_error_says_what_to_install():
    program = "import sys; sys.modules['sklearn'] = None; import fastnorm.preprocessing"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'fastnorm-cpu[sklearn]'" in done.stderr
