"""Arguments of the scalers: dtype and clip, masked arrays, and wrong calls."""

import pickle
import warnings
from collections import deque

import numpy as np
import pytest

pytest.importorskip("sklearn", "1.6")

from scipy import sparse
from sklearn.base import clone

import fastnorm
from fastnorm.preprocessing import (
    MaxAbsScaler,
    MinMaxScaler,
    RobustScaler,
    StandardScaler,
    Whitener,
)

SCALERS = [StandardScaler(), MinMaxScaler((-1, 2)), MaxAbsScaler(), RobustScaler()]
LAYOUTS = {
    "C": np.ascontiguousarray,
    "F": np.asfortranarray,
    "strided": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
}

# ---- dtype of the result ---------------------------------------------------------------------


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("given", ["float64", "float32", "float16", "int16"])
@pytest.mark.parametrize("dtype", ["float64", np.float32, np.dtype("float16")])
def test_dtype_of_the_result_and_precision_of_the_computation(rng, dtype, given, layout, scaler):
    x = LAYOUTS[layout]((rng.normal(100, 10, (700, 5))).astype(given))
    before, dtype = x.copy(order="K"), np.dtype(dtype)
    scaler = clone(scaler).set_params(dtype=dtype, copy=False)
    y = scaler.fit(x).transform(x)
    assert y.dtype == dtype
    if dtype != given:
        np.testing.assert_array_equal(x, before)
    assert y.flags.f_contiguous == (layout == "F")
    exact = clone(scaler).set_params(dtype=None).fit(before).transform(before.astype(np.float64))
    work = np.result_type(dtype, given if given != "int16" else "float64")
    eps = np.finfo(work).eps * 30 + np.finfo(y.dtype).eps / 2
    np.testing.assert_allclose(y, exact, rtol=float(eps), atol=float(eps))
    back = scaler.inverse_transform(y)
    assert back.dtype == y.dtype
    allowed = 400 * float(eps)
    np.testing.assert_allclose(back.astype(float), before.astype(float), rtol=0, atol=allowed)


def test_more_rows_than_a_block_have_the_dtype_too(rng):
    for layout in LAYOUTS.values():
        x = layout(rng.standard_normal((300_000, 7)))
        scaler = StandardScaler(dtype="float32", clip=1.5).fit(x)
        wanted = np.clip(StandardScaler().fit_transform(x), -1.5, 1.5).astype(np.float32)
        np.testing.assert_array_equal(scaler.transform(x), wanted)


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_float32_beyond_what_its_coefficients_hold(rng, dtype):
    x = rng.uniform(-1, 1, (500, 3)).astype(np.float32)
    x[:2] = [[-1], [1]]
    for scale in (1e-40, 1e-44, 3e37, 3.3e38):
        given = x * np.float32(scale)
        for scaler in (MinMaxScaler(dtype=dtype), MaxAbsScaler(dtype=dtype)):
            wanted = clone(scaler).set_params(dtype="float64").fit_transform(given.astype(float))
            y = scaler.fit_transform(given)
            np.testing.assert_allclose(y, wanted, atol=1e-6 if dtype is None else 1e-3)
            back = scaler.inverse_transform(y.astype(np.float32))
            allowed = (1e-6 if dtype is None else 1e-3) * np.abs(given).max() + 2e-45
            np.testing.assert_allclose(back, given, rtol=0, atol=allowed)


def test_float32_whose_difference_from_the_center_float32_does_not_hold():
    x = np.array([[3e38], [3.2e38]], np.float32)
    for scaler in (MinMaxScaler(), RobustScaler()):
        scaler.fit(x)
        y = scaler.transform(-x)
        wanted = scaler.transform(-x.astype(np.float64))
        np.testing.assert_allclose(y, wanted, rtol=1e-6)
        assert (wanted < -20).all()


# ---- clip ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaler", [StandardScaler(), RobustScaler()])
@pytest.mark.parametrize(
    ("clip", "low", "high"),
    [(1, -1, 1), ((-0.5, 2), -0.5, 2), ([0, np.inf], 0, np.inf), (np.float32(2), -2, 2)],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bounds_of_the_result(rng, layout, clip, low, high, scaler):
    x = LAYOUTS[layout](rng.standard_normal((500, 3)))
    x[3, 1] = np.nan
    wanted = np.clip(clone(scaler).fit_transform(x), low, high)
    clipped = clone(scaler).set_params(clip=clip).fit(x)
    np.testing.assert_array_equal(clipped.transform(x), wanted)
    assert np.nanmax(clipped.inverse_transform(wanted * 100)) > 20, "only forward"


def test_clip_of_held_out_samples(rng):
    x, new = rng.standard_normal((50, 3)), rng.standard_normal((500, 3)) * 5
    y = MaxAbsScaler(clip=True).fit(x).transform(new)
    np.testing.assert_array_equal(y, np.clip(MaxAbsScaler().fit(x).transform(new), -1, 1))
    for clip in (None, False):
        y = StandardScaler(clip=clip).fit(x).transform(new)
        np.testing.assert_array_equal(y, StandardScaler().fit(x).transform(new))


def test_sparse_with_bounds_and_dtype(rng):
    x = sparse.random_array((50, 4), density=0.5, rng=rng).tocsr()
    for scaler in (
        StandardScaler(with_mean=False, clip=1.5, dtype="float32"),
        RobustScaler(with_centering=False, clip=(-1, 2), dtype="float32"),
        MaxAbsScaler(clip=True, dtype="float32"),
    ):
        y = scaler.fit(x.tocsc()[:20]).transform(x)
        dense = scaler.transform(x.toarray())
        assert y.dtype == "float32"
        np.testing.assert_allclose(y.toarray(), dense, rtol=1e-6)
    with pytest.raises(ValueError, match="clip: expected bounds around 0"):
        StandardScaler(with_mean=False, clip=(0.1, 2)).fit(x).transform(x)


# ---- masked arrays ---------------------------------------------------------------------------


def masked(rng, dtype="float64"):
    x = rng.integers(-50, 50, (300, 4)).astype(dtype)
    mask = rng.random(x.shape) < 0.2
    mask[:, 3] = False
    x[mask] = 77  # what lies below the mask must not matter
    unknown = np.where(mask, np.nan, x).astype(dtype if np.dtype(dtype).kind == "f" else float)
    return np.ma.masked_array(x, mask), unknown


@pytest.mark.parametrize("scaler", SCALERS)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int32", "uint8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_masked_values_are_passed_over_and_stay_masked(rng, order, dtype, scaler):
    x, unknown = masked(rng, dtype)
    x = np.ma.masked_array(np.array(x.data, order=order), x.mask)
    unknown = np.array(unknown, order=order)
    wanted = clone(scaler).fit(unknown)
    for copy in (True, False):
        scaler = clone(scaler).set_params(copy=copy)
        fitted, before = scaler.fit(x), x.copy()
        parts = clone(scaler).partial_fit(x[:100]).partial_fit(x[100:])
        for found in (fitted, parts):
            for name in ("mean_", "var_", "scale_", "center_", "data_min_", "max_abs_"):
                if hasattr(wanted, name):
                    a, b = getattr(found, name), getattr(wanted, name)
                    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12, err_msg=name)
        for call in ("transform", "inverse_transform"):
            y = getattr(fitted, call)(x)
            assert isinstance(y, np.ma.MaskedArray)
            np.testing.assert_array_equal(y.mask, x.mask)
            np.testing.assert_array_equal(y.data, getattr(wanted, call)(unknown))
            np.testing.assert_array_equal(x.data, before.data)
        y = clone(scaler).fit_transform(x)
        y[0, 0] = 5  # its mask is its own
        np.testing.assert_array_equal(x.mask, before.mask)


def test_weights_of_masked_samples(rng):
    x, unknown = masked(rng)
    w = rng.random(300)
    found = StandardScaler().fit(x, sample_weight=w)
    wanted = StandardScaler().fit(unknown, sample_weight=w)
    np.testing.assert_array_equal(found.mean_, wanted.mean_)
    np.testing.assert_array_equal(found.n_samples_seen_, wanted.n_samples_seen_)
    with pytest.raises(TypeError, match=r"sample_weight: .*masked.*filled\(0\)"):
        StandardScaler().fit(x, sample_weight=np.ma.masked_less(w, 0.1))
    nothing = np.ma.masked_array(w, mask=False)
    np.testing.assert_array_equal(StandardScaler().fit(x, sample_weight=nothing).var_, wanted.var_)


def test_masked_arrays_without_masked_values(rng):
    x = np.ma.masked_array(rng.standard_normal((30, 3)), mask=False)
    y = StandardScaler(copy=False).fit_transform(x)
    assert isinstance(y, np.ma.MaskedArray)
    assert np.shares_memory(y, x)


def test_masked_values_in_containers(rng):
    pd = pytest.importorskip("pandas")
    x, unknown = masked(rng)
    y = StandardScaler().set_output(transform="pandas").fit_transform(x)
    np.testing.assert_array_equal(np.isnan(y.to_numpy()), x.mask)
    frame = pd.DataFrame(unknown).convert_dtypes()  # pd.NA
    np.testing.assert_allclose(StandardScaler().fit(frame).mean_, np.nanmean(unknown, 0))


@pytest.mark.parametrize("scaler", SCALERS)
def test_what_numpy_would_take_without_its_mask(rng, scaler):
    x, unknown = masked(rng)
    wanted = clone(scaler).fit(unknown)
    kinds = [list(x), pytest.importorskip("dask.array").from_array(x, chunks=(50, x.shape[1]))]
    for kind in kinds:
        y = clone(scaler).fit(kind).transform(kind)
        np.testing.assert_array_equal(y.mask, x.mask)
        np.testing.assert_allclose(y.data, wanted.transform(unknown), rtol=1e-12, atol=1e-12)
        with pytest.raises(TypeError, match="X: expected an array without masked values"):
            Whitener().fit(kind)


# ---- wrong calls -----------------------------------------------------------------------------

X = np.random.default_rng(0).standard_normal((6, 3))
RAGGED = [[1.0, 2], [3.0]]
UNFIT = {
    "X": [
        RAGGED, [1.0, 2, 3], 5.0, None, "abc", [["a", "b"]], np.ones((2, 2, 2)), X + 1j,
        np.empty((0, 3)), np.empty((3, 0)), np.full((3, 3), np.inf), [[object()]], {"a": 1},
    ],
    "copy": ["no", 1, None, [True]],
    "clip": ["yes", 1.5, None, [True], (0, 1)],
    "dtype": ["NHWC", "int32", int, "f4,f4", np.longdouble, 3, object, ["float32"]],
}  # fmt: skip
BOUNDS = [True, "1", 0, -1, np.nan, (1, 1), (2, 1), (0, np.nan), (1, 2, 3), (1,), ("a", 1), {}, ()]
RANGES = [(1, 1), (2, 1), (0, np.inf), (0, np.nan), (0, 1, 2), (1,), "ab", 5, None, ("a", 1), ()]
QUANTILES = [(75, 25), (-1, 50), (50, 101), (0, np.nan), (1, 2, 3), (1,), "ab", 5, None, ()]
WRONG = {
    StandardScaler: {**UNFIT, "with_mean": ["", 1], "with_std": [None, 0], "clip": BOUNDS},
    MinMaxScaler: {**UNFIT, "feature_range": [*RANGES, (-1e308, 1e308)]},
    MaxAbsScaler: UNFIT,
    RobustScaler: {
        **UNFIT, "with_centering": [1], "with_scaling": ["a"], "unit_variance": [2],
        "clip": BOUNDS, "quantile_range": QUANTILES,
    },
    Whitener: {
        "X": [*UNFIT["X"], np.full((3, 3), np.nan), np.ones((1, 3))],
        "dtype": UNFIT["dtype"], "kind": ["pcb", None, 3, ["pca"], X],
        "n_components": [0, 4, -1, 1.0, True, "2", [1], np.nan],
        "eps": [-1, np.nan, np.inf, "0", True, None, 1j, [0.1]],
    },
}  # fmt: skip
WRONG_CALLS = [
    (scaler, name, value)
    for scaler, arguments in WRONG.items()
    for name, values in arguments.items()
    for value in values
]


@pytest.mark.parametrize(("scaler", "name", "value"), WRONG_CALLS)
def test_wrong_calls_name_the_argument_and_change_nothing(scaler, name, value):
    fitted = scaler().fit(X)
    state = pickle.dumps(vars(fitted))
    for call in ("fit", "partial_fit", "fit_transform", "transform", "inverse_transform"):
        wrong = pickle.loads(state)
        later = call.endswith("transform") and call != "fit_transform"
        if later and name not in ("X", "copy", "clip", "dtype", "feature_range"):
            continue  # what only fit reads
        if call == "inverse_transform" and name in ("clip", "dtype"):
            continue
        if call != "fit" and isinstance(value, np.ndarray) and value.shape == (1, 3):
            continue  # one sample is enough
        each = scaler()
        vars(each).update(wrong)
        if name != "X":
            each.set_params(**{name: value})
        before = pickle.dumps({k: v for k, v in vars(each).items() if k != name})
        with (
            warnings.catch_warnings(action="error"),
            pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"),
        ):
            getattr(each, call)(value if name == "X" else X)
        assert pickle.dumps({k: v for k, v in vars(each).items() if k != name}) == before


WEIGHTS = [
    np.ones(5), np.ones((6, 1)), np.ones((2, 3)), [1, 1, 1, -1, 1, 1], [1, 1, 1, np.nan, 1, 1],
    [1, 1, np.inf, 1, 1, 1], np.zeros(6), "abc", ["a"] * 6, [[1], [2, 3]], np.ones(6) * 1j, {},
    -1, np.nan, object(),
]  # fmt: skip


@pytest.mark.parametrize("value", WEIGHTS)
def test_wrong_weights_are_named(value):
    scaler = StandardScaler().fit(X)
    state = pickle.dumps(vars(scaler))
    for call in (scaler.fit, scaler.partial_fit):
        with pytest.raises((TypeError, ValueError), match="sample_weight"):
            call(X, sample_weight=value)
    assert pickle.dumps(vars(scaler)) == state


def test_right_weights():
    wanted = StandardScaler().fit(X)
    for weight in (3, np.ones(6), [2] * 6, np.ones(6, np.float16), np.ones(6, bool)):
        np.testing.assert_allclose(StandardScaler().fit(X, sample_weight=weight).var_, wanted.var_)


@pytest.mark.parametrize("scaler", [*SCALERS, Whitener()])
def test_another_number_of_features_is_named(scaler):
    fitted = clone(scaler).partial_fit(X)
    calls = (fitted.partial_fit, fitted.transform, fitted.inverse_transform)
    for call in calls:
        with pytest.raises(ValueError, match=r"\bX\b.*features"):
            call(X[:, :2])


def test_unit_variance_needs_quantiles_between_0_and_100():
    for some in ((0, 75), (25, 100), (50, 50)):
        with pytest.raises(ValueError, match=r"quantile_range: .*unit_variance"):
            RobustScaler(quantile_range=some, unit_variance=True).fit(X)


def test_copy_of_a_call_is_a_flag():
    scaler = StandardScaler().fit(X)
    for call in (scaler.transform, scaler.inverse_transform):
        with pytest.raises(TypeError, match="copy: expected a bool"):
            call(X, copy="no")


class MakesMasked:
    """An object of which NumPy makes a masked array, if it is asked for what it is."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def containers(x):
    yield list(x)
    yield tuple(x)
    yield deque(x)
    yield MakesMasked(x)
    dask = pytest.importorskip("dask.array")
    yield dask.from_array(x)
    yield list(dask.from_array(x))
    bare = dask.from_array(x.data, chunks=2)  # of which dask does not know that it is masked
    yield bare.map_blocks(lambda b: np.ma.masked_less(b, 0), dtype=float, meta=np.empty((0, 0)))


def test_masks_in_whatever_holds_them():
    x = np.ma.masked_array([[1.0], [2], [3], [-9999]], mask=[[0], [0], [0], [1]])
    for some in containers(x):
        assert fastnorm.Moments.from_array(some).mean == 2
        assert StandardScaler().fit(some).mean_ == 2
        with pytest.raises(TypeError, match="mask"):
            fastnorm.layer_norm(some)
        with pytest.raises(TypeError, match="mask"):
            fastnorm.to_blocked(some)
    for deep in ([[x, x]], [(x,), (x,)]):
        assert fastnorm.Moments.from_array(deep, axis=(0, 1, 2)).mean == 2
        with pytest.raises(TypeError, match="mask"):
            fastnorm.rms_norm(deep)


def test_values_whose_differences_are_no_float64():
    with pytest.raises(ValueError, match="X: expected finite values whose differences"):
        StandardScaler().fit([[1e308], [-1e308]])
    np.testing.assert_allclose(StandardScaler().fit([[5e307], [-5e307]]).scale_, 5e307)
