"""Files and dask arrays, block by block: as in memory, and within a memory limit."""

import subprocess
import sys
import tracemalloc
import warnings

import numpy as np
import pytest
from tables import METHODS, oracle, scaled, table

import fastnorm
from fastnorm import outofcore
from fastnorm.outofcore import _sources

# ---- files: as in memory ---------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("shape", "axis"),
    [((501, 7), None), ((501, 7), 1), ((40, 5, 6), (0, 2)), ((40, 5, 6), -2),
     ((40, 5, 6), (0, 1, 2)), ((9, 4, 3, 5), None), ((700,), None)],
)  # fmt: skip
@pytest.mark.parametrize("block_bytes", [8, 200, 1000, 1 << 20])  # an element, parts of a row, all
def test_a_file_becomes_what_it_would_in_memory(tmp_path, method, order, shape, axis, block_bytes):
    x = table(shape, order=order)
    y = scaled(tmp_path, x, method=method, axis=axis, block_bytes=block_bytes)
    axes = axis if axis is not None else tuple(range(max(1, x.ndim - 1)))
    np.testing.assert_allclose(y, oracle(x, axes, method), rtol=1e-12, atol=1e-12)
    assert y.dtype == x.dtype
    assert y.flags.f_contiguous == x.flags.f_contiguous  # it lies as it lay
    if method == "minmax":
        assert y.min() == 0
        assert y.max() <= 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "into", "wanted", "tolerance"),
    [("float32", None, "float32", 2e-6), ("float16", None, "float16", 2e-3),
     ("float16", "float64", "float64", 1e-12), ("float64", "float32", "float32", 1e-6),
     ("int16", None, "float64", 1e-12), ("uint8", "float32", "float32", 1e-6),
     ("bool", None, "float64", 1e-12), (">f8", None, "float64", 1e-12),
     (">i4", None, "float64", 1e-12)],
)  # fmt: skip
def test_dtypes(tmp_path, method, dtype, into, wanted, tolerance):
    x = np.abs(table((300, 5))) > 50 if dtype == "bool" else np.abs(table((300, 5))).astype(dtype)
    y = scaled(tmp_path, x, method=method, dtype=into, block_bytes=1000)
    assert y.dtype == np.dtype(wanted)
    np.testing.assert_allclose(y, oracle(x, 0, method), atol=4 * tolerance)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block_bytes", [80, 400, 1 << 20])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_missing_and_constant_values_are_as_scikit_learn_has_them(
    tmp_path, method, block_bytes, dtype
):
    preprocessing = pytest.importorskip("sklearn.preprocessing")
    x = table((60, 5), dtype)
    x[np.random.default_rng(1).random(x.shape) < 0.3] = np.nan
    x[:, 1] = np.where(np.isnan(x[:, 1]), np.nan, 0.1)  # constant, and not exact in binary
    x[:, 2] = np.nan
    x[:, 3] = 0.1
    y = scaled(tmp_path, x, method=method, block_bytes=block_bytes)
    scaler = {"standard": "StandardScaler", "minmax": "MinMaxScaler"}[method]
    with warnings.catch_warnings(action="ignore"):
        want = getattr(preprocessing, scaler)().fit_transform(x.astype(np.float64))
    tolerance = {"float64": 1e-12, "float32": 4e-6, "float16": 4e-3}[dtype]
    np.testing.assert_allclose(y, want, atol=tolerance)
    assert (y[:, 3] == 0).all()


def test_a_mean_far_from_0_costs_no_digits(tmp_path):
    x = np.random.default_rng(0).normal(1e8, 1, (5000, 3))
    x[::7, 1] = np.nan
    y = scaled(tmp_path, x, block_bytes=2400)
    np.testing.assert_allclose(y, oracle(x, 0, "standard"), atol=3e-8)
    np.testing.assert_allclose(np.nanstd(y, 0), 1, rtol=1e-8)


def test_a_constant_whose_square_is_no_float64_becomes_0(tmp_path):
    x = np.full((40, 3), 1e200)
    np.testing.assert_array_equal(scaled(tmp_path, x, block_bytes=100), 0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_stands_in_for_nan_leaves_no_trace(dtype):
    x = (1000 + np.random.default_rng(0).normal(size=(400, 3))).astype(dtype)
    x[np.random.default_rng(1).random(x.shape) < 0.7] = np.nan
    found = outofcore.moments(x)
    wide = x.astype(np.longdouble)
    tolerance = 1e-12 if dtype == "float64" else 1e-6
    np.testing.assert_allclose(found.mean, np.nanmean(wide, 0).astype(float), rtol=tolerance)
    np.testing.assert_allclose(found.var(), np.nanvar(wide, 0).astype(float), rtol=2 * tolerance)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_min_max_never_rounds_to_above_1(tmp_path, dtype):
    y = scaled(tmp_path, table((50, 2000), dtype), method="minmax", block_bytes=1 << 16)
    assert (y.min(0) == 0).all()
    assert (y.max(0) <= 1).all()
    np.testing.assert_allclose(y.max(0).astype(float), 1, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_mapped_arrays_are_read_and_left_alone(tmp_path, order):
    x = table((301, 7), order=order)
    np.save(tmp_path / "in.npy", x)
    mapped = np.load(tmp_path / "in.npy", mmap_mode="r")[::2]
    outofcore.scale_file(mapped, tmp_path / "out.npy", block_bytes=500)
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), oracle(x[::2], 0, "standard"), rtol=1e-12, atol=1e-12
    )
    np.testing.assert_array_equal(np.load(tmp_path / "in.npy"), x)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("axis", [None, 1, (0, 2)])
def test_moments_of_a_file(tmp_path, order, axis):
    x = table((30, 5, 6), order=order)
    x[0, 0, 0] = np.nan
    np.save(tmp_path / "in.npy", x)
    axes = (0, 1) if axis is None else axis
    for given in (tmp_path / "in.npy", str(tmp_path / "in.npy"), x):
        for block_bytes in (8, 300, 1 << 20):
            found = outofcore.moments(given, axis, block_bytes=block_bytes)
            np.testing.assert_array_equal(found.count, (~np.isnan(x)).sum(axes))
            np.testing.assert_allclose(found.mean, np.nanmean(x, axes), rtol=1e-12)
            np.testing.assert_allclose(found.var(), np.nanvar(x, axes), rtol=1e-12)


@pytest.mark.parametrize("elements", [1, 2, 5, 6, 7, 29, 30, 31, 119, 120, 1000])
def test_blocks_are_pieces_of_the_file_in_its_order(elements):
    x = np.arange(120).reshape(4, 5, 6)
    pieces = [x[index] for index in _sources.split(x.shape, elements)]
    assert max(piece.size for piece in pieces) <= elements
    np.testing.assert_array_equal(np.concatenate([p.ravel() for p in pieces]), x.ravel())


# ---- memory ----------------------------------------------------------------------------------

WITHIN_A_LIMIT = """
import re, resource, sys
import numpy as np
from fastnorm import outofcore
source, target, method = sys.argv[1:]
block, mebi = 16 << 20, 1 << 20
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
warm = np.ones((64, 8), "f4")
outofcore.moments(warm)  # threads and code are there
limit = status("VmSize") + 150 * mebi
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = status("VmRSS")
outofcore.scale_file(source, target, method=method, block_bytes=block)
print((status("VmHWM") - before) / block)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "dtype", "order"),
    [("standard", "float32", "C"), ("minmax", "float32", "F"), ("standard", "int16", "F"),
     ("minmax", "int16", "C")],
)  # fmt: skip
def test_a_file_above_the_memory_limit(tmp_path, method, dtype, order):
    columns, size = 32, 400 << 20
    rows = size // columns // np.dtype(dtype).itemsize
    rows //= 4 if dtype == "int16" else 1  # the output has 8 bytes for each 2
    shape = (rows, columns)
    x = np.lib.format.open_memmap(  # sparse: what is 0 is not on the disk
        tmp_path / "in.npy", "w+", dtype, shape, fortran_order=order == "F"
    )
    x[: rows // 100] = np.arange(columns)
    x[-1] = -7
    x.flush()
    done = subprocess.run(
        [sys.executable, "-c", WITHIN_A_LIMIT, tmp_path / "in.npy", tmp_path / "out.npy", method],
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 4
    y = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert y.nbytes == size
    values = np.array([np.arange(columns), np.zeros(columns), np.full(columns, -7)])
    counts = np.array([[rows // 100], [rows - rows // 100 - 1], [1]])
    mean = (values * counts).sum(0) / rows
    std = np.sqrt(((values - mean) ** 2 * counts).sum(0) / rows)
    want = (values - mean) / std
    if method == "minmax":
        want = (values - values.min(0)) / (values.max(0) - values.min(0))
    np.testing.assert_allclose(y[[0, rows // 2, rows - 1]], want, rtol=1e-5, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("axis", [None, (0, 2)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_missing_values_and_axes_between_need_less_than_four_blocks(tmp_path, dtype, axis, method):
    x = np.ones((64, 8, 8000), dtype)
    x[::3], x[::5] = 7, np.nan
    np.save(tmp_path / "in.npy", x if axis else x.reshape(-1, 64))
    block = x.nbytes // 8
    tracemalloc.start()
    try:
        outofcore.scale_file(
            tmp_path / "in.npy", tmp_path / "out.npy", axis=axis, method=method, block_bytes=block
        )
        assert tracemalloc.get_traced_memory()[1] < 4 * block
    finally:
        tracemalloc.stop()


# ---- dask ------------------------------------------------------------------------------------

CHUNKS = [(7, 2, 6), (30, 5, 6), (3, 1, 2), ((0, 11, 19, 0), (2, 3), (6,))]


@pytest.fixture
def da():
    return pytest.importorskip("dask.array")


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("axis", [None, 0, (0, 2), (0, 1, 2), -1])
def test_moments_of_a_dask_array_are_those_in_memory(da, chunks, axis):
    x = table((30, 5, 6))
    x[3, 2, 1] = np.nan
    axes = (0, 1) if axis is None else axis
    found = outofcore.moments(da.from_array(x, chunks), axis)
    assert isinstance(found, fastnorm.Moments)
    np.testing.assert_array_equal(found.count, (~np.isnan(x)).sum(axes))
    np.testing.assert_allclose(found.mean, np.nanmean(x, axes), rtol=1e-12)
    np.testing.assert_allclose(found.var(), np.nanvar(x, axes), rtol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("axis", [None, 0, (0, 2), -1])
@pytest.mark.parametrize("dtype", ["float64", "float32", "int32"])
def test_a_dask_array_becomes_what_it_would_in_memory(da, method, chunks, axis, dtype):
    x = table((30, 5, 6), dtype)
    axes = (0, 1) if axis is None else axis
    lazy = outofcore.scale(da.from_array(x, chunks), axis, method=method)
    y = lazy.compute(scheduler="synchronous")
    tolerance = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(y, oracle(x, axes, method), rtol=tolerance, atol=tolerance)
    assert lazy.dtype == y.dtype == (np.float64 if dtype == "int32" else x.dtype)
    assert lazy.shape == x.shape


def test_dask_is_lazy_merges_as_a_tree_and_threads_agree(da):
    made = []

    def chunk(block_info=None):
        place = block_info[None]["chunk-location"][0]
        made.append(place)
        return np.random.default_rng(place).normal(place, 1, (50, 3))

    x = da.map_blocks(chunk, chunks=((50,) * 64, (3,)), dtype=float, meta=np.empty((0, 0)))
    y = outofcore.scale(x)
    assert made == []
    merges = [key for key in y.dask.layers if "_merge" in key or "aggregate" in key]
    assert len(merges) > 1  # 64 chunks do not meet at once
    many = y.compute(scheduler="threads", num_workers=4)
    np.testing.assert_array_equal(many, y.compute(scheduler="synchronous"))
    np.testing.assert_allclose(many, oracle(x.compute(), 0, "standard"), rtol=1e-12, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_a_dask_array_above_four_chunks_is_never_in_memory(da, method):
    import dask

    def chunk(block_info=None):
        place = block_info[None]["chunk-location"][0]
        return np.random.default_rng(place).normal(place, 1, shape)

    class Nowhere:
        def __setitem__(self, index, value):
            assert np.isfinite(value).all()

    shape, count = (1 << 15, 8), 20  # chunks of 2 MiB
    x = da.map_blocks(chunk, chunks=((shape[0],) * count, shape[1:]), dtype=float,
                      meta=np.empty((0, 0)))  # fmt: skip
    tracemalloc.start()
    try:
        da.store(outofcore.scale(x, method=method), Nowhere(), lock=False, scheduler="synchronous")
        assert tracemalloc.get_traced_memory()[1] < 4 * 8 * shape[0] * shape[1]
        tracemalloc.reset_peak()
        with dask.config.set(scheduler="synchronous"):
            outofcore.moments(x)
        assert tracemalloc.get_traced_memory()[1] < 4 * 8 * shape[0] * shape[1]
    finally:
        tracemalloc.stop()


def test_bad_dask_input(da):
    x = da.ones((4, 3))
    for call, error, message in [
        (lambda: outofcore.scale([[1.0]]), TypeError, "x: expected a dask array, .*, got list"),
        (lambda: outofcore.scale(x, 2), ValueError, "axis: expected axes in"),
        (lambda: outofcore.moments(x, 2), ValueError, "axis: expected axes in"),
        (lambda: outofcore.scale(x, method="max"), ValueError, "method: expected one of"),
        (lambda: outofcore.scale(x.astype(complex)), TypeError, "x: expected float16, .* complex"),
        (lambda: outofcore.moments(x.astype(complex)), TypeError, "x: expected float16"),
        (lambda: outofcore.moments(x.sum()), ValueError, "x: expected at least 1 dimension"),
        (lambda: outofcore.scale(x / 0).compute(), ValueError, "got infinity"),
    ]:
        with pytest.raises(error, match=message), np.errstate(all="ignore"):
            call()
