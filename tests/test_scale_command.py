"""`fastnorm scale` and `scale_file`: what they make, and clear words about what is wrong."""

import os
import subprocess
import sys

import numpy as np
import pytest
from tables import METHODS, oracle, table

from fastnorm import outofcore
from fastnorm.outofcore import _blocks

CONSOLE = [sys.executable, "-c", "from fastnorm.cli import main; main()"]


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
        ({"method": ["standard"]}, ValueError, "method: expected one of standard, minmax, got"),
        ({"axis": 2}, ValueError, "axis: expected axes in"),
        ({"axis": (0, 0)}, ValueError, "axis: expected distinct"),
        ({"axis": ()}, ValueError, "axis: expected at least one"),
        ({"axis": 0.5}, TypeError, "axis: expected an int"),
        ({"dtype": "int32"}, TypeError, "dtype: expected float16, float32 or float64, got 'int32"),
        ({"dtype": "f3"}, TypeError, "dtype: expected float16, float32 or float64, got 'f3'"),
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
    with pytest.raises(TypeError, match="target: expected the name of a file, got int"):
        outofcore.scale_file(source, 3)
    with pytest.raises(TypeError, match=r"expected an array or the name of an .* got list"):
        outofcore.scale_file([[1.0]], tmp_path / "out.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npy", "same.npy"]
    np.testing.assert_array_equal(np.load(source), table((10, 4)))


def test_a_source_that_shrinks_is_an_error(tmp_path, monkeypatch):
    np.save(tmp_path / "in.npy", table((1000, 4)))
    measure = _blocks.Pass.measure

    def shrinking(*arguments):
        measure(*arguments)
        os.truncate(tmp_path / "in.npy", 5000)

    monkeypatch.setattr(_blocks.Pass, "measure", shrinking)
    with pytest.raises(ValueError, match="cut short while it was read"):
        outofcore.scale_file(tmp_path / "in.npy", tmp_path / "out.npy", block_bytes=3200)
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_what_cannot_be_read_twice_or_replaced_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("in.npy", table((10, 4)))
    os.mkfifo("pipe")
    os.mkdir("folder")
    before = sorted(os.listdir())
    for source in ("pipe", "pipe:/x", "/dev/zero", "/dev/null"):
        name = source.partition(":")[0]
        for call in (
            lambda source=source: outofcore.scale_file(source, "out.npy"),
            lambda source=source: outofcore.moments(source),
            lambda source=source: outofcore.scale_file("in.npy", "out.npy", groups=source),
        ):
            with pytest.raises(ValueError, match=f"{name}: expected a regular file, which can be"):
                call()
    with pytest.raises(ValueError, match="pipe: expected a regular file"):
        outofcore.scale_file("in.npy", "out.npy", stats="pipe")
    for target in ("pipe", "folder", ".", "new/", "/dev/null"):
        with pytest.raises(ValueError, match=f"target: expected the name of a file, got {target}"):
            outofcore.scale_file("in.npy", target)
    for target in ("none/out.npy", "in.npy/out.npy", "n" * 256):
        with pytest.raises(OSError, match=f"'{target}'$"):
            outofcore.scale_file("in.npy", target)
    for source in ("none.npy", "folder", "in.npy/x", "n" * 256):
        with pytest.raises(OSError, match=f"'{source}'$"):
            outofcore.scale_file(source, "out.npy")
    assert sorted(os.listdir()) == before


# ---- the command -----------------------------------------------------------------------------


def scale(*arguments, code="", **options):
    command = [*CONSOLE[:2], code + CONSOLE[2], "scale", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **options)


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
        ([], 2, "Missing argument 'IN.npy'"),
        (["--output-dir", "."], 2, "Missing argument 'IN.npy'"),
        (["in.npy", "in.npy", "out.npy"], 2, "Several inputs need --output-dir"),
        (["in.npy", "./in.npy", "--output-dir", "o"], 2, "./in.npy would both become o/in.npy"),
        (["in.npy", "--output-dir", "."], 1, "Error: target: expected another file than the sou"),
        (["in.npy", "--output-dir", "o/o"], 1, "No such file or directory: 'o/o'"),
        (["in.npy", "--output-dir", "in.npy"], 2, "Directory 'in.npy' is a file"),
        (["in.npy", "none.npy", "--output-dir", "o"], 1, "No such file or directory: 'none.npy'"),
        (["-", "out.npy"], 2, "-: expected files, which can be read twice"),
        (["/dev/stdin", "out.npy"], 1, "Error: /dev/stdin: expected a regular file, which can be"),
        (["in.npy", "out.npy", "--stats", "in.npy"], 1, "Error: in.npy: expected statistics of"),
        (["in.npy", "out.npy", "--stats", "none"], 1, "No such file or directory: 'none'"),
        (
            ["in.npy", "out.npy", "--group-by", "in.npy"],
            1,
            "Error: groups: expected a vector of 10",
        ),
        (
            ["in.npy", "none.npy", "--output-dir", "o", "--group-by", "in.npy"],
            2,
            "--group-by: expected 2, one for each input",
        ),
    ],
)
def test_errors_of_the_command(tmp_path, arguments, code, message):
    np.save(tmp_path / "in.npy", table((10, 4)))
    done = scale(*arguments, cwd=tmp_path, input="")
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.npy"]


def test_statistics_several_files_and_groups(tmp_path):
    x, labels = table((60, 3)), np.array(["a", "b", "b"] * 20)
    for i in range(2):
        np.save(tmp_path / f"x{i}.npy", x[30 * i : 30 * i + 30])
        np.save(tmp_path / f"labels{i}.npy", labels[30 * i : 30 * i + 30])
    inputs, groups = ["x0.npy", "x1.npy"], ["--group-by=labels0.npy", "--group-by=labels1.npy"]
    for options in ([], groups):
        done = scale(*inputs, *options, "--output-dir=out/", "--save-stats=s.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        want = oracle(x, 0, "standard")
        for each in np.unique(labels) if options else []:
            want[labels == each] = oracle(x[labels == each], 0, "standard")
        got = np.concatenate([np.load(tmp_path / "out" / name) for name in inputs])
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
        done = scale("x1.npy", "again.npy", *options[1:], "--stats=s.json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        np.testing.assert_array_equal(np.load(tmp_path / "again.npy"), got[30:])


def test_the_command_reads_and_writes_hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    x = table((60, 3), "float32")
    with h5py.File(tmp_path / "in.h5", "w") as file:
        file.update({"a": x[:20], "group/b": x[20:]})
    done = scale("in.h5:/a", "in.h5:/group/b", "--output-dir", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "out" / "in.h5") as file:
        y = np.concatenate([file["a"], file["group/b"]])
    np.testing.assert_allclose(y, oracle(x, 0, "standard"), atol=1e-5)


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
        [*CONSOLE[:2], code + CONSOLE[2], "--help"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0
    assert "scale" in done.stdout
    assert "is missing: pip install" in done.stdout
