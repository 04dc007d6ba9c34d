"""HDF5, pandas, xarray and masked arrays: the same kind comes out, with all that belongs to it."""

import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from tables import METHODS, oracle, table

from fastnorm import outofcore

# ---- HDF5 ------------------------------------------------------------------------------------


@pytest.fixture
def h5py():
    return pytest.importorskip("h5py")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", ">f8", "int16", "bool", "float16"])
@pytest.mark.parametrize("chunks", [None, (7, 2, 3), (40, 5, 6)])
@pytest.mark.parametrize("block_bytes", [24, 500, 1 << 20])
def test_a_dataset_becomes_a_dataset(tmp_path, h5py, method, dtype, chunks, block_bytes):
    x = (table((40, 5, 6)) > 50) if dtype == "bool" else table((40, 5, 6)).astype(dtype)
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("group/x", data=x, chunks=chunks)
    outofcore.scale_file(f"{tmp_path}/in.h5:/group/x", f"{tmp_path}/out.h5:/deep/in/y",
                         method=method, axis=[0, 2], block_bytes=block_bytes)  # fmt: skip
    with h5py.File(tmp_path / "out.h5") as file:
        y = file["deep/in/y"]
        want = oracle(x, (0, 2), method)
        tolerance = {"float32": 1e-5, "float16": 4e-3}.get(dtype, 1e-12)
        np.testing.assert_allclose(y[...], want, atol=tolerance)
        assert y.chunks == chunks
        assert y.dtype == {"int16": "f8", "bool": "f8", ">f8": "f8"}.get(dtype, dtype)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5", "out.h5"]


def test_how_a_dataset_is_stored_and_what_it_says_are_kept(tmp_path, h5py):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        x = file.create_dataset("x", data=table((50, 4)), chunks=(10, 4), maxshape=(None, 4),
                                compression="gzip", compression_opts=7, shuffle=True,
                                fletcher32=True)  # fmt: skip
        x.attrs.update(units="K", levels=[1, 2], scale_factor=0.1, _FillValue=-1.0)
        file["t"] = np.arange(50.0)
        file["t"].make_scale("t")
        x.dims[0].attach_scale(file["t"])
    outofcore.scale_file(f"{tmp_path}/in.h5:/x", f"{tmp_path}/out.h5:/x", dtype="float32")
    with h5py.File(tmp_path / "out.h5") as file:
        y = file["x"]
        assert (y.chunks, y.maxshape, y.dtype) == ((10, 4), (None, 4), np.float32)
        assert (y.compression, y.compression_opts, y.shuffle, y.fletcher32) == ("gzip", 7, 1, 1)
        # what tells how x is packed would be wrong of y, and its dimension lies in another file
        assert {key: list(np.ravel(value)) for key, value in y.attrs.items()} == {
            "units": ["K"], "levels": [1, 2],
        }  # fmt: skip


def test_other_datasets_of_a_file_stay(tmp_path, h5py):
    x, old = table((50, 4)), np.arange(3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.update({"x": x, "old": old, "replaced": old})
    os.chmod(tmp_path / "a.h5", 0o600)
    outofcore.scale_file(f"{tmp_path}/a.h5:/x", f"{tmp_path}/a.h5:/replaced")
    outofcore.scale_file(x, f"{tmp_path}/a.h5:/new", block_bytes=100)
    np.save(tmp_path / "f.npy", np.asfortranarray(x))
    outofcore.scale_file(tmp_path / "f.npy", f"{tmp_path}/a.h5:/group/fortran", block_bytes=100)
    with h5py.File(tmp_path / "a.h5") as file:
        for name in ("replaced", "new", "group/fortran"):
            np.testing.assert_allclose(file[name], oracle(x, 0, "standard"), rtol=1e-12)
        np.testing.assert_array_equal(file["x"], x)
        np.testing.assert_array_equal(file["old"], old)
    assert (tmp_path / "a.h5").stat().st_mode & 0o777 == 0o600
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "f.npy"]


def test_an_open_dataset_is_a_source(tmp_path, h5py):
    x = table((50, 4), "float32")
    x[3] = np.nan
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = x
        found = outofcore.moments(file["x"], block_bytes=100)
        np.testing.assert_allclose(found.mean, np.nanmean(x, 0, "f8"), rtol=1e-6)
        np.testing.assert_array_equal(found.count, 49)
        assert outofcore.fit(file["x"], method="minmax").dtype == np.float32
        outofcore.scale_file(file["x"], tmp_path / "out.npy", block_bytes=100)
        with pytest.raises(ValueError, match="target: expected another file than the source"):
            outofcore.scale_file(file["x"], f"{tmp_path}/a.h5:/y")
        with pytest.raises(TypeError, match="x: expected an array, got Dataset: scale_file scales"):
            outofcore.scale(file["x"])
        closed = file["x"]
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), oracle(x, 0, "standard"), atol=1e-5)
    with pytest.raises(ValueError, match="x: expected an open dataset, got a closed one"):
        outofcore.moments(closed)


def test_bad_datasets_are_refused_by_name(tmp_path, h5py, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with h5py.File("a.h5", "w") as file:
        file.update({"x": table((50, 4)), "g/x": 1.0, "text": ["a"], "none": np.zeros((0, 3))})
        file["empty"] = h5py.Empty("f4")
        file["complex"] = np.zeros((3, 3), "c8")
    content = (tmp_path / "a.h5").read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "bad.h5").write_bytes(b"no HDF5 at all" * 100)
    before = sorted(os.listdir())
    for source, target, message in [
        ("a.h5", "o.npy", "a.h5: expected the name of a dataset, as a.h5:/name"),
        ("a.h5:/other", "o.npy", "a.h5:/other: expected a dataset, got nothing"),
        ("a.h5:/g", "o.npy", "a.h5:/g: expected a dataset, got a Group"),
        ("a.h5:/", "o.npy", "a.h5:/: expected a dataset, got a Group"),
        ("a.h5:/text", "o.npy", "source: expected float16, .*, got object in .*a.h5:/text"),
        ("a.h5:/complex", "o.npy", "source: expected float16, .*, got complex64 in .*:/complex"),
        ("a.h5:/none", "o.npy", r"a.h5:/none: expected an array with elements, got .*\(0, 3\)"),
        ("a.h5:/empty", "o.npy", "a.h5:/empty: expected an array with elements"),
        ("a.h5:/g/x", "o.npy", "a.h5:/g/x: expected at least 1 dimension, got a scalar"),
        ("bad.h5:/x", "o.npy", "bad.h5:/x: .*file signature not found"),
        ("cut.h5:/x", "o.npy", "cut.h5:/x: .*truncated file"),
        ("other.h5:/x", "o.npy", r"No such file or directory: 'other.h5"),
        ("a.h5:/x", "a.h5:/x", "target: expected another file than the source, got a.h5:/x"),
        ("a.h5:/x", "a.h5://g/../x", "target: expected another file than the source"),
        ("a.h5:/x", "a.h5:/g", "a.h5:/g: expected the name of a dataset, got a Group"),
        ("a.h5:/x", "a.h5:/", "a.h5:/: expected the name of a dataset, got a Group"),
        ("a.h5:/x", "a.h5:/text/x", "a.h5:/text/x: "),
        ("a.h5:/x", "bad.h5:/x", "bad.h5:/x: .*file signature not found"),
        ("a.h5:/x", "o.h5", "target: expected the name of a dataset, as o.h5:/name, got o.h5"),
        ("a.h5:/x", "none/o.h5:/x", "No such file or directory: 'none/o.h5:/x'"),
    ]:
        with pytest.raises((ValueError, TypeError, OSError), match=message):
            outofcore.scale_file(source, target)
        assert sorted(os.listdir()) == before
    assert (tmp_path / "a.h5").read_bytes() == content


def test_a_full_disk_is_an_error_and_hdf5_lives_on(tmp_path, h5py):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file["plain"] = np.random.default_rng(0).normal(size=(50_000, 4))
        file.create_dataset("packed", data=file["plain"][...], chunks=(1000, 4), compression=4)
        file["few"] = file["plain"][:10]
    code = """
import os, resource
from fastnorm import outofcore
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
for source in ("in.h5:/plain", "in.h5:/packed"):
    for block_bytes in (9999, 1 << 26):
        try:
            outofcore.scale_file(source, "out.h5:/x", block_bytes=block_bytes)
        except OSError as error:
            print(error)
outofcore.scale_file("in.h5:/few", "out.h5:/x")
print(os.listdir())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True,
                          text=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stderr
    *errors, left = done.stdout.splitlines()
    assert errors == ["[Errno 27] File too large: 'out.h5:/x'"] * 4
    assert sorted(eval(left)) == ["in.h5", "out.h5"]


# ---- pandas ----------------------------------------------------------------------------------


@pytest.fixture
def pandas():
    return pytest.importorskip("pandas")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_a_frame_keeps_index_columns_and_attributes(pandas, method, dtype):
    index = pandas.MultiIndex.from_product([["a", "b"], range(10)], names=["batch", "number"])
    columns = pandas.Index(["x", "y", "x"], name="what")  # not distinct
    frame = pandas.DataFrame(table((20, 3), dtype), index, columns)
    frame.attrs["source"] = "here"
    before = frame.copy()
    for labels in (None, frame.index.get_level_values("batch")):
        scaled = outofcore.scale(frame, method=method, groups=labels)
        want = oracle(frame.to_numpy(), 0, method)
        if labels is not None:
            parts = [oracle(frame.to_numpy()[labels == each], 0, method) for each in "ab"]
            want = np.concatenate(parts)
        wanted = pandas.DataFrame(want, index, columns).astype(
            np.float64 if dtype == "int32" else dtype
        )
        pandas.testing.assert_frame_equal(scaled, wanted, rtol=1e-5, atol=1e-5)
        assert scaled.attrs == {"source": "here"}
    pandas.testing.assert_frame_equal(frame, before)


def test_columns_of_several_types_keep_their_own(pandas):
    frame = pandas.DataFrame({
        "narrow": np.float32([1, 2, 6]), "whole": [1, 2, 3], "flag": [True, False, True],
        "known": pandas.array([1, None, 5], "Int64"), "some": pandas.array([1, 3, None], "Float32"),
        "few": pandas.arrays.SparseArray([0.0, 0, 3]), "gap": [1.0, np.nan, 5],
    })  # fmt: skip
    scaled = outofcore.scale(frame)
    assert [str(dtype) for dtype in scaled.dtypes] == [
        "float32", "float64", "float64", "Float64", "Float32", "float64", "float64",
    ]  # fmt: skip
    assert scaled["known"].isna().tolist() == [False, True, False]
    for name in frame:
        values = frame[name].to_numpy(float, na_value=np.nan)
        got = scaled[name].to_numpy(float, na_value=np.nan)
        np.testing.assert_allclose(got, oracle(values, 0, "standard"), atol=1e-6)
        alone = outofcore.scale(frame[name])
        pandas.testing.assert_series_equal(alone, scaled[name], rtol=1e-6)
    found = outofcore.moments(frame)
    np.testing.assert_allclose(found.mean, [3, 2, 2 / 3, 3, 2, 1, 3])
    np.testing.assert_allclose(found.count, [3, 3, 3, 2, 2, 3, 2])
    wide = outofcore.scale(frame, axis=[1])
    values = frame.astype(float).to_numpy()
    np.testing.assert_allclose(wide.astype(float), oracle(values, 1, "standard"), atol=1e-6)


def test_what_is_no_number_is_refused_by_column(pandas):
    good = pandas.DataFrame({"a": [1.0, 2]})
    for values in (
        ["x", "y"], pandas.Categorical([1, 2]), pandas.to_datetime(["2020", "2021"]),
        np.array([1, 2], object), [1j, 2j], pandas.arrays.IntervalArray.from_breaks([0, 1, 2]),
    ):  # fmt: skip
        for call in (outofcore.scale, outofcore.moments, outofcore.fit):
            with pytest.raises(TypeError, match=r"x: expected float16, .* in column 'b'"):
                call(good.assign(b=values))
    for empty in (good.iloc[:0], good[[]]):
        with pytest.raises(ValueError, match="x: expected an array with elements"):
            outofcore.scale(empty)


# ---- xarray ----------------------------------------------------------------------------------


@pytest.fixture
def grid():
    xarray = pytest.importorskip("xarray")
    grid = xarray.DataArray(
        table((30, 4, 5), "float32"), dims=("time", "y", "x"), name="temperature",
        coords={"time": np.arange(30), "lat": (("y", "x"), np.ones((4, 5)))},
        attrs={"units": "K"},
    )  # fmt: skip
    grid.encoding = {"dtype": "int16", "scale_factor": 0.1}
    return grid


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("axis", "axes"),
    [(None, (0, 1)), (0, 0), ("time", 0), (["time", "x"], (0, 2)), (("y", 0), (0, 1))],
)
def test_a_data_array_keeps_its_labels(grid, lazy, method, axis, axes):
    if lazy:
        pytest.importorskip("dask.array")
    given = grid.chunk({"time": 7, "x": 3}) if lazy else grid
    scaled = outofcore.scale(given, axis, method=method)
    assert type(scaled) is type(grid)
    assert (scaled.chunks is not None) == lazy
    np.testing.assert_allclose(scaled.values, oracle(grid.values, axes, method), atol=1e-5)
    assert (scaled.dims, scaled.name, scaled.dtype) == (grid.dims, "temperature", np.float32)
    assert scaled.attrs == {"units": "K"}
    assert scaled.encoding == {}  # a file would hold whole numbers
    assert scaled.coords.equals(grid.coords)
    found = outofcore.moments(given, axis)
    np.testing.assert_allclose(found.mean, grid.values.mean(axes, "f8"), rtol=1e-6)


def test_data_arrays_with_statistics_groups_and_errors(grid):
    xarray = pytest.importorskip("xarray")
    month = grid.time.values % 3
    scaled = outofcore.scale(grid, "time", groups=xarray.DataArray(month, dims="time"))
    for each in range(3):
        np.testing.assert_allclose(scaled.values[month == each].mean(0), 0, atol=1e-6)
    stats = outofcore.fit(grid, "time")
    half = outofcore.scale(grid[:15], "time", stats=stats)
    np.testing.assert_allclose(half, oracle(grid.values, 0, "standard")[:15], atol=1e-5)
    for axis in ("z", ["time", "z"]):
        with pytest.raises(ValueError, match=r"axis: expected names among \('time', 'y', 'x'\)"):
            outofcore.scale(grid, axis)
    with pytest.raises(TypeError, match=r"x: expected .*, got Dataset"):
        outofcore.scale(grid.to_dataset())
    mapped = grid.to_dataset().map(outofcore.scale, keep_attrs=True, axis="time")
    assert mapped.temperature.attrs == {"units": "K"}


# ---- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "bool"])
@pytest.mark.parametrize("order", "CF")
def test_what_is_masked_counts_as_missing(tmp_path, method, dtype, order):
    x = table((60, 4), order=order)
    x = x > 50 if dtype == "bool" else x.astype(dtype)
    mask = np.random.default_rng(1).random(x.shape) < 0.2
    mask[:, 3] = True
    x[mask] = 1 if dtype == "bool" else -9999
    known = np.where(mask, np.nan, x)
    masked = np.ma.masked_array(x, mask, fill_value=x.dtype.type(1))
    before = masked.copy()
    np.testing.assert_array_equal(outofcore.moments(masked).count, (~mask).sum(0))
    with warnings.catch_warnings(action="ignore"):  # NumPy's, of a column without values
        want, mean = oracle(known, 0, method), np.nanmean(known, 0)
    np.testing.assert_allclose(outofcore.moments(masked).mean[:3], mean[:3], rtol=1e-6)
    scaled = outofcore.scale(masked, method=method)
    assert isinstance(scaled, np.ma.MaskedArray)
    np.testing.assert_array_equal(np.ma.getmaskarray(scaled), mask)
    np.testing.assert_allclose(scaled.filled(np.nan), want, atol=1e-5)
    assert scaled.fill_value == 1
    outofcore.scale_file(masked, tmp_path / "out.npy", method=method, block_bytes=100)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), want, atol=1e-5)
    np.testing.assert_array_equal(masked.data, before.data)
    np.testing.assert_array_equal(masked.mask, before.mask)


def test_the_example_of_a_mask():
    x = np.ma.masked_array([[1.0], [2], [3], [-9999]], mask=[[0], [0], [0], [1]])
    assert outofcore.moments(x).mean == 2
    assert outofcore.moments(x.astype(int), block_bytes=8).mean == 2
    np.testing.assert_allclose(outofcore.scale(x).compressed(), [-(1.5**0.5), 0, 1.5**0.5])
    x[1] = np.nan  # missing, but not masked: stays so
    scaled = outofcore.scale(x)
    np.testing.assert_array_equal(np.ma.getdata(scaled[:3]), [[-1], [np.nan], [1]])
    assert scaled.mask.ravel().tolist() == [False, False, False, True]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", ["float32", "int64"])
@pytest.mark.parametrize("labels", [None, np.arange(60) % 2])
def test_masked_dask_arrays(method, dtype, labels):
    da = pytest.importorskip("dask.array")
    x = table((60, 4), dtype)
    x[::5, 1] = -9999
    x[::7] = -9999
    lazy = da.ma.masked_equal(da.from_array(x, (17, 3)), -9999)
    mask = x == -9999
    known = np.where(mask, np.nan, x)
    want = oracle(known, 0, method)
    if labels is not None:
        for each in range(2):
            want[labels == each] = oracle(known[labels == each], 0, method)
    np.testing.assert_array_equal(outofcore.moments(lazy).count, (~mask).sum(0))
    np.testing.assert_allclose(outofcore.moments(lazy).mean, np.nanmean(known, 0), rtol=1e-6)
    scaled = outofcore.scale(lazy, method=method, groups=labels).compute()
    np.testing.assert_array_equal(np.ma.getmaskarray(scaled), mask)
    np.testing.assert_allclose(scaled.filled(np.nan), want, atol=1e-5)


def test_what_is_not_given_is_not_imported():
    code = """
import sys, numpy as np
from fastnorm import outofcore
outofcore.scale(np.ones((3, 2)), groups=["a", "b", "a"])
print(*(name for name in ("h5py", "pandas", "xarray", "dask", "tqdm") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_missing_extra_is_named(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    np.save(tmp_path / "a.npy", table((4, 3)))
    code = "import sys; sys.modules['h5py'] = None; from fastnorm.cli import main; main()"
    for names in (["a.h5:/x", "out.npy"], ["a.npy", "out.h5:/x"]):
        done = subprocess.run([sys.executable, "-c", code, "scale", *names],
                              cwd=tmp_path, capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 1
        assert 'h5py is missing: pip install "fastnorm-cpu[hdf5]"' in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5", "a.npy"]


def test_a_value_to_fill_in_that_float16_does_not_hold():
    x = np.ma.array(np.array([[1], [2], [3]], "f2"), mask=[[0], [0], [1]])
    with np.errstate(all="raise"):
        y = outofcore.scale(x)
    np.testing.assert_array_equal(y.compressed(), [-1, 1])


SIGNALLED = """
import signal, sys, fastnorm.outofcore as outofcore
def stop(number, frame):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
wait = float(sys.argv[3])
written = outofcore._hdf5._Writer.write
def write(self, data):  # while HDF5 writes
    global wait
    wait -= 1
    if wait == 0:
        signal.raise_signal(signal.SIGALRM)
    return written(self, data)
outofcore._hdf5._Writer.write = write
try:
    outofcore.scale_file(sys.argv[1], sys.argv[2], block_bytes=64_000)
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("writes", [1, 2, 7, 30])
def test_a_signal_while_hdf5_writes(tmp_path, h5py, writes):
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.create_dataset("x", data=table((20_000, 8)), chunks=(500, 8), compression="gzip")
    names = f"{tmp_path}/in.h5:/x", f"{tmp_path}/out.h5:/y"
    done = subprocess.run([sys.executable, "-c", SIGNALLED, *names, str(writes)],
                          capture_output=True, text=True, timeout=600)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopped\n", "")
    assert [path.name for path in tmp_path.iterdir()] == ["in.h5"]
