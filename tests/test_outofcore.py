"""Files and dask arrays, block by block: as in memory, within a memory limit, all or nothing."""

import os
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest

import fastnorm
from fastnorm import _npy, outofcore

METHODS = ["standard", "minmax"]
CONSOLE = [sys.executable, "-c", "from fastnorm.cli import main; main()"]


def oracle(x, axis, method):
    """Two passes of NumPy in long double; NaN is missing."""
    x = np.asarray(x, np.longdouble)
    if method == "standard":
        center = np.nanmean(x, axis, keepdims=True)
        width = np.sqrt(np.nanmean((x - center) ** 2, axis, keepdims=True))
    else:
        center = np.nanmin(x, axis, keepdims=True)
        width = np.nanmax(x, axis, keepdims=True) - center
    return ((x - center) / np.where(width, width, 1)).astype(np.float64)


def table(shape, dtype="float64", order="C"):
    x = np.random.default_rng(0).normal(50, 20, shape)
    return np.asarray(x, dtype, order=order)


def scaled(tmp_path, x, **options):
    np.save(tmp_path / "in.npy", x)
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npy", "out.npy"]
    return np.load(tmp_path / "out.npy")


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
    pieces = [x[index] for index in _npy.split(x.shape, elements)]
    assert max(piece.size for piece in pieces) <= elements
    np.testing.assert_array_equal(np.concatenate([p.ravel() for p in pieces]), x.ravel())


# ---- memory ----------------------------------------------------------------------------------

WITHIN_A_LIMIT = """
import re, resource, sys
from fastnorm import outofcore
source, target, method = sys.argv[1:]
block, mebi = 16 << 20, 1 << 20
def status(name):
    return int(re.search(name + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) << 10
warm = outofcore.np.ones((64, 8), "f4")
outofcore.moments(warm)  # threads and code are there
limit = status("VmSize") + 150 * mebi
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before = status("VmRSS")
outofcore.scale_file(source, target, method=method, block_bytes=block)
print((status("VmHWM") - before) / block)
"""


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
        capture_output=True, text=True, timeout=120,
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


# ---- all or nothing --------------------------------------------------------------------------

# stops in the second pass, half of the output written, until a signal comes
HALF_WAY = """
import sys, time
from fastnorm import cli, outofcore
apply, calls = outofcore.apply, []
def slow(*arguments):
    calls.append(1)
    if len(calls) == 5:
        print("half", flush=True)
        time.sleep(100)
    return apply(*arguments)
outofcore.apply = slow
sys.argv = ["fastnorm", "scale", *sys.argv[1:], "--block-bytes", "80000"]
cli.main()
"""


@pytest.mark.parametrize("old", [b"what was there", None])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_what_was_there(tmp_path, old, sent, code):
    np.save(tmp_path / "in.npy", table((10_000, 10)))
    if old is not None:
        (tmp_path / "out.npy").write_bytes(old)
    process = subprocess.Popen(
        [sys.executable, "-c", HALF_WAY, tmp_path / "in.npy", tmp_path / "out.npy"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "half\n"
        (unfinished,) = set(tmp_path.iterdir()) - {tmp_path / "in.npy", tmp_path / "out.npy"}
        assert unfinished.stat().st_size > 200_000
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.name != "in.npy"}
    assert left == ({} if old is None else {"out.npy": old})


def test_an_existing_output_is_replaced_when_all_is_written(tmp_path, monkeypatch):
    x = table((100, 4))
    target = tmp_path / "out.npy"
    target.write_bytes(b"old")
    seen = []
    apply = outofcore.apply
    monkeypatch.setattr(
        outofcore, "apply", lambda *a: (seen.append(target.read_bytes()), apply(*a))
    )
    y = scaled(tmp_path, x, block_bytes=320)
    assert seen == [b"old"] * 10
    np.testing.assert_allclose(y, oracle(x, 0, "standard"), rtol=1e-12, atol=1e-12)


def test_a_link_stays_one_and_permissions_are_the_usual_ones(tmp_path):
    np.save(tmp_path / "in.npy", table((100, 4)))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.npy").symlink_to(tmp_path / "elsewhere" / "real.npy")
    outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy")
    assert (tmp_path / "out.npy").is_symlink()
    real = tmp_path / "elsewhere" / "real.npy"
    assert list((tmp_path / "elsewhere").iterdir()) == [real]
    assert real.stat().st_mode == (tmp_path / "in.npy").stat().st_mode


# ---- bad input -------------------------------------------------------------------------------


def bad_file(path, kind):
    x = table((100, 4))
    if kind == "text":
        path.write_text("1,2,3\n" * 100)
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "cut":
        np.save(path, x)
        path.write_bytes(path.read_bytes()[:-8])
    elif kind == "infinity":
        x[50, 1] = np.inf
        np.save(path, x)
    else:
        np.save(path, np.zeros({"empty": (0, 4), "scalar": ()}.get(kind, (9, 4)),
                               {"complex": "c16", "dates": "M8[s]"}.get(kind, "f8")))  # fmt: skip


BAD_FILES = [
    ("missing", OSError, "No such file"),
    ("text", ValueError, "in.npy: expected an .npy file"),
    ("nothing", ValueError, "in.npy: expected an .npy file"),
    ("cut", ValueError, "in.npy: expected 3200 bytes of data, got 3192"),
    ("empty", ValueError, r"in.npy: expected an array with elements, got shape \(0, 4\)"),
    ("scalar", ValueError, "expected at least 1 dimension, got a scalar"),
    ("complex", TypeError, "source: expected float16, .*, got complex128"),
    ("dates", TypeError, "source: expected float16, .*, got datetime64"),
    ("infinity", ValueError, "values: expected finite values or NaN, got infinity"),
]


@pytest.mark.parametrize(("kind", "error", "message"), BAD_FILES)
@pytest.mark.parametrize("method", METHODS)
def test_bad_files(tmp_path, kind, error, message, method):
    if kind != "missing":
        bad_file(tmp_path / "in.npy", kind)
    (tmp_path / "out.npy").write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        outofcore.scale_file(
            tmp_path / "in.npy", tmp_path / "out.npy", method=method, block_bytes=300
        )
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "out.npy").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"method": "robust"},
            ValueError,
            "method: expected one of standard, minmax, got 'robust'",
        ),
        ({"axis": 2}, ValueError, "axis: expected axes in"),
        ({"axis": (0, 0)}, ValueError, "axis: expected distinct"),
        ({"axis": ()}, ValueError, "axis: expected at least one"),
        ({"axis": 0.5}, TypeError, "axis: expected an int"),
        ({"dtype": "int32"}, TypeError, "dtype: expected float16, float32 or float64, got int32"),
        ({"block_bytes": 0}, ValueError, "block_bytes: expected at least 1, got 0"),
        ({"block_bytes": 1e6}, TypeError, "block_bytes: expected an int, got float"),
    ],
)
def test_bad_options(tmp_path, options, error, message):
    np.save(tmp_path / "in.npy", table((10, 4)))
    with pytest.raises(error, match=message):
        outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_bad_targets_and_sources(tmp_path):
    source = tmp_path / "in.npy"
    np.save(source, table((10, 4)))
    os.link(source, tmp_path / "same.npy")
    for target, error, message in [
        (source, ValueError, "target: expected another file than the source"),
        (tmp_path / "same.npy", ValueError, "target: expected another file than the source"),
        (tmp_path, ValueError, "target: expected the name of a file"),
        (tmp_path / "none" / "out.npy", OSError, "none"),
    ]:
        with pytest.raises(error, match=message):
            outofcore.scale_file(source, target)
    with pytest.raises(ValueError, match="another file"):
        outofcore.scale_file(np.load(source, mmap_mode="r"), source)
    with pytest.raises(TypeError, match=r"expected an array or the name of an .* got list"):
        outofcore.scale_file([[1.0]], tmp_path / "out.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "same.npy"]
    np.testing.assert_array_equal(np.load(source), table((10, 4)))


def test_a_source_that_shrinks_is_an_error(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", table((1000, 4)))
    statistics = outofcore._statistics

    def shrinking(*arguments):
        found = statistics(*arguments)
        os.truncate(tmp_path / "in.npy", 5000)
        return found

    monkeypatch.setattr(outofcore, "_statistics", shrinking)
    with pytest.raises(ValueError, match="cut short while it was read"):
        outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", block_bytes=3200)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


# ---- the command -----------------------------------------------------------------------------


def scale(*arguments, code="", **options):
    command = [*CONSOLE[:2], code + CONSOLE[2], "scale", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def test_the_command(tmp_path):
    x = table((300, 4, 3), "float32")
    np.save(tmp_path / "in.npy", x)
    files = tmp_path / "in.npy", tmp_path / "out.npy"
    done = scale(*files, "--method", "minmax", "--axis", "0,-1", "--dtype", "float64",
                 "--block-bytes", "1000", "--progress")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr
    np.testing.assert_allclose(np.load(files[1]), oracle(x, (0, 2), "minmax"), atol=1e-12)
    done = scale(*files)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    np.testing.assert_allclose(np.load(files[1]), oracle(x, (0, 1), "standard"), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.npy", "out.npy"], 1, "Error: [Errno 2] No such file or directory: 'none.npy'"),
        (["in.npy", "in.npy"], 1, "Error: target: expected another file than the source"),
        (["in.npy", "out.npy", "--axis", "5"], 1, "Error: axis: expected axes in"),
        (["in.npy", "out.npy", "--axis", "a"], 2, "'a': expected whole numbers, such as 0,1"),
        (["in.npy", "out.npy", "--method", "robust"], 2, "'robust' is not one of"),
        (["in.npy", "out.npy", "--block-bytes", "0"], 2, "0 is not in the range x>=1"),
        (["in.npy"], 2, "Missing argument 'OUT.npy'"),
    ],
)
def test_errors_of_the_command(tmp_path, arguments, code, message):
    np.save(tmp_path / "in.npy", table((10, 4)))
    done = scale(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_a_full_disk_is_an_error(tmp_path):
    np.save(tmp_path / "in.npy", table((5000, 4)))
    limit = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (100_000, 100_000)); "
    done = scale("in.npy", "out.npy", "--block-bytes", "9999", code=limit, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: [Errno 27]")
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


@pytest.mark.parametrize("missing", ["click", "tqdm"])
def test_the_command_names_the_extra_that_is_missing(tmp_path, missing):
    np.save(tmp_path / "in.npy", table((10, 4)))
    code = f"import sys; sys.modules['{missing}'] = None; "
    done = scale("in.npy", "out.npy", "--progress", code=code, cwd=tmp_path)
    assert done.returncode == 1
    assert f'{missing} is missing: pip install "fastnorm-cpu[scale]"\n' in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_a_command_works_without_the_extra_of_the_other(tmp_path):
    np.save(tmp_path / "in.npy", table((10, 4)))
    code = "import sys; sys.modules['rich'] = None; "
    assert scale("in.npy", "out.npy", code=code, cwd=tmp_path).returncode == 0
    done = subprocess.run([*CONSOLE[:2], f"{code}import rich.console"], capture_output=True)
    assert done.returncode == 1  # rich is away indeed
    done = subprocess.run(
        [*CONSOLE[:2], code + CONSOLE[2], "--help"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0
    assert "scale" in done.stdout
    assert "is missing: pip install" in done.stdout


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


def test_bad_dask_input(da):
    x = da.ones((4, 3))
    for call, error, message in [
        (lambda: outofcore.scale(np.ones((4, 3))), TypeError, "x: expected a dask array, got nda"),
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
